"""Sanity checks: multipliers with a known true value, from the existing runs, and the gate based on them.

A *placebo* (A/A test) compares the baseline with itself: the first half of its replicates against the last. It tests
whether the intervals are wide enough, so its own are from the spread within the halves alone: with that of all
replicates the test could not fail (of 4, the ratio is at most the square root of 3). One split, fixed beforehand: of
the three that 4 replicates allow at most one can miss, so more of them would add false alarms and nothing else.

A *dose* (known-effect test) compares the baseline on r times the images (or parameters) with the baseline, by
relabelling images d as d / r. It tests whether the law bends where the runs do. All replicates are in both roles, so
nearly all noise cancels and a law of the wrong form shows; the interval is that of the same whole replicates.

Neither interval is widened by the lack of fit, which the tests must detect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallalign_core.studies.scaling_law._fit import DRAWS, Draws, fit, resample
from smallalign_core.studies.scaling_law._form import Axis, Shape
from smallalign_core.studies.scaling_law._multiplier import (
    LEAST_REPLICATES,
    WORDS,
    Multiplier,
    Plane,
    estimate,
    plane,
    replicates,
)
from smallalign_core.studies.scaling_law._observed import Observations, joined

Kind = Literal["placebo", "dose"]
MOST_LACK = 4.0
WIDEST = 2.0
MATERIAL = 1.25
"""A dose estimated within this factor passes, however narrow its interval is."""
VACUOUS = 4.0
"""Intervals wider than x/÷ this factor are uninformative."""
Outcome = Literal["passed", "missed", "uninformative"]


@dataclass(frozen=True)
class SanityCheck:
    """A multiplier with a known true value.

    Attributes:
        truth: 1 for a placebo, the dose for a dose.
        found: the estimate of the law.
        half: replicates that stand for the baseline in a placebo; empty for a dose.
    """

    kind: Kind
    truth: float
    found: Multiplier
    half: tuple[int, ...] = ()

    @property
    def covers(self) -> bool:
        """Whether the interval contains the true value."""
        return self.found.low <= self.truth <= self.found.high

    @property
    def off(self) -> float:
        """The deviation of the estimate from the true value, as a factor of at least 1."""
        return math.exp(abs(math.log(self.found.k / self.truth))) if 0 < self.found.k < math.inf else math.inf

    @property
    def outcome(self) -> Outcome:
        """`passed` where the interval holds the truth, and for a dose also where it is read within x/÷1.25;
        `uninformative` where the interval holds it, but would hold nearly anything: it reaches to 0 or infinity, or
        further than x/÷4 from its middle.
        """
        if self.covers and not self.found.factor <= VACUOUS:
            return "uninformative"
        return "passed" if self.covers or (self.kind == "dose" and self.off <= MATERIAL) else "missed"

    @property
    def passed(self) -> bool:
        """Whether `outcome` is so; a test that could not have failed did not pass."""
        return self.outcome == "passed"

    @property
    def words(self) -> str:
        """In a sentence."""
        what = f"{'A/A test' if self.kind == 'placebo' else 'known-effect test'}, {WORDS[self.found.axis]}"
        high = "∞" if math.isinf(self.found.high) else f"{self.found.high:.2f}"
        verdict = (
            "CI contains truth" if self.covers else "CI misses truth, but close" if self.passed else "CI misses truth"
        )
        if self.outcome == "uninformative":
            verdict = "uninformative, the CI is too wide"
        return f"{what}: ×{self.truth:.2f} estimated as {self.found.number} [{self.found.low:.2f}, {high}]: {verdict}"


def sanity_checks(
    observations: Observations,
    baseline: str,
    n: float,
    d: float,
    *,
    shape: Shape = "saturating",
    gamma: bool | None = None,
    draws: int = DRAWS,
) -> list[SanityCheck]:
    """Placebos and doses of the baseline at (n, d), or for doses at the nearest cell below; costs no run.

    Of either axis: a placebo, from 4 replicates on, and two doses of one rung (the geometric mean of the rungs'
    ratios), one in the middle and one up to the last rung. Empty below 3 replicates.
    """
    alone = observations.only(baseline)
    if alone.cells.replicates < LEAST_REPLICATES:
        return []
    gamma = shape == "saturating" if gamma is None else gamma
    found = _placebo(alone, n, d, shape, gamma, draws)
    for axis in ("n", "d"):
        found += _doses(alone, axis, n, d, shape, gamma, draws)
    return found


def _placebo(alone: Observations, n: float, d: float, shape: Shape, gamma: bool, draws: int) -> list[SanityCheck]:
    (name,) = alone.arms
    # Replicates that were added to a few cells only cannot form half of a study.
    names = np.unique(alone.replicate)[alone.cells.there.mean(1) >= 0.5]
    if len(names) < 4:
        return []
    alone, half = alone.where(np.isin(alone.replicate, names)), names[: (len(names) + 1) // 2]
    chosen = np.isin(alone.replicate, half)
    copy = f"{name} again"
    both = joined(alone.where(chosen), alone.where(~chosen).relabelled(copy))
    resampled = resample(both, fit(both, shape, gamma=gamma), draws=draws)
    axes: tuple[Axis, ...] = ("n", "d")
    kept = tuple(map(int, half))
    return [SanityCheck("placebo", 1.0, _estimate(resampled, copy, name, n, d, axis), kept) for axis in axes]


def _doses(
    alone: Observations, axis: Axis, n: float, d: float, shape: Shape, gamma: bool, draws: int
) -> list[SanityCheck]:
    (name,) = alone.arms
    rungs = alone.rungs(name)[0 if axis == "n" else 1]
    ratio = float((rungs[-1] / rungs[0]) ** (1 / (len(rungs) - 1)))
    values = alone.n if axis == "n" else alone.d
    some = alone.where(values > rungs[0])
    dosed = f"{name} on more"
    some = some.relabelled(dosed, **{axis: (some.n if axis == "n" else some.d) / ratio})
    both = joined(alone, some)
    resampled = resample(both, fit(both, shape, gamma=gamma), draws=draws)
    found = []
    for rung in sorted({len(rungs) // 2, len(rungs) - 1}):
        at = float(rungs[rung]) / ratio
        where = (at, d) if axis == "n" else (n, at)
        found.append(SanityCheck("dose", ratio, _estimate(resampled, dosed, name, *where, axis)))
    return found


def _estimate(resampled: Draws, recipe: str, baseline: str, n: float, d: float, axis: Axis) -> Multiplier:
    return estimate(resampled, recipe, baseline, n, d, axis, least=1, widened=False)


def resolutions(
    draws: Draws, baseline: str, axis: Axis, n: Iterable[float] | None = None, d: Iterable[float] | None = None
) -> Plane:
    """The smallest multiplier distinguishable from 1: `factor` of a placebo with as many replicates as the baseline.

    The baseline is fitted beside a copy of itself whose replicates are drawn independently, so the estimate is 1.

    Raises:
        BadData: fewer than 3 replicates.
    """
    alone = draws.observations.only(baseline)
    apart = alone.replicate + int(np.ptp(alone.replicate)) + 1
    copy = f"{baseline} again"
    both = joined(alone, alone.relabelled(copy, replicate=apart))
    law = fit(both, draws.law.form.shape, gamma=draws.law.form.free_gamma)
    return plane(resample(both, law, draws=len(draws.thetas)), copy, baseline, axis, n, d)


def resolution(draws: Draws, baseline: str, n: float, d: float, axis: Axis) -> float:
    """`resolutions` at one cell: x/÷, infinite where the curve is too flat."""
    return resolutions(draws, baseline, axis, [n], [d]).found[0][0].factor


def hidden(found: Multiplier, width: float) -> str:
    """Why a multiplier cannot be shown as a number, given the `resolution` of its cell; empty if it can.

    One that is certainly infinite is shown, since it needs no slope.
    """
    if width < WIDEST or math.isinf(found.low):
        return ""
    read = "infinite" if math.isinf(width) else f"×/÷{width:.2f}"
    thing = WORDS[found.axis]
    return f"the baseline's loss hardly depends on {thing} here: resolution {read}, limit ×/÷{WIDEST:g}"


@dataclass(frozen=True)
class Gate:
    """Whether multipliers can be shown, and why not.

    Attributes:
        passed: no reason against it.
        reasons: against it, each a sentence.
        warnings: to be shown with a multiplier.
    """

    passed: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def gate(draws: Draws, tests: Sequence[SanityCheck]) -> Gate:
    """The rules for a whole study: the law fits, placebos hold, doses are read right, and not all of these tests are
    uninformative. For its cells see `hidden`.

    Args:
        tests: of `sanity_checks`.
    """
    law, reasons, warnings = draws.law, [], []
    count = replicates(draws.observations.cells, law, *law.arms)
    if count < LEAST_REPLICATES:
        advice = f"finish {LEAST_REPLICATES}, better 4 or more, of each cell"
        reasons.append(f"{count:g} replicates are too few: {advice}")
    elif count < 4:
        warnings.append("3 replicates: intervals are wide (2 degrees of freedom), and an A/A test is not possible")
    if math.isnan(law.lack):
        reasons.append("too few cells, or no spread over replicates, to test the fit of the law")
    elif law.lack >= MOST_LACK:
        off = f"lack of fit {law.lack:.1f} (chi squared per degree of freedom), limit {MOST_LACK:g}"
        reasons.append(f"the law does not fit the runs: {off}")
    reasons += [test.words for test in tests if test.outcome == "missed"]
    vague = sum(test.outcome == "uninformative" for test in tests)
    if vague and vague == len(tests):
        reasons.append(f"none of {vague} sanity checks is informative: their intervals are too wide")
    elif vague:
        warnings.append(f"{vague} of {len(tests)} sanity checks are uninformative")
    return Gate(not reasons, tuple(reasons), tuple(warnings))
