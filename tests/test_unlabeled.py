"""Unlabeled images: read without labels, kept apart from what is held out, and taught by the teacher alone."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Train, program, tiny
from PIL import Image
from test_teacher_cache import Lesson, spec_of, weights

from smallalign_core import augment, data, export, networks
from smallalign_core.data import ImageSet, MappedRows, Splits
from smallalign_core.errors import BadData, BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.service import comparison_api
from smallalign_core.spec import DataSpec, canonical, digest, to_yaml
from smallalign_core.studies import ablation
from smallalign_core.system import usercode
from smallalign_core.training import losses
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import ClassBalance, NetworkOutput, cross_entropy


def pictures(folder: Path, images: np.ndarray, *, colour: bool = False) -> Path:
    """Grey images [N, 1, H, W] as PNG files in and below a folder."""
    for place, image in enumerate(images):
        file = folder / ("deeper" if place % 2 else "") / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        made = Image.fromarray(image[0])
        (Image.merge("RGB", [made, made.rotate(90), made]) if colour else made).save(file)
    return folder


def fresh(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def classifier(few: Splits) -> networks.Classifier:
    training = Training([tiny(network={"kind": "resnet", "width": 4}, epochs=4, batch=32)], few)
    list(training)
    return training.students[0].best()


@pytest.fixture(scope="module")
def more(few: Splits) -> Splits:
    """A few digits, and 150 pictures without labels."""
    ids = np.arange(150, dtype=np.uint64)
    unlabeled = ImageSet(fresh(150), np.full(150, -1), ids, few.classes)
    return Splits(few.train, few.val, few.test, unlabeled=unlabeled)


@pytest.fixture
def lesson(tmp_path: Path, classifier: networks.Classifier, more: Splits) -> Lesson:
    return Lesson(tmp_path / "teacher", classifier, more)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_without_what_is_labeled(digits: Splits, decoded: Path, tmp_path: Path) -> None:
    """Copies of held-out images would leak, those of training images count twice: both are left out, and counted."""
    parts = [fresh(9), digits.val.images[:2], digits.test.images[5:8], digits.train.images[:4]]
    folder = pictures(tmp_path / "more", np.concatenate(parts))
    found = data.load(DataSpec(source="digits", unlabeled=str(folder)), decoded)
    assert found.unlabeled is not None
    assert len(found.unlabeled) == 9
    assert (found.unlabeled.labels == -1).all()
    assert {image.tobytes() for image in found.unlabeled.images[:]} == {image.tobytes() for image in fresh(9)}
    (note,) = [note for note in found.notes if "unlabeled" in note]
    assert note.startswith(f"9 unlabeled images of {folder} are used; 5 that are validation or test images")
    assert note.endswith("4 that are training images were left out.")
    assert found.fingerprint == digits.fingerprint  # the labeled images are the same, and so are looks at test
    assert data.load(DataSpec(source="digits"), decoded).unlabeled is None


def test_the_rest_are_the_training_images_that_were_left_out(digits: Splits, decoded: Path) -> None:
    found = data.load(DataSpec(source="digits", images=100, unlabeled="rest"), decoded)
    assert found.unlabeled is not None
    kept = {*found.train.ids.tolist(), *found.unlabeled.ids.tolist()}
    assert kept == set(digits.train.ids.tolist())
    assert len(found.train) + len(found.unlabeled) <= len(digits.train)
    assert not {*found.unlabeled.ids.tolist()} & {*found.test.ids.tolist(), *found.val.ids.tolist()}
    with pytest.raises(ValueError, match="set `images`"):
        DataSpec(source="digits", unlabeled="rest")


def test_grey_images_join_colored_ones_and_not_the_other_way(digits: Splits, decoded: Path, tmp_path: Path) -> None:
    for place, name in enumerate(("a", "b")):
        pictures(tmp_path / "colored" / name, fresh(20, seed=place + 1), colour=True)
    grey = pictures(tmp_path / "grey", fresh(6))
    found = data.load(DataSpec(source=str(tmp_path / "colored"), unlabeled=str(grey)), tmp_path / "cache")
    assert found.unlabeled is not None
    assert found.learned.shape == (3, 8, 8)
    rows = np.arange(len(found.train), len(found.learned))
    assert sorted(image.tobytes() for image in found.learned.images[rows]) == sorted(
        np.repeat(image, 3, 0).tobytes() for image in fresh(6)
    )
    assert found.learned.images[int(rows[0])].shape == (3, 8, 8)
    with pytest.raises(BadData, match="shape of the labeled ones"):
        data.load(DataSpec(source="digits", unlabeled=str(tmp_path / "colored")), decoded)


def test_what_cannot_be_read_or_leaves_nothing_is_one_sentence(digits: Splits, decoded: Path, tmp_path: Path) -> None:
    empty, copies = tmp_path / "empty", pictures(tmp_path / "copies", digits.test.images[:3])
    empty.mkdir()
    (tmp_path / "labels.csv").write_text("file,label\n")
    for folder, words in (
        (tmp_path / "none", "not there"),
        (tmp_path / "labels.csv", "neither in a folder nor in a zip"),
        (empty, "no images"),
        (copies, "No unlabeled images are left"),
    ):
        with pytest.raises(BadData, match=words):
            data.load(DataSpec(source="digits", unlabeled=str(folder)), decoded)


def test_nothing_is_copied_to_join_them(more: Splits, few: Splits) -> None:
    assert isinstance(more.learned.images, MappedRows)
    assert few.learned is few.train
    rows = np.array([0, len(few.train), len(few.train) - 1, len(more.learned) - 1])
    assert np.array_equal(more.learned.images[rows[1:2]], more.unlabeled.images[:1])  # type: ignore[union-attr]
    assert np.array_equal(more.learned.images[rows][[0, 2]], few.train.images[[0, -1]])
    assert np.array_equal(more.learned.images[2:5], few.train.images[2:5])
    assert np.array_equal(more.learned.take(rows).images[1:2], more.unlabeled.images[:1])  # type: ignore[union-attr]


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_an_unlabeled_image_has_no_label_loss_and_all_of_the_teachers() -> None:
    f, labels = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([2, -1, 0, -1, 3])
    log_p = f.detach().log_softmax(1).numpy()
    expected = -(log_p[0, 2] + log_p[2, 0] + log_p[4, 3]) / 5
    found = cross_entropy(f, labels, balance=ClassBalance(partial=True))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert f.grad is not None
    assert (f.grad[[1, 3]] == 0).all()
    assert (f.grad[[0, 2, 4]] != 0).all()
    none = cross_entropy(f, torch.full((5,), -1), balance=ClassBalance(partial=True))
    assert float(none.detach()) == 0
    loss, teacher = tiny(teacher="t", loss="kd").loss, NetworkOutput(torch.randn(5, 4))
    terms = losses.terms(loss, NetworkOutput(f), teacher, labels, balance=ClassBalance(partial=True))
    same = losses.terms(loss, NetworkOutput(f), teacher, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(terms["teacher"], same["teacher"])


def test_a_loss_of_ones_own_gets_rows_of_zeros_for_unlabeled_images(tmp_path: Path) -> None:
    """F.cross_entropy of a user is then the library's label loss: no error for the class -1, and the same mean."""
    file = tmp_path / "own.py"
    text = "from torch.nn.functional import cross_entropy\ndef loss(student, teacher, labels):\n"
    file.write_text(
        text + "    return {'hard': cross_entropy(student, labels), 'soft': (student - teacher).square().mean()}\n"
    )
    usercode.trust(usercode.read(file)[1], file.name)
    own = tiny(teacher="t", loss={"kind": "python", "file": str(file), "labels_weight": 1}).loss
    student, teacher = NetworkOutput(torch.randn(5, 4)), NetworkOutput(torch.randn(5, 4))
    mixed = torch.tensor([[0, 0, 0.3, 0], [0, 1, 0, 0], [0.4, 0.6, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    for labels in (torch.tensor([2, -1, 0, -1, 3]), mixed):
        terms = losses.terms(own, student, teacher, labels, balance=ClassBalance(partial=True))
        assert terms["hard"].item() == pytest.approx(terms["labels"].item(), rel=1e-6)
        assert terms["hard"] > 0


def test_a_mixture_has_the_label_of_what_is_labeled(more: Splits) -> None:
    spec = tiny(teacher="t", augment=[{"kind": "mixup", "probability": 1}], batch=64)
    views = augment.of_run(spec, more.learned)
    batch = views(0)
    labeled, draws = torch.from_numpy(more.learned.labels)[batch.rows] >= 0, batch.labels.sum(1)
    assert batch.labels.min() >= 0
    assert (draws < 1 - 1e-6).any()
    assert (draws[labeled] > 0).all()
    assert (draws[~labeled] < 1).all()
    said = NetworkOutput(torch.randn(64, 10))
    classes = losses.classes_of(batch.labels, said)
    assert torch.equal(classes[draws < 0.5], said.logits.argmax(1)[draws < 0.5])
    assert torch.equal(classes[draws > 0.5], batch.labels.argmax(1)[draws > 0.5])


# --- training ---------------------------------------------------------------------------------------------------------

POLICIES: dict[str, dict[str, Any]] = {
    "clean": {},
    "stream": {"augment": ["shift"]},
    "fixed": {"augment": ["shift"], "views": 2},
    "mixup": {"augment": [{"kind": "mixup", "probability": 1}]},
    "sampled": {"balance": "sampling"},
    "shuffled": {"shuffled": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_training_ends_alike_whatever_is_cached_and_where_it_stopped(policy: Any, lesson: Lesson, few: Splits) -> None:
    spec = spec_of(epochs=2, loss={"kind": "kd", "weight": 0.5}, **policy)
    cold = lesson.train(spec)
    assert cold.steps == -(-2 * (len(few.train) + 150) // 32)  # an epoch passes through all of them
    warm = lesson.train(spec)
    assert weights(warm) == weights(cold)
    assert (lesson.answered, lesson.said) == (0, [])
    half = lesson.train(spec, stop=cold.steps // 2)
    assert weights(lesson.train(spec, state=copy.deepcopy(half.state()))) == weights(cold)
    lesson.digits = few
    assert weights(lesson.train(spec)) != weights(cold)


def test_each_image_is_met_once_an_epoch(more: Splits) -> None:
    views = augment.of_run(tiny(teacher="t", batch=10), more.learned)
    rows = np.concatenate([views.sample_indices(step)[0] for step in range(len(more.learned) // 10)])
    assert len(set(rows.tolist())) == len(rows)
    share = np.mean([(views(step).labels < 0).float().mean() for step in range(len(more.learned) // 10)])
    assert share == pytest.approx(150 / len(more.learned), abs=0.02)


# --- specs and entry points -------------------------------------------------------------------------------------------


def test_a_spec_needs_a_teacher_and_a_loss_that_needs_no_label() -> None:
    unlabeled = {"source": "digits", "unlabeled": "more"}
    for fields, words in (
        ({"data": unlabeled}, "has no targets without a teacher"),
        ({"data": unlabeled, "teacher": "t", "loss": "dkd"}, "needs the label of every image"),
        ({"data": {"source": "digits", "unlabeled": "digits"}, "teacher": "t"}, "no labeled images"),
    ):
        with pytest.raises(BadSpec, match=words):
            tiny(**fields)
    spec = tiny(data=unlabeled, teacher="t")
    assert yaml.safe_load(to_yaml(spec))["data"] == unlabeled
    assert "unlabeled" not in canonical(tiny().data)
    control = ablation.without(spec, "teacher")
    assert control == tiny()


@pytest.mark.slow
def test_a_moved_folder_is_the_same_run_and_a_changed_one_is_refused(
    train: Train, store: Store, digits: Splits, tmp_path: Path
) -> None:
    teacher = train(epochs=4, network={"kind": "cnn", "width": 8, "depth": 2})
    here = pictures(tmp_path / "here", fresh(30))
    fields: dict[str, Any] = {"teacher": teacher.id, "epochs": 1}
    run = train(data={"source": "digits", "unlabeled": str(here)}, **fields)
    assert (run.result or {})["unlabeled"] == 30
    assert run.spec.data.unlabeled_fingerprint
    there = here.rename(tmp_path / "there")
    assert train(data={"source": "digits", "unlabeled": str(there)}, **fields).id == run.id
    assert train(**fields).id != run.id
    pictures(there, fresh(31))
    with pytest.raises(BadData, match="do not match the fingerprint"):
        data.load(store.run(run.id).spec.data, store.data_cache)
    moved = run.spec.model_copy(update={"data": run.spec.data.model_copy(update={"unlabeled": "/elsewhere"})})
    assert digest(moved) == run.id


@pytest.mark.slow
def test_without_its_unlabeled_images_a_run_is_evaluated_and_exported(
    train: Train, store: Store, tmp_path: Path
) -> None:
    """Only training needs them. Their path stays on this machine, and images that were learned from are no test."""
    teacher = train(epochs=4)
    folder = pictures(tmp_path / "more", fresh(30))
    spec = {"source": "digits", "unlabeled": str(folder)}
    run = train(data=spec, teacher=teacher.id, epochs=1)
    for place, image in enumerate((*fresh(30), *fresh(5, seed=1))):
        file = tmp_path / "labeled" / str(place % 10) / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    found = comparison_api.evaluate(store, run.id, str(tmp_path / "labeled"))
    assert found["images"] == 5
    shutil.rmtree(folder)
    shutil.rmtree(store.data_cache)
    assert comparison_api.evaluate(store, run.id)["images"] == (run.result or {})["test"]["images"]
    export.bundle(run, store)
    with zipfile.ZipFile(export.bundle_folder(run, store) / "model.zip") as made:
        held = {name: made.read(name) for name in made.namelist()}
    assert all(str(tmp_path).encode() not in content for content in held.values())
    assert "unlabeled: more" in held["spec.yaml"].decode()
    assert "| unlabeled images | 30," in held["card.md"].decode()


@pytest.mark.slow
def test_the_command_line_distills_with_unlabeled_images(train: Train, store: Store, tmp_path: Path) -> None:
    teacher = train(epochs=4)
    folder = pictures(tmp_path / "more", fresh(40))
    spec = {"data": "digits", "network": {"kind": "cnn", "width": 4, "depth": 2}, "epochs": 1, "teacher": teacher.id}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    change = ("--set", f"data.unlabeled={folder}")
    done = program("train", tmp_path / "spec.yaml", *change, store=store)
    assert "40 unlabeled images with the teacher's targets" in done.stdout
    assert "40 unlabeled images of" in done.stderr
    told = json.loads(program("train", tmp_path / "spec.yaml", *change, "--json", store=store).stdout)
    assert told["unlabeled"] == 40
    refused = program("train", tmp_path / "spec.yaml", *change, "--set", "teacher=null", store=store)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("where", ["beside", "below", "stayed"])
def test_unlabeled_images_move_along_with_the_labeled_ones(where: str, tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    for number, name in enumerate("ab"):
        pictures(home / "labeled" / name, fresh(20, seed=number + 1))
    folder = {"beside": home / "more", "below": home / "much" / "more", "stayed": tmp_path / "more"}[where]
    more = pictures(folder, fresh(12, seed=9))
    spec = DataSpec(source=str(home / "labeled"), unlabeled=str(more))
    before = data.load(spec, cache)
    assert before.unlabeled is not None
    filled = before.filled(spec)
    assert filled.unlabeled_fingerprint
    home.rename(tmp_path / "away")
    shutil.rmtree(cache)
    with data.found_at(str(tmp_path / "away" / "labeled")) as notes:
        after = data.load(filled, cache)
    assert after.unlabeled is not None
    assert after.unlabeled.fingerprint == before.unlabeled.fingerprint
    assert len(notes) == (1 if where == "stayed" else 2)
    assert data.load(filled, cache).unlabeled is not None  # remembered
    shutil.rmtree(tmp_path / "away" / "labeled")
    with data.found_at(str(tmp_path / "away" / "labeled")), pytest.raises(BadData, match="does not exist"):
        data.load(filled, cache)
