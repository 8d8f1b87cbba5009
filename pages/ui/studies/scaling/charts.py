"""Plots of a scaling study: multipliers of recipes, sanity checks, and the runs behind both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.ui.charts import forest as plots, theme
from pages.ui.charts.plotting import columns, plot
from smallalign_core.studies.scaling import CellMean, LawReading, MultiplierMap, ScalingStudy
from smallalign_core.studies.scaling_law import Multiplier

Axis = Literal["n", "d"]
THINGS: dict[str, str] = {"n": "parameters", "d": "images"}
REACH = 100.0
"""No axis of multipliers exceeds x/÷ this; values beyond are arrows at its edge."""
COLOURED = 10.0
"""Multipliers beyond x/÷ this have the extreme colors of a map."""


def colours(study: ScalingStudy) -> dict[str, str]:
    """A color for each recipe, the same in every chart of the study; the baseline is gray."""
    return theme.colours(study.recipes[0], study.recipes[1:])


def forest(study: ScalingStudy, reading: LawReading, *, key: str) -> None:
    """The multiplier of each recipe at the target, in parameters and in images; right of x1 is better."""
    shown = [
        (one, axis, found, hidden)
        for one in reading.worth
        for axis, found, hidden in (
            ("n", one.parameters, one.hidden_parameters),
            ("d", one.images, one.hidden_images),
        )
    ]
    colour, lines, rows = colours(study), [], []
    for one, axis, found, hidden in shown:
        name = f"<b>{one.label}</b>  in" if axis == "n" else "in"
        if hidden:
            line = plots.Line(f"{name} {THINGS[axis]}: not shown", colour[one.recipe])
        else:
            text = f"{name} {THINGS[axis]}: {_interval(found)}{', extrapolated' * found.extrapolated}"
            line = _line(found, text, colour[one.recipe])
        lines.append(dataclasses.replace(line, near=axis == "d"))
        rows.append({"recipe": one.label, "in": THINGS[axis]} | _cells(found) | {"not_shown": hidden or None})
    far = _far([found for _, _, found, hidden in shown if not hidden])
    alt = f"Multipliers of recipes at {study.params:,} parameters and {study.images:,} images. {study.headline()}"
    panel = plots.Panel(lines, far, title="multiple of the baseline", log=True)
    plots.forest([panel], alt=alt, key=key, table=columns(rows))


def _far(found: Sequence[Multiplier]) -> float:
    ends = [end for one in found for end in (one.k, one.low, one.high) if 0 < end < math.inf]
    most = max((max(end, 1 / end) for end in ends), default=2.0)
    return min(REACH, max(2.0, most) * 1.25)


def _interval(found: Multiplier) -> str:
    high = "∞" if math.isinf(found.high) else f"{found.high:.2f}"
    low = "∞" if math.isinf(found.low) else f"{found.low:.2f}"
    return f"{found.number} [{low}, {high}]"


def _cells(found: Multiplier) -> dict[str, Any]:
    return {
        "times": found.k,
        "low": found.low,
        "high": found.high,
        "share_infinite": found.infinite,
        "extrapolated": found.extrapolated,
    }


def _line(found: Multiplier, text: str, colour: str) -> plots.Line:
    hover = f"{_interval(found)} {THINGS[found.axis]}"
    return plots.Line(text, colour, found.k, found.low, found.high, hover=hover, extrapolated=found.extrapolated)


def sanity_checks(reading: LawReading, *, key: str) -> None:
    """A/A tests and known-effect tests: a ring is the true value, a bar the estimate of the law."""
    lines, rows = [], []
    for test in reading.tests:
        colour, mark = {"passed": (theme.good(), "✓"), "missed": (theme.bad(), "✗")}.get(
            test.outcome, (theme.gray(), "–")
        )
        place = f"at {test.found.n:,.0f} parameters, {test.found.d:,.0f} images"
        short = test.words.rpartition(": ")[0]  # the mark says the rest, which a phone would cut off
        line = dataclasses.replace(_line(test.found, f"{mark} {short}", colour), hover=test.words)
        lines.append(dataclasses.replace(line, truth=test.truth, truth_hover=f"true value ×{test.truth:g}, {place}"))
        rows.append({"test": test.kind, "in": THINGS[test.found.axis], "truth": test.truth} | _cells(test.found))
    listed = "; ".join(test.words for test in reading.tests)
    panel = plots.Panel(lines, _far([test.found for test in reading.tests]), log=True)
    plots.forest([panel], alt=f"Sanity checks: {listed}.", key=key, sides=None, table=columns(rows))


def plane(study: ScalingStudy, found: MultiplierMap, *, key: str) -> None:
    """A recipe's multiplier over all sizes and numbers of images; the target is framed, hidden cells are blank."""
    edge = math.log10(COLOURED)
    values, texts, hovers, rows = [], [], [], []
    for params, cells, hidden in zip(found.params, found.found, found.hidden, strict=True):
        values.append(
            [None if why else plots.log_within(cell.k, COLOURED) for cell, why in zip(cells, hidden, strict=True)]
        )
        texts.append(["" if why else _short(cell) for cell, why in zip(cells, hidden, strict=True)])
        hovers.append([why or _interval(cell) for cell, why in zip(cells, hidden, strict=True)])
        rows += [
            {"params": params, "images": cell.d} | _cells(cell) | {"not_shown": why or None}
            for cell, why in zip(cells, hidden, strict=True)
        ]
    across = [f"{one:,.0f}" for one in found.images]
    down = [f"{one:,.0f}" for one in found.params]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=across,
            y=down,
            text=texts,
            texttemplate="%{text}",
            customdata=hovers,
            hovertemplate="%{y} parameters, %{x} images: %{customdata}<extra></extra>",
            zmin=-edge,
            zmax=edge,
            colorscale=[[0, theme.palette()[1]], [0.5, "#D9DEE3"], [1, theme.palette()[0]]],
            colorbar={"title": "multiplier", **plots.log_ticks(COLOURED), "thickness": 12},
            xgap=2,
            ygap=2,
            hoverongaps=True,
        )
    )
    figure.update_traces(textfont={"color": "#17212B"})
    if study.params is not None:
        nearest = min(range(len(found.params)), key=lambda at: abs(found.params[at] - (study.params or 0)))
        column = min(range(len(found.images)), key=lambda at: abs(found.images[at] - study.images))
        figure.add_shape(
            type="rect",
            x0=column - 0.5,
            x1=column + 0.5,
            y0=nearest - 0.5,
            y1=nearest + 0.5,
            line={"color": theme.ink(), "width": 3},
        )
    figure.update_xaxes(title="training images", type="category", showgrid=False)
    figure.update_yaxes(title="parameters", type="category", showgrid=False)
    figure.update_layout(plot_bgcolor=theme.quiet(0.1))
    alt = f"Multiplier of {study.labels[found.recipe]} in {THINGS[found.axis]}, over sizes and numbers of images."
    plot(figure, alt=alt, key=key, height=90 + 62 * len(found.params), table=columns(rows))


