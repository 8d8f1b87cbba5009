"""Multipliers: the factor in parameters, or images, that the baseline would need for the same loss as a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from smallalign_core.errors import BadData
from smallalign_core.studies import statistics
from smallalign_core.studies.scaling_law._fit import Draws, Law
from smallalign_core.studies.scaling_law._form import Axis
from smallalign_core.studies.scaling_law._observed import Cells, Floats

LEAST_REPLICATES = 3
FAR = 4.0
"""Beyond this factor outside of the measured range no number is shown."""
REACH = 9.2
"""ln of the largest multiplier considered: ten thousand."""
STEPS = 60
EQUAL = 1e-9
"""Logarithms of losses that differ by less are equal: replicates may have no spread at all."""
WORDS: dict[Axis, str] = {"n": "parameters", "d": "images"}


@dataclass(frozen=True)
class Multiplier:
    """The baseline needs `k` times the parameters ("n") or images ("d") to do what the recipe does at (n, d).

    Attributes:
        k: infinite where no number of them is enough.
        low, high: 95% interval; `high` is infinite where no number can be excluded, `low` where all are.
        infinite: share of draws in which no number is enough.
        df: degrees of freedom of its t.
        extrapolated: (n, d) lies more than one rung outside of what was measured of the recipe, or the baseline that
            is as good outside of what was measured of the baseline.
        limit: 4 times the largest, or a quarter of the smallest, of them, as a multiplier: where `beyond`, all that
            may be said is that k is past it.
        beyond: whether k is.
    """

    axis: Axis
    recipe: str
    baseline: str
    n: float
    d: float
    k: float
    low: float
    high: float
    infinite: float
    df: float
    extrapolated: bool
    limit: float
    beyond: bool

    @property
    def factor(self) -> float:
        """How far the interval reaches from its middle, as a factor (x/÷); infinite where it is open."""
        open_ended = not (0 < self.low < math.inf and self.high < math.inf)
        return math.inf if open_ended else math.sqrt(self.high / self.low)

    @property
    def needed(self) -> tuple[float, float, float]:
        """Parameters (or images) that the baseline needs: estimate, low and high."""
        base = self.n if self.axis == "n" else self.d
        return self.k * base, self.low * base, self.high * base

    @property
    def number(self) -> str:
        """The estimate, as text."""
        if math.isinf(self.k):
            return "∞"
        if self.beyond:
            return f"{'≥' if self.k > self.limit else '≤'} ×{self.limit:.3g}"
        return f"×{self.k:.2f}"

    @property
    def words(self) -> str:
        """In a sentence."""
        thing = WORDS[self.axis]
        if math.isinf(self.k):
            what = "student of any size" if self.axis == "n" else "number of images"
            surely = "" if math.isinf(self.low) else f" (×{self.low:.2f} {thing} cannot be excluded)"
            return f"no {what} with {self.baseline} reaches this loss on this dataset{surely}"
        low = "0" if self.low <= 0 else f"{self.low:.2f}"
        high = "∞" if math.isinf(self.high) else f"{self.high:.2f}"
        mark = " (extrapolated)" if self.extrapolated else ""
        return f"{self.recipe} is equivalent to {self.number} {thing} [{low}, {high}]{mark}"


def multiplier(law: Law, recipe: str, baseline: str, n: float, d: float, axis: Axis) -> float:
    """The multiplier of a law at (n, d), closed form; infinite where no number is enough."""
    found = float(_log_k(law, law.theta, recipe, baseline, n, d, axis))
    return math.exp(found) if found < 700 else math.inf


def _log_k(law: Law, theta: Floats, recipe: str, baseline: str, n: float, d: float, axis: Axis) -> Floats:
    target = np.exp(law.form.log_loss(theta, law.index(recipe), n, d))[..., 0]
    here, other = (n, d) if axis == "n" else (d, n)
    found = law.form.reach(theta, law.index(baseline), target, axis, other) - math.log(here)
    return np.maximum(found, -4 * REACH)  # at chance nothing is needed


def replicates(cells: Cells, law: Law, *arms: str) -> float:
    """Runs in a typical cell of some arms, least of all arms."""
    return min(float(np.median(cells.count[cells.arm == law.index(arm)])) for arm in arms)


def estimate(
    draws: Draws,
    recipe: str,
    baseline: str,
    n: float,
    d: float,
    axis: Axis,
    *,
    level: float = 0.95,
    least: float = LEAST_REPLICATES,
    widened: bool = True,
) -> Multiplier:
    """The multiplier with its interval.

    A multiplier k is in the interval unless a t test rejects that the baseline at k n (or k d) has the loss of the
    recipe at (n, d) (Fieller's way, 1954): the standard error of that difference of logarithms is what it varies by in
    the draws, the degrees of freedom are those of the replicates behind it. So nothing needs to be cut off where k
    is infinite in some draws, and where the curve is flat the interval says so.

    A multiplier counts as certainly infinite only if the pairs of that cell show the recipe to be better, too;
    otherwise it would be pure extrapolation. There the interval begins at the largest size (or number of images) of
    the baseline.

    Args:
        level: confidence level of the interval.
        least: required replicates; only halves of a study may have fewer than 3.
        widened: by the lack of fit (`Draws.widening`); not in tests that are to find it.

    Raises:
        BadData: fewer replicates.
    """
    law, observations = draws.law, draws.observations
    _enough(replicates(observations.cells, law, recipe, baseline), least)
    log_k = float(_log_k(law, law.theta, recipe, baseline, n, d, axis))
    infinite = float(np.isinf(_log_k(law, draws.thetas, recipe, baseline, n, d, axis)).mean())
    grid = _grid(log_k)
    gap, spread = _gaps(draws, recipe, baseline, n, d, axis, grid)
    df = _degrees(draws, recipe, baseline, n, d, axis, float(np.clip(log_k, -REACH, REACH)))
    half = (
        statistics.t_quantile(df, 0.5 + level / 2) * spread * (draws.widening(recipe, baseline) if widened else 1.0)
        + EQUAL
    )
    low, high = _accepted(grid, np.abs(gap) - half, log_k)
    measured, target = observations.rungs(baseline), observations.rungs(recipe)
    rungs = measured[0] if axis == "n" else measured[1]
    here = n if axis == "n" else d
    if math.isinf(low) and _pairs_allow_equal(draws, recipe, baseline, n, d, level):
        low = max(1.0, float(rungs[-1]) / here)
    k = math.exp(log_k) if log_k < 700 else math.inf
    needed = (n * k, d) if axis == "n" else (n, d * k)
    outside = any(map(_outside, (*measured, *target), (*needed, n, d)))
    reached = here * k
    beyond = math.isfinite(k) and not rungs[0] / FAR <= reached <= rungs[-1] * FAR
    limit = (rungs[-1] * FAR if reached > rungs[-1] else rungs[0] / FAR) / here
    at = float(n), float(d)
    return Multiplier(
        axis, recipe, baseline, *at, k, min(low, k), max(high, k), infinite, df, outside, float(limit), beyond
    )


def _pairs_allow_equal(draws: Draws, recipe: str, baseline: str, n: float, d: float, level: float) -> bool:
    """Whether the cell (n, d) was measured and its own pairs do not show the recipe to be better."""
    cells, law = draws.observations.cells, draws.law
    pairs = cells.pairs(law.index(recipe), law.index(baseline))
    (here,) = np.nonzero((cells.n[pairs.first] == n) & (cells.d[pairs.first] == d))
    if not len(here) or not pairs.freedom:
        return False
    error = pairs.noise / math.sqrt(pairs.count[here[0]])
    return bool(pairs.mean[here[0]] + statistics.t_quantile(pairs.freedom, 0.5 + level / 2) * error > 0)


def _outside(rungs: Floats, value: float) -> bool:
    """Whether a value lies more than one rung below or above what was measured."""
    low, high = rungs[0] ** 2 / rungs[1], rungs[-1] ** 2 / rungs[-2]
    return not low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


def _enough(count: float, least: float) -> None:
    if count < least:
        # With 2 replicates an interval for 95% held 55 to 68% in simulations, and with t it says nothing.
        do = f"finish {LEAST_REPLICATES} replicates of each cell, better 4 or more"
        raise BadData("too few replicates for a scaling study", given=f"{count:g}", do=do)


def _grid(log_k: float) -> Floats:
    """Logarithms of multipliers to be tested: dense about the estimate, or even."""
    if not math.isfinite(log_k):
        return np.linspace(-REACH, REACH, 4 * STEPS)
    away = np.geomspace(0.003, 2 * REACH, STEPS)
    grid = np.concatenate([log_k - away[::-1], [log_k], log_k + away])
    return grid[(grid >= min(log_k, -REACH)) & (grid <= max(log_k, REACH))]


def _gaps(
    draws: Draws, recipe: str, baseline: str, n: float, d: float, axis: Axis, grid: Floats
) -> tuple[Floats, Floats]:
    """ln(loss of the baseline at k / loss of the recipe) [grid] and its standard deviation over the draws."""
    law = draws.law
    at = (n * np.exp(grid), np.full_like(grid, d)) if axis == "n" else (np.full_like(grid, n), d * np.exp(grid))

    def gap(theta: Floats) -> Floats:
        theirs = law.form.log_loss(theta, law.index(baseline), *at)
        return theirs - law.form.log_loss(theta, law.index(recipe), n, d)

    return gap(law.theta), gap(draws.thetas).std(0)


def _accepted(grid: Floats, excess: Floats, log_k: float) -> tuple[float, float]:
    """The multipliers about the estimate that are not rejected: `excess` is not above 0 there."""
    inside = excess <= 0
    if math.isinf(log_k):  # from infinity downwards; nothing there: even infinity is rejected
        if not inside[-1]:
            return math.inf, math.inf
        last = len(grid) - 1
        first = last - int(np.argmin(inside[::-1])) + 1 if not inside.all() else 0
        return _edge(grid, excess, first - 1, first), math.inf
    middle = int(np.argmin(np.abs(grid - log_k)))
    below, above = np.flatnonzero(~inside[:middle]), np.flatnonzero(~inside[middle + 1 :])
    low = _edge(grid, excess, int(below[-1]), int(below[-1]) + 1) if len(below) else 0.0
    first_out = middle + 1 + int(above[0]) if len(above) else 0
    high = _edge(grid, excess, first_out, first_out - 1) if len(above) else math.inf
    return low, high


def _edge(grid: Floats, excess: Floats, outside: int, inside: int) -> float:
    """Between a rejected multiplier and its accepted neighbour."""
    if outside < 0:
        return 0.0
    share = excess[inside] / (excess[inside] - excess[outside])
    return math.exp(grid[inside] + share * (grid[outside] - grid[inside]))


def gradient(law: Law, recipe: str, baseline: str, n: float, d: float, axis: Axis, log_k: float) -> Floats:
    """[P]: derivatives by the parameters of ln(loss of the baseline at k / loss of the recipe)."""
    k = math.exp(log_k)
    arms = np.array([law.index(baseline), law.index(recipe)])
    sizes = np.array([n * k, n] if axis == "n" else [n, n])
    images = np.array([d, d] if axis == "n" else [d * k, d])
    _, by = law.form.jacobian(law.theta, arms, sizes, images)
    return by[0] - by[1]


def _degrees(draws: Draws, recipe: str, baseline: str, n: float, d: float, axis: Axis, log_k: float) -> float:
    slope = gradient(draws.law, recipe, baseline, n, d, axis, log_k)
    return max(1.0, draws.observations.cells.degrees(slope @ draws.influence))


def smaller(draws: Draws, recipe: str, baseline: str, n: float, d: float) -> Multiplier:
    """The smallest student with the recipe that is as good as the baseline at (n, d): `needed` holds its parameters.

    It is the multiplier with roles exchanged: "deploy 0.31 M instead of 0.97 M".
    """
    return estimate(draws, baseline, recipe, n, d, "n")


@dataclass(frozen=True, eq=False)
class Plane:
    """Multipliers over a grid of parameters and images, for maps.

    Attributes:
        n, d: the axes.
        found: a list a row of `n`, of one multiplier a column of `d`.
    """

    axis: Axis
    recipe: str
    baseline: str
    n: Floats
    d: Floats
    found: tuple[tuple[Multiplier, ...], ...]

    def table(self, name: str) -> Floats:
        """[n, d] of a field: k, low, high, infinite, factor, ..."""
        return np.array([[float(getattr(one, name)) for one in row] for row in self.found])


def plane(
    draws: Draws,
    recipe: str,
    baseline: str,
    axis: Axis,
    n: Iterable[float] | None = None,
    d: Iterable[float] | None = None,
) -> Plane:
    """Multipliers at all pairs of `n` and `d`; the rungs of the recipe without."""
    sizes, images = draws.observations.rungs(recipe)
    sizes = sizes if n is None else np.array(list(n), np.float64)
    images = images if d is None else np.array(list(d), np.float64)
    rows = tuple(
        tuple(estimate(draws, recipe, baseline, float(size), float(some), axis) for some in images) for size in sizes
    )
    return Plane(axis, recipe, baseline, sizes, images, rows)
