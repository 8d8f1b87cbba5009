"""Allocation of further runs: the next cells for one multiplier, and their cost in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from smallalign_core.errors import BadData
from smallalign_core.studies.scaling_law._fit import Draws
from smallalign_core.studies.scaling_law._form import Axis
from smallalign_core.studies.scaling_law._multiplier import REACH, estimate, gradient
from smallalign_core.studies.scaling_law._observed import Floats

GRID = 0.35
"""Share of a budget for the cells with the fewest runs, independent of the law, which may be wrong."""
MOST_RUNS = 2_000
TINY = 1e-300
EQUAL = 1e-12
"""A variance below this share of what its parts would add up to unpaired is rounding: the arms are equal."""
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

    Greedy c-optimal design (Elfving, 1952; Chernoff, 1953): next comes the run, or the pair of runs of both arms, that
    lowers the variance of the log multiplier most for its cost; but a third goes to the cells with the fewest runs,
    since the law may be wrong. What is expected is expected of the law and the noise as they look now.

    Args:
        budget: in the unit of `cost`; runs without.
        ratio: 0.5 halves the interval (on the log scale).
        cost: of a run (arm, n, d); 1 without.
        cells: of both arms, that runs may be added to, measured or not; all that were measured without.

    Raises:
        BadData: neither a budget nor a ratio, or a budget that pays for no run.
    """
    if math.isinf(budget) and ratio <= 0:
        raise BadData("an allocation needs a stopping criterion", do="give a budget or a ratio")
    design = _Design(draws, recipe, baseline, cells)
    prices = np.array([1.0 if cost is None else cost(*cell) for cell in design.cells])
    choices = design.choices
    dear = choices @ prices
    if budget < dear.min():
        raise BadData("the budget does not cover a single run", given=budget, do=f"give at least {dear.min():.3g}")
    found = estimate(draws, recipe, baseline, n, d, axis, least=2)  # a pilot of 2 may ask for more
    log_k = math.log(found.k) if 0 < found.k < math.inf else REACH
    slope = gradient(draws.law, recipe, baseline, n, d, axis, float(np.clip(log_k, -REACH, REACH)))
    wanted = slope[draws.law.form.free]
    counts = design.counts.astype(np.float64)
    order: dict[int, None] = {}
    first = variance = float(design.variances(wanted, counts[None])[0])
    spent = spread = 0.0
    while (counts - design.counts).sum() < MOST_RUNS and variance > first * ratio**2:
        payable = spent + dear <= budget
        if not payable.any():
            break
        after = design.variances(wanted, counts + choices)
        gain = np.where(payable, np.log(variance / np.maximum(after, TINY)) / dear, -np.inf)
        if spread < GRID * spent:
            fewest = np.where(choices > 0, counts, np.inf).min(1)
            gain[fewest > fewest[payable].min()] = -np.inf
            spread += dear[np.argmax(gain)]
        chosen = int(np.argmax(gain))
        counts, variance, spent = counts + choices[chosen], float(after[chosen]), spent + float(dear[chosen])
        order |= dict.fromkeys(np.flatnonzero(choices[chosen]).tolist())
    less = math.sqrt(variance / first) if first > 0 else 1.0  # equal arms leave nothing to learn
    added = (counts - design.counts).astype(int)
    more = tuple((design.cells[index], int(added[index])) for index in order)
    after_all = math.inf if math.isinf(found.factor) else found.factor**less
    return Allocation(more, int(added.sum()), spent, found.factor, after_all, less)


class _Design:
    """The cells of two arms: how many runs they have, and how exact a combination of parameters would be with others.

    Attributes:
        cells: [K] (arm, n, d).
        counts: [K] runs now.
        choices: [C, K] what may be added at once: a run, or one of either arm at the same (n, d).
    """

    def __init__(self, draws: Draws, recipe: str, baseline: str, cells: Sequence[Cell] | None) -> None:
        law, now = draws.law, draws.observations.cells
        ours, theirs = law.index(recipe), law.index(baseline)
        measured = {key: at for at, key in enumerate(zip(now.arm, now.n, now.d, strict=True))}
        if cells is None:
            cells = [(law.arms[arm], float(n), float(d)) for arm, n, d in measured if arm in (ours, theirs)]
        self.cells = list(cells)
        keys = [(law.index(arm), n, d) for arm, n, d in self.cells]
        self.counts = np.array([now.count[measured[key]] if key in measured else 0 for key in keys])
        arm, n, d = (np.array(column) for column in zip(*keys, strict=True))
        free = law.form.free
        self._slopes = law.form.jacobian(law.theta, arm, n.astype(np.float64), d.astype(np.float64))[1][:, free]
        fixed = np.array([key not in keys for key in measured])
        others = law.form.jacobian(law.theta, now.arm, now.n, now.d)[1][fixed][:, free]
        self._others = others * np.sqrt(now.count[fixed, None])
        self._ridge = law.ridge**2 * np.eye(len(free))
        at = {key: index for index, key in enumerate(keys)}
        self._pairs = np.array(_pairs(at, theirs, ours), np.int64).reshape(-1, 2)
        alone = np.eye(len(keys))
        self.choices = np.concatenate([alone, alone[self._pairs[:, 0]] + alone[self._pairs[:, 1]]])
        shared = np.array(_pairs(measured, theirs, ours), np.int64).reshape(-1, 2)
        one, other = now.residuals[:, shared[:, 0]], now.residuals[:, shared[:, 1]]
        power = math.sqrt(float((one**2).sum() * (other**2).sum()))
        paired = float((one * other).sum()) / power if power > 0 else 0.0
        self._paired = min(1.0, max(-1.0, paired))  # correlation of arms in a replicate; 1 + 1e-16 by rounding

    def variances(self, wanted: Floats, counts: Floats) -> Floats:
        """Of `wanted` times the parameters [free], for each row of counts [R, K] and runs of variance 1.

        The fit weighs runs equally whatever they share, so it is the variance of that fit: runs of their own, and
        what the arms of a replicate have in common.
        """
        bend = self._slopes.T @ (counts[:, :, None] * self._slopes) + self._others.T @ self._others + self._ridge
        weight = np.linalg.solve(bend, np.broadcast_to(wanted[:, None], (len(counts), len(wanted), 1)))[..., 0]
        each = weight @ self._slopes.T
        one, other = self._pairs.T
        shared, r = np.minimum(counts[:, one], counts[:, other]), self._paired
        # Sums of squares throughout: what is left of a difference of two equal sums has no certain sign. A pair's
        # a² + 2 r a b + b² is (a + r b)² + (1 - r²) b².
        alone = counts.copy()
        alone[:, one] -= shared
        alone[:, other] -= shared
        squares = each**2
        pairs = (each[:, one] + r * each[:, other]) ** 2 + (1 - r * r) * squares[:, other]
        outside = ((weight @ self._others.T) ** 2).sum(1)
        found = (alone * squares).sum(1) + (shared * pairs).sum(1) + outside
        return np.where(found > EQUAL * ((counts * squares).sum(1) + outside), found, 0.0)


def _pairs(at: dict[tuple[int, float, float], int], first: int, second: int) -> list[tuple[int, int]]:
    """Where both arms stand at the same (n, d)."""
    return [(here, at[second, n, d]) for (arm, n, d), here in at.items() if arm == first and (second, n, d) in at]
