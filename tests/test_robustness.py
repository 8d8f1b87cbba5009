"""Corrupted images: the same pixels for everybody, intervals that hold, steps that can be interrupted, kept answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_rel

from smallalign_core import data
from smallalign_core.analysis import robustness
from smallalign_core.data import Splits
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import comparison_api
from smallalign_core.service.requests import AssessRobustness
from smallalign_core.system import resumable


def finished(work):
    return resumable.finish(work)


@pytest.mark.parametrize("corruption", robustness.CORRUPTIONS)
def test_a_corruption_is_reproducible_and_grows_with_its_severity(corruption: str, digits: Splits) -> None:
    images = digits.val
    rows = np.arange(len(images))
    clean = torch.from_numpy(images.images[rows]).float()
    distances = []
    for severity in robustness.SEVERITIES:
        shown = robustness.corrupted(images, corruption, severity)(rows)
        again = robustness.corrupted(images, corruption, severity)(rows[40:50])
        assert torch.equal(shown[40:50], again), "an image's pixels do not depend on its neighbours"
        distances.append(float((shown.float() - clean).abs().mean()))

    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)])
def test_every_corruption_works_on_every_size(shape: tuple[int, int, int]) -> None:
    from smallalign_core.augment import check

    parts = [make(severity, min(shape[1:])) for make in robustness.CORRUPTIONS.values() for severity in range(1, 6)]

    assert len(parts) == 60
    for part in parts:
        check((part,), shape)


@pytest.fixture(scope="module")
def assessed(taught: tuple[Store, Run, Run]) -> tuple[robustness.Robustness, Splits]:
    store, teacher, student = taught
    splits = data.load(student.data, store.data_cache)
    return finished(robustness.assess([teacher, student], splits, "val", store)), splits


@pytest.mark.slow
def test_accuracies_are_those_of_asking_by_hand(assessed, taught: tuple[Store, Run, Run]) -> None:
    found, splits = assessed
    _, _, student = taught
    rows = np.arange(len(splits.val))
    shown = robustness.corrupted(splits.val, "rotate", 4)(rows)
    with torch.no_grad():
        right = imported.classifier(student, splits.classes)(shown).argmax(1).numpy() == splits.val.labels

    level = next(one for one in found.runs[1].levels if (one.corruption, one.severity) == ("rotate", 4))
    assert level.accuracy.value == right.mean()
    there = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    assert (level.accuracy.low, level.accuracy.high) == (pytest.approx(there.low), pytest.approx(there.high))
    assert found.runs[1].clean.value == pytest.approx((student.result or {})["val"]["accuracy"])
    assert len(found.runs[1].levels) == 60
    mean = np.mean([one.accuracy.value for one in found.runs[1].levels])
    assert found.runs[1].mean.value == pytest.approx(mean)
    fourth = np.mean([one.accuracy.value for one in found.runs[1].levels if one.severity == 4])
    assert found.runs[1].by_severity[3].value == pytest.approx(fourth)


@pytest.mark.slow
def test_the_difference_is_paired_by_image(taught: tuple[Store, Run, Run], assessed) -> None:
    store, teacher, student = taught
    found, splits = assessed
    right = [robustness.kept(run, splits, "val", store)[1:].mean(0) for run in (teacher, student)]

    change = found.runs[1].change
    there = ttest_rel(right[1], right[0]).confidence_interval(0.95)
    assert change.value == pytest.approx(float((right[1] - right[0]).mean()))
    assert (change.low, change.high) == (pytest.approx(there.low, abs=2e-3), pytest.approx(there.high, abs=2e-3))
    assert found.runs[0].change is None


@pytest.mark.slow
def test_it_comes_in_steps_is_kept_and_looks_at_test_once(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    fingerprint = student.spec.data.fingerprint or ""
    before, shares = store.test_looks(fingerprint), []
    assessed = AssessRobustness((teacher.id, student.id), "test", patience=0.0)
    while True:
        answer = comparison_api.robustness(store, assessed)
        shares.append(answer.done)
        if answer.done == 1:
            break
        assert answer.report is None

    assert len(shares) > 100, "a question with no patience is answered batch by batch"
    assert shares == sorted(shares)
    assert store.test_looks(fingerprint) == before + 1
    again = comparison_api.robustness(store, assessed)
    assert again == answer, "what was kept is not asked again"
    assert store.test_looks(fingerprint) == before + 1
    assert "not ImageNet-C" in robustness.words(answer.report, ["a", "b"])


def test_large_splits_are_sampled_evenly(digits: Splits) -> None:
    train = digits.train
    looked = robustness.sample(train)

    assert len(looked) == robustness.MOST < len(train)
    assert len(np.unique(looked.ids)) > 990
    assert robustness.sample(digits.val) is digits.val
