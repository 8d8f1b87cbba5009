"""What is found about the loss landscape, see `analysis.landscape`; without torch, for pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smallalign_core.system.typed import flat

Verdict = Literal["supports", "opposite", "no difference", "too few runs"]
Losses = tuple[tuple[float | None, ...], ...]
"""None where a loss is not finite."""


@dataclass(frozen=True)
class Line:
    """The loss along random directions, see `landscape._measures.line`.

    Attributes:
        at: [points]; losses: [directions][points].
        rise: mean over directions and both sides at `rise_at` above the loss at the weights; `rise_se`: its standard
            error over directions.
        maxima: mean number of local maxima a line.
    """

    at: tuple[float, ...]
    losses: Losses
    rise: float | None
    rise_se: float | None
    rise_at: float
    maxima: float


@dataclass(frozen=True)
class Plane:
    """The loss on a plane: `at` [points], `losses` [points][points], rows along the second direction."""

    at: tuple[float, ...]
    losses: Losses


@dataclass(frozen=True)
class Curvature:
    """The Hessian.

    Attributes:
        eigenvalues: the largest first.
        trace: with its standard error over probes, `trace_se`.
        scaled: the largest eigenvalue times the squared length of the weights.
        products: number of Hessian-vector products.
    """

    eigenvalues: tuple[float, ...]
    trace: float
    trace_se: float | None
    scaled: float | None
    products: int


@dataclass(frozen=True)
class Stride:
    """A step down a batch's gradient, as far as the share `stride` of the length of all weights.

    Attributes:
        cosines: between the gradients before and after; changes: of the loss; both [batches].
        cosine, change: their means; cosine_low: the 5th percentile.
    """

    stride: float
    cosines: tuple[float | None, ...]
    changes: tuple[float | None, ...]
    cosine: float | None
    change: float | None
    cosine_low: float | None


@dataclass(frozen=True)
class Predictiveness:
    """Predictiveness of a batch's gradient."""

    strides: tuple[Stride, ...]
    batches: int


@dataclass(frozen=True)
class Measures:
    """The measures of one run; None: not requested."""

    line: Line | None = None
    plane: Plane | None = None
    curvature: Curvature | None = None
    predictiveness: Predictiveness | None = None


@dataclass(frozen=True)
class MeasuredRun:
    """One run.

    Attributes:
        loss: its loss on `images` training images.
        shapes: digest of the shapes of its weights: runs that share it have the same random directions.
    """

    id: str
    name: str
    title: str
    params: int
    loss: float
    images: int
    shapes: str
    measures: Measures


@dataclass(frozen=True)
class Way:
    """The linear path from the run `run` to `other`, with name `to`: `at` and `losses` [points], and its barrier."""

    run: str
    other: str
    to: str
    at: tuple[float, ...]
    losses: tuple[float | None, ...]
    barrier: float | None


@dataclass(frozen=True)
class Between(Plane):
    """The plane through the runs `run` and `other`: `shares` [points] of the way, `at` [points] beside it."""

    run: str
    other: str
    to: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Trend:
    """The trend of one number over the size of the network.

    Attributes:
        sizes: parameters, with `means` and `spreads` (standard deviation over runs) of the reading there; None where a
            reading is not finite, or there is one run.
        slope: its change when the parameters double, by least squares over all runs, with its 95% t interval.
        p: against no slope, Holm-corrected over the readings.
        verdict: on "smaller is more rugged".
    """

    name: str
    rugged: int
    sizes: tuple[int, ...]
    means: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    runs: int
    slope: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict


@dataclass(frozen=True)
class LandscapeReport:
    """The report.

    Attributes:
        norms: batch-norm statistics.
        ways: paths from the first run to others; between: planes through both.
        shared: whether all runs have the same directions.
        sizes: where there are runs of several sizes.
    """

    norms: str
    images: int
    seed: int
    runs: tuple[MeasuredRun, ...]
    ways: tuple[Way, ...]
    between: tuple[Between, ...]
    shared: bool
    sizes: tuple[Trend, ...]
    words: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without measures that were not requested."""
        found = flat(self)
        for run in found["runs"]:
            run["measures"] = {name: one for name, one in run["measures"].items() if one is not None}
        return found


@dataclass(frozen=True)
class LandscapeCost:
    """What missing measures would cost.

    Attributes:
        seconds: from a probe of each run's own steps.
        losses, gradients: of a batch; a Hessian-vector product counts as three gradients.
        tasks: number of measures; missing: those that are not cached.
    """

    seconds: float
    losses: int
    gradients: int
    tasks: int
    missing: int
