"""Whether a file meets an accuracy limit, as intervals on validation images say; corrected for the number of files.

Each file that the search compares on the same validation images is a look, and the best of many looks is flattered.
Every interval therefore has the level 1 - 0.05 / looks (Bonferroni): the chance that any of the files is said to meet
the limit, or to fail it, and does not, stays below 5%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ALPHA = 0.05
MOST = 10_000_000
"""Images, beyond which no number is named."""

Verdict = Literal["meets", "fails", "undecided"]


@dataclass(frozen=True)
class Counts:
    """Validation images by which of two models is right; without a teacher, `teacher` and `both` are 0.

    Attributes:
        both: images on which both are right; `student` and `teacher`: only that one; `neither`: none.
    """

    both: int
    student: int
    teacher: int
    neither: int

    @property
    def images(self) -> int:
        return self.both + self.student + self.teacher + self.neither

    @property
    def right(self) -> int:
        """Images on which the student is right."""
        return self.both + self.student

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.images)

    @property
    def teacher_accuracy(self) -> float:
        return (self.both + self.teacher) / max(1, self.images)


@dataclass(frozen=True)
class Interval:
    """A quantity that meets its limit above 0, with an interval.

    Attributes:
        margin: accuracy above the limit, as a share; negative below it.
    """

    margin: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """meets, fails or undecided: whether the whole interval lies on one side of the limit."""
        return "meets" if self.low >= 0 else "fails" if self.high < 0 else "undecided"


def exact_interval(hits: int, total: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The interval of a share at level 1 - alpha (Clopper & Pearson, 1934): never too narrow, whatever the share."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, total - hits + 1, alpha / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, total - hits, 1 - alpha / 2)) if hits < total else 1.0
    return low, high


def absolute(counts: Counts, limit: float, looks: int) -> Interval:
    """Accuracy above an absolute limit, with its exact interval."""
    low, high = exact_interval(counts.right, counts.images, ALPHA / max(1, looks))
    return Interval(counts.accuracy - limit, low - limit, high - limit)


def relative(counts: Counts, share: float, looks: int) -> Interval:
    """Accuracy above a share of the teacher's, on the same images.

    The margin is (1 - share) P(both right) + P(only the student) - share P(only the teacher). Each of the three has its
    exact interval at a third of the error, and the ends are added up. That is wider than a normal interval of the
    paired difference, and right where models seldom differ, where that one is not: no image on which only the teacher
    was right does not mean that there is none.
    """
    parts = [(1 - share, counts.both), (1.0, counts.student), (-share, counts.teacher)]
    parts = [part for part in parts if part[0]]
    alpha = ALPHA / max(1, looks) / len(parts)
    low = high = 0.0
    for weight, count in parts:
        ends = [weight * end for end in exact_interval(count, counts.images, alpha)]
        low, high = low + min(ends), high + max(ends)
    return Interval(counts.accuracy - share * counts.teacher_accuracy, low, high)


def images_needed(accuracy: float, limit: float, looks: int) -> int | None:
    """Validation images from which a file of this accuracy would be shown to meet an absolute limit; None if it never
    would."""
    if accuracy <= limit:
        return None
    low, high = 1, 2

    def shown(images: int) -> bool:
        right = math.floor(accuracy * images + 1e-9)
        return exact_interval(right, images, ALPHA / max(1, looks))[0] >= limit

    while not shown(high):
        low, high = high, high * 2
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high
