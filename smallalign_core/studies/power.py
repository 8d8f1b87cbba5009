"""Before a comparison starts: the smallest difference in accuracy that it can be expected to decide.

It imports no torch: the dashboard reads through it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from smallalign_core.runs import logits, table
from smallalign_core.runs.store import Run, Store
from smallalign_core.studies.statistics import POWER

BEST = 6
"""Number of finished runs whose predictions are compared with each other: better ones differ on fewer images."""


@dataclass(frozen=True)
class Power:
    """What a paired comparison on some test images can decide.

    Attributes:
        images, seeds: of the comparison.
        discordant: share of test images that one of two runs classifies correctly and the other does not.
        pairs: number of pairs of finished runs over which that is the median.
        difference: of accuracy, 0 to 1, that is significant in 80% of such comparisons.
        even: the one that is significant in half of them; a smaller one is more likely to be missed than found.
    """

    images: int
    seeds: int
    discordant: float
    pairs: int
    difference: float
    even: float

    def words(self) -> str:
        """As a sentence."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"With {self.images:,} test images and {seeds}, a difference below {100 * self.even:.1f} points of "
            f"accuracy will probably not be decided, and one of {100 * self.difference:.1f} points in 4 of 5 "
            f"studies: the most accurate runs on these images differ on {self.discordant:.1%} of them."
        )


def smallest_difference(discordant: float, images: int, seeds: int, tests: int = 1, *, power: float = POWER) -> float:
    """The difference in accuracy (0 to 1) that is significant with 80% power at 5%, two-sided.

    The variance of an image's difference is at most `discordant`, and over seeds it is averaged. That images differ in
    difficulty, which more seeds do not average out, is left out: the result is a lower bound.

    Args:
        discordant: share of images on which one of two runs is right and the other is not (McNemar, 1947).
        tests: how many comparisons share the 5% (Bonferroni).
        power: the normal quantile of another power; 0 for one half.
    """
    from scipy.special import ndtri

    return float((-ndtri(0.025 / tests) + power) * math.sqrt(discordant / (images * seeds)))


def expected(store: Store, fingerprint: str, *, seeds: int, tests: int = 1) -> Power | None:
    """From the most accurate runs on the data of that fingerprint; None where fewer than two have predictions."""
    there = [row for row in table.rows(store) if row.finished and row.data == fingerprint]
    there.sort(key=lambda row: row.accuracy or 0.0, reverse=True)
    right = [found for row in there[:BEST] if (found := _right(store.run(row.name).folder)) is not None]
    pairs = [_discordant(one, other) for one, other in combinations(right, 2) if len(one) == len(other)]
    if not pairs or not (share := median(pairs)):
        return None
    images = len(right[0])
    difference, even = (smallest_difference(share, images, seeds, tests, power=power) for power in (POWER, 0.0))
    return Power(images, seeds, share, len(pairs), difference, even)


@functools.lru_cache(maxsize=64)
def _right(folder: Path) -> tuple[bool, ...] | None:
    """Whether a finished run classifies each test image correctly; such a run does not change."""
    found = logits.kept(Run(folder))
    return None if found is None else tuple(found.right.tolist())


def _discordant(one: Sequence[bool], other: Sequence[bool]) -> float:
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)
