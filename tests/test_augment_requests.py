"""Requests of the Augmentation page: pictures, epochs, label preservation in steps, own images, saved policies."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallalign_core import data
from smallalign_core.analysis import label_preservation
from smallalign_core.augment import Views
from smallalign_core.data import Splits
from smallalign_core.errors import BadData, BadInput, BadSpec, Refused
from smallalign_core.runs import policies
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api
from smallalign_core.service.requests import AugmentBatch, AugmentImages, CheckLabels, Pixels
from smallalign_core.spec import Augment, members, parse_data, parse_policy
from smallalign_core.spec.augment import GROUPS
from smallalign_core.system import resumable

ZOO = Store()
DIGITS = parse_data("digits")
FLIP = parse_policy(["flip"])
MOVES: list[Any] = [{"kind": "rotate", "degrees": 20}, {"kind": "noise", "probability": 1}]


@pytest.mark.parametrize("policy", [MOVES, [*MOVES, "cutmix"], [{"kind": "mixup", "alpha": 1}]])
def test_an_epoch_shows_the_very_batches_of_training(policy: list[Any], digits: Splits) -> None:
    epoch, batch, seed = 3, 64, 5
    found = augmentation_api.epoch(
        ZOO, AugmentBatch(parse_policy(policy), DIGITS, epoch=epoch, images=40, batch=batch, seed=seed)
    )

    run = Views(digits.train, parse_policy(policy), batch=batch, seed=seed)
    step, place = divmod(epoch * len(digits.train), batch)
    steps = [run(step), run(step + 1)]
    rows = np.concatenate([one.rows for one in steps])[place : place + 40]
    images = np.concatenate([one.images for one in steps])[place : place + 40]
    labels = np.concatenate([one.labels for one in steps])[place : place + 40]
    shown = found.images.array()
    assert place, "the epoch begins within a batch"
    assert found.rows == tuple(rows.tolist())
    assert np.array_equal(shown[:, 1], images)
    assert np.array_equal(shown[:, 0], digits.train.images[rows])
    for label, shares in zip(labels, found.mixed, strict=True):
        if shares is None:
            assert label.ndim == 0
        else:
            assert shares[0][0] == digits.classes[label.argmax()]
            assert sum(share for _, share in shares) == pytest.approx(1, abs=0.011)


def test_mixed_views_in_the_grid_are_training_s_too(digits: Splits) -> None:
    found = augmentation_api.views(
        ZOO,
        AugmentImages(parse_policy(["shift", "mixup"]), DIGITS, rows=(7, 700), draws=3, first=2, batch=32, seed=9),
    )

    run = Views(digits.train, parse_policy(["shift", "mixup"]), batch=32, seed=9)
    met = 0
    for step in range(2 * len(digits.train) // 32, 5 * len(digits.train) // 32 + 1):
        one = run(step)
        for place, row in enumerate(one.rows.tolist()):
            epoch = (step * 32 + place) // len(digits.train)
            if row in (7, 700) and 2 <= epoch < 5:
                shown = found.images.array()[[7, 700].index(row), 1 + epoch - 2]
                assert np.array_equal(shown, one.images[place])
                met += 1
    assert met == 6


@pytest.mark.slow
def test_the_risk_comes_in_steps_and_is_the_same() -> None:
    request = CheckLabels(parse_policy([{"kind": "rotate", "degrees": 31}]), DIGITS, "digits-teacher")
    shares = []
    while (answer := augmentation_api.risk(ZOO, replace(request, patience=0))).report is None:
        shares.append(answer.done)
    assert len(shares) > 10
    assert shares == sorted(shares)

    augmentation_api._checks.clear()
    again = augmentation_api.risk(ZOO, request)

    assert again == answer
    assert again.report.changed.array().shape[:2] == (augmentation_api.PICTURED, 2)


@pytest.mark.slow
def test_a_judge_remembers_what_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = parse_policy([{"kind": "rotate", "degrees": 32}, {"kind": "shift", "pixels": 1}])
    first = augmentation_api.risk(ZOO, CheckLabels(policy, DIGITS, "digits-teacher", limit=0.05)).report
    monkeypatch.setattr(Views, "augmented", lambda *_: pytest.fail("the teacher was asked again"))

    judge = next(iter(augmentation_api._checks.values()))
    work = judge.report(policy, limit=0.5)
    with pytest.raises(StopIteration) as finished:
        next(work)

    assert finished.value.value.limit == 0.5
    assert finished.value.value.whole.flip_rate == first.report.whole.flip_rate


@pytest.mark.slow
def test_more_visitors_than_places_all_get_their_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a seed of their own, so with a judge of their own, and each asks again when it is their turn."""
    monkeypatch.setattr(resumable, "_table", resumable._Table())
    monkeypatch.setattr(augmentation_api, "_checks", OrderedDict())
    monkeypatch.setattr(label_preservation, "sample", lambda splits: (splits.val.take(np.arange(32)), 0))
    judges: list[int] = []
    prepare = label_preservation.LabelCheck.__init__
    monkeypatch.setattr(
        label_preservation.LabelCheck,
        "__init__",
        lambda self, *given, **more: (judges.append(1), prepare(self, *given, **more))[1],
    )
    request = CheckLabels(parse_policy([{"kind": "rotate", "degrees": 33}]), DIGITS, "digits-teacher")
    waiting = list(range(2 * max(augmentation_api.KEPT, resumable.KEPT) + 1))
    shares: dict[int, list[float]] = {seed: [] for seed in waiting}
    found: dict[int, Any] = {}
    rounds = 0
    while waiting:
        rounds += 1
        assert rounds < 1000, f"never answered: seeds {waiting}"
        for seed in list(waiting):
            answer = augmentation_api.risk(ZOO, replace(request, seed=seed, patience=0))
            shares[seed].append(answer.done)
            if answer.report is not None:
                found[seed] = answer
                waiting.remove(seed)

    assert len(found) == len(judges), "nobody's teacher was opened twice"
    assert all(one == sorted(one) for one in shares.values()), "no progress was lost"
    assert len(augmentation_api._checks) <= augmentation_api.KEPT
    assert found[0] == augmentation_api.risk(ZOO, request), "the answer of one who is alone"
    assert found[0].report != found[1].report


