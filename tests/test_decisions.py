"""Decisions about single images: what a run learns from, what its id is, and that nobody can change it afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smallalign_core import data
from smallalign_core.data import Decision, Decisions
from smallalign_core.errors import BadData
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, digest, parse
from smallalign_core.training.resolve import resolve


def written(tmp_path: Path, by_image: dict[int, Decision], name: str = "mine.json") -> str:
    file = tmp_path / name
    Decisions("digits", by_image).write(file)
    return str(file)


def test_decisions_drop_relabel_and_keep_by_what_an_image_shows(tmp_path: Path, store: Store) -> None:
    plain = data.load(DataSpec(source="digits"), store.data_cache)
    dropped, relabelled, val = int(plain.train.ids[5]), int(plain.train.ids[9]), int(plain.val.ids[0])
    test = int(plain.test.ids[0])
    file = written(
        tmp_path,
        {
            dropped: Decision("drop"),
            relabelled: Decision("relabel", "7"),
            val: Decision("drop"),
            test: Decision("drop"),
            int(plain.train.ids[1]): Decision("keep"),
        },
    )
    found = data.load(DataSpec(source="digits", decisions=file), store.data_cache)
    assert len(found.train) == len(plain.train) - 1
    assert dropped not in found.train.ids
    assert found.train.labels[found.train.ids == relabelled].tolist() == [7]
    assert len(found.val) == len(plain.val) - 1
    assert found.test.fingerprint == plain.test.fingerprint, "scores before and after are of the same test"
    assert "2 images were dropped or relabelled" in " ".join(found.notes)
    rest = ~np.isin(plain.train.ids, [dropped, relabelled])
    assert np.array_equal(
        plain.train.labels[rest], found.train.labels[~np.isin(found.train.ids, [dropped, relabelled])]
    )


def test_one_of_equal_images_is_kept() -> None:
    images = data.ImageSet(
        np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1]), np.array([5, 6, 5, 7], np.uint64), ("a", "b")
    )
    found = data.decided(images, Decisions("x", {5: Decision("once")}))
    assert found.ids.tolist() == [5, 6, 7]


def test_the_run_is_another_but_not_by_the_name_of_the_file(tmp_path: Path, store: Store) -> None:
    splits = data.load(DataSpec(source="digits"), store.data_cache)
    made = {int(splits.train.ids[5]): Decision("drop")}
    fields = {"data": {"source": "digits"}, "network": "mlp", "epochs": 1}
    plain = resolve(store, parse(fields))
    one, other = (
        resolve(store, parse(fields | {"data": {"source": "digits", "decisions": written(tmp_path, made, name)}}))
        for name in ("one.json", "other.json")
    )
    assert digest(one) == digest(other) != digest(plain)
    # Whoever goes on deciding changes another file.
    (tmp_path / "one.json").unlink()
    assert one.data.decisions is not None
    assert Path(one.data.decisions).parent == store.root.resolve() / "decisions" / "kept"
    assert len(data.load(one.data, store.data_cache).train) == len(splits.train) - 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"^The decisions file is damaged: no JSON, or changed since it was saved \("),
        ("[]", r"^Not a decisions file: no fields \("),
        ('{"schema": 2, "source": "digits"}', "^The decisions file is damaged"),
        ('{"source": "digits"}', r"^Not a decisions file: `decisions` is missing \("),
        (json.dumps({"source": "x", "decisions": [{"image": "zz", "what": "drop"}]}), "^Not a decisions file: "),
        (json.dumps({"source": "x", "decisions": [{"image": "1", "what": "burn"}]}), "burn"),
        (json.dumps({"source": "x", "decisions": [{"image": "1", "what": "relabel"}]}), "relabel"),
        (json.dumps({"source": "x", "decisions": [{"image": "1" * 40, "what": "drop"}]}), "no image is called"),
    ],
)
def test_what_is_no_file_of_decisions_is_refused(tmp_path: Path, store: Store, text: str, why: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(BadData, match=why):
        data.load(DataSpec(source="digits", decisions=str(file)), store.data_cache)


def test_a_changed_byte_is_noticed_and_missing_files_and_classes_are_named(tmp_path: Path, store: Store) -> None:
    splits = data.load(DataSpec(source="digits"), store.data_cache)
    file = Path(written(tmp_path, {int(splits.train.ids[5]): Decision("relabel", "3")}))
    file.write_text(file.read_text().replace('"3"', '"4"'))
    with pytest.raises(BadData, match="damaged"):
        data.load(DataSpec(source="digits", decisions=str(file)), store.data_cache)
    with pytest.raises(BadData, match="no such file"):
        data.load(DataSpec(source="digits", decisions=str(tmp_path / "none.json")), store.data_cache)
    unknown = written(tmp_path, {int(splits.train.ids[5]): Decision("relabel", "ten")})
    with pytest.raises(BadData, match="unknown class"):
        data.load(DataSpec(source="digits", decisions=unknown), store.data_cache)
    zeros = {int(one): Decision("drop") for one in splits.train.ids[splits.train.labels == 0]}
    with pytest.raises(BadData, match="without images"):
        data.load(DataSpec(source="digits", decisions=written(tmp_path, zeros)), store.data_cache)


def test_draws_are_nested_and_noise_is_of_the_image(store: Store) -> None:
    def drawn(**more: object) -> data.ImageSet:
        return data.load(DataSpec(source="digits", **more), store.data_cache).train  # type: ignore[arg-type]

    small, large = drawn(images=100, draw=3), drawn(images=400, draw=3)
    assert set(small.ids) < set(large.ids)
    assert set(small.ids) != set(drawn(images=100).ids)
    clean, noisy = drawn(draw=3), drawn(draw=3, noise=0.1)
    assert np.array_equal(clean.ids, noisy.ids)
    wrong = clean.labels != noisy.labels
    assert abs(wrong.mean() - 0.1) < 0.03  # 3.6 standard deviations of 1,295 draws
    moved = np.bincount((noisy.labels - clean.labels)[wrong] % 10, minlength=10)
    assert moved[0] == 0
    assert (moved[1:] > 0).all(), "each other class is as likely"
    both = drawn(images=400, draw=3, noise=0.1)
    by_id = dict(zip(noisy.ids.tolist(), noisy.labels.tolist(), strict=True))
    assert all(by_id[int(one)] == label for one, label in zip(both.ids, both.labels, strict=True))
    other = drawn(draw=4, noise=0.1)
    assert (noisy.labels != other.labels).any()
