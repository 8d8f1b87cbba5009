"""What the training loop yields: progress, validated epochs, failed students, and waiting."""

from __future__ import annotations

from dataclasses import dataclass

from smallalign_core.errors import Diverged
from smallalign_core.metrics import Fidelity, Scores
from smallalign_core.training.losses import EmbeddingScores


@dataclass(frozen=True)
class Progress:
    """Progress of a student. Losses are means over the steps since its last report, one per weighted term.

    `gradients` counts the gradient evaluations of all its steps so far, `evaluations` the forward-only evaluations of a
    batch, of which about three cost as much.
    """

    student: int
    step: int
    steps: int
    epoch: float
    images_per_second: float
    losses: dict[str, float]
    gradients: int
    evaluations: int = 0


@dataclass(frozen=True)
class Validated:
    """End of a student's epoch, with its evaluation on the validation images.

    Attributes:
        scores: uncalibrated; `fitted`: temperature-scaled, fitted on validation; None without a head.
        embedding: how near its features are to the teacher's, where the loss compares these.
        best: whether it is the best epoch so far.
        fidelity: agreement with the teacher; None without one.
        shares: gradient share by loss term, at the first step of the epoch.
    """

    student: int
    step: int
    epoch: int
    scores: Scores | None
    fitted: Scores | None
    best: bool
    fidelity: Fidelity | None
    shares: dict[str, float]
    embedding: EmbeddingScores | None = None


@dataclass(frozen=True)
class Stopped:
    """A student has failed; the others continue."""

    student: int
    step: int
    error: Diverged


@dataclass(frozen=True)
class Waiting:
    """A student waits for teacher logits, or a frozen body's features, for more than the next batch; `share` (0..1) is
    done.
    """

    student: int
    step: int
    share: float


Event = Progress | Validated | Stopped | Waiting