def _short(found: Multiplier) -> str:
    return found.number + ("*" if found.extrapolated else "")


def curves(study: ScalingStudy, metric: str, axis: Axis, *, key: str) -> None:
    """Metrics over parameters, a panel for each number of images, or vice versa; lines are fitted."""
    cells = [one for one in study.cells if one.runs and one.params]
    panels = sorted({_other(one, axis) for one in cells})
    colour, reading = colours(study), study.readings[metric]
    names = [f"{one:,} {'images' if axis == 'n' else 'parameters'}" for one in panels]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = make_subplots(rows=down, cols=across, shared_yaxes="all", horizontal_spacing=0.06, vertical_spacing=0.2)
    rows: list[dict[str, Any]] = []
    for place, other in enumerate(panels):
        where = {"row": place // across + 1, "col": place % across + 1}
        for recipe in study.recipes:
            mine = sorted((one for one in cells if one.recipe == recipe and _other(one, axis) == other), key=_x(axis))
            for line in reading.lines:
                if line.recipe == recipe and line.axis == axis and round(line.other) == other:
                    look = {"color": colour[recipe], "width": 1.5, "dash": "dot"}
                    figure.add_scatter(
                        x=line.x, y=line.y, mode="lines", line=look, hoverinfo="skip", showlegend=False, **where
                    )
            scores = [getattr(one, metric) for one in mine]
            figure.add_scatter(
                x=[_x(axis)(one) for one in mine],
                y=[mean for mean, _, _ in scores],
                error_y={
                    "array": [(high or mean) - mean for mean, _, high in scores],
                    "arrayminus": [mean - (low or mean) for mean, low, _ in scores],
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                marker={"color": colour[recipe], "size": 8},
                name=study.labels[recipe],
                legendgroup=recipe,
                showlegend=place == 0,
                hovertemplate="%{y:.4g}<extra>" + study.labels[recipe] + "</extra>",
                **where,
            )
            rows += [
                {
                    "recipe": study.labels[recipe],
                    "params": one.params,
                    "images": one.images,
                    "runs": one.runs,
                    metric: mean,
                    "low": low,
                    "high": high,
                    "law": one.expected.get(metric),
                }
                for one, (mean, low, high) in zip(mine, scores, strict=True)
            ]
    title = "parameters" if axis == "n" else "training images"
    rungs = sorted({_x(axis)(one) for one in cells})
    figure.update_xaxes(type="log", tickvals=rungs, ticktext=[f"{one:,}" for one in rungs])
    for place, name in enumerate(names):
        figure.update_xaxes(title=name, row=place // across + 1, col=place % across + 1)
    figure.update_yaxes(type="log", tickformat=".0%" if metric == "error" else None, nticks=8)
    figure.update_yaxes(title="test error" if metric == "error" else "test NLL (nats)", col=1)
    alt = f"Test metric over {title}, by recipe; dotted lines: fitted scaling law."
    plot(figure, alt=alt, key=key, height=60 + 300 * down, top=40, table=columns(rows))


def _x(axis: Axis) -> Any:
    return (lambda one: one.params or 0) if axis == "n" else (lambda one: one.images)


def _other(one: CellMean, axis: Axis) -> int:
    return one.images if axis == "n" else int(one.params or 0)


def slopes(study: ScalingStudy, metric: str, *, key: str) -> None:
    """Each replicate's baseline and recipe at the target, joined by a line."""
    shown = study.at_target("nll" if metric == "nll" else "error")
    figure, colour, rows = make_subplots(rows=1, cols=max(1, len(shown)), shared_yaxes=True), colours(study), []
    for place, one in enumerate(shown, 1):
        for replicate, before, after in one.pairs:
            figure.add_scatter(
                x=["baseline", study.labels[one.recipe]],
                y=[before, after],
                mode="lines+markers",
                line={"color": colour[one.recipe], "width": 1.5},
                marker={"size": 7},
                hovertemplate=f"replicate {replicate}: %{{y:.4g}}<extra></extra>",
                row=1,
                col=place,
            )
            rows.append(
                {"recipe": study.labels[one.recipe], "replicate": replicate, "baseline": before, "with_it": after}
            )
    figure.update_yaxes(tickformat=".1%" if metric == "error" else None)
    figure.update_yaxes(title="test error" if metric == "error" else "test NLL (nats)", col=1)
    figure.update_xaxes(range=[-0.3, 1.3])
    figure.update_layout(showlegend=False)
    alt = f"Each replicate's baseline and recipe at the target, joined by a line; {metric}."
    plot(figure, alt=alt, key=key, height=340, table=columns(rows))


def raw(study: ScalingStudy, metric: Literal["nll", "error"], *, key: str) -> None:
    """Paired differences to the baseline at the target, where no law is fitted. Right is better."""
    shown, colour = study.at_target(metric), colours(study)
    scale, lines, rows, ends = 100 if metric == "error" else 1, [], [], [0.0]
    for one in shown:
        low, high = (None if end is None else scale * end for end in (one.low, one.high))
        points = [scale * (after - before) for _, before, after in one.pairs]
        ends += [*points, *(end for end in (low, high) if end is not None)]
        interval = " (single replicate)" if low is None else f" [{low:+.2f}, {high:+.2f}]"
        lines.append(
            plots.Line(
                f"<b>{study.labels[one.recipe]}</b>  {scale * one.mean:+.2f}{interval}",
                colour[one.recipe],
                scale * one.mean,
                low,
                high,
                hover=f"mean {scale * one.mean:+.3g}",
                points=points,
                names=[f"replicate {replicate}" for replicate, _, _ in one.pairs],
            )
        )
        rows.append({"recipe": study.labels[one.recipe], "mean": one.mean, "low": one.low, "high": one.high})
    far = 1.1 * max(map(abs, ends)) or 1.0
    unit = "test error (points)" if metric == "error" else "test NLL (nats)"
    panel = plots.Panel(lines, far, title=f"{unit}: difference to the baseline", reverse=True)
    alt = f"Paired differences in {unit} to the baseline at the target."
    plots.forest([panel], alt=alt, key=key, table=columns(rows))


def residuals(study: ScalingStudy, metric: str, *, key: str) -> None:
    """Relative residuals of the scaling law."""
    figure, colour, rows = go.Figure(), colours(study), []
    for recipe in study.recipes:
        mine = [
            one for one in study.cells if one.recipe == recipe and one.expected.get(metric) and getattr(one, metric)[0]
        ]
        off = [getattr(one, metric)[0] / one.expected[metric] - 1 for one in mine]
        figure.add_scatter(
            x=[one.expected[metric] for one in mine],
            y=off,
            mode="markers",
            marker={"color": colour[recipe], "size": 8},
            name=study.labels[recipe],
            text=[f"{one.params:,} parameters, {one.images:,} images" for one in mine],
            hovertemplate="%{text}: %{y:+.1%}<extra>" + study.labels[recipe] + "</extra>",
        )
        rows += [
            {"recipe": study.labels[recipe], "params": one.params, "images": one.images, "off": value}
            for one, value in zip(mine, off, strict=True)
        ]
    figure.add_hline(y=0, line={"color": theme.quiet()})
    figure.update_xaxes(title=f"fitted test {'error' if metric == 'error' else 'NLL'}", type="log", nticks=6)
    figure.update_yaxes(title="relative residual", tickformat="+.0%")
    plot(figure, alt="Relative residuals of the scaling law.", key=key, height=360, top=40, table=columns(rows))


def ladder(study: ScalingStudy, *, key: str) -> None:
    """Students at the target over the teacher's own loss: a more accurate teacher may give a worse student."""
    shown = [rung for rung in study.ladder if rung.teacher_nll is not None and rung.students]
    figure = go.Figure()
    for rung in shown:
        scores = [score for _, score in rung.students]
        figure.add_scatter(
            x=[rung.teacher_nll] * len(scores),
            y=scores,
            mode="markers",
            marker={"color": theme.palette()[0], "size": 8, "opacity": 0.6},
            hovertemplate=f"teacher after {rung.epochs} epochs: student %{{y:.4g}}<extra></extra>",
        )
    figure.add_scatter(
        x=[rung.teacher_nll for rung in shown],
        y=[sum(score for _, score in rung.students) / len(rung.students) for rung in shown],
        mode="lines+markers",
        line={"color": theme.palette()[1]},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[rung.teacher_nll for rung in shown],
        y=[max(score for _, score in rung.students) for rung in shown],  # above all dots
        mode="markers+text",
        marker={"size": 14, "opacity": 0},  # keeps the text off the dot
        text=[f"{rung.epochs} epoch{'s' * (rung.epochs > 1)}" for rung in shown],
        textposition="top center",
        cliponaxis=False,
        hoverinfo="skip",
    )
    ends = [rung.teacher_nll or 0.0 for rung in shown]
    room = 0.12 * (max(ends) - min(ends)) or 0.1
    figure.update_xaxes(title="teacher test NLL (nats)", range=[min(ends) - room, max(ends) + room], zeroline=False)
    figure.update_yaxes(title="student test NLL (nats)")
    figure.update_layout(showlegend=False)
    plot(figure, alt="Student test NLL over teacher test NLL.", key=key, height=360)
