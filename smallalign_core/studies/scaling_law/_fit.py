"""Fitting the law: bounded least squares from several starts, and hundreds of simultaneous refits for intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from smallalign_core.errors import BadData
from smallalign_core.studies.scaling_law._form import SHARED, Axis, Form, Shape
from smallalign_core.studies.scaling_law._observed import Cells, Floats, Ints, Observations, position

RIDGE = 0.02
"""Pull of each parameter towards its first guess, in units of log loss: E is not identified on a decade of scale."""
RUNGS = 3
DRAWS = 200
OWN = 3
"""Parameters of an arm: E, A and B. The exponents are shared."""
NO_NOISE = 1e-9
"""Replicates that differ by no more do not differ."""


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law.

    Attributes:
        form: its formula and units.
        arms: names, in the order of the parameters.
        theta: [P] the parameters (`Form`).
        start, ridge: [P] what the parameters are pulled towards, and how strongly.
        rms: of ln(mean loss of a cell) from the law.
        lack: lack of fit, chi squared per degree of freedom: how much farther the cells' means are from the law than
            their replicates explain; 1 is expected of a true law. NaN where it cannot be asked.
        freedom: degrees of freedom of it.
    """

    form: Form
    arms: tuple[str, ...]
    theta: Floats
    start: Floats
    ridge: float
    rms: float
    lack: float
    freedom: int

    @property
    def exponents(self) -> dict[str, float]:
        """The shared alpha (of parameters), beta (of images) and gamma."""
        return dict(zip(("alpha", "beta", "gamma"), map(float, self.theta[:SHARED]), strict=True))

    def constants(self, arm: str) -> dict[str, float]:
        """E, A and B of an arm; A and B are at 1 parameter and 1 image. E is not "irreducible error"."""
        log_e, a, b = self.theta[SHARED + 3 * self.index(arm) :][:3]
        alpha, beta = self.theta[:2]
        log_a, log_b = a + alpha * math.log(self.form.n_ref), b + beta * math.log(self.form.d_ref)
        return {"E": math.exp(log_e), "A": math.exp(log_a), "B": math.exp(log_b)}

    def index(self, arm: str) -> int:
        """The number of an arm, as `position`."""
        return position(self.arms, arm)

    def loss(self, arm: str, n: ArrayLike, d: ArrayLike) -> Floats:
        """The fitted loss at parameters `n` and images `d`, which broadcast."""
        n, d = np.broadcast_arrays(np.asarray(n, np.float64), np.asarray(d, np.float64))
        return np.exp(self.form.log_loss(self.theta, self.index(arm), n.ravel(), d.ravel())).reshape(n.shape)

    def reach(self, arm: str, loss: float, axis: Axis, other: float) -> float:
        """Parameters ("n") or images ("d") at which an arm has that loss, given the `other`; infinite if none has."""
        found = float(self.form.reach(self.theta, self.index(arm), loss, axis, other))
        return math.exp(found) if found < 700 else math.inf


