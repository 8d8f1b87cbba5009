"""The chart of a search: accuracy over file size, one point per candidate, with the limits."""

from __future__ import annotations

import plotly.graph_objects as go

from pages.ui.charts import plotting, theme
from smallalign_core.search import BudgetSearch, Row

STATES = ("evaluated", "training", "stopped early")
"""Those that have a point, in the order of the legend."""


def accuracy_over_size(report: BudgetSearch, *, key: str) -> None:
    """Validation accuracy over kB; bars are intervals, lines are limits."""
    figure = go.Figure()
    colours = dict(zip(STATES, (theme.good(), theme.palette()[0], theme.gray()), strict=True))
    for state in STATES:
        rows = [row for row in report.rows if row.state == state and row.accuracy is not None]
        if rows:
            _points(figure, rows, state, colours[state])
    line = {"color": theme.palette()[6], "dash": "dash", "width": 1.5}
    if (kb := report.spec.max_kb) is not None:
        figure.add_vline(x=kb, line=line)
    limit = report.spec.min_accuracy
    if report.spec.min_share and report.teacher_accuracy:
        limit = report.spec.min_share * report.teacher_accuracy
    if limit is not None:
        figure.add_hline(y=limit, line=line)
    figure.update_layout(
        xaxis={"title": "file size (kB, log scale)", "type": "log"},
        yaxis={"title": "validation accuracy", "tickformat": ".0%"},
    )
    table = [
        {
            "trial": row.number,
            "candidate": row.label,
            "state": row.state,
            "kB": row.bytes / 1000,
            "precision": row.precision,
            "latency (ms)": row.latency_ms,
            "epochs": row.epochs,
            "validation accuracy": row.accuracy,
            "low": row.low,
            "high": row.high,
            "reason": row.why,
        }
        for row in report.rows
    ]
    plotting.plot(
        figure,
        alt="Validation accuracy over file size, one point per candidate; dashed lines are the limits.",
        key=key,
        height=380,
        top=30,
        table=plotting.columns(table),
    )


def _points(figure: go.Figure, rows: list[Row], state: str, colour: str) -> None:
    seen = [row.accuracy or 0.0 for row in rows]
    figure.add_scatter(
        x=[row.bytes / 1000 for row in rows],
        y=seen,
        name=state,
        mode="markers",
        marker={"color": colour, "size": 10},
        customdata=[(row.number, row.label, row.precision, row.epochs) for row in rows],
        hovertemplate="trial %{customdata[0]}: %{customdata[1]}, %{customdata[2]}, %{customdata[3]} epochs<br>"
        "%{x:.4g} kB, %{y:.1%}<extra></extra>",
        error_y={
            "array": [(row.high or one) - one for row, one in zip(rows, seen, strict=True)],
            "arrayminus": [one - (one if row.low is None else row.low) for row, one in zip(rows, seen, strict=True)],
            "color": theme.quiet(),
            "thickness": 1,
            "width": 0,
        },
    )
