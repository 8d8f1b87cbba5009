"""What more runs would buy: the next cells for one multiplier, and what all of it costs in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from smallalign_core.errors import BadData
from smallalign_core.law._fit import Draws
from smallalign_core.law._form import Axis
from smallalign_core.law._multiplier import REACH, estimate, gradient
from smallalign_core.law._observed import Floats

GRID = 0.35
"""Share of a budget that goes to the least measured cells, whatever the law says: it may be wrong."""
MOST_RUNS = 2_000
Cell = tuple[str, float, float]


@dataclass(frozen=True)
class Cost:
    """Seconds of a run: `fixed` + `rate` * images * epochs * MACs.

    Attributes:
        fixed: seconds.
        rate: seconds for one multiply-accumulate of one image that was learned from.
    """

    fixed: float
    rate: float

    def seconds(self, seen: float, macs: float) -> float:
        """Of a run that learns from `seen` images (with repetition) at `macs` each."""
        return self.fixed + self.rate * seen * macs


def fit_cost(seen: ArrayLike, macs: ArrayLike, seconds: ArrayLike) -> Cost:
    """The cost of runs from finished ones: least squares of relative errors, nothing below 0.

    Raises:
        BadData: no run, or one that took no time.
    """
    from scipy.optimize import nnls

    work, took = np.asarray(seen, np.float64) * np.asarray(macs, np.float64), np.asarray(seconds, np.float64)
    if not len(took) or not (took > 0).all():
        raise BadData("the cost of runs needs finished ones", given=len(took), do="finish a run, or leave the cost out")
    scale = float(work.max()) or 1.0
    if len(np.unique(work)) == 1:  # one amount of work cannot tell what is fixed
        return Cost(0.0, float(took.mean() / scale))
    found, _ = nnls(np.stack([1 / took, work / scale / took], axis=1), np.ones_like(took))
    return Cost(float(found[0]), float(found[1] / scale))


@dataclass(frozen=True)
class Allocation:
    """Runs to add, and what they are expected to do.

    Attributes:
        more: (arm, parameters, images) and how many runs, in the order in which they were chosen.
        runs, cost: of all of them; `cost` in the unit that was given.
        before, after: x/÷ of the interval now, and expected; infinite where it is open.
        ratio: expected standard error of the logarithm, relative to now.
    """

    more: tuple[tuple[Cell, int], ...]
    runs: int
    cost: float
    before: float
    after: float
    ratio: float


def allocate(
    draws: Draws,
    recipe: str,
    baseline: str,
    n: float,
    d: float,
    axis: Axis,
    *,
    budget: float = math.inf,
    ratio: float = 0.0,
    cost: Callable[[str, float, float], float] | None = None,
    cells: Sequence[Cell] | None = None,
) -> Allocation:
    """Add runs until the budget is spent, or until the interval is expected to be narrower by `ratio`.

    Greedy c-optimal design (Elfving, 1952; Chernoff, 1953): each run is the one that lowers the variance of the log
    multiplier most for its cost, except for about a third that go to the cells with the fewest runs. Pairs are not
    counted as such, so the true gain is
    rather larger. All is expected of the law as it is now; one that is wrong gains less.

    Args:
        budget: in the unit of `cost`; runs without.
        ratio: 0.5 halves the interval (on the log scale).
        cost: of a run (arm, n, d); 1 without.
        cells: that runs may be added to; those of both arms without.

    Raises:
        BadData: neither a budget nor a ratio, or a budget that pays for no run.
    """
    law, now = draws.law, draws.observations.cells
    if math.isinf(budget) and ratio <= 0:
        raise BadData("an allocation needs an end", do="give a budget or a ratio")
    if cells is None:
        mine = np.isin(now.arm, [law.index(recipe), law.index(baseline)])
        keys = zip(now.arm[mine], now.n[mine], now.d[mine], strict=True)
        cells = [(law.arms[arm], float(size), float(images)) for arm, size, images in keys]
    prices = np.array([1.0 if cost is None else cost(*cell) for cell in cells])
    if budget < prices.min():
        raise BadData("the budget pays for no run", given=budget, do=f"give at least {prices.min():.3g}")
    arm = np.array([law.index(cell[0]) for cell in cells])
    size, images = np.array([cell[1] for cell in cells]), np.array([cell[2] for cell in cells])
    counts = np.array([_runs(draws, cell) for cell in cells], np.float64)
    _, slopes = law.form.jacobian(law.theta, arm, size, images)
    slopes = slopes[:, law.form.free]
    inverse = _covariance(draws)
    found = estimate(draws, recipe, baseline, n, d, axis)
    log_k = math.log(found.k) if 0 < found.k < math.inf else REACH
    wanted = gradient(law, recipe, baseline, n, d, axis, float(np.clip(log_k, -REACH, REACH)))[law.form.free]
    first = variance = float(wanted @ inverse @ wanted)
    spent, on_grid = 0.0, 0.0
    added: dict[int, int] = {}
    while sum(added.values()) < MOST_RUNS and variance > first * ratio**2:
        payable = spent + prices <= budget
        if not payable.any():
            break
        along = slopes @ inverse
        drop = (along @ wanted) ** 2 / (1 + np.einsum("cp,cp->c", along, slopes))
        if on_grid < GRID * spent:
            chosen = int(np.lexsort((-drop, np.where(payable, counts, np.inf)))[0])
            on_grid += prices[chosen]
        else:
            gain = -np.log1p(-np.minimum(drop / variance, 1 - 1e-12)) / prices
            chosen = int(np.argmax(np.where(payable, gain, -np.inf)))
        variance -= float(drop[chosen])
        inverse = inverse - np.outer(along[chosen], along[chosen]) / (1 + along[chosen] @ slopes[chosen])
        counts[chosen] += 1
        spent += prices[chosen]
        added[chosen] = added.get(chosen, 0) + 1
    less = math.sqrt(variance / first)
    after = math.inf if math.isinf(found.factor) else found.factor**less
    more = tuple((cells[index], count) for index, count in added.items())
    return Allocation(more, sum(added.values()), float(spent), found.factor, after, less)


def _runs(draws: Draws, cell: Cell) -> int:
    now = draws.observations.cells
    here = (now.arm == draws.law.index(cell[0])) & (now.n == cell[1]) & (now.d == cell[2])
    return int(now.count[here].sum())


def _covariance(draws: Draws) -> Floats:
    """[free, free] of the parameters for runs of variance 1, as all cells are now."""
    law, now = draws.law, draws.observations.cells
    _, by = law.form.jacobian(law.theta, now.arm, now.n, now.d)
    by = by[:, law.form.free]
    return np.asarray(np.linalg.inv(by.T @ (by * now.count[:, None]) + law.ridge**2 * np.eye(by.shape[1])), np.float64)