def fit(
    observations: Observations,
    shape: Shape = "saturating",
    *,
    gamma: bool | None = None,
    ridge: float = RIDGE,
    huber: float | None = None,
) -> Law:
    """Fit all arms together, to the logarithms of the means of their cells, weighted by their runs.

    Args:
        gamma: whether gamma is fitted; None: in the saturating law.
        huber: residuals beyond it count linearly (Huber, 1964); None: least squares.

    Raises:
        BadData: no arm has 3 sizes or numbers of images, one has not even 2, or there are fewer cells than parameters.
    """
    from scipy.optimize import least_squares

    _check(observations, shape)
    cells = observations.cells
    gamma = shape == "saturating" if gamma is None else gamma
    n_ref, d_ref = (math.exp(float(np.log(np.unique(values)).mean())) for values in (cells.n, cells.d))
    top = observations.chance if shape == "saturating" else float(np.exp(cells.mean).max())
    form = Form(shape, top, len(observations.arms), gamma, n_ref, d_ref)
    if len(cells.mean) < len(form.free):
        given = f"{len(cells.mean)} cells, {len(form.free)} parameters"
        raise BadData("fewer cells than parameters of the law", given=given, do="finish more runs")
    middle = float(np.exp(np.median(cells.mean)))
    start = form.guess(min(middle, 0.95 * top), 0.6 if gamma else 1.0)
    low, high = form.bounds
    free, weights = form.free, np.sqrt(cells.count)

    def residuals(q: Floats) -> Floats:
        theta = start.copy()
        theta[free] = q
        off = form.log_loss(theta, cells.arm, cells.n, cells.d) - cells.mean
        return np.concatenate([off * weights, ridge * (q - start[free])])

    def jacobian(q: Floats) -> Floats:
        theta = start.copy()
        theta[free] = q
        _, by = form.jacobian(theta, cells.arm, cells.n, cells.d)
        return np.concatenate([by[:, free] * weights[:, None], ridge * np.eye(len(free))])

    kind = {"loss": "linear"} if huber is None else {"loss": "huber", "f_scale": huber}
    best = None
    for exponent, floor in ((0.5, 0.15), (0.25, 0.6), (1.0, 0.02)):
        first = form.guess(min(middle, 0.95 * top), start[2], exponent, floor)
        first = np.clip(first, low + 1e-6, high - 1e-6)[free]
        found = least_squares(
            residuals,
            first,
            jacobian,
            (low[free], high[free]),
            x_scale="jac",
            max_nfev=500,
            xtol=1e-10,
            ftol=1e-12,
            **kind,
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    theta = start.copy()
    theta[free] = best.x
    off = cells.mean - form.log_loss(theta, cells.arm, cells.n, cells.d)
    freedom = len(cells.mean) - len(free)
    known = freedom > 0 and cells.freedom > 0 and cells.noise > NO_NOISE
    lack = float((cells.count * off**2).sum()) / cells.noise**2 / freedom if known else math.nan
    return Law(form, observations.arms, theta, start, ridge, float(np.sqrt((off**2).mean())), lack, freedom)


def _check(observations: Observations, shape: Shape) -> None:
    rungs = {arm: [len(some) for some in observations.rungs(arm)] for arm in observations.arms}
    for arm, least in rungs.items():
        if min(least) < 2 or min(map(max, zip(*rungs.values(), strict=True))) < RUNGS:
            given = f"{arm}: {least[0]} sizes, {least[1]} numbers of images"
            do = f"measure at least {RUNGS} of each, 2 in any arm"
            raise BadData("too few sizes or numbers of images for a law", given=given, do=do)
    if shape == "saturating" and not math.isfinite(observations.chance):
        raise BadData(
            "the saturating law needs the level of chance", given=observations.chance, do="give ln K or 1 - 1/K"
        )


@dataclass(frozen=True, eq=False)
class Draws:
    """A law, the runs that it was fitted to, and refits for resampled replicates.

    Attributes:
        thetas: [draws, P].
    """

    law: Law
    observations: Observations
    thetas: Floats

    def widening(self, recipe: str, baseline: str) -> float:
        """By which intervals are widened where cells miss the law by more than their replicates (Birge, 1932).

        Arms that share replicates differ by less noise than each has, but not by less of what the law misses: so
        their differences are tested too, and the larger lack of fit counts.
        """
        lacks = (1.0, self.law.lack, self._lack_of_pairs(self.law.index(recipe), self.law.index(baseline)))
        return math.sqrt(max(one for one in lacks if not math.isnan(one)))

    def _lack_of_pairs(self, recipe: int, baseline: int) -> float:
        """Lack of fit of two arms' differences in the cells that both have; NaN where it cannot be asked."""
        cells, form = self.observations.cells, self.law.form
        pairs = cells.pairs(recipe, baseline)
        freedom = len(pairs.mean) - OWN
        if freedom < 1 or not pairs.noise > NO_NOISE:
            return math.nan
        expected = form.log_loss(self.law.theta, cells.arm, cells.n, cells.d)
        off = pairs.mean - (expected[pairs.first] - expected[pairs.second])
        return float((pairs.count * off**2).sum()) / pairs.noise**2 / freedom

    @cached_property
    def influence(self) -> Floats:
        """[P, C]: derivatives of the parameters by the cells' means; 0 where a parameter stands at its bound."""
        law, cells = self.law, self.observations.cells
        _, by = law.form.jacobian(law.theta, cells.arm, cells.n, cells.d)
        low, high = law.form.bounds
        inside = [i for i in law.form.free if low[i] + 1e-9 < law.theta[i] < high[i] - 1e-9]
        weighted = by[:, inside] * cells.count[:, None]
        found = np.zeros((len(law.theta), len(cells.mean)))
        found[inside] = np.linalg.solve(by[:, inside].T @ weighted + law.ridge**2 * np.eye(len(inside)), weighted.T)
        return found


def resample(observations: Observations, law: Law | None = None, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """The law with `draws` refits; what they vary by is what other replicates might have given (`Cells.errors`)."""
    law = fit(observations) if law is None else law
    cells = observations.cells
    rng = np.random.default_rng(seed)
    errors = cells.errors
    normals = rng.standard_normal(((draws + 1) // 2, len(errors)))
    moved = np.concatenate([normals, -normals])[:draws] @ errors  # in pairs of opposite sign: their mean is exact
    return Draws(law, observations, refit(law, cells, cells.mean + moved))


def refit(law: Law, cells: Cells, means: Floats, *, steps: int = 120) -> Floats:
    """The parameters [B, P] for other means of the same cells [B, C], all at once.

    Levenberg-Marquardt (Marquardt, 1963) within the bounds, from the law's own parameters. scipy takes one problem at a
    time: 24 times as long for 2 arms of 9 cells, 3 times for 6 of 25. The result is the same (see the tests).
    """
    form, free = law.form, law.form.free
    low, high = (bound[free] for bound in form.bounds)
    theta = np.repeat(law.theta[None], len(means), axis=0)
    damping = np.full(len(means), 1e-3)
    at = np.arange(len(means))  # those that still move

    def squares(some: Floats, rows: Ints) -> Floats:
        off = form.log_loss(some, cells.arm, cells.n, cells.d) - means[rows]
        pull = law.ridge * (some[:, free] - law.start[free])
        return (cells.count * off**2).sum(1) + (pull**2).sum(1)

    cost = squares(theta, at)
    for _ in range(steps):
        current = theta[at]
        value, by = form.jacobian(current, cells.arm, cells.n, cells.d)
        by = by[..., free]
        weighted = by * cells.count[:, None]
        mine = current[:, free]
        slope = np.einsum("bcp,bc->bp", weighted, value - means[at]) + law.ridge**2 * (mine - law.start[free])
        bend = by.transpose(0, 2, 1) @ weighted + law.ridge**2 * np.eye(len(free))
        stuck = ((mine <= low) & (slope > 0)) | ((mine >= high) & (slope < 0))
        slope[stuck] = 0.0
        bend[stuck[:, :, None] | stuck[:, None, :]] = 0.0
        diagonal = np.einsum("bpp->bp", bend)
        diagonal *= 1 + damping[at, None]
        diagonal[stuck] = 1.0
        moved = np.clip(mine - np.linalg.solve(bend, slope[..., None])[..., 0], low, high)
        candidate = current.copy()
        candidate[:, free] = moved
        new = squares(candidate, at)
        better = new <= cost[at]
        gain, far = cost[at] - new, np.abs(moved - mine).max(1)
        theta[at[better]], cost[at[better]] = candidate[better], new[better]
        damping[at] = np.where(better, damping[at] / 9, np.minimum(damping[at] * 7, 1e12))
        done = (better & (gain <= 1e-10 * new) & (far < 1e-5)) | (damping[at] >= 1e10)
        at = at[~done]
        if not len(at):
            break
    return theta
