"""The scaling law of a study's runs, as a `LawReading`; and its file format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smallalign_core.errors import BadData
from smallalign_core.studies import scaling_law
from smallalign_core.studies.scaling._report import METRICS, LawReading, Line, Metric, MultiplierMap, RecipeValue
from smallalign_core.studies.scaling._spec import REPLICATES, RUNGS, ScalingStudySpec
from smallalign_core.studies.scaling_law import (
    Allocation,
    Axis,
    Draws,
    Gate,
    Multiplier,
    Observations,
    Plane,
    SanityCheck,
)

FORMAT = 3
"""Version of stored fits; increased when their meaning changes."""
POINTS = 24
"""Of a curve."""
HALF = 0.5
AXES: tuple[Axis, ...] = ("n", "d")

Rows = Sequence[tuple[str, float, float, int, float]]
"""(recipe, parameters, images, replicate, loss)."""


def reading(
    spec: ScalingStudySpec,
    metric: Metric,
    rows: Rows,
    classes: int,
    params: int | None,
    cost: Callable[[str, float, float], float],
) -> LawReading:
    """The law fitted to finished runs, with its sanity checks, gate, multipliers and maps.

    Args:
        params: of the target; None before one of that width is finished.
        cost: seconds of a run (recipe, parameters, images).
    """
    ready = [recipe for recipe in spec.recipes if _ready(recipe, rows)]
    left_out = tuple(recipe for recipe in spec.recipes if recipe not in ready)
    some = [row for row in rows if row[0] in ready]
    if "baseline" not in ready or len(ready) < 2 or params is None:
        need = f"{REPLICATES} replicates of {RUNGS} sizes and {RUNGS} numbers of images"
        return LawReading(
            metric, len(some), f"not enough data: the baseline and another recipe need {need}", left_out=left_out
        )
    try:
        runs = Observations.from_rows(
            sorted(some, key=lambda row: spec.recipes.index(row[0])), scaling_law.chance(classes, metric)
        )
        draws = scaling_law.resample(runs)
        tests = scaling_law.sanity_checks(runs, "baseline", params, spec.most)
        return _with_multipliers(spec, metric, draws, tests, params, left_out, cost)
    except BadData as error:
        why_not = str(error)
    except (
        ArithmeticError,
        ValueError,
    ) as error:  # of the numbers at hand (LinAlgError is one); the study stays readable
        why_not = f"the law could not be computed from these runs ({error})"
    return LawReading(metric, len(some), why_not, left_out=left_out)


def _ready(recipe: str, rows: Rows) -> bool:
    mine = [row for row in rows if row[0] == recipe]
    by_cell: dict[tuple[float, float], int] = {}
    for _, size, images, _, _ in mine:
        by_cell[size, images] = by_cell.get((size, images), 0) + 1
    rungs = (len({size for size, _ in by_cell}), len({images for _, images in by_cell}))
    return min(rungs) >= RUNGS and float(np.median(list(by_cell.values()))) >= REPLICATES


def _with_multipliers(
    spec: ScalingStudySpec,
    metric: Metric,
    draws: Draws,
    tests: list[SanityCheck],
    params: int,
    left_out: tuple[str, ...],
    cost: Callable[[str, float, float], float],
) -> LawReading:
    sizes, images = draws.observations.rungs("baseline")
    widths = {axis: scaling_law.resolutions(draws, "baseline", axis, sizes, images) for axis in AXES}
    at = int(np.searchsorted(sizes, params)), int(np.searchsorted(images, spec.most))
    recipes = [recipe for recipe in draws.law.arms if recipe != "baseline"]
    worth = []
    for recipe in recipes:
        both = [scaling_law.estimate(draws, recipe, "baseline", params, spec.most, axis) for axis in AXES]
        hidden = [scaling_law.hidden(one, widths[one.axis].found[at[0]][at[1]].factor) for one in both]
        less = scaling_law.smaller(draws, recipe, "baseline", params, spec.most)
        worth.append(RecipeValue(recipe, spec.label(recipe), both[0], hidden[0], both[1], hidden[1], less))
    maps = tuple(
        _map(scaling_law.plane(draws, recipe, "baseline", axis, sizes, images), widths[axis])
        for recipe in recipes
        for axis in AXES
    )
    widest = max(worth, key=lambda one: one.parameters.factor if math.isfinite(one.parameters.factor) else 0.0)
    proposal = None
    if math.isfinite(widest.parameters.factor):
        proposal = scaling_law.allocate(draws, widest.recipe, "baseline", params, spec.most, "n", ratio=HALF, cost=cost)
    return LawReading(
        metric,
        len(draws.observations.y),
        "",
        scaling_law.as_dict(draws.law),
        tuple(tests),
        scaling_law.gate(draws, tests),
        tuple(worth),
        maps,
        _lines(draws, sizes, images),
        left_out,
        proposal,
        widest.recipe,
    )


def _map(plane: Plane, widths: Plane) -> MultiplierMap:
    hidden = tuple(
        tuple(scaling_law.hidden(one, width.factor) for one, width in zip(row, other, strict=True))
        for row, other in zip(plane.found, widths.found, strict=True)
    )
    sizes, images = (tuple(map(float, values)) for values in (plane.n, plane.d))
    return MultiplierMap(plane.recipe, plane.axis, sizes, images, plane.found, hidden)


def _lines(draws: Draws, sizes: Any, images: Any) -> tuple[Line, ...]:
    found = []
    for recipe in draws.law.arms:
        for axis in AXES:
            along, others = (sizes, images) if axis == "n" else (images, sizes)
            x = np.geomspace(along[0], along[-1], POINTS)
            for other in others:
                y = draws.law.loss(recipe, *((x, other) if axis == "n" else (other, x)))
                points = tuple(map(float, x)), tuple(map(float, y))
                found.append(Line(recipe, axis, float(other), *points))
    return tuple(found)


def expected(found: Mapping[str, Any], recipe: str, size: float, images: float) -> float | None:
    """The fitted value of a law stored as plain values; None for a recipe that it was not fitted to."""
    if (arm := found["arms"].get(recipe)) is None:
        return None
    alpha, beta, gamma = (found["exponents"][name] for name in ("alpha", "beta", "gamma"))
    u = (arm["A"] * size**-alpha + arm["B"] * images**-beta) ** gamma
    return float(arm["E"] + (found["chance"] - arm["E"]) * u / (1 + u))


# --- kept -------------------------------------------------------------------------------------------------------------


def packed(readings: Mapping[str, LawReading]) -> dict[str, Any]:
    """Readings as JSON takes them."""
    return {name: scaling_law.as_dict(one) for name, one in readings.items()}


def unpacked(written: Mapping[str, Any]) -> dict[str, LawReading]:
    """The readings stored by `packed`.

    Raises:
        KeyError, TypeError: it is not that.
    """
    return {metric: _reading(written[metric]) for metric in METRICS}


def _reading(one: dict[str, Any]) -> LawReading:
    gate, proposal = one["gate"], one["proposal"]
    return LawReading(
        one["metric"],
        one["runs"],
        one["why_not"],
        one["law"],
        tuple(SanityCheck(x["kind"], x["truth"], _multiplier(x["found"]), tuple(x["half"])) for x in one["tests"]),
        gate and Gate(gate["passed"], tuple(gate["reasons"]), tuple(gate["warnings"])),
        tuple(
            RecipeValue(
                x["recipe"],
                x["label"],
                _multiplier(x["parameters"]),
                x["hidden_parameters"],
                _multiplier(x["images"]),
                x["hidden_images"],
                _multiplier(x["smaller"]),
            )
            for x in one["worth"]
        ),
        tuple(
            MultiplierMap(
                x["recipe"],
                x["axis"],
                tuple(x["params"]),
                tuple(x["images"]),
                tuple(tuple(map(_multiplier, row)) for row in x["found"]),
                tuple(map(tuple, x["hidden"])),
            )
            for x in one["maps"]
        ),
        tuple(Line(x["recipe"], x["axis"], x["other"], tuple(x["x"]), tuple(x["y"])) for x in one["lines"]),
        tuple(one["left_out"]),
        proposal
        and Allocation(
            tuple(((cell[0], cell[1], cell[2]), count) for cell, count in proposal["more"]),
            proposal["runs"],
            *(_number(proposal[name]) for name in ("cost", "before", "after", "ratio")),
        ),
        one["proposal_for"],
    )


def _multiplier(one: dict[str, Any]) -> Multiplier:
    texts = ("axis", "recipe", "baseline", "extrapolated", "beyond")
    fields: dict[str, Any] = {
        name: one[name] if name in texts else _number(one[name]) for name in Multiplier.__dataclass_fields__
    }
    return Multiplier(**fields)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
