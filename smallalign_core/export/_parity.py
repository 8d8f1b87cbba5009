"""Parity between two runtimes of a model: top-1 agreement, logit differences, accuracy, and tolerances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import ImageSet
from smallalign_core.metrics import paired_difference, score
from smallalign_core.runs.export_report import Loss as Loss, Parity as Parity
from smallalign_core.spec.precision import Precision

LIMIT = 0.01
"""The share of images that a smaller precision may lose before it is flagged."""


@dataclass(frozen=True)
class Gate:
    """What two ways of running one precision must have in common.

    Logits differ in scale from network to network, and rounding errors grow with them, so the gap counts relative to
    the reference's spread; below a spread of 1 it counts as it is.

    Attributes:
        agreement: the least share of images with the same top-1.
        tolerance: the largest gap of a logit, in multiples of the standard deviation of the reference's logits, or of 1
            where that is less; None: any. Integers are not portable: processors multiply and round them differently.
        promise: how far the accuracy may be from the one that was written into the file.
    """

    agreement: float
    tolerance: float | None
    promise: float = 0.0

    def passes(self, agreement: float, gap: float, spread: float) -> bool:
        """Whether what was found is within it; `spread` is that standard deviation."""
        near = self.tolerance is None or gap < self.tolerance * max(1.0, spread)
        return agreement >= self.agreement and near and bool(np.isfinite(gap))


GATES: dict[Precision, Gate] = {
    "fp32": Gate(agreement=1.0, tolerance=1e-4),
    "fp16": Gate(agreement=0.99, tolerance=1e-2, promise=0.005),
    "int8": Gate(agreement=0.95, tolerance=None, promise=0.02),
}
IN_A_BROWSER: dict[Precision, Gate] = GATES | {"fp32": Gate(agreement=1.0, tolerance=1e-3)}
"""Graphics cards sum in another order, and with less care."""


def parity(
    reference: NDArray[np.float32],
    answers: NDArray[np.float32],
    images: ImageSet,
    latency: tuple[float, float] = (0.0, 0.0),
    gate: Gate = GATES["fp32"],
) -> Parity:
    """How `answers` differ from `reference`: logits [N, C] of the same images."""
    labels = images.labels[: len(answers)]
    gap = float(np.abs(answers - reference).max())
    spread = float(reference.std())
    agreement = float((answers.argmax(1) == reference.argmax(1)).mean())
    return Parity(
        images=len(answers),
        max_abs_diff=gap,
        relative_diff=gap / max(spread, 1e-12),
        top1_agreement=agreement,
        accuracy=score(answers, labels, images.classes).accuracy,
        reference_accuracy=score(reference, labels, images.classes).accuracy,
        p50_ms=latency[0],
        p95_ms=latency[1],
        ok=gate.passes(agreement, gap, spread),
    )


def loss_of(reference: NDArray[np.float32], answers: NDArray[np.float32], images: ImageSet) -> Loss:
    """What `answers` lose against `reference`: logits [N, C] of the same images."""
    right, was_right = answers.argmax(1) == images.labels, reference.argmax(1) == images.labels
    loss, low, high = paired_difference(int((right & ~was_right).sum()), int((was_right & ~right).sum()), len(images))
    return Loss(
        images=len(images),
        accuracy=float(right.mean()),
        reference=float(was_right.mean()),
        loss=loss,
        low=low,
        high=high,
        agreement=float((answers.argmax(1) == reference.argmax(1)).mean()),
        flagged=loss > LIMIT,
    )
