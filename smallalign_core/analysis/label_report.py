"""What is found about label preservation, see `analysis.label_preservation`; without torch, for pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A teacher's class for an image, and its probability."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Effect:
    """The effect of one policy at one strength on the teacher's predictions.

    Attributes:
        flip_rate: share of views whose predicted class is not that of the clean image, with a 95% interval (Wilson,
            1927) in `flip_low`, `flip_high`. The interval counts images and not views: the draws of one image are not
            independent, so it is wide rather than narrow.
        confidence_before, confidence_after: mean probability of the predicted class, on clean images and on views.
        accuracy_before, accuracy_after: share of them that the teacher gets right.
        stddev: see `teacher_stddev`.
    """

    strength: float
    flip_rate: float
    flip_low: float
    flip_high: float
    confidence_before: float
    confidence_after: float
    accuracy_before: float
    accuracy_after: float
    stddev: float


@dataclass(frozen=True)
class PartEffect:
    """One transform of the policy alone; `index` is its position in the policy, `name` its kind and values."""

    index: int
    kind: str
    name: str
    effect: Effect


@dataclass(frozen=True)
class Flipped:
    """An augmented image with another prediction than its clean image.

    Attributes:
        row: the image's position in the sample; `view`: the number of the draw. Together with the seed they
            give the pixels: `Views(...).augmented([row], [view])`.
        label: the true class.
        before, after: predicted classes, each with its probability.
    """

    row: int
    view: int
    label: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float


@dataclass(frozen=True)
class LabelPreservation:
    """The report.

    Attributes:
        images, draws, seed: number of images, augmentations per image, and the seed.
        strength: that of `whole`, `parts` and `flipped`.
        clean: the same figures without augmentation: its flip rate is 0, its stddev is what sampling alone gives.
        whole: the policy. parts: each part alone. curve: the whole policy over strength, 1 is as written.
        limit: the maximum flip rate (label-change rate).
        suggested: the largest strength of the curve up to which every flip rate stays within `limit`; None if the
            weakest already exceeds it.
        flipped: label changes under the whole policy, most confident first; at most 60 of `flipped_count`.
        warnings: warnings, as text.
    """

    images: int
    draws: int
    seed: int
    strength: float
    limit: float
    clean: Effect
    whole: Effect
    parts: tuple[PartEffect, ...]
    curve: tuple[Effect, ...]
    suggested: float | None
    flipped_count: int
    flipped: tuple[Flipped, ...]
    warnings: tuple[str, ...]

    def words(self) -> str:
        """The report as lines of text."""
        lines = [_line("whole policy", self.whole), *(_line(part.kind, part.effect) for part in self.parts)]
        safe = "none" if self.suggested is None else f"{self.suggested:g}"
        lines.append(f"suggested strength for a label-change rate of at most {self.limit:.1%}: {safe}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _line(name: str, effect: Effect) -> str:
    return (
        f"{name}: label-change rate {effect.flip_rate:.1%} [{effect.flip_low:.1%}, {effect.flip_high:.1%}], "
        f"confidence {effect.confidence_before:.3f} -> {effect.confidence_after:.3f}, "
        f"teacher stddev {effect.stddev:.4f}"
    )
