"""Scores of a classifier on labelled images: accuracy, likelihood, calibration, per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import ImageSet

if TYPE_CHECKING:  # the dashboard scores kept answers with numpy alone
    import torch
    from torch import nn

BINS = 15
TOP = 5
ENDS = ("", "_low", "_high")
Z95 = 1.959964
"""Standard deviations on either side of a normal mean that hold 95%."""


@dataclass(frozen=True)
class Scores:
    """Scores of predictions.
    Attributes:
            images: how many were looked at.
            accuracy: top-1, with a 95% interval (Wilson, 1927) in `accuracy_low`, `accuracy_high`.
            nll: mean negative log-likelihood, natural logarithm.
            ece: expected calibration error of the top-1 confidence, 15 equal bins (Guo et al., 2017).
            brier: mean squared distance of the probabilities from the truth, 0..2 (Brier, 1950).
            recall: share found of each class; None for a class without images.
            macro_recall: mean recall of the classes that have images (balanced accuracy), with a 95% interval for
                classes of as many images as they have (Price & Bonett, 2004).
            macro_f1: mean F1 of the same classes.
            worst_class: the class of least recall, the first of several; its recall has the 95% interval (Wilson) of
                that class alone: it does not account for the choice of the lowest.
            top5: share of images whose class is among the five largest logits, with a 95% interval (Wilson); None with
                five classes or fewer.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    nll: float
    ece: float
    brier: float
    recall: dict[str, float | None]
    macro_recall: float
    macro_recall_low: float
    macro_recall_high: float
    macro_f1: float
    worst_class: str
    worst_recall: float
    worst_recall_low: float
    worst_recall_high: float
    top5: float | None
    top5_low: float | None
    top5_high: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fidelity:
    """Fidelity: agreement of a student's outputs with its teacher's (Stanton et al., 2021).

    Attributes:
        agreement: share of images with the same top-1.
        kl: mean KL(teacher || student) in nats.
    """

    agreement: float
    kl: float


