"""A thousand classes: charts and tables show those that matter most, and the others are found by their names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Show, Train, texts, tiny
from PIL import Image

from smallalign_core.analysis import compare
from smallalign_core.data import Splits
from smallalign_core.runs.store import Store
from smallalign_core.spec import digest
from smallalign_core.studies import ablation
from smallalign_core.training import teacher_loading
from smallalign_core.training.loop import Training
from smallalign_core.training.teacher import CacheIndex, _top

CLASSES = 1000


def compared(teacher: np.ndarray, student: np.ndarray, classes: tuple[str, ...]) -> Any:
    return SimpleNamespace(teacher_confusion=teacher.tolist(), student_confusion=student.tolist(), classes=classes)


def test_the_most_confused_classes_are_those_of_the_commonest_pairs() -> None:
    names = tuple(f"class {place}" for place in range(CLASSES))
    teacher = np.diag(np.full(CLASSES, 5))
    student = teacher.copy()
    student[7, 900], teacher[7, 900] = 3, 2
    teacher[900, 41] = 4
    student[3, 2] = 1
    found = compared(teacher, student, names)
    assert compare.most_confused(found, 3) == [7, 41, 900]
    assert compare.most_confused(found, 4) == [0, 7, 41, 900]  # no room for both of a pair: filled up
    assert compare.most_confused(found, 5) == [2, 3, 7, 41, 900]
    assert compare.most_confused(found, 2, "CLASS 41") == [41, 900]
    assert compare.most_confused(found, 1, "class 512") == [512]
    assert compare.most_confused(found, 9, "nothing") == []
    assert len(compare.most_confused(found, 20)) == 20


# --- the largest logits of a teacher ----------------------------------------------------------------------------------


def drawn(rows: int = 6, classes: int = CLASSES, spread: float = 4.0) -> torch.Tensor:
    return (torch.randn(rows, classes, generator=torch.Generator().manual_seed(1)) * spread).half().float()


@pytest.mark.parametrize("top", [1, 5, 64, 999])
def test_the_largest_logits_are_kept_and_the_rest_is_spread(top: int) -> None:
    """Against the definition in float64: the probabilities of the largest K stay, all others share what is left."""
    whole = drawn()
    found = _top.unpacked(torch.from_numpy(_top.packed(whole, top)), CLASSES)
    p, q = (one.double().softmax(1) for one in (whole, found))
    order = whole.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(found.gather(1, order[:, :top]), whole.gather(1, order[:, :top]))
    rest = found.gather(1, order[:, top:])
    assert torch.equal(rest, rest[:, :1].expand_as(rest))
    left = p.gather(1, order[:, top:]).sum(1)  # half precision keeps the logit of the rest within 2**-11 of itself
    assert torch.allclose(q.gather(1, order[:, top:]).sum(1), left, rtol=2**-11 * 60, atol=1e-6)
    assert _top.packed(whole, top).shape == (6, _top.columns(top))
    assert torch.equal(_top.kept(found, top), found)  # so a cache of what a live teacher gives is the same


def test_the_divergence_falls_with_the_number_of_logits() -> None:
    whole = drawn(200)
    log_p = whole.double().log_softmax(1)
    losses = [
        float((log_p.exp() * (log_p - _top.kept(whole, top).double().log_softmax(1))).sum(1).mean())
        for top in (1, 8, 64, 512)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4 < losses[0]
    assert _top.kept(whole, None) is whole


def test_equal_logits_and_extreme_ones_are_kept() -> None:
    for whole in (torch.zeros(2, 12), torch.tensor([[60_000.0, -60_000.0] * 6] * 2)):
        found = _top.kept(whole, 3)
        assert found.isfinite().all()
        assert torch.equal(_top.kept(found, 3), found)
        assert torch.allclose(found.softmax(1).sum(1), torch.ones(2))


@pytest.mark.parametrize("augment", [[], ["shift"]])
def test_cached_and_live_largest_logits_are_the_same(store: Store, few: Splits, augment: list[str]) -> None:
    """A full cache, an empty one, one that holds the beginning, and none: the same weights to the last bit."""
    teacher = store.run("digits-teacher").id
    spec = tiny(teacher=teacher, top=3, epochs=3, batch=32, augment=augment, precision="fp32", loss={"kind": "kd"})
    device, ends = torch.device("cpu"), []
    short = spec.model_copy(update={"epochs": 1})
    for one, cached in ((short, True), (spec, True), (spec, True), (spec, False)):
        with teacher_loading.of_runs([one], store, few, device, cached=cached) as source:
            training = Training([one], few, source)
            list(training)
            assert source is not None
            assert not cached or not source.live
            ends.append([tensor.clone() for tensor in training.students[0].classifier.state_dict().values()])
    plan = teacher_loading.cache_plan([spec], store, few, device)
    assert plan is not None
    assert (plan.outputs, plan.classes) == (10, 7)
    assert CacheIndex(store.teacher_cache).has(plan) == plan.steps
    assert all(torch.equal(*pair) for other in ends[2:] for pair in zip(ends[1], other, strict=True))
    with teacher_loading.of_runs([spec.model_copy(update={"top": None})], store, few, device) as source:
        training = Training([spec.model_copy(update={"top": None})], few, source)
        list(training)
    whole = training.students[0].classifier.state_dict().values()
    assert not all(torch.equal(*pair) for pair in zip(ends[1], whole, strict=True))


def test_runs_of_other_numbers_of_logits_do_not_share_targets() -> None:
    one, other = tiny(teacher="t", top=3), tiny(teacher="t", top=4)
    assert not one.can_lockstep_with(other)
    assert one.can_lockstep_with(tiny())
    assert len({digest(one), digest(other), digest(tiny(teacher="t"))}) == 3
    assert ablation.without(one, "teacher") == tiny()


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of each of a thousand classes; some have more, so that counts differ."""
    draw = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder := tmp_path / "photos" / f"class {label:03d}").mkdir(parents=True)
        for number in range(6 + label % 2):
            Image.fromarray(draw.integers(0, 256, (8, 8)).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_pages_of_a_thousand_classes_stay_usable(train: Train, store: Store, photos: Path, shown: Show) -> None:
    network = {"kind": "mlp", "width": 8, "depth": 1}
    fields: dict[str, Any] = {"data": str(photos), "network": network, "batch": 512, "epochs": 1}
    teacher, student = train(**fields), train(**fields, seed=1)
    page = shown("runs", run=student.id, tab="Per class")
    assert not page.exception
    assert "The 40 classes of lowest recall, of 1,000." in texts(page)
    (table,) = [one for one in page.dataframe if "Recall" in one.value.columns]
    assert len(table.value) == CLASSES
    assert table.value["Recall"].is_monotonic_increasing
    page = shown("runs", run=student.id, tab="Per class", classes="CLASS 51")
    (table,) = [one for one in page.dataframe if "Recall" in one.value.columns]
    assert sorted(table.value["Class"]) == [f"class {label}" for label in range(510, 520)]
    page = shown("compare", teacher=teacher.id, student=student.id, view="Images")
    assert not page.exception
    page = shown("data", data=str(photos))
    assert not page.exception
    assert "The 40 classes with the fewest training images, of 1,000" in texts(page)
