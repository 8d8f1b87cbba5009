"""What an optimizer study found, as plain values: a page shows exactly one `OptimizerStudy`.

Shares (accuracy, ECE) lie in 0..1 and NLL is in nats; differences are arm minus reference, so that more accuracy and
less NLL are better. Seconds are of the processor on a CPU and of the device on a GPU. None means: not known yet, or no
such thing. Nothing here imports torch or numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from smallalign_core.worth import METRICS, Metric

Track = Literal["tuned", "hands-off"]
Verdict = Literal[
    "reference", "nothing", "not evidence", "no spread", "better", "worse", "no difference larger", "undecided"
]

FAR = 100
"""More seeds than this are not worth naming."""


@dataclass(frozen=True)
class Finder:
    """A learning rate range test (Smith, 2017): the loss while the rate grew from step to step.

    Attributes:
        rates, losses: one a step; losses are smoothed (exponential mean, 0.9, bias-corrected).
        steepest, minimum: the rates at which the loss fell fastest, and was lowest.
        stopped: whether it ended early, since the loss became four times its least or was not finite.
        seconds: what it cost: its own steps and its share of views and teacher as if it had been alone.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float
    minimum: float
    stopped: bool
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A full-length run that a learning rate was tried with, on the tuning seed; judged on validation alone.

    Attributes:
        id: of its run, which may not exist yet.
        rate: the learning rate.
        why: who proposed it: the `finder`, an `extension` beyond an edge, or a `refinement` beside the best.
        state: a `State`, `not started` or `damaged`.
        diverged: whether the loss became NaN or infinite; such a rate is never chosen.
        accuracy, nll: of its best epoch on validation.
        seconds: what it cost, as if it had been alone: own and shared.
        chosen: whether the race runs with this rate.
    """

    id: str
    rate: float
    why: Literal["finder", "extension", "refinement"]
    state: str
    diverged: bool = False
    accuracy: float | None = None
    nll: float | None = None
    seconds: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Reached:
    """The first epoch at whose end a run's validation accuracy was at the target or above it.

    Attributes:
        epoch, step, gradients: counted from the start.
        seconds: own and shared up to then; evaluation is off the clock.
    """

    epoch: int
    step: int
    gradients: int
    seconds: float


@dataclass(frozen=True)
class RaceRun:
    """One run of the race: an ordinary run of the store, found by its digest.

    Attributes:
        state: a `State`, `not started` or `damaged`; `reason`: why it failed or paused, if that is known.
        test, val, train: accuracy, nll, ece and images, of the best epoch by validation; train: of at most about 2,000
            training images without augmentation.
        own_seconds: forward, backward and optimizer; `alone_seconds`: with views and teacher, which a lockstep shares.
        gradients: of the loss, that all its steps asked for.
        steps: of the optimizer.
        state_bytes: what its optimizer keeps beside the weights.
        memory_bytes: weights, gradients, optimizer state and what a backward pass needs, counted at one step.
        step_ms: median of its own time a step.
        reached: when it reached the study's target at this budget; None if it never did.
    """

    id: str
    seed: int
    state: str
    reason: str | None = None
    diverged: bool = False
    test: dict[str, float] | None = None
    val: dict[str, float] | None = None
    train: dict[str, float] | None = None
    own_seconds: float | None = None
    alone_seconds: float | None = None
    gradients: int | None = None
    steps: int | None = None
    state_bytes: int | None = None
    memory_bytes: int | None = None
    step_ms: float | None = None
    reached: Reached | None = None

    @property
    def gap(self) -> float | None:
        """Accuracy on training images minus accuracy on test images."""
        return self.train["accuracy"] - self.test["accuracy"] if self.train and self.test else None


@dataclass(frozen=True)
class Point:
    """A run at the end of an epoch, on validation images.

    Attributes:
        gradients: of the loss, asked for so far.
        own_seconds: forward, backward and optimizer so far; `seconds`: with views and teacher, as if it were alone.
        agreement: share of the teacher's classes; None without one.
    """

    epoch: int
    step: int
    gradients: int
    own_seconds: float
    seconds: float
    accuracy: float
    nll: float
    agreement: float | None


@dataclass(frozen=True)
class Curve:
    """How one run of the race went so far; `name` is its arm's."""

    name: str
    budget: int
    seed: int
    id: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Difference:
    """An arm against the reference at the same budget, seed by seed, on test images.

    Attributes:
        metric: `accuracy` or `nll`.
        seeds: of how many pairs; `by_seed`: the difference of each, in the order of seeds.
        mean, low, high: with its 95 % interval, over seeds and test images together.
        method: `crossed`: a bootstrap of seeds and test images together, corrected for few seeds (`stats.crossed`);
            `seeds`: t over seeds alone, where the runs' answers to each image are not kept.
        p: two-sided, of the same t statistic; `holm`: corrected over all arms of this budget (Holm, 1979).
        verdict: `better` and `worse` only where the interval leaves out zero and `holm` is below 0.05; `no difference
            larger` than `margin` by two one-sided tests (Schuirmann, 1987); `no spread` where all pairs differ equally.
        margin: for accuracy only.
        more_seeds: where undecided, roughly how many more might tell; None: no number of seeds would.
        beats: share of seeds on which the arm is better, ties counting half.
        rho: correlation of the two over seeds, which pairing lives on; None below 3 seeds or without a spread.
        gain: standard error of the paired difference, relative to that of an unpaired one: below 1 pairing helped.
    """

    metric: str
    seeds: int
    by_seed: tuple[float, ...]
    verdict: Verdict
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    method: Literal["crossed", "seeds"] | None = None
    p: float | None = None
    holm: float | None = None
    margin: float | None = None
    more_seeds: int | None = None
    beats: float | None = None
    rho: float | None = None
    gain: float | None = None

    @property
    def of(self) -> Metric:
        """How the metric is read."""
        return METRICS[self.metric]

    def figures(self) -> str:
        """The difference and its interval; empty before there is one."""
        if self.mean is None:
            return ""
        text = f"{self.of.change(self.mean)}{self.of.unit}"
        if self.low is None or self.high is None:
            return text
        return f"{text} ({self.of.change(self.low)} to {self.of.change(self.high)})"

    def words(self) -> str:
        """What it amounts to."""
        match self.verdict:
            case "reference":
                return "reference"
            case "nothing":
                return "nothing to compare yet"
            case "not evidence":
                return "1 seed: not evidence"
            case "no spread":
                return "no difference seen" if not self.mean else "no spread to judge by, add seeds"
            case "better" | "worse":
                return self.verdict + self._small()
            case "no difference larger":
                return f"no difference larger than {self._margin()}"
            case _:
                return f"not decided: {self.outlook}"

    def _margin(self) -> str:
        return f"{(self.margin or 0) * self.of.scale:g}{self.of.unit}".replace("1 points", "1 point")

    def _small(self) -> str:
        inside = self.margin is not None and self.low is not None and self.high is not None
        if inside and max(abs(self.low or 0), abs(self.high or 0)) < (self.margin or 0):
            return f", by less than {self._margin()}"
        return ""

    @property
    def outlook(self) -> str:
        """Where it is undecided: how many more seeds it might take; else empty."""
        if self.verdict != "undecided":
            return ""
        if self.more_seeds is None:
            return "too few test images for a difference this small, more seeds alone would not tell"
        if self.more_seeds > FAR:
            return f"a difference this small may not show on {FAR} more seeds"
        after = "" if self.low is None or self.high is None or self.low <= 0 <= self.high else "after correction, "
        return f"{after}need about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)}"


