"""Static charts: counts, metrics by class, confusion matrices, prediction bars."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from pages.ui.charts import plotting, theme
from smallalign_core.analysis.label_report import Effect

READABLE_CLASSES = 20
"""Number of classes up to which every cell and tick of a matrix is labeled."""

MOST_CLASSES = 40
"""Number of classes up to which a chart shows all: with more, those that matter most."""


show = plotting.plot
"""Draws a static chart, with the buttons that save it."""


def counts(per_split: Mapping[str, Mapping[str, int]], *, key: str) -> None:
    """Images per class, one bar per split."""
    names = {"train": "train", "val": "validation", "test": "test"}
    figure, every = go.Figure(), list(next(iter(per_split.values()), {}))
    shown = every
    if len(every) > MOST_CLASSES:
        first = next(iter(per_split.values()))
        few = set(sorted(every, key=lambda name: first[name])[:MOST_CLASSES])
        shown = [name for name in every if name in few]
        largest, least = max(first.values()), min(first.values())
        st.caption(
            f"The {MOST_CLASSES} classes with the fewest training images, of {len(every):,}: {least:,} to {largest:,} "
            "a class."
        )
    per_split = {split: {name: tally.get(name, 0) for name in shown} for split, tally in per_split.items()}
    for (split, tally), colour in zip(per_split.items(), theme.palette(), strict=False):
        figure.add_bar(x=list(tally), y=list(tally.values()), name=names.get(split, split), marker_color=colour)
    figure.update_layout(barmode="stack", xaxis={"type": "category", "title": "class"}, yaxis_title="images")
    show(figure, alt="Images per class and split.", key=key, height=300)


def recall(of_model: Mapping[str, Mapping[str, float | None]], *, key: str) -> None:
    """Recall of each class, one bar per model; of many classes, those of the lowest recall of the last model."""
    figure, every = go.Figure(), list(of_model.values())[-1]
    if len(every) > MOST_CLASSES:
        known = [name for name, share in every.items() if share is not None]
        low = set(sorted(known, key=lambda name: every[name] or 0.0)[:MOST_CLASSES])
        of_model = {model: {name: one[name] for name in every if name in low} for model, one in of_model.items()}
        st.caption(f"The {len(low)} classes of lowest recall, of {len(every):,}.")
    for (name, found), colour in zip(of_model.items(), theme.palette(), strict=False):
        figure.add_bar(x=list(found), y=list(found.values()), name=name, marker_color=colour)
    least = min((value for found in of_model.values() for value in found.values() if value is not None), default=0.0)
    bottom = max(0.0, np.floor(10 * least - 0.5) / 10)
    figure.update_layout(
        xaxis={"type": "category", "title": "class"},
        yaxis={"title": "recall", "tickformat": ".0%", "range": [bottom, 1]},
    )
    show(figure, alt="Recall of each class.", key=key, height=280)
    if bottom:
        st.caption(f"The axis starts at {bottom:.0%}.")


def confusion(
    table: Sequence[Sequence[int]],
    classes: Sequence[str],
    *,
    highest: int,
    key: str,
    on_cell: Callable[[int, int], None] | None = None,
) -> None:
    """One confusion matrix. Errors are colored up to `highest`, so that two can share a scale; hits are muted.

    Args:
        on_cell: called with the true and the predicted class, as positions, when a cell that holds images is clicked.
    """
    counted = np.asarray(table)
    mistakes = counted.astype(float)
    np.fill_diagonal(mistakes, np.nan)
    mistakes[mistakes == 0] = np.nan
    few, last = len(classes) <= READABLE_CLASSES, len(classes) - 0.5
    low, high = ("#3A2A18", "#F39C4A") if theme.dark() else ("#FBE9DC", "#C24E00")
    figure = go.Figure(
        go.Heatmap(
            z=mistakes,
            zmin=0,
            zmax=max(1, highest),
            colorscale=[[0, low], [1, high]],
            showscale=False,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="true %{y}, predicted %{x}: %{z}<extra></extra>",
        )
    )
    ticks: dict[str, Any] = {"showgrid": False, "zeroline": False}
    if few:
        _write_counts(figure, counted, mistakes > highest * 0.6)
        names = [name if len(name) <= 10 else name[:9] + "…" for name in classes]
        ticks |= {"tickmode": "array", "tickvals": list(range(len(classes))), "ticktext": names}
    figure.update_layout(
        plot_bgcolor=theme.quiet(0.1),
        xaxis={"title": "predicted class", "range": [-0.5, last], **ticks},
        yaxis={"title": "true class", "range": [last, -0.5], **ticks},
    )
    clicks = {} if on_cell is None else _clickable(figure, counted, on_cell, key)
    alt = "Confusion matrix: rows are true classes, columns predicted classes."
    show(figure, alt=alt, key=key, height=380, **clicks)


def _clickable(
    figure: go.Figure, counted: NDArray[np.int64], on_cell: Callable[[int, int], None], key: str
) -> dict[str, Any]:
    """Make cells clickable: a heat map is not, so each non-empty cell gets an invisible point."""
    true, predicted = np.nonzero(counted)
    figure.add_scatter(
        x=predicted.tolist(),
        y=true.tolist(),
        mode="markers",
        marker={"symbol": "square", "size": 26 if len(counted) <= READABLE_CLASSES else 10, "opacity": 0},
        unselected={"marker": {"opacity": 0}},
        selected={"marker": {"opacity": 0}},
        customdata=[int(counted[place]) for place in zip(true, predicted, strict=True)],
        hovertemplate="true %{y}, predicted %{x}: %{customdata}<extra></extra>",
        showlegend=False,
    )

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if points:
            on_cell(int(points[0]["y"]), int(points[0]["x"]))

    return {"on_select": clicked, "selection_mode": "points"}


def _write_counts(figure: go.Figure, counted: NDArray[np.int64], strong: NDArray[np.bool_]) -> None:
    """Write the count into every non-empty cell, in a contrasting color."""
    muted, on_pale, on_strong = ("#8B98A5", "#FFFFFF", "#10161C") if theme.dark() else ("#66727E", "#17212B", "#FFFFFF")
    for true, predicted in zip(*np.nonzero(counted), strict=True):
        colour = muted if true == predicted else on_strong if strong[true, predicted] else on_pale
        text = str(counted[true, predicted])
        figure.add_annotation(x=predicted, y=true, text=text, showarrow=False, font={"size": 11, "color": colour})


def over_strength(curve: Sequence[Effect], *, limit: float, now: float, suggested: float | None, key: str) -> None:
    """Label-change rate over the strength of a policy, with its 95% band and the limit."""
    line, accent, good = theme.palette()[0], theme.bad(), theme.good()
    strengths = [0.0, *(point.strength for point in curve)]
    low = [0.0, *(point.flip_low for point in curve)]
    mid = [0.0, *(point.flip_rate for point in curve)]
    high = [0.0, *(point.flip_high for point in curve)]
    figure = go.Figure()
    band = theme.faint(line, 0.2)
    look = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=strengths, y=high, **look)
    figure.add_scatter(
        x=strengths, y=low, **(look | {"showlegend": True}), fill="tonexty", fillcolor=band, name="95% CI"
    )
    figure.add_scatter(
        x=strengths,
        y=mid,
        mode="lines+markers",
        line={"color": line},
        name="label-change rate",
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="strength %{x:g}: %{y:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>",
    )
    if suggested is not None:
        there = next(point.flip_rate for point in curve if point.strength == suggested)
        figure.add_scatter(
            x=[suggested],
            y=[there],
            mode="markers",
            marker={"color": good, "size": 14, "symbol": "diamond"},
            name=f"suggested: {suggested:g}",
            hoverinfo="skip",
        )
    figure.add_hline(y=limit, line={"color": accent, "dash": "dash"})
    figure.add_annotation(
        x=2, y=limit, text=f"limit {limit:.0%}", showarrow=False, xanchor="right", yanchor="bottom", font_color=accent
    )
    figure.add_vline(x=now, line={"color": theme.quiet(0.6), "dash": "dot"})
    top = max(*high, 2 * limit, 0.1) * 1.05
    figure.update_layout(
        xaxis={"title": "global strength (dotted: current)", "range": [0, 2.03], "dtick": 0.5},
        yaxis={"title": "label-change rate", "tickformat": ".0%", "range": [0, min(1.02, top)]},
    )
    show(figure, alt="Label-change rate over global strength.", key=key, height=280)


def by_part(parts: Sequence[tuple[str, Effect]], *, limit: float, key: str) -> None:
    """Label-change rate, one bar per transform, with its 95% interval and the limit."""
    line, accent = theme.palette()[0], theme.palette()[1]
    names = [f"{place + 1}. {name}" for place, (name, _) in enumerate(parts)]
    rates = [effect.flip_rate for _, effect in parts]
    figure = go.Figure(
        go.Bar(
            x=rates,
            y=names,
            orientation="h",
            marker_color=line,
            error_x={
                "array": [effect.flip_high - effect.flip_rate for _, effect in parts],
                "arrayminus": [effect.flip_rate - effect.flip_low for _, effect in parts],
                "color": theme.gray(),
            },
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.add_vline(x=limit, line={"color": accent, "dash": "dash"})
    top = max(*(effect.flip_high for _, effect in parts), 2 * limit, 0.1) * 1.05
    figure.update_layout(
        xaxis={"title": "label-change rate", "tickformat": ".0%", "range": [0, min(1.02, top)]},
        yaxis={"autorange": "reversed", "automargin": True},
        bargap=0.4,
    )
    show(figure, alt="Label-change rate by transform.", key=key, height=90 + 44 * len(parts))


def answers(top: Sequence[tuple[str, float]], true: str, colour: str, *, longest: int) -> str:
    """HTML of a model's top predictions as bars; a tick marks the true class. `longest` is the longest class name."""
    columns = f"grid-template-columns:{min(longest, 14) + 2}ch 1fr 2.6rem"
    lines = []
    for name, share in top:
        safe_name, right = html.escape(name), name == true
        text = safe_name + (" ✓" if right else "")
        lines.append(
            f'<div class="sa-answer" style="{columns}"><span title="{safe_name}">{text}</span>'
            f'<span class="sa-bar{" sa-right" if right else ""}" '
            f'style="background:{colour};width:{max(1, round(100 * share))}%"></span><span>{share:.0%}</span></div>'
        )
    return "".join(lines)


def safe(text: str) -> str:
    """A user's text as HTML."""
    return html.escape(text)


def wordmark() -> str:
    """The name beside the sign, as an SVG that reads on the current theme."""
    font = f'font-family="sans-serif" font-size="18" font-weight="600" fill="{theme.ink()}"'
    return sign(150, f'<text x="36" y="22" {font}>SmallAlign</text>')


def sign(width: int = 32, beside: str = "") -> str:
    """The sign: a small square that takes a big one's place."""
    colour = "#3D9BD6" if theme.dark() else "#0072B2"
    frame = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="4 3"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="32" viewBox="0 0 {width} 32">'
        f'<rect x="2" y="4" width="24" height="24" rx="4" {frame}/>'
        f'<rect x="14" y="16" width="12" height="12" rx="2" fill="{colour}"/>{beside}</svg>'
    )
