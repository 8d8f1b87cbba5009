"""What is found about a teacher, see `analysis.teacher_check`; without torch, for pages."""

from __future__ import annotations

from dataclasses import dataclass

from smallalign_core.metrics import Scores
from smallalign_core.training.teacher_evidence import Softness


@dataclass(frozen=True)
class Preflight:
    """The check of a teacher on validation images.

    Attributes:
        refused: why it is not usable, as text; None if it is.
        warnings: warnings, as text.
        assumed: assumptions about its inputs and outputs that are not in its file.
        scores: on `scores.images` validation images.
        chance: accuracy of predicting the most frequent class, or 1/classes if that is more.
        temperature: fitted on the same images; `calibrated_ece`, `calibrated_nll` with it.
        worst: the three classes with the lowest recall.
        mapping: its own class for each class of the data, if names or order differ.
        unused: its classes that are not in the data.
        repeat_diff: largest difference of a logit when the same batch is repeated.
        batch_diff: the same, with a batch size of 1.
        logit_std: standard deviation of its logits after each image's mean is taken off.
        margin: mean distance from the top logit to the next.
        softness: at temperatures 1, 2, 4 and 8.
        suggested: suggested temperatures: its mean confidence is 90% at the first and halfway between chance and
            certainty at the second. A heuristic: sharper targets add little to labels, softer ones are mostly noise
            for a small student. Limited to the range of the loss.
        images_per_second: fastest of several batches, this device, this number of threads.
        params, bytes: its size.
    """

    teacher: str
    id: str
    digest: str
    imported: bool
    data: str
    refused: str | None
    warnings: list[str]
    assumed: list[str]
    scores: Scores
    chance: float
    temperature: float
    calibrated_ece: float
    calibrated_nll: float
    worst: list[tuple[str, float]]
    mapping: list[tuple[str, str]]
    unused: int
    repeat_diff: float
    batch_diff: float
    logit_std: float
    margin: float
    softness: list[Softness]
    suggested: tuple[float, float]
    images_per_second: float
    device: str
    params: int
    bytes: int

    def words(self) -> str:
        """The report as text."""
        found = self.scores
        soft = ", ".join(f"{one.confidence:.0%} at T={one.temperature:g}" for one in self.softness)
        lines = [
            f"{'NOT USABLE: ' + self.refused if self.refused else 'usable as a teacher'}",
            f"{self.teacher} on {found.images:,} validation images of {self.data}: accuracy {found.accuracy:.2%} "
            f"[{found.accuracy_low:.2%}, {found.accuracy_high:.2%}], chance {self.chance:.2%}",
            f"NLL {found.nll:.4f}, ECE {found.ece:.2%}; with temperature {self.temperature:.3f}: "
            f"{self.calibrated_nll:.4f}, {self.calibrated_ece:.2%}",
            "lowest recall: " + ", ".join(f"{name} {recall:.0%}" for name, recall in self.worst),
            f"logits: spread {self.logit_std:.2f}, margin {self.margin:.2f}; confidence {soft}",
            f"suggested temperature: {self.suggested[0]:.2g} to {self.suggested[1]:.2g}",
            f"determinism: {self.repeat_diff:.2g} (repeat), {self.batch_diff:.2g} (batch of 1), max. logit difference",
            f"{self.params:,} parameters, {self.bytes:,} bytes, "
            f"{self.images_per_second:,.0f} images/s on {self.device}",
        ]
        assumed = [f"assumed: {words}" for words in self.assumed]
        return "\n".join([*lines, *assumed, *(f"warning: {warning}" for warning in self.warnings)])
