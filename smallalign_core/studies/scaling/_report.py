"""What a scaling study found, as plain values: a page shows exactly one `ScalingStudy`.

Shares lie in 0..1 and NLL is in nats, on test images, at the temperature that was fitted on validation. Multipliers are
`law.Multiplier`: how many times the parameters ("n") or images ("d") the baseline would need. None: not known yet.
Nothing here imports torch, numpy or scipy.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from smallalign_core.studies import scaling_law
from smallalign_core.studies.scaling_law import Allocation, Gate, Multiplier, SelfTest

Metric = Literal["nll", "error"]
METRICS: tuple[Metric, ...] = ("nll", "error")
NAMES: dict[Metric, str] = {"nll": "test NLL at the fitted temperature", "error": "test error"}


@dataclass(frozen=True)
class CellMean:
    """All finished runs of a recipe at a size and number of images.

    Attributes:
        params: of the student; None before one is finished.
        runs: that are finished; `diverged`: whose loss became infinite.
        nll, error: (mean, low, high) with a 95 % t interval over replicates; the ends are None below two.
        expected: by metric: what the law says here; empty where there is none.
    """

    recipe: str
    width: int
    params: int | None
    images: int
    runs: int
    diverged: int
    nll: tuple[float | None, float | None, float | None]
    error: tuple[float | None, float | None, float | None]
    expected: dict[str, float]


@dataclass(frozen=True)
class Paired:
    """A recipe minus the baseline on the same draws, first weights and order: what is shown where no law holds.

    Attributes:
        pairs: (replicate, baseline, recipe) of each: the ends of a slope plot.
        mean, low, high: of the differences, 95 % t; below 0 is better. The interval is None below two pairs.
    """

    recipe: str
    metric: Metric
    width: int
    params: int
    images: int
    pairs: tuple[tuple[int, float, float], ...]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RecipeValue:
    """What a recipe is worth at the target cell, by one metric.

    Attributes:
        parameters, images: multipliers; `hidden_*`: why one must not be shown as a number; empty: it may be.
        smaller: the student with this recipe that is as good as the baseline at the target: `smaller.needed` holds its
            parameters.
    """

    recipe: str
    label: str
    parameters: Multiplier
    hidden_parameters: str
    images: Multiplier
    hidden_images: str
    smaller: Multiplier

    @property
    def decided(self) -> bool:
        """Whether an interval that may be shown lies on one side of x1."""
        shown = ((self.parameters, self.hidden_parameters), (self.images, self.hidden_images))
        return any(_sign(found) for found, hidden in shown if not hidden)

    def words(self) -> str:
        """In a sentence."""
        told = [_told(self.parameters, self.hidden_parameters), _told(self.images, self.hidden_images)]
        return f"{self.label}: " + "; ".join(told)

    def ship(self) -> str:
        """Which student to ship instead; empty where none smaller is as good."""
        one = self.smaller
        if self.hidden_parameters or one.beyond or not 0 < one.k < 1 or not one.high < math.inf:
            return ""
        need, low, high = one.needed
        sure = "" if one.high < 1 else ", though a larger one cannot be excluded"
        return (
            f"with {self.label}, {need:,.0f} parameters [{low:,.0f}, {high:,.0f}] do what {one.n:,.0f} of the baseline "
            f"do on {one.d:,.0f} images{sure}"
        )


def _told(found: Multiplier, hidden: str) -> str:
    thing = "parameters" if found.axis == "n" else "images"
    if hidden:
        return f"{thing}: not shown ({hidden})"
    if math.isinf(found.k):
        some = "student of any size" if found.axis == "n" else "number of images"
        surely = "" if math.isinf(found.low) else f" (×{found.low:.2f} {thing} cannot be excluded)"
        return f"∞ {thing}: no {some} without it gets there{surely}"
    high = "∞" if math.isinf(found.high) else f"{found.high:.2f}"
    return f"{found.number} {thing} [{found.low:.2f}, {high}]" + (" (extrapolated)" if found.extrapolated else "")


@dataclass(frozen=True)
class MultiplierMap:
    """A recipe's multipliers over all sizes and numbers of images, for a heat map.

    Attributes:
        params, images: the axes.
        found: [params][images].
        hidden: the same: why the one there is not to be shown; empty: it is.
    """

    recipe: str
    axis: Literal["n", "d"]
    params: tuple[float, ...]
    images: tuple[float, ...]
    found: tuple[tuple[Multiplier, ...], ...]
    hidden: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Line:
    """The law's curve of a recipe: over parameters at so many images ("n"), or over images at a size ("d")."""

    recipe: str
    axis: Literal["n", "d"]
    other: float
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class LawReading:
    """The law through one metric.

    Attributes:
        metric, runs: of what, and how many runs it was fitted to.
        why_not: why there is no law yet; then all else is empty.
        law: as `law.as_dict`: exponents, constants of arms, `lack` of fit and its `freedom`.
        tests: placebos and doses, always made.
        gate: whether multipliers may be shown, and why not.
        left_out: recipes that have too few runs yet.
        proposal: runs that are expected to halve the widest interval of parameters, for `proposal_for`; seconds each.
    """

    metric: Metric
    runs: int
    why_not: str
    law: dict[str, Any] | None = None
    tests: tuple[SelfTest, ...] = ()
    gate: Gate | None = None
    worth: tuple[RecipeValue, ...] = ()
    maps: tuple[MultiplierMap, ...] = ()
    lines: tuple[Line, ...] = ()
    left_out: tuple[str, ...] = ()
    proposal: Allocation | None = None
    proposal_for: str | None = None

    def verdict(self) -> str:
        """The gate in words."""
        if self.gate is None:
            return f"no law yet: {self.why_not}"
        if self.gate.passed:
            passed = sum(test.passed for test in self.tests)
            told = (
                "all self-tests pass" if passed == len(self.tests) else f"{passed} of {len(self.tests)} self-tests pass"
            )
            return f"the law holds: it fits, and {told}" + "".join(f"; {one}" for one in self.gate.warnings)
        return f"your runs do not support a scaling law ({'; '.join(self.gate.reasons)})"


