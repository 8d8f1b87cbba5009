"""The report of a scaling study, as plain values: a page shows exactly one `ScalingStudy`.

Shares are in 0..1 and NLL is in nats, on test images, temperature-scaled on validation. Multipliers are
`scaling_law.Multiplier`: the factor in parameters ("n") or images ("d") that the baseline would need. None: not known
yet. Imports neither torch, numpy nor scipy.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from smallalign_core.studies import scaling_law
from smallalign_core.studies.base import StudyReport
from smallalign_core.studies.scaling._spec import ScalingStudySpec
from smallalign_core.studies.scaling_law import Allocation, Gate, Multiplier, SanityCheck

Metric = Literal["nll", "error"]
METRICS: tuple[Metric, ...] = ("nll", "error")
NAMES: dict[Metric, str] = {"nll": "test NLL (temperature-scaled)", "error": "test error"}


@dataclass(frozen=True)
class CellMean:
    """All finished runs of a recipe at a size and number of images.

    Attributes:
        params: of the student; None before one is finished.
        runs: number of finished runs; `diverged`: number of diverged runs.
        nll, error: (mean, low, high) with a 95% t interval over replicates; the ends are None below two.
        expected: by metric: the fitted value of the law; empty without a law.
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
    """Paired differences, recipe minus baseline, on the same images, initial weights and order; shown where no law
    holds.

    Attributes:
        pairs: (replicate, baseline, recipe) of each: the ends of a slope plot.
        mean, low, high: of the differences, 95% t; below 0 is better. The interval is None below two pairs.
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
    """The value of a recipe at the target cell, by one metric.

    Attributes:
        parameters, images: multipliers; `hidden_*`: why one cannot be shown as a number; empty: it can.
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
        """Whether a shown interval excludes x1."""
        shown = ((self.parameters, self.hidden_parameters), (self.images, self.hidden_images))
        return any(_sign(found) for found, hidden in shown if not hidden)

    def words(self) -> str:
        """In a sentence."""
        texts = [
            _multiplier_words(self.parameters, self.hidden_parameters),
            _multiplier_words(self.images, self.hidden_images),
        ]
        return f"{self.label}: " + "; ".join(texts)

    def ship(self) -> str:
        """The smaller student to deploy instead; empty if none is as good."""
        one = self.smaller
        if self.hidden_parameters or one.beyond or not 0 < one.k < 1 or not one.high < math.inf:
            return ""
        need, low, high = one.needed
        sure = "" if one.high < 1 else " (a larger size cannot be excluded)"
        return (
            f"with {self.label}, {need:,.0f} parameters [{low:,.0f}, {high:,.0f}] match the baseline of {one.n:,.0f} "
            f"parameters on {one.d:,.0f} images{sure}"
        )


def _multiplier_words(found: Multiplier, hidden: str) -> str:
    thing = "parameters" if found.axis == "n" else "images"
    if hidden:
        return f"{thing}: not shown ({hidden})"
    if math.isinf(found.k):
        some = "student of any size" if found.axis == "n" else "number of images"
        surely = "" if math.isinf(found.low) else f" (×{found.low:.2f} {thing} cannot be excluded)"
        return f"∞ {thing}: no {some} without it reaches this loss{surely}"
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
        metric, runs: the metric, and the number of fitted runs.
        why_not: why there is no law yet; then all else is empty.
        law: as `law.as_dict`: exponents, constants of arms, `lack` of fit and its `freedom`.
        tests: sanity checks (A/A and known-effect tests).
        gate: whether multipliers can be shown, and why not.
        left_out: recipes with too few runs so far.
        proposal: runs that are expected to halve the widest interval of parameters, for `proposal_for`; seconds each.
    """

    metric: Metric
    runs: int
    why_not: str
    law: dict[str, Any] | None = None
    tests: tuple[SanityCheck, ...] = ()
    gate: Gate | None = None
    worth: tuple[RecipeValue, ...] = ()
    maps: tuple[MultiplierMap, ...] = ()
    lines: tuple[Line, ...] = ()
    left_out: tuple[str, ...] = ()
    proposal: Allocation | None = None
    proposal_for: str | None = None

    def verdict(self) -> str:
        """The gate, as text."""
        if self.gate is None:
            return f"no scaling law yet: {self.why_not}"
        if self.gate.passed:
            passed = sum(test.passed for test in self.tests)
            texts = (
                "all sanity checks pass"
                if passed == len(self.tests)
                else f"{passed} of {len(self.tests)} sanity checks pass"
            )
            return f"the scaling law fits, and {texts}" + "".join(f"; {one}" for one in self.gate.warnings)
        return f"the runs do not support a scaling law ({'; '.join(self.gate.reasons)})"


@dataclass(frozen=True)
class LadderRung:
    """The teacher after fewer epochs, and the target student distilled from it.

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
    """Wall-clock seconds on the training machines: spent by finished runs, and expected for the remaining ones.

    Attributes:
        expected: None before a run is finished.
        lockstep: median number of runs in lockstep.
    """

    spent: float
    expected: float | None
    lockstep: int


