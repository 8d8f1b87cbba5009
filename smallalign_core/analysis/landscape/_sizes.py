"""Ruggedness of the loss landscape over student size: one number per measure and run, over the number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from smallalign_core.analysis.landscape_report import Trend, Verdict
from smallalign_core.errors import BadInput
from smallalign_core.spec import GivenNetwork, RunSpec, parse

LEAST_SIZES, LEAST_RUNS = 3, 6


@dataclass(frozen=True)
class Measurement:
    """A number of a report that indicates ruggedness.

    Attributes:
        name: its name, as text.
        measure: the measure that it is from; `read` extracts it.
        rugged: whether a higher value is more rugged (1) or a lower one (-1).
    """

    name: str
    measure: str
    read: Callable[[Mapping[str, Any]], float | None]
    rugged: int


READINGS = (
    Measurement(
        "cosine of gradients before and after a 5% step, mean",
        "predictiveness",
        lambda m: m["strides"][-1]["cosine"],
        -1,
    ),
    Measurement("the same, 5th percentile", "predictiveness", lambda m: m["strides"][-1]["cosine_low"], -1),
    Measurement("change of the loss by that step", "predictiveness", lambda m: m["strides"][-1]["change"], 1),
    Measurement("largest eigenvalue x squared length of the weights", "curvature", lambda m: m["scaled"], 1),
    Measurement("trace of the Hessian", "curvature", lambda m: m["trace"], 1),
    Measurement("rise of the loss at 0.2 along filter-normalised directions", "line", lambda m: m["rise"], 1),
    Measurement("local maxima on a random line", "line", lambda m: m["maxima"], 1),
)


def trends(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The readings that all `runs` of a report have, over their `params`, with verdicts."""
    found = [_trend(reading, runs) for reading in READINGS if all(reading.measure in run["measures"] for run in runs)]
    tested = sorted((trend for trend in found if trend.p is not None), key=lambda trend: trend.p or 0)
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, trend in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * (trend.p or 0)))
        corrected[trend.name] = highest
    return [asdict(_judged(trend, corrected.get(trend.name))) for trend in found]


def _trend(reading: Measurement, runs: Sequence[Mapping[str, Any]]) -> Trend:
    sizes = np.array([run["params"] for run in runs])
    read = [reading.read(run["measures"][reading.measure]) for run in runs]
    values = np.array([np.nan if value is None else value for value in read])
    kinds = sorted(set(sizes.tolist()))
    groups = [values[sizes == size] for size in kinds]
    spreads = tuple(
        float(group.std(ddof=1)) if len(group) > 1 and np.isfinite(group).all() else None for group in groups
    )
    slope = low = high = p = None
    enough = len(kinds) >= LEAST_SIZES and len(runs) >= LEAST_RUNS and bool(np.isfinite(values).all())
    if enough and not np.ptp(values):
        slope, low, high, p = 0.0, 0.0, 0.0, 1.0
    elif enough:
        fitted = stats.linregress(np.log2(sizes), values)
        far = stats.t.ppf(0.975, len(runs) - 2) * fitted.stderr
        slope, low, high, p = (float(x) for x in (fitted.slope, fitted.slope - far, fitted.slope + far, fitted.pvalue))
    means = tuple(float(group.mean()) if np.isfinite(group).all() else None for group in groups)
    return Trend(
        reading.name, reading.rugged, tuple(kinds), means, spreads, len(runs), slope, low, high, p, "too few runs"
    )


def _judged(trend: Trend, p: float | None) -> Trend:
    verdict: Verdict = "too few runs"
    if trend.slope is not None:
        rises = trend.slope * trend.rugged > 0  # with the size: larger is more rugged
        verdict = "no difference" if not (p is not None and p < 0.05) else "opposite" if rises else "supports"
    return Trend(**{**asdict(trend), "p": p, "verdict": verdict})


def words(trends: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], norms: str) -> list[str]:
    """The trends as text: the verdict of each measure, disagreement, and confounders."""
    if not trends:
        return []
    told = []
    for trend in trends:
        steps = ", ".join(
            f"{size:,}: {'not finite' if mean is None else f'{mean:.3g}'}"
            + ("" if spread is None else f" ± {spread:.2g}")
            for size, mean, spread in zip(trend["sizes"], trend["means"], trend["spreads"], strict=True)
        )
        by = (
            ""
            if trend["slope"] is None
            else f"; each doubling changes it by {trend['slope']:+.3g} [{trend['low']:+.3g}, {trend['high']:+.3g}]"
        )
        told.append(f"{trend['name']} [batch norm: {norms}]: {steps}{by}: {trend['verdict']}")
    verdicts = [trend["verdict"] for trend in trends]
    counted = {one: verdicts.count(one) for one in dict.fromkeys(verdicts)}
    told.append(
        '"Smaller is more rugged": '
        + ", ".join(f"{count} of {len(verdicts)} measures {_says(one)}" for one, count in counted.items())
    )
    by_size = {size: [run["loss"] for run in runs if run["params"] == size] for size in trends[0]["sizes"]}
    ends = ", ".join(f"{size:,}: {np.mean(losses):.3g}" for size, losses in by_size.items())
    told.append(f"The runs end at different losses ({ends}), which alone affects all of these measures")
    return told


def _says(verdict: str) -> str:
    return {"supports": "support it", "opposite": "contradict it", "no difference": "show no difference"}.get(
        verdict, "have too few runs"
    )


def ladder(spec: RunSpec, widths: Sequence[int], seeds: int) -> list[RunSpec]:
    """The same run at several widths, `seeds` of each from the spec's own seed upwards: ordinary specs.

    Raises:
        BadInput: invalid number of widths or seeds, the network has no width, or it is fixed by initial weights.
        BadSpec: no such width.
    """
    if isinstance(spec.network, GivenNetwork):
        raise BadInput(
            "this network has a fixed size", given=spec.network.name, do="choose mlp, cnn, separable or resnet"
        )
    if spec.start:
        raise BadInput(
            "the initial weights fix the width",
            given=f"start {spec.start}",
            do="choose a run without `start`",
        )
    if not 2 <= len(set(widths)) <= 12 or not 1 <= seeds <= 20:
        raise BadInput(
            "a comparison takes 2 to 12 different widths, 1 to 20 seeds each",
            given=f"{list(widths)}, {seeds} seeds",
            do="use at least 3 of each",
        )
    plain = spec.model_dump()
    return [
        parse({**plain, "network": {**plain["network"], "width": width}, "seed": spec.seed + more})
        for width in sorted(set(widths))
        for more in range(seeds)
    ]
