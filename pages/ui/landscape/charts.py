"""Plots and tables of a landscape report; each gives the batch-norm mode."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import plotly.graph_objects as go
import streamlit as st

from pages.ui.charts import basic, forest, plotting, theme
from smallalign_core.analysis.landscape_report import (
    Between,
    Curvature,
    LandscapeReport,
    Line,
    MeasuredRun,
    Measures,
    Plane,
    Trend,
    Way,
)

M = TypeVar("M")
FEW = 6
"""Runs that one chart can show legibly."""
NORMS = {"eval": "running statistics", "train": "batch statistics", "reestimate": "re-estimated"}
VERDICTS = {
    "supports": "smaller is more rugged",
    "opposite": "bigger is more rugged",
    "no difference": "no significant difference",
    "too few runs": "too few runs",
}


def show(report: LandscapeReport, labels: Mapping[str, str], *, key: str) -> None:
    """A report of `landscape`.

    Args:
        labels: names of runs, by id.
    """
    mode = f"batch norm: {report.norms} ({NORMS[report.norms]})"
    st.caption(
        f"{report.images:,} training images, seed {report.seed}, {mode}. None of these measures predicts test "
        "accuracy by itself: rescaling layers changes most of them and no prediction (Dinh et al., 2017)."
    )
    runs = report.runs
    labels = distinct({run.id: labels.get(run.id, run.name) for run in runs})
    names = [labels[run.id] for run in runs]
    _table(runs, names, report.norms)
    if len(runs) > 1 and not report.shared:
        st.caption("Architectures differ, and so do their random directions; runs of one architecture share them.")
    drawn = list(zip(runs, names, strict=True))[:FEW]
    if len(runs) > FEW:
        st.caption(f"Charts show the first {FEW} of {len(runs)} runs.")
    left, right = st.columns(2, gap="large")
    if lines := _measured(drawn, lambda of: of.line):
        with left:
            _band(lines, mode, key)
    if spectra := _measured(drawn, lambda of: of.curvature):
        with right:
            _spectrum(spectra, mode, key)
    if planes := _measured(drawn, lambda of: of.plane):
        _contours(planes, mode, key)
    if report.ways:
        _ways(report.ways, labels, mode, key)
    if report.between:
        _between(report.between, labels, mode, key)
    if report.sizes:
        _sizes(report.sizes, report.words, mode, key)
    st.download_button(
        "Download JSON",
        json.dumps(report.as_dict()),
        "landscape.json",
        "application/json",
        icon=":material/download:",
        type="tertiary",
        key=f"{key}-download",
    )


def _measured(drawn: Sequence[tuple[MeasuredRun, str]], read: Callable[[Measures], M | None]) -> list[tuple[M, str]]:
    """One measure of each run that has it, with the run's name."""
    return [(found, name) for run, name in drawn if (found := read(run.measures)) is not None]


