"""Label preservation: the effect of an augmentation policy on a teacher's predictions, per transform and strength.

If augmentation changes the teacher's prediction, the image shows another class or is no longer recognisable, and the
student is trained on that. Test images are not used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core.analysis.label_report import (
    Effect as Effect,
    Flipped as Flipped,
    LabelPreservation as LabelPreservation,
    PartEffect as PartEffect,
    Prediction as Prediction,
)
from smallalign_core.augment import Views, scaled
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadSpec
from smallalign_core.metrics import log_softmax, wilson
from smallalign_core.networks import BaseClassifier
from smallalign_core.spec import Augment, Code, Mixing
from smallalign_core.system.batching import in_batches

LEAST, MOST = 512, 2048
MOST_PIXELS = 16_000_000  # of all images together: 2,048 of 51 x 51 x 3
GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
GROUP = 128
SHOWN = 60
BATCH = 256
UNSURE = 0.15
Probabilities = NDArray[np.float64]


def sample(splits: Splits, *, least: int = LEAST, most: int | None = None) -> tuple[ImageSet, int]:
    """Validation images, filled up with training images where there are fewer than `least`.

    Args:
        most: maximum number; default: 2,048, or down to `least` for large images.

        Returns:
            the images, and the number of training images among them.
    """
    if most is None:
        most = min(MOST, max(least, MOST_PIXELS // math.prod(splits.shape)))
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


@dataclass(frozen=True)
class _Answer:
    """Cached results of one policy."""

    effect: Effect
    flipped: tuple[Flipped, ...]
    flipped_count: int
    commonest: tuple[str, str, int]  # predicted before, predicted after, count


class LabelCheck:
    """A teacher and a sample of images, with cached predictions.

    Args:
        images: those of `sample`.
        seed, draws: seed and number of augmentations per image, for every transform and strength.
        from_training: number of the teacher's training images among them, for a warning.
    """

    def __init__(
        self,
        teacher: BaseClassifier,
        images: ImageSet,
        *,
        seed: int = 0,
        draws: int = 4,
        from_training: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if draws < 1:
            raise BadSpec("`draws` must be at least 1", given=draws, do="give a positive number")
        self.teacher, self.images, self.seed, self.draws = teacher.eval().to(device), images, seed, draws
        self.from_training, self.device = from_training, device
        self._clean: Probabilities | None = None
        self._known: dict[tuple[Augment, ...], _Answer] = {}

    def report(
        self, policy: tuple[Augment, ...], *, strength: float = 1.0, limit: float = 0.05, grid: Sequence[float] = GRID
    ) -> Generator[float, None, LabelPreservation]:
        """A report on `policy`, batch by batch: yields progress in 0..1, returns the report.

        Transforms that mix images are excluded: they change the label on purpose.

        Args:
            strength: strength of the figures; the curve is over `grid` and this one.
            limit: maximum label-change rate, 0..1.

        Raises:
            BadSpec: the policy is empty or cannot work on the images, or limit or strength are out of range.
        """
        if not policy:
            raise BadSpec("the policy has no transforms", do="add one")
        if not 0 <= limit <= 1:
            raise BadSpec("the limit must be between 0 and 1", given=limit, do="write for example 0.05")
        shape = self.images.shape
        alone = tuple(part for part in policy if not isinstance(part, Mixing))
        single = [scaled((part,), strength, shape) for part in alone]
        strengths = sorted({*grid, strength} - {0.0})
        curve = [scaled(alone, value, shape) for value in strengths]
        now = scaled(alone, strength, shape)
        policies = dict.fromkeys([(), now, *single, *curve])
        policies = dict.fromkeys(one for one in policies if one not in self._known)
        batches = self.draws * -(-len(self.images) // BATCH)
        for place, one in enumerate(policies):
            for done in self._ask(one):
                yield (place + done / batches) / len(policies)
        whole = self._known[now]
        parts = tuple(
            PartEffect(index, part.kind, part_label((scaled_part or (part,))[0]), self._effect(scaled_part, strength))
            for index, (part, scaled_part) in enumerate(zip(alone, single, strict=True))
        )
        points = tuple(self._effect(there, value) for there, value in zip(curve, strengths, strict=True))
        risk = LabelPreservation(
            images=len(self.images),
            draws=self.draws,
            seed=self.seed,
            strength=strength,
            limit=limit,
            clean=self._effect((), 0.0),
            whole=self._effect(now, strength),
            parts=parts,
            curve=points,
            suggested=_suggested([point for point in points if point.strength in grid], limit),
            flipped_count=whole.flipped_count,
            flipped=whole.flipped,
            warnings=(),
        )
        return replace(risk, warnings=tuple(_warnings(risk, policy, whole.commonest, self.from_training)))

    @property
    def answered(self) -> int:
        """Number of cached policies."""
        return len(self._known)

    def _effect(self, policy: tuple[Augment, ...], strength: float) -> Effect:
        return replace(self._known[policy].effect, strength=strength)

    def _ask(self, policy: tuple[Augment, ...]) -> Generator[int, None, None]:
        """Compute and cache the predictions for `policy`; yields the number of batches so far."""
        views = Views(self.images, policy, batch=BATCH, seed=self.seed, device=self.device)
        found: list[NDArray[np.float32]] = []
        for view in range(self.draws if policy else 1):
            for start in range(0, len(self.images), BATCH):
                rows = np.arange(start, min(start + BATCH, len(self.images)))
                shown = views.augmented(rows, np.full(len(rows), view))
                found.append(in_batches(self.teacher, shown).float().cpu().numpy())
                yield len(found)
        after = np.exp(log_softmax(np.concatenate(found))).reshape(-1, len(self.images), found[0].shape[1])
        if self._clean is None:  # the first one is the empty policy
            self._clean = after[0]
        if not policy:
            after = np.broadcast_to(after, (self.draws, *after.shape[1:]))
        self._known[policy] = _answer(self._clean, after, self.images, self.seed)


def assess(
    teacher: BaseClassifier,
    policy: tuple[Augment, ...],
    images: ImageSet,
    *,
    seed: int = 0,
    draws: int = 4,
    strength: float = 1.0,
    limit: float = 0.05,
    grid: Sequence[float] = GRID,
    from_training: int = 0,
    device: torch.device | str = "cpu",
) -> LabelPreservation:
    """Label preservation of a policy on `images`."""
    check = LabelCheck(teacher, images, seed=seed, draws=draws, from_training=from_training, device=device)
    work = check.report(policy, strength=strength, limit=limit, grid=grid)
    while True:
        try:
            next(work)
        except StopIteration as done:
            report: LabelPreservation = done.value
            return report


def predictions(teacher: BaseClassifier, shown: NDArray[np.uint8]) -> tuple[tuple[Prediction, ...], ...]:
    """The teacher's class and confidence for each image of uint8 [rows, columns, C, H, W]."""
    logits = in_batches(teacher.eval(), torch.from_numpy(shown.reshape(-1, *shown.shape[2:]))).float().numpy()
    found = np.exp(log_softmax(logits)).reshape(*shown.shape[:2], -1)
    return tuple(tuple(Prediction(teacher.classes[p.argmax()], float(p.max())) for p in row) for row in found)