@dataclass(frozen=True)
class ScalingStudy(StudyReport):
    """The current state of a scaling study.

    Attributes:
        width, params, images: the target; params is None before one of that width is finished.
        recipes: the baseline first; `labels`: display names.
        readings: by metric, `nll` first.
        cells: of every recipe, size and number of images.
        paired: raw differences to the baseline, all cells with a pair.
        dropped: by "images replicate": number of automatic cleaning decisions in that subset.
        ladder: by epochs; the study's own teacher last.
        total: number of runs; those of later rounds of an adaptive study are in `total` and `missing`.
        preparing: whether automatic cleaning is not done yet, so that not all runs are known.
        test_images, teacher_images: None where unknown.
    """

    spec: ScalingStudySpec
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
    preparing: bool
    replicates: int
    test_images: int | None
    teacher_images: int | None

    @property
    def unprepared(self) -> bool:
        return self.preparing

    def at_target(self, metric: Metric = "nll") -> tuple[Paired, ...]:
        """The raw differences at the target cell."""
        here = (self.width, self.images, metric)
        return tuple(one for one in self.paired if (one.width, one.images, one.metric) == here)

    def headline(self) -> str:
        """The result at the target, in a few sentences."""
        if self.params is None:
            return "No run at the target is finished yet."
        place = f"At {self.params:,} parameters and {self.images:,} images"
        reading = self.readings["nll"]
        if reading.gate is None or not reading.gate.passed:
            raw = [_difference(one, self.labels) for one in self.at_target()]
            shown = "; ".join(raw) or "nothing to compare yet"
            return f"{place}: {reading.verdict()}. Paired differences in NLL: {shown}."
        texts = [one.words() for one in reading.worth]
        return f"{place}, {'. '.join(texts)}.{self.disagreement()}"

    def disagreement(self) -> str:
        """Recipes with significant and opposite effects in NLL and error; empty if none."""
        both = [{one.recipe: one for one in self.readings[metric].worth} for metric in METRICS]
        opposed = []
        for recipe, first in both[0].items():
            second = both[1].get(recipe)
            if second and _sign(first.parameters) * _sign(second.parameters) < 0:
                opposed.append(first.label)
        return (
            f" NLL and error disagree on {', '.join(opposed)}: decide by the metric that you need." if opposed else ""
        )

    def ship(self) -> list[str]:
        """The smaller student to deploy, one sentence per recipe that allows it; empty where no law holds."""
        reading = self.readings["nll"]
        held = reading.gate is not None and reading.gate.passed
        return [text for one in reading.worth if held and (text := one.ship())]

    def scope(self) -> str:
        """The scope and limits of the figures."""
        seen = f"{self.test_images:,} test images" if self.test_images else "test images"
        text = (
            f"Figures hold for this target, dataset and recipes with fixed settings; none was tuned. Loss is "
            f"{NAMES['nll']} of the best epoch by validation, on the same {seen}. Intervals are 95% over "
            f"{self.replicates} replicates (images, initial weights, order) and exclude variance over test images."
        )
        if self.teacher_images:
            text += (
                f" The teacher was trained on {self.teacher_images:,} images: for students with fewer, the effect of "
                "distillation includes information from the others."
            )
        return text

    def states(self) -> str:
        """How far it is, and what it costs."""
        states = [f"{self.done} of {self.total} runs done"]
        states += [f"{self.running} running or queued"] if self.running else []
        states += [f"{len(self.failed)} failed"] if self.failed else []
        states += ["automatic cleaning in progress"] if self.preparing else []
        states += [f"{self.cost.spent / 60:.1f} minutes spent"]
        if self.cost.expected:
            states += [f"about {self.cost.expected / 60:.1f} minutes to go"]
        return ", ".join(states)

    def proposal(self) -> str:
        """Recommended next runs, in a sentence; empty if none."""
        reading = self.readings["nll"]
        if (more := reading.proposal) is None or reading.proposal_for is None:
            return ""
        after = "open" if math.isinf(more.after) else f"×/÷{more.after:.2f}"
        return (
            f"{more.runs} more runs ({more.cost / 60:.1f} minutes) are expected to narrow the interval of "
            f"{self.labels[reading.proposal_for]} to {after}"
        )

    def words(self) -> str:
        """The whole report as lines of text."""
        lines = [f"{self.title}: {self.states()}", "", self.headline()]
        lines += [f"Smaller student: {text}" for text in self.ship()]
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
            "spec": self.spec.model_dump(mode="json"),
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
    interval = "single pair" if one.low is None else f"[{one.low:+.3f}, {one.high:+.3f}]"
    return f"{labels[one.recipe]} {one.mean:+.3f} {interval}"


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "unknown"