def fidelity(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> Fidelity:
    """The fidelity of two sets of logits [N, C]."""
    return Fidelity(float((teacher.argmax(1) == student.argmax(1)).mean()), float(divergence(teacher, student).mean()))


def divergence(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(teacher || student) of each image, in nats: float64 [N]."""
    log_q, log_p = log_softmax(teacher), log_softmax(student)
    return np.asarray((np.exp(log_q) * (log_q - log_p)).sum(1))


def logits_of(
    classifier: nn.Module, images: ImageSet, *, device: torch.device | str = "cpu", batch: int = 512
) -> NDArray[np.float32]:
    """Logits float32 [N, C] of all images, in evaluation mode and full precision.

    Args:
        batch: the most images that are answered at once; fewer where so many would need too much memory (`batches`).
    """
    import torch

    from smallalign_core.system.batching import in_batches
    from smallalign_core.system.device import to_device

    was_training = classifier.training
    classifier.eval()
    found = []
    for start in range(0, len(images), batch):
        part = to_device(np.ascontiguousarray(images.images[start : start + batch]), torch.device(device))
        found.append(in_batches(classifier, part).float().cpu().numpy())
    classifier.train(was_training)
    return np.concatenate(found)


def log_softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-probabilities of logits [N, C], in double precision."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))


def score(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], temperature: float = 1.0
) -> Scores:
    """Scores of logits [N, C] against labels [N]."""
    log_p = log_softmax(logits, temperature)
    top = log_p.argmax(1)
    right = top == labels
    low, high = wilson(int(right.sum()), len(labels))
    totals = np.bincount(labels, minlength=len(classes))
    hits = np.bincount(labels[right], minlength=len(classes))
    there = np.flatnonzero(totals)
    shares = hits[there] / totals[there]
    worst = int(there[shares.argmin()])
    found = np.bincount(top, minlength=len(classes))
    macro = macro_interval(hits[there], totals[there])
    least = wilson(int(hits[worst]), int(totals[worst]))
    fifth: tuple[float | None, ...] = None, None, None
    if len(classes) > TOP:
        own = log_p[np.arange(len(labels)), labels]
        among = int(((log_p > own[:, None]).sum(1) < TOP).sum())
        fifth = among / len(labels), *wilson(among, len(labels))
    return Scores(
        images=len(labels),
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        ece=calibration_error(np.exp(log_p.max(1)), right),
        brier=brier(np.exp(log_p), labels),
        recall={
            name: float(hit / total) if total else None for name, hit, total in zip(classes, hits, totals, strict=True)
        },
        macro_recall=macro[0],
        macro_recall_low=macro[1],
        macro_recall_high=macro[2],
        macro_f1=float((2 * hits / np.maximum(1, totals + found))[there].mean()),
        worst_class=classes[worst],
        worst_recall=float(hits[worst] / totals[worst]),
        worst_recall_low=least[0],
        worst_recall_high=least[1],
        top5=fifth[0],
        top5_low=fifth[1],
        top5_high=fifth[2],
    )


def macro_interval(hits: NDArray[np.int64], totals: NDArray[np.int64]) -> tuple[float, float, float]:
    """(mean, low, high) of the recalls of classes that have images, with the 95% interval for given `totals`.

    Adjusted Wald (Price & Bonett, 2004): 4 / C images, half of them found, are added to each of C classes. So a class
    that is found completely, or never, still adds what its few images leave open, where a bootstrap of them would add
    nothing; with a class of three images or fewer, expect 90% instead of 95%.
    """
    classes, mean = len(totals), float((hits / totals).mean())
    whole = totals + 4 / classes
    shares = (hits + 2 / classes) / whole
    half = Z95 * float(np.sqrt((shares * (1 - shares) / whole).sum())) / classes
    middle = float(shares.mean())
    return mean, max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def mover(
    values: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> tuple[float, float, float]:
    """(mean, low, high) of independent estimates with intervals: variances are recovered from the intervals' ends on
    either side (MOVER; Zou & Donner, 2008). Of one estimate it is its own interval."""
    mean = float(values.mean())
    below, above = (float(np.sqrt(((values - ends) ** 2).sum())) / len(values) for ends in (lows, highs))
    return mean, mean - below, mean + above


def macro_of(recall: Mapping[str, float | None]) -> float:
    """Macro recall from the recalls of a result, also of those from before it was among the scores."""
    shares = [share for share in recall.values() if share is not None]
    return sum(shares) / len(shares)


def with_macro(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a result with macro recall among them, also of those from before it was."""
    return {**scores, "macro_recall": macro_of(scores["recall"])}


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes:
        images: of this class; recall and f1 are None where there are none.
        recall: with its 95% interval (Wilson).
        precision: share of the images predicted as this class that are of it; None where it is never predicted.
        ece: calibration error of the class's own probability, over all images, in 15 equal bins (classwise ECE; Kull et
            al., 2019).
        excess: mean probability of the class minus its share of the images; above 0: overestimated.
    """

    images: int
    recall: float | None
    recall_low: float
    recall_high: float
    precision: float | None
    f1: float | None
    ece: float
    excess: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def class_scores(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], temperature: float = 1.0
) -> dict[str, ClassScores]:
    """Scores of each class, by its name, of logits [N, C] divided by a temperature."""
    p = np.exp(log_softmax(logits, temperature))
    top = p.argmax(1)
    found = {}
    for place, name in enumerate(classes):
        own, said = labels == place, top == place
        hits, images, named = int((own & said).sum()), int(own.sum()), int(said.sum())
        found[name] = ClassScores(
            images,
            hits / images if images else None,
            *wilson(hits, images),
            hits / named if named else None,
            2 * hits / (images + named) if images else None,
            calibration_error(p[:, place], own),
            float(p[:, place].mean() - own.mean()),
        )
    return found


def in_words(scores: Mapping[str, Any]) -> str:
    """The scores of a result beside its accuracy in one line: macro recall, macro F1, the worst class, top-5. Empty for
    results from before they were computed."""
    if "macro_recall" not in scores:
        return ""
    ends = "{:.2%} ({:.2%} to {:.2%})".format
    words = f"macro recall {ends(*(scores[f'macro_recall{end}'] for end in ENDS))}  macro F1 {scores['macro_f1']:.2%}  "
    words += f"least recall {ends(*(scores[f'worst_recall{end}'] for end in ENDS))}: {scores['worst_class']}"
    return words + ("" if scores["top5"] is None else f"  top-5 {ends(*(scores[f'top5{end}'] for end in ENDS))}")


def zero_recall_classes(recall: Mapping[str, float | None]) -> str:
    """The classes of recall 0, in words; empty where there are none. A good accuracy hides them where they are rare."""
    missed = [name for name, share in recall.items() if share == 0]
    return f"zero recall on: {', '.join(missed[:12])}" if missed else ""


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: mean over bins of |accuracy - confidence|, weighted by how full a bin is."""
    which = _bins(confidence, bins)
    weight = np.bincount(which, minlength=bins)
    gap = np.bincount(which, right.astype(float), bins) - np.bincount(which, confidence, bins)
    return float(np.abs(gap).sum() / max(1, weight.sum()))


def brier(p: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean over images of the squared distance between probabilities [N, C] and the truth (Brier, 1950): 0 to 2."""
    true = p[np.arange(len(labels)), labels]
    return float(((p**2).sum(1) - 2 * true + 1).mean())


@dataclass(frozen=True)
class Bin:
    """The images of a reliability diagram whose confidence lies in (low, high].

    Attributes:
        images: how many there are; at least one.
        confidence: their mean top-1 probability.
        accuracy: the share that is right, with a 95% interval (Wilson, 1927).
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def reliability(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0, bins: int = BINS
) -> list[Bin]:
    """A reliability diagram (DeGroot & Fienberg, 1983) of the top-1 confidence, in the bins of the ECE; empty ones are
    left out."""
    log_p = log_softmax(logits, temperature)
    confidence, right = np.exp(log_p.max(1)), log_p.argmax(1) == labels
    which = _bins(confidence, bins)
    found = []
    for place in np.unique(which):
        here = which == place
        count, hits = int(here.sum()), int(right[here].sum())
        ends = (float(place / bins), float((place + 1) / bins))
        found.append(Bin(*ends, count, float(confidence[here].mean()), hits / count, *wilson(hits, count)))
    return found


def _bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins are (low, high]


def wilson(hits: float, total: int, z: float = Z95) -> tuple[float, float]:
    """95% interval of a share (Wilson, 1927); unlike the plain one it stays inside 0..1 and is right near 1."""
    if not total:
        return 0.0, 1.0
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5 / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(first_only: int, second_only: int, total: int) -> tuple[float, float, float]:
    """(difference, low, high) of two shares of the same `total` things: the second's minus the first's, with its 95%
    interval (Bonett & Price, 2012), which holds where the plain one fails: few things, or no difference at all.

    Args:
        first_only, second_only: how many count for one of the two alone.
    """
    if not total:
        return 0.0, -1.0, 1.0
    first, second = (first_only + 1) / (total + 2), (second_only + 1) / (total + 2)
    half = Z95 * ((first + second - (second - first) ** 2) / (total + 2)) ** 0.5
    middle = second - first
    return (second_only - first_only) / total, max(-1.0, middle - half), min(1.0, middle + half)


def score_interval(lost: int, gained: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a paired difference of two shares, (lost - gained) / total (Tango, 1998), which keeps
    its level also where the two seldom differ.

    Args:
        lost, gained: of `total` things, how many count for the first alone, and for the second alone.
        level: of both sides together.
    """
    from scipy.optimize import brentq

    if not total:
        return -1.0, 1.0
    z, middle = NormalDist().inv_cdf((1 + level) / 2), (lost - gained) / total

    def beyond(difference: float, side: float) -> float:
        a = 2 * total
        b = -lost - gained + (2 * total - lost + gained) * difference
        c = -gained * difference * (1 - difference)
        fewer = max(0.0, ((b * b - 4 * a * c) ** 0.5 - b) / (2 * a))  # the likeliest share of `gained` there
        spread = (total * max(0.0, 2 * fewer + difference * (1 - difference))) ** 0.5
        return lost - gained - total * difference + side * z * spread

    near = 1e-9  # at `middle` itself there is a root where the two never differ
    low = -1.0 if middle <= -1 else float(brentq(lambda d: beyond(d, -1.0), -1.0, middle - near, xtol=1e-12))
    high = 1.0 if middle >= 1 else float(brentq(lambda d: beyond(d, 1.0), middle + near, 1.0, xtol=1e-12))
    return low, high


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature that minimises the likelihood loss on validation logits (Guo et al., 2017); within 0.01..100."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))
    found = minimize_scalar(
        lambda log_t: -log_softmax(logits, float(np.exp(log_t)))[rows, labels].mean(),
        bounds=(np.log(0.01), np.log(100)),
        method="bounded",
    )
    return float(np.exp(found.x))
