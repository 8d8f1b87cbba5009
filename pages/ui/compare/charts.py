"""The charts of a comparison: change of recall, reliability, robustness, and the Pareto plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.ui.charts import basic, forest, theme
from smallalign_core.analysis.compare import RecallChange
from smallalign_core.analysis.pareto import ParetoFront
from smallalign_core.analysis.robustness import Robustness
from smallalign_core.metrics import Bin

if TYPE_CHECKING:
    from pages.ui.compare import Sides


def recall_change(changes: Sequence[RecallChange], *, key: str) -> None:
    """Student minus teacher in each class, with 95% confidence intervals."""
    lines = [
        forest.Line(
            one.name,
            theme.bad() if one.high < 0 else theme.good() if one.low > 0 else theme.gray(),
            one.change,
            one.low,
            one.high,
            hover=f"{basic.safe(one.name)}, {one.images} images: teacher {one.teacher:.1%}, student {one.student:.1%}",
        )
        for one in changes
    ]
    far = 1.05 * max((max(-one.low, one.high) for one in changes), default=0.1) or 0.1
    panel = forest.Panel(lines, far, title="recall, student − teacher", tickformat="+.0%", beside=True)
    forest.forest([panel], alt="Change of recall by class, student minus teacher.", key=key, sides=None)


def reliability(before: Sequence[Bin], after: Sequence[Bin], temperature: float, colour: str, *, key: str) -> None:
    """Accuracy over confidence, at temperature 1 in gray circles and at another one in dots."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": theme.quiet(), "dash": "dash", "width": 1}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    for name, bins, look in (("T = 1", before, theme.quiet()), (f"T = {temperature:.2f}", after, colour)):
        most = max((one.images for one in bins), default=1)
        figure.add_scatter(
            x=[one.confidence for one in bins],
            y=[one.accuracy for one in bins],
            mode="markers",
            name=name,
            marker={
                "color": look,
                "symbol": "circle-open" if bins is before else "circle",
                "size": [6 + 16 * (one.images / most) ** 0.5 for one in bins],
            },
            error_y={
                "array": [one.accuracy_high - one.accuracy for one in bins],
                "arrayminus": [one.accuracy - one.accuracy_low for one in bins],
                "color": look,
                "thickness": 1,
                "width": 0,
            },
            customdata=[one.images for one in bins],
            hovertemplate="%{customdata:,} images: confidence %{x:.1%}, accuracy %{y:.1%}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": "confidence", "range": [-0.02, 1.05], "tickformat": ".0%"},
        yaxis={"title": "accuracy", "range": [-0.04, 1.06], "tickformat": ".0%"},
    )
    basic.show(figure, alt="Reliability diagram: accuracy over confidence.", key=key, height=330)


def robustness(found: Robustness, sides: Sides, *, key: str) -> None:
    """Mean accuracy over severity, one line per run, the teacher's dashed."""
    figure = go.Figure()
    for place, (name, run, colour) in enumerate(zip(sides.names, found.runs, sides.colours, strict=True)):
        points = [run.clean, *run.by_severity]
        aside = 0.03 * (place - (len(sides.names) - 1) / 2)
        figure.add_scatter(
            x=[at + aside for at in range(len(points))],
            y=[one.value for one in points],
            mode="lines+markers",
            name=name,
            line={"color": colour, "dash": "dash" if not place else "solid"},
            error_y={
                "array": [one.high - one.value for one in points],
                "arrayminus": [one.value - one.low for one in points],
                "color": colour,
                "thickness": 1,
                "width": 0,
            },
            customdata=list(range(len(points))),
            hovertemplate=f"{basic.safe(name)}, severity %{{customdata}}: %{{y:.1%}}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": "severity (0: clean), mean of all corruptions", "dtick": 1},
        yaxis={"title": "accuracy", "tickformat": ".0%"},
    )
    basic.show(figure, alt="Mean accuracy under corruption over severity.", key=key, height=330)


def corruptions(found: Robustness, sides: Sides, *, key: str) -> None:
    """Accuracy over severity, one small chart per corruption, all on one scale."""
    names, across = found.corruptions, 3  # readable on a phone
    down = -(-len(names) // across)
    figure = make_subplots(
        rows=down, cols=across, subplot_titles=names, shared_yaxes=True, shared_xaxes=True, vertical_spacing=0.1
    )
    for place, (name, run, colour) in enumerate(zip(sides.names, found.runs, sides.colours, strict=True)):
        for at, corruption in enumerate(names):
            levels = [run.clean, *(one.accuracy for one in run.levels if one.corruption == corruption)]
            figure.add_scatter(
                x=list(range(len(levels))),
                y=[one.value for one in levels],
                mode="lines",
                line={"color": colour, "dash": "dash" if not place else "solid"},
                showlegend=False,
                customdata=[(one.low, one.high) for one in levels],
                hovertemplate=f"{basic.safe(name)}, severity %{{x}}: %{{y:.1%}} "
                "(%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>",
                row=1 + at // across,
                col=1 + at % across,
            )
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%", nticks=4)
    figure.update_xaxes(dtick=1)
    basic.show(figure, alt="Accuracy under each corruption over severity.", key=key, height=150 * down, top=26)


def pareto(found: ParetoFront, sides: Sides, field: str, *, key: str) -> None:
    """Accuracy over a cost; dominated runs are gray, limits are lines."""
    runs, limits, accent = found.candidates, found.limits, theme.palette()[6]
    costs = [one.bytes / 1000 if field == "bytes" else one.p50_ms for one in runs]
    grey = theme.quiet(0.6)
    colours = [grey if one.dominated_by else colour for one, colour in zip(runs, sides.colours, strict=True)]
    figure = go.Figure(
        go.Scatter(
            x=costs,
            y=[one.accuracy for one in runs],
            mode="markers+text",
            text=[str(place + 1) for place in range(len(runs))],
            textposition="middle right",
            marker={"color": colours, "size": 13},
            customdata=[one.name for one in runs],
            hovertemplate="%{customdata}: %{x:.4g}, %{y:.2%}<extra></extra>",
            error_y={
                "array": [one.accuracy_high - one.accuracy for one in runs],
                "arrayminus": [one.accuracy - one.accuracy_low for one in runs],
                "color": grey,
                "thickness": 1,
                "width": 0,
            },
        )
    )
    limit = limits.kb if field == "bytes" else limits.ms
    line = {"color": accent, "dash": "dash", "width": 1.5}
    if limit:
        figure.add_vline(x=limit, line=line)
    if limits.accuracy:
        figure.add_hline(y=limits.accuracy, line=line)
    name = "ONNX file size (kB, log scale)" if field == "bytes" else "latency p50, batch size 1 (ms, log scale)"
    ends = [math.log10(value) for value in (min([*costs, limit or costs[0]]) / 1.6, max([*costs, limit or 0]) * 1.6)]
    steps = [times * 10.0**power for power in range(math.floor(ends[0]), math.ceil(ends[1]) + 1) for times in (1, 2, 5)]
    figure.update_layout(
        showlegend=False,
        xaxis={"title": name, "type": "log", "range": ends, "tickvals": steps, "ticktext": [f"{at:g}" for at in steps]},
        yaxis={"title": "accuracy", "tickformat": ".1%"},
    )
    basic.show(figure, alt=f"Accuracy over {name}, one point per run.", key=key, height=330)
