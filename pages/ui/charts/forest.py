"""The forest plot: estimates with their intervals, one line each, and the single values that they are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.ui.charts import plotting, theme

UNIT, DENSE = 56, 24
"""Height of a line in CSS pixels: with its text above, and beside it."""
NEAR = 0.72
"""Distance to the line before it, of one about the same thing."""
ABOVE, BELOW = 0.75, 0.5
"""Room for the text of the first line, and for the points of the last."""
BETWEEN = 40
"""Room between two axes, in CSS pixels."""
MARGIN = 1.04
"""Room for arrows at the edge."""
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
SIDES = ("← worse", "better →")


@dataclass(frozen=True)
class Line:
    """One line of a forest plot.

    Attributes:
        text: above it.
        colour: as `#RRGGBB`.
        mean, low, high: the estimate and its interval, which may be infinite; None where there is none.
        hover: text at the estimate.
        points: single values, and `names` for them. Each has a height of its own, so that equal ones do not hide.
        extrapolated: draws it open and dotted.
        truth: the true value, where it is known: a ring, with the text `truth_hover`.
        near: whether it is about the same thing as the line before it.
    """

    text: str
    colour: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    hover: str = ""
    points: Sequence[float] = ()
    names: Sequence[str] = ()
    extrapolated: bool = False
    truth: float | None = None
    truth_hover: str = ""
    near: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines on one axis, which is symmetric around the value of no effect.

    Attributes:
        far: where the axis ends: the largest absolute value, or the largest factor of a logarithmic one. What lies
            beyond is an arrow at the edge.
        log: for factors: no effect is x1, else 0.
        reverse: whether less is better: better is always on the right.
        band: half the width of a band around no effect, such as an equivalence margin.
        tickformat: of a linear axis.
        beside: whether the texts, which are short, stand left of the lines: for many lines.
    """

    lines: Sequence[Line]
    far: float
    title: str = ""
    log: bool = False
    reverse: bool = False
    band: float | None = None
    tickformat: str | None = None
    beside: bool = False

    @property
    def unit(self) -> int:
        """Height of a line in CSS pixels."""
        return DENSE if self.beside else UNIT

    @property
    def span(self) -> float:
        """Height of all lines, in lines."""
        return (self.heights()[-1] if self.lines else 0.0) + ABOVE + BELOW

    @property
    def edge(self) -> float:
        """The end of the axis as drawn."""
        return math.log10(self.far) if self.log else self.far

    def place(self, value: float) -> float:
        """The position of a value as drawn, held within the axis."""
        return log_within(value, self.far) if self.log else min(self.far, max(-self.far, value))

    def outside(self, value: float) -> bool:
        """Whether it is drawn as an arrow."""
        return abs(self.place(value)) >= self.edge

    def heights(self) -> list[float]:
        """The place of each line, downwards from 0."""
        found: list[float] = []
        for line in self.lines:
            found.append(found[-1] + (NEAR if line.near else 1.0) if found else 0.0)
        return found


def log_within(value: float, far: float) -> float:
    """log10, held within x/÷ `far`; 0 and infinity are at its ends."""
    edge = math.log10(far)
    return min(edge, max(-edge, math.log10(value))) if 0 < value < math.inf else math.copysign(edge, value - 0.5)


def log_ticks(far: float) -> dict[str, Any]:
    """Ticks of an axis of factors from 1 / far to far, in log10."""
    decades = far > 10  # more would touch each other on a narrow screen
    values = [one for one in TICKS if 1 / far <= one <= far and (not decades or math.log10(one).is_integer())]
    return {"tickvals": [math.log10(one) for one in values], "ticktext": [f"×{one:g}" for one in values]}


