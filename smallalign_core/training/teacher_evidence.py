"""Evaluation of a teacher on a run's validation images: whether it is usable, and with which temperature and weight.

NumPy only. `teacher_loading.preflight` computes the logits and caches the result; every run with a teacher goes through
it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import BadSpec
from smallalign_core.metrics import Scores, fit_temperature, log_softmax, score
from smallalign_core.spec import HintonKd, LibraryNetwork, Loss, RunSpec

MOST_IMAGES = 1_000
"""Validation images for the check of a teacher before a run, evenly spread: enough for an interval of 3 points."""
SHARPEST = 0.9
"""Mean top-1 probability below which soft targets carry more information than labels."""
LOWEST, HIGHEST = 0.5, 50.0
"""Range of temperatures that losses accept."""
TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
LEAST_WEIGHT = 0.1
"""Range of `auto`."""


@dataclass(frozen=True)
class Softness:
    """Confidence of a teacher at one temperature.

    Attributes:
        confidence: mean probability of its top class.
        entropy: mean, in nats; at most log(classes).
    """

    temperature: float
    confidence: float
    entropy: float


@dataclass(frozen=True)
class Evidence:
    """A teacher's scores on some validation images of a run, without augmentation.

    Attributes:
        teacher: its id; comma-separated ids for an ensemble.
        digest: of its weights; likewise.
        data: fingerprint of the run's images; `validation`: of its validation images.
        side: longer side of the images in pixels; `learned`: that of its training images, None if unknown.
        images: number of images.
        accuracy: top-1, with its 95% interval.
        chance: accuracy of predicting the most frequent class, or 1/classes if that is more.
        temperature: fitted on the same images; `calibrated_ece` with it.
        suggested: suggested temperatures, see `suggested`.
        refused: why it is not usable, as text; None if it is.
    """

    teacher: str
    digest: str
    data: str
    validation: str
    side: int
    learned: int | None
    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    chance: float
    nll: float
    ece: float
    temperature: float
    calibrated_ece: float
    suggested: tuple[float, float]
    refused: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CheckedTeacher(Evidence):
    """The same, with warnings about the run that has this teacher, as text."""

    warnings: tuple[str, ...] = ()


def of_logits(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], **known: Any
) -> Evidence:
    """The evidence from logits [N, C] with labels int64 [N].

    Args:
        known: the other fields of `Evidence`.
    """
    scores, temperature = score(logits, labels, classes), fit_temperature(logits, labels)
    chance = chance_of(labels, len(classes))
    return Evidence(
        images=scores.images,
        accuracy=scores.accuracy,
        accuracy_low=scores.accuracy_low,
        accuracy_high=scores.accuracy_high,
        chance=chance,
        nll=scores.nll,
        ece=scores.ece,
        temperature=temperature,
        calibrated_ece=score(logits, labels, classes, temperature).ece,
        suggested=suggested(logits),
        refused=refusal(scores, chance),
        **known,
    )


def chance_of(labels: NDArray[np.int64], classes: int) -> float:
    """The accuracy of predicting the most frequent class, or 1/classes if that is more."""
    return max(1 / classes, float(np.bincount(labels).max() / len(labels)))


def refusal(scores: Scores, chance: float) -> str | None:
    """Why a teacher with these scores is not usable, as text; None if it is.

    The whole 95% interval must lie above chance: with the upper end alone a random head would pass on any small
    validation set.
    """
    if scores.accuracy_low > chance:
        return None
    return (
        f"its accuracy is not shown to be better than chance: accuracy {scores.accuracy:.1%} "
        f"[{scores.accuracy_low:.1%}, {scores.accuracy_high:.1%}] on {scores.images:,} images, chance {chance:.1%}"
    )


def check(found: Evidence, spec: RunSpec, name: str) -> None:
    """Check that the teacher is usable.

    Raises:
        BadSpec: the teacher called `name` is not shown to be better than chance.
    """
    if found.refused:
        raise BadSpec(
            f"the teacher is not usable for these images: {found.refused}",
            given=f"{name} for {spec.data.source}",
            do="choose a teacher that was trained on such images, or leave `teacher` out",
        )


def check_side(learned: int | None, spec: RunSpec, shape: tuple[int, int, int], name: str) -> None:
    """Check that images were not downsized below the input size that a teacher was trained on: upsampled again, they
    are blurred, and its accuracy drops.

    Images that are small in their source pass: there are no better pixels, and the check of the teacher measures the
    accuracy on them.

    Args:
        learned: its side in pixels, None if unknown; `shape`: (channels, height, width) of the run's images.

    Raises:
        BadSpec: `data.size` is below it.
    """
    side = max(shape[1:])
    if spec.data.size is None or learned is None or learned <= side:
        return
    inside = "" if isinstance(spec.network, LibraryNetwork) else f"; `network.size: {side}` keeps the student's input"
    raise BadSpec(
        f"the teacher was trained on images of {learned} pixels per side, and this run has {side}",
        given=f"{name} with data.size {spec.data.size}",
        do=f"set `data.size` to {learned}{inside}",
    )


def softness(logits: NDArray[np.float32], temperature: float) -> Softness:
    """Mean confidence and entropy of logits [N, C] at a temperature."""
    log_p = log_softmax(logits, temperature)
    p = np.exp(log_p)
    return Softness(temperature, float(p.max(1).mean()), float(-(p * log_p).sum(1).mean()))


def suggested(logits: NDArray[np.float32]) -> tuple[float, float]:
    """The temperatures at which a teacher's mean confidence is 90%, and halfway between chance and 100%."""
    classes = logits.shape[1]
    return _temperature_of(logits, SHARPEST), _temperature_of(logits, (1 + 1 / classes) / 2)


def _temperature_of(logits: NDArray[np.float32], confidence: float) -> float:
    """Bisection: mean confidence falls with temperature. The nearer bound if it is never reached."""
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(40):
        middle = (low + high) / 2
        if softness(logits, float(np.exp(middle))).confidence > confidence:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def chosen(loss: Loss, found: Evidence) -> Loss:
    """`loss` with numbers where its temperature or weight is `auto`."""
    if not isinstance(loss, HintonKd):
        return loss
    temperature, weight = trust(found)
    return loss.model_copy(
        update={
            "temperature": temperature if loss.temperature is None else loss.temperature,
            "weight": weight if loss.weight is None else loss.weight,
        }
    )


def trust(found: Evidence) -> tuple[float, float]:
    """(temperature, weight) of soft targets for such a teacher; a heuristic, measured on three datasets:
    docs/results/2026-11-distillation.md.

    The temperature is the one at which its mean confidence is 90%, or the one fitted on validation if that is higher:
    with softer targets a short training fits differences between small logits, and the targets of an unconfident
    teacher become nearly uniform. The weight is half the squared share of its accuracy above chance, so that labels
    weigh at least as much. Both are rounded coarsely, since they are part of the run's id, and the last bits of
    logits differ between processors.
    """
    wanted = np.log(max(found.suggested[0], found.temperature))
    temperature = min(TEMPERATURES, key=lambda one: abs(float(np.log(one) - wanted)))
    skill = max(0.0, (found.accuracy - found.chance) / (1 - found.chance))
    return temperature, max(LEAST_WEIGHT, round(skill**2 / 2, 1))
