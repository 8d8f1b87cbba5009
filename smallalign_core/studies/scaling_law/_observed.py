"""Observations: the loss of students by arm, parameters, images and replicate. May be unbalanced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallalign_core.errors import BadData

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def chance(classes: int, metric: str) -> float:
    """The chance level: ln K for "nll", 1 - 1/K for "error"."""
    return math.log(classes) if metric == "nll" else 1 - 1 / classes


def position(arms: tuple[str, ...], arm: str) -> int:
    """The number of an arm.

    Raises:
        BadData: there is none of that name.
    """
    if arm not in arms:
        raise BadData("unknown arm", given=arm, do=f"choose one of {', '.join(arms)}")
    return arms.index(arm)


@dataclass(frozen=True, eq=False)
class Observations:
    """One row per finished run, in long format.

    Arms with the same replicate number share its images, initial weights and order: they are paired. Different
    replicates are independent. No more is assumed of a replicate.

    Attributes:
        arms: names of recipes.
        arm: [M] index into `arms`.
        n, d: [M] parameters of the student, number of training images.
        replicate: [M] index of the replicate.
        y: [M] test NLL in nats, or error in 0..1; above 0. Laws are fitted to its logarithm.
        chance: the chance level (`chance`); infinite if there is none.

    Raises:
        BadData: lists of different lengths, a value without logarithm, an unknown arm, a duplicate run.
    """

    arms: tuple[str, ...]
    arm: Ints
    n: Floats
    d: Floats
    replicate: Ints
    y: Floats
    chance: float

    def __post_init__(self) -> None:
        lengths = {len(self.arm), len(self.n), len(self.d), len(self.replicate), len(self.y)}
        if len(lengths) != 1 or lengths == {0}:
            raise BadData(
                "the lists of a scaling study have different lengths",
                given=sorted(lengths),
                do="give one value per run",
            )
        for name, values in (("parameters", self.n), ("images", self.d), ("losses", self.y)):
            bad = ~(np.isfinite(values) & (values > 0))
            if bad.any():
                do = "leave diverged runs out" if name == "losses" else "give the number of each run"
                raise BadData(f"{name} must be above 0 and finite", given=values[bad][0], do=do)
        if self.arm.min() < 0 or self.arm.max() >= len(self.arms):
            raise BadData("an arm has no name", given=int(self.arm.max()), do="name all arms")
        runs = np.stack([self.arm, self.n, self.d, self.replicate], axis=1)
        if len(np.unique(runs, axis=0)) < len(runs):
            raise BadData("a run is listed twice", do="give each arm, size, number of images and replicate once")

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[str, float, float, int, float]], chance: float) -> Observations:
        """From rows of (arm, parameters, images, replicate, loss); arms in order of first occurrence."""
        arms = tuple(dict.fromkeys(row[0] for row in rows))
        return make(
            arms,
            [arms.index(row[0]) for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            [row[3] for row in rows],
            [row[4] for row in rows],
            chance,
        )

    def index(self, arm: str) -> int:
        """The number of an arm, as `position`."""
        return position(self.arms, arm)

    def where(self, chosen: NDArray[np.bool_]) -> Observations:
        """Only those rows; all arms keep their numbers."""
        some = {name: getattr(self, name)[chosen] for name in ("arm", "n", "d", "replicate", "y")}
        return replace(self, **some)

    def only(self, *arms: str) -> Observations:
        """Only those arms, renumbered in that order."""
        numbers = [self.index(arm) for arm in arms]
        some = self.where(np.isin(self.arm, numbers))
        return replace(some, arms=arms, arm=np.array([numbers.index(one) for one in some.arm], np.int64))

    def relabelled(self, arm: str, **changed: ArrayLike) -> Observations:
        """One arm of this alone, under a new name and with `n`, `d` or `replicate` changed."""
        kinds = {"n": np.float64, "d": np.float64, "replicate": np.int64}
        fields: dict[str, Any] = {name: np.asarray(value, kinds[name]) for name, value in changed.items()}
        return replace(self, arms=(arm,), arm=np.zeros_like(self.arm), **fields)

    @cached_property
    def cells(self) -> Cells:
        """The same by cell."""
        keys, cell = np.unique(np.stack([self.arm, self.n, self.d], axis=1), axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        replicates, replicate = np.unique(self.replicate, return_inverse=True)
        count = np.bincount(cell)
        log_y = np.log(self.y)
        mean = np.bincount(cell, log_y) / count
        residuals = np.zeros((len(replicates), len(keys)))
        residuals[replicate, cell] = log_y - mean[cell]
        there = np.zeros(residuals.shape, bool)
        there[replicate, cell] = True
        freedom = int((count - 1).sum())
        noise = math.sqrt(float((residuals**2).sum()) / freedom) if freedom else math.nan
        return Cells(keys[:, 0].astype(np.int64), keys[:, 1], keys[:, 2], count, mean, residuals, there, noise, freedom)

    def rungs(self, arm: str) -> tuple[Floats, Floats]:
        """The sizes and the numbers of images at which an arm was measured, ascending."""
        mine = self.arm == self.index(arm)
        return np.unique(self.n[mine]), np.unique(self.d[mine])


def make(
    arms: Sequence[str],
    arm: ArrayLike,
    n: ArrayLike,
    d: ArrayLike,
    replicate: ArrayLike,
    y: ArrayLike,
    chance: float,
) -> Observations:
    """Observations from lists or arrays of any type."""
    floats = [np.asarray(values, np.float64) for values in (n, d, y)]
    ints = [np.asarray(values, np.int64) for values in (arm, replicate)]
    return Observations(tuple(arms), ints[0], floats[0], floats[1], ints[1], floats[2], float(chance))


def joined(first: Observations, second: Observations) -> Observations:
    """Both, the second's arms after the first's. Equal numbers of replicates stay paired."""
    both = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("n", "d", "replicate", "y")
    }
    arm = np.concatenate([first.arm, second.arm + len(first.arms)])
    return Observations((*first.arms, *second.arms), arm, chance=first.chance, **both)


@dataclass(frozen=True, eq=False)
class Cells:
    """Observations by cell (arm, n, d).

    Attributes:
        arm, n, d: [C].
        count: [C] runs.
        mean: [C] of log y.
        residuals: [S, C] log y less the cell's mean; 0 where a replicate is not there.
        there: [S, C] whether it is.
        noise: standard deviation of a run's log y within its cell, pooled; NaN where no cell has two runs.
        freedom: its degrees of freedom.
    """

    arm: Ints
    n: Floats
    d: Floats
    count: Ints
    mean: Floats
    residuals: Floats
    there: NDArray[np.bool_]
    noise: float
    freedom: int

    def pairs(self, arm: int, other: int) -> Pairs:
        """The differences of two arms, where both have a replicate of a cell."""
        at = {(n, d): i for i, (n, d) in enumerate(zip(self.n, self.d, strict=True)) if self.arm[i] == other}
        keys = enumerate(zip(self.n, self.d, strict=True))
        both = [(i, at[key]) for i, key in keys if self.arm[i] == arm and key in at]
        first, second = np.array(both, np.int64).reshape(-1, 2).T
        there = self.there[:, first] & self.there[:, second]
        logs = self.mean + self.residuals
        gaps = np.where(there, logs[:, first] - logs[:, second], 0.0)
        count = there.sum(0)
        mean = gaps.sum(0) / np.maximum(count, 1)
        freedom = int(np.maximum(count - 1, 0).sum())
        squares = float((np.where(there, gaps - mean, 0.0) ** 2).sum())
        some = count > 0
        noise = math.sqrt(squares / freedom) if freedom else math.nan
        return Pairs(first[some], second[some], count[some], mean[some], noise, freedom)

    @cached_property
    def replicates(self) -> float:
        """Runs of a typical cell (the median)."""
        return float(np.median(self.count))

    @cached_property
    def errors(self) -> Floats:
        """[S + lone cells, C]: times independent standard normals, errors of the cells' means.

        A replicate moves all cells that it is in together, by its own residuals, inflated by sqrt(k / (k - 1)) since
        they were taken from the mean of k: a wild cluster bootstrap (Cameron, Gelbach & Miller, 2008) whose covariance
        is that of the sample. A cell of one run has no residual; it gets the pooled deviation, independently.
        """
        inflated = np.sqrt(self.count / np.maximum(1, self.count - 1)) / self.count
        lone = np.flatnonzero(self.count == 1)
        alone = np.zeros((len(lone), len(self.count)))
        alone[np.arange(len(lone)), lone] = 0.0 if math.isnan(self.noise) else self.noise
        return np.concatenate([self.residuals * inflated, alone])

    def degrees(self, weights: Floats) -> float:
        """Degrees of freedom of the variance of a sum of cells' means with these weights [C] (Satterthwaite, 1946).

        The estimate is a quadratic form of the residuals; its first two moments under runs of equal variance give
        S - 1 where all cells have all S replicates, S - 2 where two halves are compared, and less than the sum of
        what the cells have elsewhere.
        """
        many = self.count > 1
        share = (weights[many] ** 2) / (self.count[many] * (self.count[many] - 1))
        there = self.there[:, many].astype(np.float64)
        gram = np.diag(there @ share) - (there * (share / self.count[many])) @ there.T
        lone = weights[~many] ** 2
        total = float(np.trace(gram) + lone.sum())
        squares = float((gram**2).sum() + (lone.sum() ** 2) / max(1, self.freedom))
        return total**2 / squares if squares > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two arms' differences of log y on the same replicates, by cell.

    Attributes:
        first, second: [K] the cells.
        count: [K] pairs.
        mean: [K] of the differences, first less second.
        noise: standard deviation of a pair's difference within its cell, pooled; NaN where no cell has two pairs.
        freedom: its degrees of freedom.
    """

    first: Ints
    second: Ints
    count: Ints
    mean: Floats
    noise: float
    freedom: int