def distinct(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without their common parts: a legend has little room."""
    parts = {one: label.split(" · ") for one, label in labels.items()}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return {one: " · ".join(part for part in each if part not in common) or labels[one] for one, each in parts.items()}


def _table(runs: Sequence[MeasuredRun], names: Sequence[str], norms: str) -> None:
    columns: dict[str, list[Any]] = {
        **({"Run": list(names)} if len(names) > 1 else {}),
        "Parameters": [run.params for run in runs],
        "Loss": [run.loss for run in runs],
    }
    if lines := [run.measures.line for run in runs if run.measures.line]:
        columns["Loss rise at 0.2"] = [one.rise for one in lines]
        columns["Maxima per direction"] = [one.maxima for one in lines]
    if bent := [run.measures.curvature for run in runs if run.measures.curvature]:
        columns["λ max"] = [one.eigenvalues[0] if one.eigenvalues else None for one in bent]
        columns["λ max · |w|²"] = [one.scaled for one in bent]
        columns["Trace"] = [
            f"{one.trace:.4g}" + ("" if one.trace_se is None else f" ± {one.trace_se:.2g}") for one in bent
        ]
    if steps := [run.measures.predictiveness.strides[-1] for run in runs if run.measures.predictiveness]:
        columns["Gradient cosine at 5%"] = [step.cosine for step in steps]
        columns["Cosine, 5th percentile"] = [step.cosine_low for step in steps]
        columns["Loss change at 5%"] = [step.change for step in steps]
    columns["Batch norm"] = [norms] * len(runs)
    plain = [name for name, values in columns.items() if _numbers(values)]
    helps = {
        "Loss rise at 0.2": "Mean loss increase at distance 0.2 along random filter-normalized directions.",
        "λ max · |w|²": "Invariant to scaling one layer up and the next down.",
        "Trace": "Of the Hessian: Hutchinson's estimate with its standard error.",
        "Gradient cosine at 5%": "Cosine similarity of a batch's gradient before and after a step along it of 5% of "
        "the weight norm; 1 is perfectly predictive.",
        "Cosine, 5th percentile": "Of the gradient cosine, over batches.",
        "Loss change at 5%": "Change of the batch's own loss by that step; above zero it overshoots.",
    }
    config = {name: st.column_config.NumberColumn(format="%.4g", help=helps.get(name)) for name in plain}
    config["Parameters"] = st.column_config.NumberColumn(format="localized")
    st.dataframe(
        columns,
        column_config=config | {"Trace": st.column_config.TextColumn(help=helps["Trace"])},
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Measures of each run; the last column is the batch-norm mode.",
    )


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values if value is not None)


def _draw(
    figure: go.Figure,
    *,
    title: str,
    mode: str,
    alt: str,
    key: str,
    height: int,
    top: int = 34,
    table: Mapping[str, list[Any]] | None = None,
) -> None:
    if title:
        st.markdown(f"**{title}**")
    figure.update_layout(legend={"entrywidthmode": "pixels"})
    short = mode.split(" (")[0]  # on the axis, so that it is in every saved image and table
    of = figure.layout.xaxis if figure.layout.yaxis.visible is False else figure.layout.yaxis
    of.title.text = f"{of.title.text} [{short}]"
    csv = (
        {"table": {name.replace("loss", f"loss [{short}]"): values for name, values in table.items()}} if table else {}
    )
    basic.show(figure, alt=f"{alt} ({mode})", key=key, height=height, top=top, **csv)


def _colours() -> list[str]:
    return theme.palette()


def _band(drawn: Sequence[tuple[Line, str]], mode: str, key: str) -> None:
    """The mean over directions with the min-max band."""
    figure = go.Figure()
    everything: list[float] = []
    for (line, name), colour in zip(drawn, _colours(), strict=False):
        each = list(zip(*line.losses, strict=True))
        there = [[loss for loss in at if loss is not None] for at in each]
        low, high = [min(at, default=None) for at in there], [max(at, default=None) for at in there]
        mean = [sum(at) / len(at) if at else None for at in there]
        everything += [value for value in (*low, *high) if value is not None]
        quiet = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
        figure.add_scatter(x=line.at, y=high, **quiet)
        figure.add_scatter(x=line.at, y=low, fill="tonexty", fillcolor=theme.faint(colour, 0.18), **quiet)
        figure.add_scatter(
            x=line.at,
            y=mean,
            mode="lines",
            line={"color": colour},
            name=name,
            legendgroup=name,
            customdata=list(zip(low, high, strict=True)),
            hovertemplate="%{x:.2f}: %{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})<extra></extra>",
        )
    steep = bool(everything) and max(everything) > 50 * min(everything) > 0
    figure.update_layout(
        xaxis_title="distance (relative to filter norms)",
        yaxis={"title": "loss"} | ({"type": "log", "dtick": "D2"} if steep else {}),
        showlegend=len(drawn) > 1,
    )
    count = len(drawn[0][0].losses)
    _draw(
        figure,
        title="Along random directions",
        mode=mode,
        alt="Loss along random directions.",
        key=f"{key}-band",
        height=330,
    )
    st.caption(f"Mean over {count} filter-normalized directions (Li et al., 2018), min-max band; {mode}.")


def _spectrum(drawn: Sequence[tuple[Curvature, str]], mode: str, key: str) -> None:
    figure = go.Figure()
    everything: list[float] = []
    for (curvature, name), colour in zip(drawn, _colours(), strict=False):
        values = curvature.eigenvalues
        everything += values
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"color": colour, "size": 9},
            name=name,
            hovertemplate="eigenvalue %{x}: %{y:.4g}<extra></extra>",
        )
    steep = bool(everything) and max(everything) > 20 * min(everything) > 0
    figure.update_layout(
        xaxis={"title": "eigenvalue index", "dtick": 1},
        yaxis={"title": "Hessian eigenvalue"} | ({"type": "log", "dtick": "D2"} if steep else {"rangemode": "tozero"}),
        showlegend=len(drawn) > 1,
    )
    _draw(figure, title="Curvature", mode=mode, alt="Largest eigenvalues.", key=f"{key}-spectrum", height=330)
    st.caption(f"Largest eigenvalues of the Hessian (Lanczos); {mode}.")


def _contours(drawn: Sequence[tuple[Plane, str]], mode: str, key: str) -> None:
    """One plane per run; all share the color scale, and directions where architectures match."""
    st.markdown("**Plane of two random directions**")
    planes = [plane for plane, _ in drawn]
    figures = [_contour(one, planes, one.at) for one in planes]
    names = [name if len(drawn) > 1 else "" for _, name in drawn]
    for figure in figures:
        figure.add_scatter(x=[0], y=[0], mode="markers", marker={"color": "#FFFFFF", "symbol": "x"}, hoverinfo="skip")
        figure.update_xaxes(title="direction 1")
        figure.update_yaxes(title="direction 2", scaleanchor="x", constrain="domain")
    _beside(figures, names, mode, f"{key}-plane")
    shared = "All share the color scale, and directions where architectures match; " if len(drawn) > 1 else ""
    st.caption(f"Cross: trained weights. Logarithmic color scale. {shared}{mode}.")


def _between(planes: Sequence[Between], labels: Mapping[str, str], mode: str, key: str) -> None:
    """The planes through the first run and another."""
    first = labels.get(planes[0].run, planes[0].run)
    st.markdown(f"**Planes from {first} to other runs**")
    figures = [_contour(one, planes, one.shares) for one in planes[:FEW]]
    for figure in figures:
        ends = {"mode": "markers", "marker": {"color": "#FFFFFF", "symbol": "x"}, "hoverinfo": "skip"}
        figure.add_scatter(x=[0, 1], y=[0, 0], **ends)
        figure.update_xaxes(title="interpolation", tickformat=".0%")
        figure.update_yaxes(title="random direction")
    names = [f"to {labels.get(one.other, one.to)}" for one in planes[:FEW]]
    _beside(figures, names, mode, f"{key}-between")
    st.caption(
        "Crosses: first run (left) and other run (right); vertical: a filter-normalized random direction. "
        f"Logarithmic color scale, loss of the first run; {mode}."
    )


def _beside(figures: Sequence[go.Figure], names: Sequence[str], mode: str, key: str) -> None:
    columns = st.columns(min(3, len(figures)))
    for place, (figure, name) in enumerate(zip(figures, names, strict=True)):
        with columns[place % len(columns)]:
            alt = f"Loss on a plane: {name}." if name else "Loss on a plane."
            contour = figure.data[0]
            cells = [(x, y) for y in contour.y for x in contour.x]
            table = {
                figure.layout.xaxis.title.text: [x for x, _ in cells],
                figure.layout.yaxis.title.text: [y for _, y in cells],
                "loss": [loss for line in contour.customdata for loss in line],
            }
            _draw(figure, title=name, mode=mode, alt=alt, key=f"{key}-{place}", height=330, table=table)


def _contour(plane: Plane, planes: Sequence[Plane], across: Sequence[float]) -> go.Figure:
    """One plane in the shared color scale."""
    logs = [[list(map(_logarithm, line)) for line in one.losses] for one in planes]
    values = [z for one in logs for line in one for z in line if z is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    ticks = [low + (high - low) * place / 4 for place in range(5)]
    figure = go.Figure(
        go.Contour(
            x=across,
            y=plane.at,
            z=[list(map(_logarithm, line)) for line in plane.losses],
            customdata=plane.losses,
            contours={"start": low, "end": high, "size": (high - low) / 14 or 1.0},
            zmin=low,
            zmax=high,
            colorscale="Cividis",
            line={"width": 0.6, "color": "rgba(255,255,255,0.6)"},
            colorbar={
                "tickvals": ticks,
                "ticktext": [f"{10**tick:.2g}" for tick in ticks],
                "thickness": 10,
                "title": {"text": "loss"},
            },
            hovertemplate="%{x:.2f}, %{y:.2f}: loss %{customdata:.4g}<extra></extra>",
        )
    )
    figure.update_yaxes(showgrid=False)
    figure.update_xaxes(constrain="domain", showgrid=False)
    return figure


def _logarithm(loss: float | None) -> float | None:
    return None if loss is None else math.log10(max(loss, 1e-12))


def _ways(ways: Sequence[Way], labels: Mapping[str, str], mode: str, key: str) -> None:
    figure = go.Figure()
    for way, colour in zip(ways, _colours(), strict=False):
        figure.add_scatter(
            x=way.at,
            y=way.losses,
            mode="lines",
            line={"color": colour},
            name=f"to {labels.get(way.other, way.to)}: barrier {_spread(way.barrier, None)}",
            hovertemplate="interpolation %{x:.0%}: %{y:.4g}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": "interpolation", "tickformat": ".0%"}, yaxis_title="loss", showlegend=True)
    first = labels.get(ways[0].run, ways[0].run)
    _draw(
        figure,
        title=f"Linear interpolation from {first}",
        mode=mode,
        alt="Loss along linear interpolation.",
        key=f"{key}-ways",
        height=330,
    )
    st.caption(
        "Barrier: largest loss above the linear interpolation of both endpoint losses (Frankle et al., 2020), loss of "
        f"the first run; {mode}."
    )


def _sizes(trends: Sequence[Trend], words: Sequence[str], mode: str, key: str) -> None:
    """Whether smaller is more rugged: each measure's slope over the size, in half-widths of its own interval."""
    st.markdown("**Ruggedness by student size**")
    colours = {"supports": _colours()[0], "opposite": _colours()[1]}
    lines, rows = [], []
    for trend in trends:
        if trend.slope is None or trend.low is None or trend.high is None or trend.high <= trend.low:
            continue
        middle = -trend.slope * trend.rugged / ((trend.high - trend.low) / 2)  # to the right: smaller is more rugged
        lines.append(
            forest.Line(
                trend.name,
                colours.get(trend.verdict, theme.gray()),
                middle,
                middle - 1,
                middle + 1,
                hover=f"{trend.slope:+.3g} ({trend.low:+.3g} to {trend.high:+.3g})",
            )
        )
        rows.append({"measure": trend.name, "slope": trend.slope, "low": trend.low, "high": trend.high})
    if lines:
        far = max(1.5, *(1.1 + abs(line.mean or 0.0) for line in lines))
        title = f"slope per log₂ parameters,<br>in half-widths of its 95% CI [{mode.split(' (')[0]}]"
        forest.forest(
            [forest.Panel(lines, far, title=title)],
            alt=f"Slopes of each measure over the size ({mode}).",
            key=f"{key}-sizes",
            sides=("← bigger is more rugged", "smaller is →"),
            table=plotting.columns(rows),
        )
    st.dataframe(
        {
            "Measure": [trend.name for trend in trends],
            "Result": [VERDICTS[trend.verdict] for trend in trends],
            **{
                f"{size:,}": [_spread(trend.means[at], trend.spreads[at]) for trend in trends]
                for at, size in enumerate(trends[0].sizes)
            },
            "p (Holm)": [trend.p for trend in trends],
        },
        column_config={"p (Holm)": st.column_config.NumberColumn(format="%.3g")},
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Each measure at each number of parameters, with its result.",
    )
    st.caption(
        " ".join(f"{line}." for line in words[-2:]) + f" Columns: parameters; ±: standard deviation over runs; {mode}."
    )


def _spread(mean: float | None, spread: float | None) -> str:
    return "not finite" if mean is None else f"{mean:.3g}" + ("" if spread is None else f" ± {spread:.2g}")