def forest(
    panels: Sequence[Panel],
    *,
    alt: str,
    key: str,
    sides: tuple[str, str] | None = SIDES,
    table: plotting.Table | None = None,
) -> None:
    """Draw a forest plot; panels stand below each other, with no effect at the same place.

    Args:
        sides: what left and right mean.
        alt, key, table: as for `plotting.plot`.
    """
    heights = [panel.unit * panel.span for panel in panels]
    inside = sum(heights) + BETWEEN * (len(panels) - 1)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=heights,
        vertical_spacing=BETWEEN / inside if len(panels) > 1 else None,
    )
    for row, panel in enumerate(panels, 1):
        _panel(figure, panel, row)
    for x, anchor, text in zip((0, 1), ("left", "right"), sides or (), strict=False):
        place = {"xref": "x domain", "yref": "paper", "xanchor": anchor, "yanchor": "bottom"}
        figure.add_annotation(x=x, y=1, text=text, showarrow=False, **place)
    figure.update_layout(showlegend=False)
    titles = [panel.title for panel in panels if panel.title]
    ends = 26 + 20 * (len(titles) + sum(title.count("<br>") for title in titles)) + (24 if sides else 0)
    plotting.plot(figure, alt=alt, key=key, height=round(inside + ends), top=24 if sides else 8, table=table)


def _panel(figure: go.Figure, panel: Panel, row: int) -> None:
    where, ends = {"row": row, "col": 1}, MARGIN * panel.edge
    heights = panel.heights()
    for y, line in zip(heights, panel.lines, strict=True):
        _line(figure, panel, line, y, where)
        if panel.beside:
            continue
        figure.add_annotation(
            x=0,
            xref="x domain",
            y=y - 0.16,
            text=line.text,
            font={"color": theme.ink(), "size": 13},
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            **where,
        )
    look = {"layer": "below", "exclude_empty_subplots": False, **where}
    if panel.band is not None:
        figure.add_vrect(x0=-panel.band, x1=panel.band, fillcolor=theme.quiet(0.12), line_width=0, **look)
    figure.add_vline(x=0, line={"color": theme.quiet(), "width": 2}, **look)
    figure.update_xaxes(
        range=[ends, -ends] if panel.reverse else [-ends, ends],
        title=panel.title or None,
        zeroline=False,
        **(log_ticks(panel.far) if panel.log else {"nticks": 7, "tickformat": panel.tickformat}),
        **where,
    )
    names = {"tickvals": heights, "ticktext": [line.text for line in panel.lines], "automargin": True}
    shown = {"showgrid": False, "zeroline": False, **names} if panel.beside else {"visible": False}
    figure.update_yaxes(range=[panel.span - ABOVE, -ABOVE], fixedrange=True, **shown, **where)


def _line(figure: go.Figure, panel: Panel, line: Line, y: float, where: dict[str, int]) -> None:
    inside = [(value, name) for value, name in zip(line.points, line.names, strict=True) if not panel.outside(value)]
    figure.add_scatter(
        x=[panel.place(value) for value, _ in inside],
        y=[y + 0.14 + 0.2 * place / max(1, len(inside) - 1) for place in range(len(inside))],
        text=[name for _, name in inside],
        mode="markers",
        marker={"color": line.colour, "size": 6, "opacity": 0.6},
        hovertemplate="%{text}: %{x:+.4g}<extra></extra>",
        **where,
    )
    ends = [end for end in (line.low, line.high) if end is not None]
    if ends:
        bar = {"color": line.colour, "width": 4, "dash": "dot" if line.extrapolated else "solid"}
        figure.add_scatter(x=[*map(panel.place, ends)], y=[y, y], mode="lines", line=bar, hoverinfo="skip", **where)
    marks = [(panel.place(end), _arrow(panel, end)) for end in ends if panel.outside(end)]
    if line.mean is not None:
        shape = "diamond-open" if line.extrapolated or not ends else "diamond"
        marks.append((panel.place(line.mean), _arrow(panel, line.mean) if panel.outside(line.mean) else shape))
    for x, symbol in dict.fromkeys(marks):
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"color": line.colour, "size": 12, "symbol": symbol},
            hovertemplate=f"{line.hover}<extra></extra>",
            **where,
        )
    if line.truth is not None:
        figure.add_scatter(
            x=[panel.place(line.truth)],
            y=[y],
            mode="markers",
            marker={"color": theme.ink(), "size": 15, "symbol": "circle-open", "line": {"width": 2}},
            hovertemplate=f"{line.truth_hover}<extra></extra>",
            **where,
        )


def _arrow(panel: Panel, value: float) -> str:
    return "triangle-right" if (panel.place(value) > 0) != panel.reverse else "triangle-left"