def _answer(clean: Probabilities, after: Probabilities, images: ImageSet, seed: int) -> _Answer:
    """Figures of probabilities clean [N, C] and augmented [draws, N, C]."""
    said, said_after, sure = clean.argmax(1), after.argmax(2), after.max(2)
    names, labels = images.classes, images.labels
    rate = float((said_after != said).mean())
    low, high = wilson(rate * len(said), len(said))
    effect = Effect(
        strength=1.0,
        flip_rate=rate,
        flip_low=low,
        flip_high=high,
        confidence_before=float(clean.max(1).mean()),
        confidence_after=float(sure.mean()),
        accuracy_before=float((said == labels).mean()),
        accuracy_after=float((said_after == labels).mean()),
        stddev=teacher_stddev(after, seed=seed),
    )
    places = np.argwhere(said_after != said)
    places = places[
        np.argsort(-sure[places[:, 0], places[:, 1]], kind="stable")
    ]  # the most confident label change first
    pairs = Counter((int(said[row]), int(said_after[view, row])) for view, row in places)
    ((before, becomes), times) = pairs.most_common(1)[0] if pairs else ((0, 0), 0)
    flipped = tuple(
        Flipped(
            row=int(row),
            view=int(view),
            label=names[labels[row]],
            before=names[said[row]],
            before_confidence=float(clean[row].max()),
            after=names[said_after[view, row]],
            after_confidence=float(sure[view, row]),
        )
        for view, row in places[:SHOWN]
    )
    return _Answer(effect, flipped, len(places), (names[before], names[becomes], times))


def teacher_stddev(probabilities: Probabilities, *, group: int = GROUP, seed: int = 0) -> float:
    """The standard deviation of the teacher's mean probability (Wang et al., NeurIPS 2022); lower is better.

    In each draw the images are shuffled and cut into groups of `group`, as the paper samples its mini-batches (theirs
    hold 640). A group's answer is the mean probability of each class over its images. The result is the standard
    deviation (n - 1) of these means over all groups of all draws, averaged over classes. Compare values only for the
    same images, draws and group: sampling images is part of it, so clean images do not give 0. And compare only
    label-preserving policies: on unrecognisable images the predictions are stable too.

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


def _suggested(curve: Sequence[Effect], limit: float) -> float | None:
    best = None
    for point in curve:
        if point.flip_rate > limit:
            break
        best = point.strength
    return best


def _warnings(
    risk: LabelPreservation, policy: tuple[Augment, ...], commonest: tuple[str, str, int], from_training: int
) -> Iterator[str]:
    """Warnings before training with the policy."""
    limit, whole = risk.limit, risk.whole
    for part in risk.parts:
        effect = part.effect
        if effect.flip_low > limit:
            yield (
                f"`{part.name}` alone has a label-change rate of {effect.flip_rate:.0%}, clearly "
                f"above {limit:.0%}: make it weaker, or remove it"
            )
        elif effect.confidence_before - effect.confidence_after > UNSURE:
            yield (
                f"`{part.name}` lowers teacher confidence from "
                f"{effect.confidence_before:.2f} to {effect.confidence_after:.2f}"
            )
    if whole.flip_low > limit:
        before, after, times = commonest
        yield (
            f"the whole policy has a label-change rate of {whole.flip_rate:.0%}; most often {before} becomes "
            f"{after} ({times} of {risk.flipped_count})"
        )
    if whole.accuracy_before < 0.8:
        yield f"teacher accuracy on clean images is only {whole.accuracy_before:.0%}: the result is unreliable"
    if isinstance(policy[-1], Mixing):
        yield f"`{policy[-1].kind}` was excluded: it changes the label on purpose"
    if from_training:
        yield (
            f"{from_training} of the {risk.images} images are training images, with higher teacher confidence: there "
            f"are fewer than {LEAST} validation images"
        )
    if risk.images < LEAST:
        yield f"only {risk.images} images are available: the intervals are wide"


def part_label(part: Augment) -> str:
    """A transform with its values, as short text."""
    if isinstance(part, Code):
        return part.shown
    values = [value for name, value in part.model_dump().items() if name not in ("kind", "probability")]
    return " ".join([part.kind, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)])
