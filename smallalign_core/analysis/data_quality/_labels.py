"""Suspected label errors: confident learning (Northcutt, Jiang & Chuang, 2021) on out-of-sample probabilities.

In-sample probabilities are useless, since a model fits wrong labels too. So each image is predicted by models that were
not trained on it or a copy of it. Test images are checked too, without influence on the others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallalign_core.analysis.data_quality import _search
from smallalign_core.system import extras
from smallalign_core.system.resumable import Work, part_of

NEEDS = "label-error detection"
"""The feature that needs cleanlab."""
NEIGHBOURS = 10
FOLDS = 5
MOST_FITTED = 10_000
"""Max. images per logistic regression: more cost minutes and change little."""
MOST_REFERENCES = 60_000
"""Max. images for the nearest-neighbour search."""
CHUNK = 1_000
STRENGTH, KERNELS = 0.03, 300
"""The inverse strength of the logistic regression's penalty, and how many images it compares one with (Nyström's
approximation of a Gaussian kernel, whose width is the median distance; Williams & Seeger, 2001)."""
LEAST_PAIR = 0.001
"""Min. share of confused images to report a pair of classes."""


@dataclass(frozen=True)
class OutOfSample:
    """Out-of-sample predictions.

    Attributes:
        probabilities: float64 [N, classes].
        distance: mean distance to the nearest neighbours float64 [N], for outliers.
    """

    probabilities: NDArray[np.float64]
    distance: NDArray[np.float64]


@dataclass(frozen=True)
class Suspects:
    """Suspected labels, worst first: `rows`, their `scores`, whether a stricter rule agrees (`sure`), and the label
    that each looks like (`suggested`)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    sure: NDArray[np.bool_]
    suggested: NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The images to check.

    Attributes:
        features: float32 [N, F].
        labels, ids: int64, uint64 [N]; equal images have equal ids, and are not used to predict each other.
        classes: number of classes.
        learned: number of leading images that may be trained on; the others are only predicted.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    classes: int
    learned: int


def out_of_sample(pool: Pool) -> Work[OutOfSample]:
    """Out-of-sample probabilities of all images, by the mean of nearest neighbours and kernel logistic regressions."""
    votes, distance = yield from part_of(_neighbours(pool), 0, 2)
    lines = yield from part_of(_regressions(pool), 1, 2)
    return OutOfSample((votes + lines) / 2, distance)


