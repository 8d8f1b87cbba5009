"""Scores against independent references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from smallalign_core.metrics import (
    brier,
    calibration_error,
    class_scores,
    fit_temperature,
    in_words,
    macro_interval,
    macro_of,
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


def uneven(classes: int, seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Logits of classes of unequal size, which favour the large ones."""
    draw = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(classes)
    labels = draw.choice(classes, count, p=shares / shares.sum())
    logits = (draw.normal(size=(count, classes)) - 0.2 * np.arange(classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
@pytest.mark.parametrize("seed", range(3))
def test_scores_over_classes_agree_with_scikit_learn(classes: int, seed: int) -> None:
    logits, labels = uneven(classes, seed)
    names = tuple(f"class {place}" for place in range(classes))
    found, said = score(logits, labels, names), logits.argmax(1)
    there = np.unique(labels)
    if np.isin(said, there).all():  # else scikit-learn warns
        assert found.macro_recall == pytest.approx(balanced_accuracy_score(labels, said))
    each = recall_score(labels, said, labels=there, average=None)
    assert found.macro_recall == pytest.approx(each.mean())
    assert macro_of(found.recall) == pytest.approx(found.macro_recall)
    assert found.macro_f1 == pytest.approx(f1_score(labels, said, labels=there, average="macro", zero_division=0))
    least = {names[place]: (said[labels == place] == place).mean() for place in there}
    assert (found.worst_recall, found.worst_class) == (min(least.values()), min(least, key=lambda name: least[name]))
    if classes <= 5:
        assert found.top5 is None
        assert "top-5" not in in_words(found.as_dict())
    else:
        assert found.top5 == pytest.approx(
            top_k_accuracy_score(labels, logits.astype(float), k=5, labels=np.arange(classes))
        )
        assert found.top5_low < found.top5 < found.top5_high


def test_scores_of_each_class_agree_with_scikit_learn_and_by_hand() -> None:
    logits, labels = uneven(6, 1)
    found, said = class_scores(logits, labels, tuple("abcdef"), 2.0), logits.argmax(1)
    how = {"labels": np.arange(6), "average": None, "zero_division": 0}
    for place, name in enumerate("abcdef"):
        one = found[name]
        assert one.images == (labels == place).sum()
        assert one.recall == pytest.approx(recall_score(labels, said, **how)[place])
        assert (one.precision or 0) == pytest.approx(precision_score(labels, said, **how)[place])
        assert one.f1 == pytest.approx(f1_score(labels, said, **how)[place])
        p = np.exp(logits.astype(float) / 2)
        p = (p / p.sum(1, keepdims=True))[:, place]
        ece = 0.0
        for low in np.arange(15) / 15:
            here = (p > low) & (p <= low + 1 / 15)
            if here.any():
                ece += here.mean() * abs(p[here].mean() - (labels[here] == place).mean())
        assert one.ece == pytest.approx(ece, rel=1e-9)
        assert one.excess == pytest.approx(p.mean() - (labels == place).mean())


def test_a_class_without_images_counts_nowhere_and_one_never_predicted_has_no_precision() -> None:
    logits, labels = np.array([[3, 0, 0], [3, 0, 0], [2, 1, 0]], np.float32), np.array([0, 0, 1])
    found, each = score(logits, labels, ("a", "b", "c")), class_scores(logits, labels, ("a", "b", "c"))
    assert (found.macro_recall, found.worst_class, found.worst_recall) == (0.5, "b", 0)
    assert found.macro_f1 == pytest.approx((4 / 5 + 0) / 2)
    assert (each["b"].precision, each["c"].recall, each["c"].f1) == (None, None, None)


def test_the_interval_of_one_class_is_that_of_agresti_and_coull() -> None:
    """With four images added: the special case that the method comes from."""
    low, high = ((9 / 13) + sign * 1.959964 * (9 / 13 * 4 / 13 / 13) ** 0.5 for sign in (-1, 1))
    assert macro_interval(np.array([7]), np.array([9])) == pytest.approx((7 / 9, low, high))


def test_macro_recall_has_its_interval_as_often_as_it_says() -> None:
    """Of 2,000 draws each; a bootstrap of classes that are found completely would have no width at all."""
    draw = np.random.default_rng(0)
    for recalls, totals in (([0.9, 0.8, 0.6], [200, 50, 8]), ([0.98] * 10, [30] * 10), ([0.9] * 100, [10] * 100)):
        true, hits = np.mean(recalls), draw.binomial(totals, recalls, (2000, len(totals)))
        inside = [low <= true <= high for one in hits for _, low, high in [macro_interval(one, np.array(totals))]]
        assert 0.925 < np.mean(inside) < 0.985
    assert macro_interval(np.array([3, 3]), np.array([3, 3]))[1] < 0.8
