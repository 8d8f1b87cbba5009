"""Scores against independent references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss

from smallalign_core.metrics import (
    brier,
    calibration_error,
    fit_temperature,
    paired_difference,
    reliability,
    score,
    wilson,
)


def sample(seed: int = 0, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, count)
    logits = draw.normal(size=(count, 4)).astype(np.float32)
    logits[np.arange(count), labels] += 2
    return logits, labels


def test_accuracy_and_nll_agree_with_scikit_learn() -> None:
    logits, labels = sample()
    found = score(logits, labels, tuple("abcd"))
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    assert found.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found.nll == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert sum(v * (labels == i).sum() for i, v in enumerate(found.recall.values()) if v is not None) == pytest.approx(
        (logits.argmax(1) == labels).sum()
    )


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (7, 10), (355, 359), (10, 10)])
def test_wilson_agrees_with_scipy(hits: int, total: int) -> None:
    low, high = wilson(hits, total)
    there = binomtest(hits, total).proportion_ci(method="wilson")
    assert (low, high) == (pytest.approx(there.low, abs=1e-6), pytest.approx(there.high, abs=1e-6))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx((4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.55)) / 6)


def test_perfectly_calibrated_predictions_have_almost_no_error() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.2, 1, 200_000)
    assert calibration_error(confidence, draw.uniform(size=200_000) < confidence) < 0.005


def test_a_class_without_images_has_no_recall() -> None:
    logits, labels = sample()
    assert score(np.pad(logits, ((0, 0), (0, 1))), labels, tuple("abcde")).recall["e"] is None


@pytest.mark.parametrize("truth", [0.1, 1.0, 3.0])
def test_the_fitted_temperature_is_found(truth: float) -> None:
    draw = np.random.default_rng(1)
    logits = 3 * draw.normal(size=(40_000, 5))
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = (p.cumsum(1) > draw.uniform(size=(len(p), 1))).argmax(1)
    assert fit_temperature((logits * truth).astype(np.float32), labels) == pytest.approx(truth, rel=0.05)


def test_the_brier_score_is_the_mean_squared_distance_from_the_truth() -> None:
    logits, labels = sample()
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    assert brier(p, labels) == pytest.approx(np.mean(np.sum((p - np.eye(4)[labels]) ** 2, axis=1)))


def test_a_paired_difference_by_the_formula_of_bonett_and_price() -> None:
    p12, p21 = (12 + 1) / (200 + 2), (5 + 1) / (200 + 2)
    half = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (200 + 2))
    expected = ((12 - 5) / 200, p12 - p21 - half, p12 - p21 + half)
    assert paired_difference(5, 12, 200) == pytest.approx(expected)
    assert paired_difference(0, 0, 0) == (0.0, -1.0, 1.0)


def test_bins_of_a_reliability_diagram_by_hand() -> None:
    logits, labels = sample()
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    sure, right = p.max(1), p.argmax(1) == labels
    found = reliability(logits, labels)
    assert sum(one.images for one in found) == len(labels)
    for one in found:
        here = (sure > one.low) & (sure <= one.high)
        assert one.high - one.low == pytest.approx(1 / 15)
        assert (one.images, one.confidence) == (here.sum(), pytest.approx(sure[here].mean()))
        assert one.accuracy == pytest.approx(right[here].mean())


def test_nothing_says_nothing_of_a_share() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
