"""Is it still the class? What a policy does to a teacher's answers, by part and by strength.

A teacher that changes its mind about an augmented image either sees another class there or can no longer tell; a
student is then taught from that. Nothing here looks at test images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadSpec
from smallalign_core.evaluate import log_softmax, wilson
from smallalign_core.networks import Answering
from smallalign_core.spec import Augment, CutMix, MixUp
from smallalign_core.views import Views, scaled

LEAST, MOST = 512, 2048
GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
GROUP = 128
SHOWN = 60
UNSURE = 0.15
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """What one policy at one strength does to the teacher's answers.

    Attributes:
        flip_rate: share of views whose predicted class is not that of the clean image, with a 95 % interval (Wilson,
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
    """One part of the policy alone, as written."""

    index: int
    kind: str
    effect: Effect


@dataclass(frozen=True)
class Flipped:
    """A view that the teacher calls differently from its clean image.

    Attributes:
        row: the image's position among those looked at; `view`: the number of the draw. Together with the seed they
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
class Risk:
    """The report.

    Attributes:
        images, draws, seed: how many images were looked at, how often each, and which draws.
        clean: the same figures without augmentation: its flip rate is 0, its stddev is what sampling alone gives.
        whole: the policy as written. parts: each part alone. curve: the whole policy over strength.
        limit: the highest flip rate that is accepted.
        suggested: the largest strength of the curve up to which every flip rate stays within `limit`; None if the
            weakest already exceeds it.
        flipped: views that changed class under the whole policy, surest first; at most 60 of `flipped_count`.
        warnings: what a person should know, in words.
    """

    images: int
    draws: int
    seed: int
    limit: float
    clean: Effect
    whole: Effect
    parts: tuple[PartEffect, ...]
    curve: tuple[Effect, ...]
    suggested: float | None
    flipped_count: int
    flipped: tuple[Flipped, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def words(self) -> str:
        """The report as lines of text."""
        lines = [_line("whole policy", self.whole), *(_line(part.kind, part.effect) for part in self.parts)]
        safe = "none" if self.suggested is None else f"{self.suggested:g}"
        lines.append(f"suggested strength for a flip rate of at most {self.limit:.1%}: {safe}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _line(name: str, effect: Effect) -> str:
    return (
        f"{name}: class changes on {effect.flip_rate:.1%} [{effect.flip_low:.1%}, {effect.flip_high:.1%}], "
        f"confidence {effect.confidence_before:.3f} -> {effect.confidence_after:.3f}, "
        f"teacher stddev {effect.stddev:.4f}"
    )


def sample(splits: Splits, *, least: int = LEAST, most: int = MOST) -> tuple[ImageSet, int]:
    """Validation images, at most `most`; filled up with training images where there are fewer than `least`.

    Returns:
        the images, and how many of them are training images.
    """
    val = splits.val.take(np.linspace(0, len(splits.val) - 1, min(most, len(splits.val))).astype(np.int64))
    wanted = min(max(0, least - len(val)), len(splits.train))
    if not wanted:
        return val, 0
    more = splits.train.take(np.linspace(0, len(splits.train) - 1, wanted).astype(np.int64))
    both = (val, more)
    return replace(
        val,
        images=np.concatenate([np.asarray(part.images[np.arange(len(part))]) for part in both]),
        labels=np.concatenate([part.labels for part in both]),
        ids=np.concatenate([part.ids for part in both]),
    ), wanted


def assess(
    teacher: Answering,
    policy: tuple[Augment, ...],
    images: ImageSet,
    *,
    seed: int = 0,
    draws: int = 4,
    limit: float = 0.05,
    grid: Sequence[float] = GRID,
    from_training: int = 0,
    device: torch.device | str = "cpu",
) -> Risk:
    """Ask the teacher about `images`, clean and augmented.

    Parts that mix images are left out: they change the label on purpose.

    Args:
        images: those of `sample`.
        draws: views of each image, for every part and every strength.
        limit: the highest flip rate to accept, 0..1.
        from_training: how many of the images the teacher was trained on; said in the warnings.

    Raises:
        BadSpec: the policy is empty or cannot work on the images, or limit or draws are out of range.
    """
    alone = tuple(part for part in policy if not isinstance(part, MixUp | CutMix))
    if not policy:
        raise BadSpec("the policy has no parts", do="add one")
    if not 0 <= limit <= 1 or draws < 1:
        raise BadSpec("a limit lies between 0 and 1, and there is at least one draw", given=f"{limit}, {draws}")
    clean = _answers(teacher, (), images, seed, 1, device)[0]

    def seen(parts: tuple[Augment, ...]) -> Probabilities:
        return _answers(teacher, parts, images, seed, draws, device)

    def effect(parts: tuple[Augment, ...], strength: float = 1.0) -> Effect:
        return _effect(clean, seen(parts), images.labels, strength, seed)

    after = seen(alone)
    whole = _effect(clean, after, images.labels, 1.0, seed)
    parts = tuple(PartEffect(index, part.kind, effect((part,))) for index, part in enumerate(alone))
    curve = tuple(
        whole if strength == 1 else effect(scaled(alone, strength, images.shape), strength)
        for strength in sorted(set(grid))
    )
    flipped = _flipped(clean, after, images)
    return Risk(
        images=len(images),
        draws=draws,
        seed=seed,
        limit=limit,
        clean=_effect(clean, np.broadcast_to(clean, (draws, *clean.shape)), images.labels, 0.0, seed),
        whole=whole,
        parts=parts,
        curve=curve,
        suggested=_suggested(curve, limit),
        flipped_count=len(flipped),
        flipped=tuple(flipped[:SHOWN]),
        warnings=tuple(_warnings(images, policy, whole, parts, flipped, limit, from_training)),
    )


def _answers(
    teacher: Answering,
    policy: tuple[Augment, ...],
    images: ImageSet,
    seed: int,
    draws: int,
    device: torch.device | str,
    batch: int = 512,
) -> Probabilities:
    """[draws, N, C]: the teacher's probabilities for each view of each image."""
    views = Views(images, policy, batch=batch, seed=seed, device=device)
    teacher.eval().to(device)
    found = []
    with torch.no_grad():
        for view in range(draws):
            for start in range(0, len(images), batch):
                rows = np.arange(start, min(start + batch, len(images)))
                shown = views.augmented(rows, np.full(len(rows), view))
                found.append(teacher(shown).float().cpu().numpy())
    return np.exp(log_softmax(np.concatenate(found))).reshape(draws, len(images), -1)


def said(teacher: Answering, shown: NDArray[np.uint8]) -> list[list[dict[str, Any]]]:
    """The teacher's class and confidence for each image of uint8 [rows, columns, C, H, W]."""
    with torch.no_grad():
        logits = teacher.eval()(torch.from_numpy(shown.reshape(-1, *shown.shape[2:]))).float().numpy()
    found = np.exp(log_softmax(logits)).reshape(*shown.shape[:2], -1)
    return [[{"class": teacher.classes[p.argmax()], "confidence": float(p.max())} for p in row] for row in found]


def _effect(
    clean: Probabilities, after: Probabilities, labels: NDArray[np.int64], strength: float, seed: int
) -> Effect:
    """Figures of probabilities clean [N, C] and augmented [draws, N, C]."""
    said, said_after = clean.argmax(1), after.argmax(2)
    rate = float((said_after != said).mean())
    low, high = wilson(rate * len(said), len(said))
    return Effect(
        strength=strength,
        flip_rate=rate,
        flip_low=low,
        flip_high=high,
        confidence_before=float(clean.max(1).mean()),
        confidence_after=float(after.max(2).mean()),
        accuracy_before=float((said == labels).mean()),
        accuracy_after=float((said_after == labels).mean()),
        stddev=teacher_stddev(after, seed=seed),
    )


def teacher_stddev(probabilities: Probabilities, *, group: int = GROUP, seed: int = 0) -> float:
    """The standard deviation of the teacher's mean probability (Wang et al., NeurIPS 2022); lower is better.

    In each draw the images are shuffled and cut into groups of `group`, as the paper samples its mini-batches (theirs
    hold 640). A group's answer is the mean probability of each class over its images. The result is the standard
    deviation (n - 1) of these means over all groups of all draws, averaged over classes. Compare values only for the
    same images, draws and group: sampling images is part of it, so clean images do not give 0. And compare only
    policies that keep the class: a teacher that no longer recognises anything gives steady answers too.

    Args:
        probabilities: [draws, N, C].
    """
    draws, count, _ = probabilities.shape
    group = max(1, min(group, count // 2))
    shuffle = np.random.Generator(np.random.Philox(key=[seed, 0]))
    means = []
    for draw in range(draws):
        order = shuffle.permutation(count)[: count // group * group]
        means.extend(probabilities[draw][order].reshape(-1, group, probabilities.shape[2]).mean(1))
    return float(np.std(means, axis=0, ddof=1).mean()) if len(means) > 1 else 0.0


def _flipped(clean: Probabilities, after: Probabilities, images: ImageSet) -> list[Flipped]:
    """Every view that changed class, the surest wrong answer first."""
    said, said_after, sure = clean.argmax(1), after.argmax(2), after.max(2)
    names = images.classes
    places = np.argwhere(said_after != said)
    return [
        Flipped(
            row=int(row),
            view=int(view),
            label=names[images.labels[row]],
            before=names[said[row]],
            before_confidence=float(clean[row].max()),
            after=names[said_after[view, row]],
            after_confidence=float(sure[view, row]),
        )
        for view, row in sorted(places.tolist(), key=lambda place: -sure[place[0], place[1]])
    ]


def _suggested(curve: Sequence[Effect], limit: float) -> float | None:
    best = None
    for point in curve:
        if point.flip_rate > limit:
            break
        best = point.strength
    return best


def _warnings(
    images: ImageSet,
    policy: tuple[Augment, ...],
    whole: Effect,
    parts: Sequence[PartEffect],
    flipped: Sequence[Flipped],
    limit: float,
    from_training: int,
) -> list[str]:
    """What a person should know before training on this."""
    found = []
    for part in parts:
        effect = part.effect
        if effect.flip_low > limit:
            found.append(
                f"`{named(policy[part.index])}` alone changes the class of {effect.flip_rate:.0%} of images, clearly "
                f"more than {limit:.0%}: make it weaker, or remove it"
            )
        elif effect.confidence_before - effect.confidence_after > UNSURE:
            found.append(
                f"`{named(policy[part.index])}` makes the teacher unsure: its confidence falls from "
                f"{effect.confidence_before:.2f} to {effect.confidence_after:.2f}"
            )
    if whole.flip_low > limit:
        (before, after), times = Counter((view.before, view.after) for view in flipped).most_common(1)[0]
        found.append(
            f"the whole policy changes the class of {whole.flip_rate:.0%} of images; most often {before} becomes "
            f"{after} ({times} of {len(flipped)})"
        )
    if whole.accuracy_before < 0.8:
        found.append(f"the teacher is right on only {whole.accuracy_before:.0%} of clean images: it is a poor judge")
    if any(isinstance(part, MixUp | CutMix) for part in policy):
        found.append(f"`{policy[-1].kind}` was left out: it changes the label on purpose")
    if from_training:
        found.append(
            f"{from_training} of the {len(images)} images are training images, on which the teacher is surer: there "
            f"are fewer than {LEAST} for validation"
        )
    if len(images) < LEAST:
        found.append(f"only {len(images)} images could be looked at: the intervals are wide")
    return found


def named(part: Augment) -> str:
    """A part and what it was asked for, short enough for a sentence."""
    values = [value for name, value in part.model_dump().items() if name not in ("kind", "probability")]
    return " ".join([part.kind, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)])
