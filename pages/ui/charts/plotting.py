"""Drawing of every plot of the dashboard, with buttons to save it as PNG, SVG and CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from pages.ui import browser

Table = Mapping[str, Sequence[Any]]
"""Columns by name, equally long."""


def plot(
    figure: go.Figure,
    *,
    alt: str,
    key: str,
    height: int,
    top: int = 8,
    table: Table | None = None,
    **selecting: Any,
) -> None:
    """Draw a figure with the buttons that save it.

    Args:
        alt: a description, in a sentence.
        key: of the chart; files are named `smallalign-<key>`.
        height: in CSS pixels; `top` is the room above the plot.
        table: the content of the CSV, where the traces' own coordinates are not enough.
        selecting: what `st.plotly_chart` takes for clicks on its points.
    """
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(height=height, margin={"l": 0, "r": 0, "t": top, "b": 0}, legend=legend)
    rows = as_csv(traces(figure) if table is None else table)
    without_markup(figure)
    with st.container(key=f"plot-{key}", gap=None):
        st.plotly_chart(figure, key=key, alt=alt, config={"displayModeBar": False}, **selecting)
        browser.save(key=f"save-{key}", name=f"smallalign-{key}", alt=alt, csv=rows)


OURS = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)/?>)")
"""The start of any tag except those used in charts here: plotly makes links of others."""


def without_markup(figure: go.Figure) -> None:
    """Show names of classes and runs as they are: plotly reads every text as HTML of a kind."""
    for trace in figure.data:
        for name in ("name", "text", "hovertext", "x", "y", "customdata"):
            with contextlib.suppress(AttributeError):
                if (value := getattr(trace, name)) is not None:
                    setattr(trace, name, _shown(value))
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.ticktext = _shown(axis.ticktext)
        axis.title.text = _shown(axis.title.text)
    for note in figure.layout.annotations:
        note.text = _shown(note.text)


def _shown(value: Any) -> Any:
    """A text, or every text in a list, without other tags than ours; anything else as it is."""
    if isinstance(value, str):
        return OURS.sub("&lt;", value)
    if isinstance(value, list | tuple) or getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U"):
        return [_shown(one) for one in value]
    return value


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def as_csv(table: Table) -> str:
    """A table as CSV (RFC 4180): commas, a line of names; None and NaN are empty, numbers are not rounded."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow(["" if value is None or value != value else value for value in row])
    return text.getvalue()


def traces(figure: go.Figure) -> dict[str, list[Any]]:
    """The data of a figure's traces: one row per point, or cell of a matrix, under the axes' names."""
    layout = figure.layout
    x, y = (axis.title.text or plain for axis, plain in ((layout.xaxis, "x"), (layout.yaxis, "y")))
    rows: list[dict[str, Any]] = []
    for trace in figure.data:
        name = {"series": trace.name} if any(other.name for other in figure.data) else {}
        if trace.type in ("heatmap", "contour"):
            rows += [name | {x: across, y: down, "value": value} for across, down, value in _cells(trace)]
            continue
        drawn = _listed(trace.y)
        for at, (across, down) in enumerate(zip(_listed(trace.x) or range(len(drawn)), drawn, strict=True)):
            rows.append(name | {x: across, y: down} | _around(trace, at))
    names = dict.fromkeys(column for row in rows for column in row)
    return {column: [row.get(column) for row in rows] for column in names}


def _cells(trace: Any) -> Iterator[tuple[Any, Any, Any]]:
    values = [_listed(line) for line in trace.z]
    across, down = _listed(trace.x) or range(len(values[0])), _listed(trace.y) or range(len(values))
    return ((x, y, value) for y, line in zip(down, values, strict=True) for x, value in zip(across, line, strict=True))


def _around(trace: Any, at: int) -> dict[str, Any]:
    """The text of a point, and the ends of its error bar."""
    found: dict[str, Any] = {}
    if isinstance(trace.text, list | tuple) and at < len(trace.text):
        found["text"] = trace.text[at]
    for values, error in ((trace.x, trace.error_x), (trace.y, trace.error_y)):
        if error is not None and error.array is not None:
            below = error.array if error.arrayminus is None else error.arrayminus
            found |= {"low": values[at] - below[at], "high": values[at] + error.array[at]}
    return found


def _listed(values: Any) -> list[Any]:
    """Plain values: plotly keeps arrays of numpy."""
    if values is None:
        return []
    return list(values.tolist() if hasattr(values, "tolist") else values)
