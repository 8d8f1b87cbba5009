"""Lessons whose answer is trained: runs at the chosen setting, and the accuracy at all settings tried before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import streamlit as st

from pages.ui.app import context
from pages.ui.charts import plotting, theme
from pages.ui.runs import live
from pages.ui.widgets import formatting, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.result import result_of
from smallalign_core.runs.store import State, Store
from smallalign_core.service.requests import Submit
from smallalign_core.spec import RunSpec, title

SAME = ("network", "optimizer", "schedule", "augment", "batch", "loss", "shuffled", "balance")
"""Fields, beside those in the title, in which a run must be as the lesson has it."""
SYMBOLS = ("circle", "diamond")
MARGIN = 1.3
"""Factor by which the x axis goes beyond its first and last tick."""
Specs = Mapping[str, Mapping[str, RunSpec]]
"""Specs by setting, then by series."""


@dataclass(frozen=True)
class Point:
    """A finished run on the chart: validation accuracy with its 95% interval, in [0, 1]."""

    setting: str
    series: str
    x: float
    accuracy: float
    low: float
    high: float
    images: int


def runs_of(specs: Specs, store: Store) -> dict[tuple[str, str], RunRow]:
    """The newest run of each spec that was queued, by (setting, series)."""
    by_title: dict[str, list[RunRow]] = {}
    for row in run_table.rows(store):
        if not row.in_zoo and not row.imported:
            by_title.setdefault(row.title, []).append(row)
    found = {}
    for setting, of_series in specs.items():
        for series, spec in of_series.items():
            for row in by_title.get(title(spec), ()):
                if _same(row, spec, store):
                    found[setting, series] = row
                    break
    return found


def _same(row: RunRow, spec: RunSpec, store: Store) -> bool:
    try:
        found = store.run(row.id).spec
    except SmallAlignError:  # a damaged run
        return False
    return (found.teacher is None) == (spec.teacher is None) and all(
        getattr(found, name) == getattr(spec, name) for name in SAME
    )


def draw(
    store: Store, specs: Specs, chosen: str, *, x: Mapping[str, float] | None, axis: str, ticks: Sequence[float]
) -> list[Point]:
    """The button that trains the runs of the chosen setting, their progress, and the chart of all finished runs.

    Args:
        x: where a setting is on the chart; None: at the parameters of its network.
        axis: title of the x axis, which is logarithmic.
        ticks: numbers on it, from its left end to its right end.
    """
    known = runs_of(specs, store)
    mine = {series: known.get((chosen, series)) for series in specs[chosen]}
    active = [row for row in mine.values() if row is not None and State(row.state).active]
    missing = [specs[chosen][series] for series, row in mine.items() if row is None]
    count = "1 network" if len(missing) == 1 else f"{len(missing)} networks"
    if missing and st.button(f"Train {count}", type="primary", icon=":material/play_arrow:"):
        with context.show_errors():
            for spec in missing:
                context.call(Submit(spec), "Preparing the run")
            st.rerun()
    if active:
        tick = context.pace(live.TICK_SECONDS)
        st.fragment(_progress, run_every=tick)([row.id for row in active], store)
    failed = [row for row in known.values() if row.state == State.FAILED]
    points = [point for key, row in known.items() if row.finished and (point := _point(*key, row, store, x))]
    now = {point.series: point for point in points if point.setting == chosen}
    with st.grid(min_column_width=170):
        for series in specs[chosen]:
            value = formatting.percent(now[series].accuracy) if series in now else "–"
            st.metric(f"Accuracy, {series}", value, border=True)
    _chart(points, list(specs[chosen]), axis, ticks)
    for row in failed:
        st.caption(f":material/warning: {formatting.plain(row.optimizer)}: {formatting.plain(row.reason or 'failed')}")
    return points


def _progress(ids: list[str], store: Store) -> None:
    rows = [run_table.row(store.run(name), store) for name in ids]
    if not any(State(row.state).active for row in rows):
        st.rerun()
    share = sum((row.progress or 0) if State(row.state).active else 1 for row in rows) / len(rows)
    waiting = all(row.state == State.QUEUED for row in rows)
    st.progress(share, text="Queued" if waiting else f"Training, {share:.0%}")


def _point(setting: str, series: str, row: RunRow, store: Store, x: Mapping[str, float] | None) -> Point | None:
    found = result_of(store.run(row.id))
    if found is None or found.val is None:
        return None
    at, val = found.params if x is None else x[setting], found.val
    return Point(setting, series, at, val.accuracy, val.accuracy_low, val.accuracy_high, val.images)


def _chart(points: Sequence[Point], series: Sequence[str], axis: str, ticks: Sequence[float]) -> None:
    figure = go.Figure()
    for place, name in enumerate(series):
        own = sorted((point for point in points if point.series == name), key=lambda point: point.x)
        figure.add_scatter(
            x=[point.x for point in own],
            y=[point.accuracy for point in own],
            error_y={
                "array": [point.high - point.accuracy for point in own],
                "arrayminus": [point.accuracy - point.low for point in own],
                "thickness": 1.2,
                "width": 3,
            },
            name=name,
            mode="lines+markers",
            marker={"color": theme.palette()[place], "size": 9, "symbol": SYMBOLS[place]},
            showlegend=True,
        )
    ends = [math.log10(ticks[0] / MARGIN), math.log10(ticks[-1] * MARGIN)]
    figure.update_layout(
        xaxis={
            "title": axis,
            "type": "log",
            "range": ends,
            "tickvals": list(ticks),
            "ticktext": [f"{one:,g}" for one in ticks],
        },
        yaxis={"title": "validation accuracy", "range": [0, 1.02], "tickformat": ".0%"},
    )
    plotting.plot(
        figure, alt=f"Validation accuracy against {axis}, for {' and '.join(series)}.", key="lesson-runs", height=300
    )


def caption(points: Sequence[Point]) -> str:
    """How certain the chart is."""
    if not points:
        return "Nothing trained yet. "
    return f"Bars: 95% CI over {points[0].images:,} validation images. One seed each: not evidence. "