@dataclass(frozen=True)
class Arm:
    """One optimizer at one budget.

    Attributes:
        name: in the grammar of specs, unique among the study's optimizers: `lookahead | adamw`.
        label: for people: `Lookahead(AdamW)`.
        optimizer: its fields, with the chosen rate once there is one.
        track: `tuned` by trials, or `hands-off`: one fixed setting, no trials.
        budget: as a multiple of the study's epochs; `epochs`: what it gets for that, half where a step asks for two
            gradients: budgets are equal in gradients.
        default_rate: the library's default; None where there is no rate to set.
        rate: what the race runs with; None before tuning ended.
        trials: sorted by rate; empty on the hands-off track. `edge`: whether the best is still the lowest or the
            highest that was tried.
        finder: None on the hands-off track and before it ran.
        runs: one a seed, in their order.
        differences: by metric, to the reference at this budget.
        sensitivity: mean loss of validation accuracy of the trials within two octaves of the best (after Wortsman et
            al., 2023); None with fewer than two such trials.
        tuning_seconds: of finder and trials, as if each had been alone.
    """

    name: str
    label: str
    optimizer: dict[str, Any]
    track: Track
    budget: int
    epochs: int
    gradients_a_step: int
    default_rate: float | None
    rate: float | None
    trials: tuple[Trial, ...]
    edge: bool
    finder: Finder | None
    runs: tuple[RaceRun, ...]
    differences: dict[str, Difference]
    sensitivity: float | None
    tuning_seconds: float

    @property
    def finished(self) -> tuple[RaceRun, ...]:
        """The runs that have scores."""
        return tuple(run for run in self.runs if run.test)

    @property
    def diverged(self) -> int:
        """Runs of the race whose loss became NaN or infinite."""
        return sum(run.diverged for run in self.runs)

    @property
    def ratio(self) -> float | None:
        """The chosen rate over the library's default."""
        return self.rate / self.default_rate if self.rate and self.default_rate else None

    def mean(self, metric: str, split: Literal["test", "val", "train"] = "test") -> float | None:
        """Mean over finished seeds of `accuracy`, `nll` or `ece`."""
        return _mean([scores[metric] for run in self.runs if (scores := getattr(run, split))])

    def sd(self, metric: str, split: Literal["test", "val", "train"] = "test") -> float | None:
        """Standard deviation (n - 1) over finished seeds; None below two."""
        values = [scores[metric] for run in self.runs if (scores := getattr(run, split))]
        if len(values) < 2:
            return None
        middle = sum(values) / len(values)
        return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))

    def median(self, name: str) -> float | None:
        """Median over finished seeds of a number that `RaceRun` has: `alone_seconds`, `step_ms`, `gap`, ..."""
        return _median([value for run in self.finished if (value := getattr(run, name)) is not None])

    def to_target(self, name: Literal["epoch", "step", "gradients", "seconds"]) -> float | None:
        """Median over finished seeds, where a run that never got there took forever; None: so did the median."""
        reached = [getattr(run.reached, name) if run.reached else math.inf for run in self.finished]
        found = _median(reached)
        return None if found is None or math.isinf(found) else found

    @property
    def score(self) -> float | None:
        """Seconds from nothing to the target, tuning included: less is better; None where it was not reached."""
        seconds = self.to_target("seconds")
        return None if seconds is None else self.tuning_seconds + seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
        medians = ("own_seconds", "alone_seconds", "gradients", "steps", "state_bytes", "memory_bytes", "step_ms")
        return {
            **asdict(self),
            "ratio": self.ratio,
            "diverged": self.diverged,
            "test": {metric: self.mean(metric) for metric in METRICS},
            "sd": {metric: self.sd(metric) for metric in METRICS},
            "val": {metric: self.mean(metric, "val") for metric in METRICS},
            "train": {metric: self.mean(metric, "train") for metric in METRICS},
            "gap": self.median("gap"),
            "median": {name: self.median(name) for name in medians},
            "to_target": {name: self.to_target(name) for name in ("epoch", "step", "gradients", "seconds")},
            "score": self.score,
            "words": {metric: found.words() for metric, found in self.differences.items()},
        }


