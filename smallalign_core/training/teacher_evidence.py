"""What a teacher's answers to a run's own validation images say: whether it may teach, and how far it is to be trusted.

Numpy alone. `teaching.preflight` asks the teacher and keeps what is found here; every run that learns from a teacher
goes through it, whatever started the run.
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
"""Validation images that a teacher is asked about before a run, evenly spread: enough for an interval of 3 points."""
SHARPEST = 0.9
"""Mean top-1 probability below which soft targets begin to tell more than labels."""
LOWEST, HIGHEST = 0.5, 50.0
"""What the losses accept as a temperature."""
TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
LEAST_WEIGHT = 0.1
"""What `auto` may choose."""


@dataclass(frozen=True)
class Softness:
    """How much of a teacher's doubts one temperature shows.

    Attributes:
        confidence: mean probability of its top class.
        entropy: mean, in nats; at most log(classes).
    """

    temperature: float
    confidence: float
    entropy: float


@dataclass(frozen=True)
class Evidence:
    """A teacher on some validation images of a run, as they are.

    Attributes:
        teacher: its id; of several, which answer together, their ids with commas between them.
        digest: of its weights; likewise.
        data: fingerprint of the run's images; `validation`: of those held out, whatever was left for training.
        side: pixels of the longer side of the images; `learned`: of those that it learned from, None if unknown.
        images: how many it answered.
        accuracy: top-1, with its 95 % interval.
        chance: what always naming the commonest class would reach, or 1/classes if that is more.
        temperature: fitted on the same images; `calibrated_ece` with it.
        suggested: temperatures worth trying, see `suggested`.
        refused: why it should not teach; None if it may.
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


def of_logits(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...], **known: Any
) -> Evidence:
    """The evidence in logits [N, C] with labels int64 [N].

    Args:
        known: the fields of `Evidence` that are not computed from them.
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
    """The accuracy of always naming the commonest class, or 1/classes if that is more."""
    return max(1 / classes, float(np.bincount(labels).max() / len(labels)))


def refusal(scores: Scores, chance: float) -> str | None:
    """Why a teacher of these scores should not teach: the burden of proof is on it.

    Its whole 95 % interval must lie above chance. The upper end alone would let a random head through on any small
    validation set.
    """
    if scores.accuracy_low > chance:
        return None
    return (
        f"it is not shown to be better than chance: accuracy {scores.accuracy:.1%} "
        f"[{scores.accuracy_low:.1%}, {scores.accuracy_high:.1%}] on {scores.images:,} images, chance {chance:.1%}"
    )


def check(found: Evidence, spec: RunSpec, name: str) -> None:
    """Refuse what `found` speaks against.

    Raises:
        BadSpec: the teacher called `name` is not shown to be better than chance.
    """
    if found.refused:
        raise BadSpec(
            f"the teacher cannot teach these images: {found.refused}",
            given=f"{name} for {spec.data.source}",
            do="choose a teacher that was trained on such images, or leave `teacher` out",
        )


def check_side(learned: int | None, spec: RunSpec, shape: tuple[int, int, int], name: str) -> None:
    """Refuse images that were made smaller than those that a teacher learned from: enlarged again, they are blurred,
    and it answers them far worse.

    Images that are small in their source are let through: there are no better pixels, and the pre-flight shows what the
    teacher makes of them.

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
        f"the teacher learned from images of {learned} pixels a side, and this run would show it {side}",
        given=f"{name} with data.size {spec.data.size}",
        do=f"set `data.size` to {learned}{inside}",
    )


def softness(logits: NDArray[np.float32], temperature: float) -> Softness:
    """Mean confidence and entropy of logits [N, C] at a temperature."""
    log_p = log_softmax(logits, temperature)
    p = np.exp(log_p)
    return Softness(temperature, float(p.max(1).mean()), float(-(p * log_p).sum(1).mean()))


def suggested(logits: NDArray[np.float32]) -> tuple[float, float]:
    """The temperatures at which a teacher's mean confidence is 90 %, and halfway between chance and 100 %."""
    classes = logits.shape[1]
    return _temperature_of(logits, SHARPEST), _temperature_of(logits, (1 + 1 / classes) / 2)


def _temperature_of(logits: NDArray[np.float32], confidence: float) -> float:
    """Bisection: mean confidence falls with temperature. The nearer bound where it is never reached."""
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
    """(temperature, weight) of soft targets from such a teacher; a heuristic, measured on three datasets (README).

    The temperature is the one at which its mean confidence is 90 %, or the one fitted to validation if that is higher:
    softer than that, a student of few steps spends them on differences between small logits, and targets of a teacher
    that is unsure of itself become nearly uniform. The weight is half the squared share of its accuracy above chance,
    so that labels weigh at least as much: where the teacher is wrong, they decide. Both in coarse steps, since they are
    part of the run's id, and the last bits of logits differ between processors.
    """
    wanted = np.log(max(found.suggested[0], found.temperature))
    temperature = min(TEMPERATURES, key=lambda one: abs(float(np.log(one) - wanted)))
    skill = max(0.0, (found.accuracy - found.chance) / (1 - found.chance))
    return temperature, max(LEAST_WEIGHT, round(skill**2 / 2, 1))