@pytest.mark.slow
def test_the_curve_stays_where_it_is_when_the_strength_moves() -> None:
    request = CheckLabels(parse_policy([{"kind": "rotate", "degrees": 30}]), DIGITS, "digits-teacher")
    one, half, nothing = (
        augmentation_api.risk(ZOO, replace(request, strength=strength)).report.report for strength in (1, 0.6, 0)
    )

    assert half.whole.strength == half.strength == 0.6
    assert half.parts[0].name == "rotate 18"
    assert [point for point in half.curve if point.strength != 0.6] == list(one.curve)
    assert half.suggested == one.suggested
    assert nothing.whole.flip_rate == 0


def test_an_image_of_ones_own_takes_the_size_and_colours_of_the_data(digits: Splits) -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, 40:] = (255, 0, 0)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")

    image = data.decode_one(file.getvalue(), (1, 8, 8))

    assert image.shape == (1, 8, 8)
    assert image[0, :, 0].max() == 0
    assert (image[0, :, 7] == 76).all(), "red as grey (ITU-R 601)"
    for policy in (["flip"], [{"kind": "mixup", "probability": 1}]):
        request = AugmentImages(parse_policy(policy), DIGITS, own=Pixels.of(image), draws=4, teacher="digits-teacher")
        found = augmentation_api.views(ZOO, request)
        assert np.array_equal(found.images.array()[0, 0], image)
        assert found.labels == (None,)
        assert found.said is not None
        assert len(found.said[0]) == 5
    request = AugmentImages(FLIP, DIGITS, own=Pixels.of(image), draws=8)
    flipped = augmentation_api.views(ZOO, request).images.array()[0]
    assert {image.tobytes(), image[..., ::-1].tobytes()} == {one.tobytes() for one in flipped}
    with pytest.raises(BadInput, match="size"):
        augmentation_api.views(ZOO, AugmentImages(FLIP, DIGITS, own=Pixels.of(np.zeros((3, 8, 8), np.uint8))))


def test_a_file_that_is_no_image_or_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadData, match="not an image"):
        data.decode_one(b"GIF89a", (3, 8, 8))
    huge = io.BytesIO()
    Image.new("1", (5001, 5000)).save(huge, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadData, match="25 million"):
        data.decode_one(huge.getvalue(), (3, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"strength": 2.1}, "between 0 and 2"), ({"seed": -1}, "out of range"), ({"rows": ()}, "Training image indices")],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        augmentation_api.views(ZOO, AugmentImages(FLIP, DIGITS, **options))


def test_images_come_from_all_classes_in_turn() -> None:
    labels = np.array([1, 1, 0, 2, 0, 1])
    assert augmentation_api.in_turn(labels, 4).tolist() == [2, 0, 3, 4]
    assert augmentation_api.in_turn(labels, 4, skip=4).tolist() == [1, 5]


def test_the_groups_of_the_menu_hold_every_part_once() -> None:
    assert sorted(part.__name__ for group in GROUPS.values() for part in group) == sorted(
        part.__name__ for part in members(Augment)
    )


# --- saved policies ---------------------------------------------------------------------------------------------------


def test_a_policy_is_saved_listed_loaded_and_deleted(tmp_path: Path) -> None:
    store, policy = Store(tmp_path / "models"), parse_policy(MOVES)
    assert policies.names(store) == []

    file = policies.save(store, "my-moves", policy)

    assert file == store.root / "policies/my-moves.yaml"
    assert policies.save(store, "my-moves", policy) == file, "an equal one is no conflict"
    with pytest.raises(Refused, match="A policy with that name exists"):
        policies.save(store, "my-moves", parse_policy(["flip"]))
    assert policies.load(store, "my-moves") == policy
    assert policies.names(store) == ["my-moves"]
    policies.delete(store, "my-moves")
    assert policies.names(store) == []
    with pytest.raises(BadSpec):
        policies.load(store, "my-moves")


@pytest.mark.parametrize("name", ["", "ab", "../runs", "A-b-c", "a" * 49, "a/b", "flip.yaml"])
def test_only_names_are_names(name: str, tmp_path: Path) -> None:
    for act in (lambda s: policies.save(s, name, parse_policy(["flip"])), lambda s: policies.delete(s, name)):
        with pytest.raises(Refused, match="3 to 48"):
            act(Store(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_damaged_policy_is_not_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    policies.save(store, "mine-own", parse_policy(["flip"]))
    (store.root / "policies/mine-own.yaml").write_text("- flop")

    with pytest.raises(Refused):
        policies.save(store, "mine-own", parse_policy(["flip"]))
    with pytest.raises(BadSpec, match="flop"):
        policies.load(store, "mine-own")
