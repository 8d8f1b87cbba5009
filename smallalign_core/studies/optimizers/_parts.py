"""Parts of an optimizer study's report: LR range tests, trials, final runs, differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from smallalign_core.studies.ablation import METRICS, Metric

Track = Literal["tuned", "hands-off"]
Verdict = Literal[
    "reference", "nothing", "not evidence", "no spread", "better", "worse", "no difference larger", "undecided"
]

FAR = 100
"""Upper limit for suggested seeds."""


@dataclass(frozen=True)
class Finder:
    """A learning rate range test (Smith, 2017): the loss while the rate grew from step to step.

    Attributes:
        rates, losses: one per step; losses are smoothed (exponential mean, 0.9, bias-corrected).
        steepest, minimum: the rates at which the loss fell fastest, and was lowest.
        stopped: whether it ended early, since the loss became four times its least or was not finite.
        seconds: compute time: its own steps, and views and teacher as if it had run alone.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float
    minimum: float
    stopped: bool
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A full-length trial of a learning rate on the tuning seed, evaluated on validation only.

    Attributes:
        id: of its run, which may not exist yet.
        rate: the learning rate.
        why: its origin: the `finder` (LR range test), an `extension` beyond an edge, or a `refinement` beside the best.
        state: a `State`, `not started` or `damaged`.
        diverged: whether the loss became NaN or infinite; such a rate is never chosen.
        accuracy, nll: of its best epoch on validation.
        seconds: compute time as if it had run alone: own and shared.
        chosen: whether the final runs use this rate.
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
        seconds: own and shared compute time up to then; evaluation time excluded.
    """

    epoch: int
    step: int
    gradients: int
    seconds: float


@dataclass(frozen=True)
class FinalRun:
    """One final run: an ordinary run of the store, found by its digest.

    Attributes:
        state: a `State`, `not started` or `damaged`; `reason`: why it failed or paused, if that is known.
        test, val, train: accuracy, nll, ece and images, of the best epoch by validation; train: of at most about 2,000
            training images without augmentation.
        own_seconds: forward, backward and optimizer; `alone_seconds`: with views and teacher, which a lockstep shares.
        gradients: number of gradient evaluations.
        steps: of the optimizer.
        state_bytes: size of the optimizer state.
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
        gradients: number of gradient evaluations so far.
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
    """The learning curve of one final run; `name` is its arm's."""

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
        mean, low, high: with its 95% interval, over seeds and test images together.
        method: `crossed`: a bootstrap of seeds and test images together, corrected for few seeds (`stats.crossed`);
            `seeds`: t over seeds alone, where the runs' answers to each image are not kept.
        p: two-sided, of the same t statistic; `holm`: corrected over all arms of this budget (Holm, 1979).
        verdict: `better` and `worse` only where the interval leaves out zero and `holm` is below 0.05; `no difference
            larger` than `margin` only where the whole interval lies inside it; `no spread` where all pairs differ
            equally.
        margin: for accuracy only.
        more_seeds: where undecided, the approximate number of further seeds needed; None: no number suffices.
        beats: share of seeds on which the arm is better, ties counting half.
        rho: correlation of the two over seeds, which makes pairing effective; None below 3 seeds or without a spread.
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
        """The metric's display format."""
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
        """The verdict, as text."""
        match self.verdict:
            case "reference":
                return "reference"
            case "nothing":
                return "nothing to compare yet"
            case "not evidence":
                return "single seed; run more before drawing conclusions"
            case "no spread":
                return "no difference" if not self.mean else "identical difference on every seed, add seeds"
            case "better" | "worse":
                return self.verdict + self._small()
            case "no difference larger":
                return f"equivalent within {self._margin()}"
            case "undecided":
                return f"inconclusive: {self.outlook}"
            case _:
                assert_never(self.verdict)

    def _margin(self) -> str:
        return f"{(self.margin or 0) * self.of.scale:g}{self.of.unit}".replace("1 points", "1 point")

    def _small(self) -> str:
        inside = self.margin is not None and self.low is not None and self.high is not None
        if inside and max(abs(self.low or 0), abs(self.high or 0)) < (self.margin or 0):
            return f", by less than {self._margin()}"
        return ""

    @property
    def outlook(self) -> str:
        """If undecided: the number of further seeds that it might take; else empty."""
        if self.verdict != "undecided":
            return ""
        if self.more_seeds is None:
            return "too few test images for a difference this small; more seeds alone do not help"
        if self.more_seeds > FAR:
            return f"a difference this small may not become significant with {FAR} more seeds"
        after = "" if self.low is None or self.high is None or self.low <= 0 <= self.high else "after correction, "
        return f"{after}about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)} needed"