@dataclass(frozen=True)
class LadderRung:
    """The teacher as it is after fewer epochs, and the target student that learned from it.

    Attributes:
        teacher: id of its run; `teacher_nll`: on test at its fitted temperature; None before it is finished.
        students: (replicate, NLL) of those that are finished.
    """

    epochs: int
    teacher: str
    teacher_nll: float | None
    students: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock on the machines that trained: spent by finished runs, and expected of those to come.

    Attributes:
        expected: None before a run is finished.
        lockstep: runs that share a step in the median.
    """

    spent: float
    expected: float | None
    lockstep: int


@dataclass(frozen=True)
class ScalingStudy:
    """What a scaling study knows now.

    Attributes:
        id, title, spec: of the study.
        width, params, images: the target; params is None before one of that width is finished.
        recipes: the baseline first; `labels`: for people.
        readings: by metric, `nll` first.
        cells: of every recipe, size and number of images.
        paired: raw differences to the baseline, all cells with a pair.
        dropped: by "images replicate": how many images automatic cleaning decided about in that draw.
        ladder: by epochs; the study's own teacher last.
        total, done, running, missing: runs; those of later rounds of an adaptive study are in `total` and `missing`.
        failed: a line for each that failed otherwise than by divergence.
        preparing: whether images are still to be judged before all runs are known.
        test_images, teacher_images: None where unknown.
    """

    id: str
    title: str
    spec: dict[str, Any]
    width: int
    params: int | None
    images: int
    recipes: tuple[str, ...]
    labels: dict[str, str]
    readings: dict[str, LawReading]
    cells: tuple[CellMean, ...]
    paired: tuple[Paired, ...]
    dropped: dict[str, int]
    ladder: tuple[LadderRung, ...]
    cost: Cost
    total: int
    done: int
    running: int
    missing: int
    failed: tuple[str, ...]
    active: bool
    preparing: bool
    replicates: int
    test_images: int | None
    teacher_images: int | None

    @property
    def complete(self) -> bool:
        """Whether every run of it is finished or diverged."""
        return not (self.missing or self.running or self.failed or self.preparing)

    def at_target(self, metric: Metric = "nll") -> tuple[Paired, ...]:
        """The raw differences at the target cell."""
        here = (self.width, self.images, metric)
        return tuple(one for one in self.paired if (one.width, one.images, one.metric) == here)

    def headline(self) -> str:
        """What the study says of its target, in a few sentences."""
        if self.params is None:
            return "No run at the target is finished yet."
        place = f"At {self.params:,} parameters and {self.images:,} images"
        reading = self.readings["nll"]
        if reading.gate is None or not reading.gate.passed:
            raw = [_difference(one, self.labels) for one in self.at_target()]
            shown = "; ".join(raw) or "nothing to compare yet"
            return f"{place}: {reading.verdict()}. Raw paired differences in NLL: {shown}."
        told = [one.words() for one in reading.worth]
        return f"{place}, {'. '.join(told)}.{self.disagreement()}"

    def disagreement(self) -> str:
        """Recipes that NLL and error, both with intervals off 1, judge in opposite ways; empty if none."""
        both = [{one.recipe: one for one in self.readings[metric].worth} for metric in METRICS]
        opposed = []
        for recipe, first in both[0].items():
            second = both[1].get(recipe)
            if second and _sign(first.parameters) * _sign(second.parameters) < 0:
                opposed.append(first.label)
        return f" NLL and error disagree about {', '.join(opposed)}: say which of the two you need." if opposed else ""

    def ship(self) -> list[str]:
        """ "Ship this smaller student instead", a sentence a recipe that allows it; empty where no law holds."""
        reading = self.readings["nll"]
        held = reading.gate is not None and reading.gate.passed
        return [text for one in reading.worth if held and (text := one.ship())]

    def scope(self) -> str:
        """What the figures are of, and what they do not say."""
        seen = f"{self.test_images:,} test images" if self.test_images else "test images"
        text = (
            f"Figures hold for this target, these images and these recipes as they were set; none was tuned. Loss is "
            f"{NAMES['nll']}, of the best epoch by validation, on the same {seen}. Intervals are 95 % over "
            f"{self.replicates} draws of images, weights and order, not over other test images."
        )
        if self.teacher_images:
            text += (
                f" The teacher learned from {self.teacher_images:,} images: where a student has fewer, distillation "
                "also lends it what the others taught."
            )
        return text

    def states(self) -> str:
        """How far it is, and what it costs."""
        states = [f"{self.done} of {self.total} runs done"]
        states += [f"{self.running} running or queued"] if self.running else []
        states += [f"{len(self.failed)} failed"] if self.failed else []
        states += ["images of some draws are still to be judged"] if self.preparing else []
        states += [f"{self.cost.spent / 60:.1f} minutes spent"]
        if self.cost.expected:
            states += [f"about {self.cost.expected / 60:.1f} minutes to go"]
        return ", ".join(states)

    def proposal(self) -> str:
        """What to run next, in a sentence; empty where there is nothing to say."""
        reading = self.readings["nll"]
        if (more := reading.proposal) is None or reading.proposal_for is None:
            return ""
        after = "open" if math.isinf(more.after) else f"×/÷{more.after:.2f}"
        return (
            f"{more.runs} more runs ({more.cost / 60:.1f} minutes) are expected to bring the interval of "
            f"{self.labels[reading.proposal_for]} to {after}"
        )

    def words(self) -> str:
        """The whole report as lines of text."""
        lines = [f"{self.title}: {self.states()}", "", self.headline()]
        lines += [f"Ship less: {text}" for text in self.ship()]
        for metric in METRICS:
            reading = self.readings[metric]
            lines += ["", f"{NAMES[metric]}: {reading.verdict()}"]
            if reading.law is not None:
                lines += [f"  lack of fit {_short(reading.law['lack'])}, fitted to {reading.runs} runs"]
            lines += [f"  {test.words}" for test in reading.tests]
            if reading.gate is not None and reading.gate.passed and metric != "nll":
                lines += [f"  {one.words()}" for one in reading.worth]
        lines += ["", "Paired differences in NLL at the target (below 0 is better):"]
        lines += [f"  {_difference(one, self.labels)}" for one in self.at_target()]
        for rung in self.ladder:
            scores = [score for _, score in rung.students]
            mean = f"{sum(scores) / len(scores):.3f} of {len(scores)} students" if scores else "no student yet"
            lines += [f"Teacher after {rung.epochs} epochs: NLL {_short(rung.teacher_nll)}, {mean}"]
        lines += [text] if (text := self.proposal()) else []
        return "\n".join([*lines, *(f"failed: {one}" for one in self.failed), self.scope()])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included; infinity is "inf", what is not known null."""
        own = {name: value for name, value in vars(self).items() if name not in ("readings", "cells", "paired")}
        return {
            **own,
            "ladder": [asdict(one) for one in self.ladder],
            "cost": asdict(self.cost),
            "readings": {name: {**plain(one), "verdict": one.verdict()} for name, one in self.readings.items()},
            "cells": [asdict(one) for one in self.cells],
            "paired": [asdict(one) for one in self.paired],
            "complete": self.complete,
            "headline": self.headline(),
            "ship": self.ship(),
            "scope": self.scope(),
            "states": self.states(),
            "proposal_words": self.proposal(),
        }


def plain(reading: LawReading) -> dict[str, Any]:
    """A reading as JSON takes it."""
    found: dict[str, Any] = scaling_law.as_dict(reading)
    return found


def _sign(found: Multiplier) -> int:
    return 1 if found.low > 1 else -1 if found.high < 1 else 0


def _difference(one: Paired, labels: dict[str, str]) -> str:
    interval = "1 pair: not evidence" if one.low is None else f"[{one.low:+.3f}, {one.high:+.3f}]"
    return f"{labels[one.recipe]} {one.mean:+.3f} {interval}"


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "unknown"