@dataclass(frozen=True)
class OptimizerStudy:
    """What an optimizer study knows now.

    Attributes:
        id: of the study.
        title: the student, in a few words.
        spec: as given, as plain values.
        budgets: multiples of `epochs`, ascending.
        seeds: those of the race; `tuning_seed`: another one.
        reference: name of the arm that the others are compared with, at each budget.
        arms: of each budget in turn, the reference first, then in the order of the spec.
        targets: by budget: validation accuracy to reach: as given, or the median of the reference's runs.
        missing: runs that a start would train now or later, as far as that is known; `running`: those in the queue or
            in training; `done`: those that are finished or diverged; `failed`: a line for each that failed otherwise.
        active: whether workers take runs of it by themselves.
        finding: whether learning rates are still to be found before the first trial.
        test_images: how many the figures are from; `crossed`: whether intervals are over them, too, everywhere.
        device, processor: where the finished runs were trained; several, if so.
    """

    id: str
    title: str
    spec: dict[str, Any]
    epochs: int
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    tuning_seed: int
    reference: str
    arms: tuple[Arm, ...]
    targets: dict[int, float | None]
    missing: int
    running: int
    done: int
    failed: tuple[str, ...]
    active: bool
    finding: bool
    test_images: int | None
    crossed: bool
    hardware: tuple[str, ...] = field(default=())

    def at(self, budget: int) -> tuple[Arm, ...]:
        """The arms of one budget, the reference first."""
        return tuple(arm for arm in self.arms if arm.budget == budget)

    def arm(self, name: str, budget: int) -> Arm:
        """One arm."""
        return next(arm for arm in self.at(budget) if arm.name == name)

    @property
    def complete(self) -> bool:
        """Whether every run of it is finished or diverged."""
        return not (self.missing or self.running or self.failed or self.finding)

    def budget_words(self, budget: int) -> str:
        """A budget in words: every claim carries one."""
        images = f"{budget * self.epochs:,} epochs"
        return images if budget == 1 else f"{images} ({budget} times the budget)"

    def verdict(self, budget: int, metric: str = "accuracy") -> str:
        """Who is better and worse than the reference at a budget, in a sentence."""
        label = self.arm(self.reference, budget).label
        found: dict[str, list[str]] = {}
        for arm in self.at(budget):
            if (difference := arm.differences.get(metric)) is not None:
                found.setdefault(difference.verdict, []).append(arm.label)
        told = [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {how} than tuned {label}"
            for how in ("better", "worse")
            if (names := found.get(how))
        ]
        if not told:
            some = any(found.get(how) for how in ("no difference larger", "undecided", "no spread"))
            only = "Nothing is better or worse" if some else "1 seed: not evidence"
            told = [
                f"{only} than tuned {label}"
                if some
                else only
                if found.get("not evidence")
                else "Nothing to compare yet"
            ]
        return f"At {self.budget_words(budget)}: {'; '.join(told)}."

    def scope(self) -> str:
        """What the figures are of, and what they do not say."""
        seen = f"{self.test_images:,} test images" if self.test_images else "test images"
        over = f"seeds and the {seen} together" if self.crossed else f"seeds, on {seen}"
        return (
            f"Differences are to the tuned reference on the same seeds, so with the same first weights, images and "
            f"views. Intervals are over {over}, 95 % each; `better` and `worse` also hold after Holm's correction over "
            "the optimizers of a budget. Learning rates were chosen on validation images with a seed of their own. "
            "Budgets are equal in gradients. Another student, other images or another budget may rank differently."
        )

    def states(self) -> str:
        """How far it is."""
        states = [f"{self.done} runs done"]
        states += ["learning rates are still to be found"] if self.finding else []
        states += [f"{self.running} running or queued"] if self.running else []
        states += [f"about {self.missing} to train"] if self.missing else []
        states += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(states)

    def words(self) -> str:
        """The whole report as lines of text."""
        lines = [f"{self.title}, {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}: {self.states()}"]
        for budget in self.budgets:
            lines += ["", self.verdict(budget)]
            lines += [f"  {line}" for arm in self.at(budget) if (line := _line(arm))]
        lines += [""] + [f"failed: {reason}" for reason in self.failed]
        return "\n".join([*lines, self.scope()])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
        whole = {name: value for name, value in vars(self).items() if name != "arms"}
        return {
            **whole,
            "arms": [arm.as_dict() for arm in self.arms],
            "complete": self.complete,
            "verdicts": {budget: self.verdict(budget) for budget in self.budgets},
            "scope": self.scope(),
        }