def _neighbours(pool: Pool) -> Work[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(votes weighted by 1 / distance [N, classes], mean distance [N]), leave-one-out."""
    features, labels, ids = pool.features, pool.labels, pool.ids
    chosen = np.random.default_rng(0).permutation(pool.learned)[:MOST_REFERENCES]
    chosen.sort()
    wanted = min(len(chosen), 2 * NEIGHBOURS)  # some may be the image itself and its copies
    votes, distance, done = np.zeros((len(features), pool.classes)), np.empty(len(features)), 0
    for rows, far, near in _search.nearest(features[chosen], features, wanted):
        others = chosen[near]
        counts = ids[others] != ids[rows][:, None]
        counts &= np.cumsum(counts, axis=1) <= NEIGHBOURS
        weight = np.where(counts, 1 / np.maximum(far, 1e-6), 0.0)
        for label in range(pool.classes):
            votes[rows, label] = (weight * (labels[others] == label)).sum(1)
        distance[rows] = (far * counts).sum(1) / np.maximum(counts.sum(1), 1)
        done += len(rows)
        yield done / len(features)
    total = votes.sum(1, keepdims=True)
    return np.where(total > 0, votes / np.maximum(total, 1e-12), 1 / pool.classes), distance


def _regressions(pool: Pool) -> Work[NDArray[np.float64]]:
    """Probabilities [N, classes] of kernel logistic regressions fitted to the other folds; copies share one."""
    features, labels, learned = pool.features, pool.labels, pool.learned
    fold = np.full(len(features), -1)
    fold[:learned] = _folds(labels[:learned], pool.ids[:learned])
    found, rng = np.zeros((len(features), pool.classes)), np.random.default_rng(0)
    for number in range(FOLDS):
        fitted = rng.permutation(np.flatnonzero((fold != number)[:learned]))[:MOST_FITTED]
        held_out = np.flatnonzero(fold == number)
        tests = np.flatnonzero(fold == -1)
        both = np.concatenate([held_out, tests])
        answers = _regression(features[fitted], labels[fitted], features[both], pool.classes)
        found[held_out] = answers[: len(held_out)]
        found[tests] += answers[len(held_out) :] / FOLDS
        yield (number + 1) / FOLDS
    return found


def _folds(labels: NDArray[np.int64], ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The fold of each image: stratified by class, with equal images in one fold."""
    different, first, back = np.unique(ids, return_index=True, return_inverse=True)
    order = np.lexsort((different, labels[first]))
    dealt = np.empty(len(different), np.int64)
    dealt[order] = np.arange(len(different)) % FOLDS
    return dealt[back]


def _regression(
    seen: NDArray[np.float32], labels: NDArray[np.int64], held_out: NDArray[np.float32], classes: int
) -> NDArray[np.float64]:
    """Probabilities [held_out, classes] of a kernel logistic regression."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = np.unique(labels)
    if len(known) < 2 or not len(held_out):  # a fold of few images may be empty
        return np.full((len(held_out), classes), 1 / classes)
    some = np.random.default_rng(0).permutation(len(seen))[:KERNELS]
    apart = euclidean_distances(seen[some], squared=True)
    width = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    kernel = Nystroem(gamma=1 / width, n_components=len(some), random_state=0)
    model = make_pipeline(kernel, StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=200))
    found = np.zeros((len(held_out), classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 200 iterations are enough for ranking
        found[:, known] = model.fit(seen, labels).predict_proba(held_out)
    return found


def suspects(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Suspects:
    """Suspected labels among images with labels [N] and out-of-sample probabilities [N, classes].

    Likely: of all images, the number estimated by confident learning, those with the lowest self-confidence
    (cleanlab's `low_self_confidence`). Suspected: these and those flagged by `prune_by_noise_rate` for each pair of
    classes. Nothing is flagged if predictions are no better than the most frequent class.
    """
    find_label_issues = extras.load("cleanlab.filter", NEEDS).find_label_issues
    get_label_quality_scores = extras.load("cleanlab.rank", NEEDS).get_label_quality_scores
    counts, named = np.bincount(labels), probabilities.argmax(1)
    if np.count_nonzero(counts) < 2 or (named == labels).sum() <= counts.max():
        nobody = np.empty(0, np.int64)
        return Suspects(nobody, np.empty(0), np.empty(0, bool), nobody)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without images, or without confident ones
        by_pairs, least = (
            np.asarray(find_label_issues(labels, probabilities, filter_by=rule, n_jobs=1), bool)
            for rule in ("prune_by_noise_rate", "low_self_confidence")
        )
        scores = np.asarray(get_label_quality_scores(labels, probabilities), np.float64)
    rows = np.flatnonzero((by_pairs | least) & (named != labels))
    rows = rows[np.argsort(scores[rows], kind="stable")]
    others = probabilities[rows].copy()
    others[np.arange(len(rows)), labels[rows]] = -1
    return Suspects(rows, scores[rows], least[rows], others.argmax(1))


def confused(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """(class, class, estimated share of images that are one and labelled as the other), the largest share first."""
    estimate_joint = extras.load("cleanlab.count", NEEDS).estimate_joint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = np.asarray(estimate_joint(labels, probabilities))
    both = np.triu(joint + joint.T, 1)
    order = np.argwhere(both >= LEAST_PAIR)
    found = [(int(one), int(other), float(both[one, other])) for one, other in order]
    return sorted(found, key=lambda pair: -pair[2])