def _line(arm: Arm) -> str:
    """An arm in one line: score, difference, verdict, rate, cost."""
    accuracy, spread = arm.mean("accuracy"), arm.sd("accuracy")
    if accuracy is None:
        return f"{arm.label}: diverged on every seed" if arm.diverged and arm.diverged == len(arm.runs) else ""
    metric, difference = METRICS["accuracy"], arm.differences["accuracy"]
    text = f"{arm.label}: {metric.value(accuracy)}" + (f" ± {spread * 100:.2f}" if spread is not None else "")
    text += f", {figures}" if (figures := difference.figures()) and difference.verdict != "reference" else ""
    text += f", {difference.words()}"
    text += f"; diverged on {arm.diverged} of {len(arm.runs)} seeds" if arm.diverged else ""
    if arm.rate is not None and arm.track == "tuned":
        text += f"; learning rate {arm.rate:g}"
        text += f", {arm.ratio:.3g} times the library's" if arm.ratio else ""
        text += " (at the edge of those tried)" if arm.edge else ""
    seconds = arm.median("alone_seconds")
    text += f"; {seconds:.2g} s a run" if seconds is not None else ""
    return text + (f", {arm.tuning_seconds:.3g} s of tuning" if arm.tuning_seconds else "")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    if not values:
        return None
    ranked, middle = sorted(values), len(values) // 2
    if len(ranked) % 2 or ranked[middle - 1] == ranked[middle]:
        return ranked[middle]
    return (ranked[middle - 1] + ranked[middle]) / 2
