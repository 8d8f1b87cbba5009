"""The main result of an optimizer study: a forest plot of paired differences to tuned AdamW, and the study's colors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from pages.ui.charts.basic import dark, palette
from pages.ui.charts.plotting import plot
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.optimizers import FAR, Arm, Difference, OptimizerStudy

REFERENCE = -1
"""The reference's place in the palette: the last color, a gray."""
OUTLYING = 4.0
"""A difference so many times as far from zero as the usual one does not stretch the axis."""


def colours(study: OptimizerStudy) -> dict[str, str]:
    """A color for each arm, the same in every chart of the study."""
    others = [arm.name for arm in study.at(study.budgets[0]) if arm.name != study.reference]
    chosen = palette()
    return {study.reference: chosen[REFERENCE]} | {
        name: chosen[place % (len(chosen) - 1)] for place, name in enumerate(others)
    }


def quiet(share: float = 0.8) -> str:
    """A gray that is legible on both themes."""
    return f"rgba(128,140,152,{share})"


def ink() -> str:
    """The color of text on the page."""
    return "#E6EDF3" if dark() else "#17212B"


def verdict(difference: Difference) -> str:
    """A result short enough to fit above its line on a phone."""
    if difference.verdict != "undecided":
        return difference.words()
    if difference.more_seeds is None:
        return "inconclusive: too few test images"
    if difference.more_seeds > FAR:
        return f"inconclusive (over {FAR} more seeds needed)"
    return f"inconclusive (about {difference.more_seeds} more seeds needed)"


def above(figure: go.Figure, y: float, text: str, *, size: int = 13) -> None:
    """Text at the left edge, above a line of a forest plot."""
    figure.add_annotation(
        x=0,
        xref="paper",
        y=y,
        text=text,
        font={"color": ink(), "size": size},
        showarrow=False,
        xanchor="left",
        yanchor="bottom",
    )


def sides(figure: go.Figure, left: str, right: str) -> None:
    """The labels of the two sides of a forest plot."""
    for x, anchor, text in ((0, "left", left), (1, "right", right)):
        figure.add_annotation(
            x=x, xref="paper", y=1, yref="paper", text=text, showarrow=False, xanchor=anchor, yanchor="bottom"
        )


def forest(study: OptimizerStudy, budget: int, metric: str, *, key: str) -> None:
    """Paired differences to the reference, the best on top, each with its interval, its seeds and its result."""
    of, reference = METRICS[metric], study.arm(study.reference, budget)
    shown = [arm for arm in study.at(budget) if arm.differences[metric].mean is not None]
    shown.sort(key=lambda arm: (arm.differences[metric].mean or 0) * (1 if of.less_is_better else -1))
    good, bad, neither = palette()[2], palette()[1], palette()[REFERENCE]
    figure, far = go.Figure(), _reach(shown, metric)
    for row, arm in enumerate(shown):
        found = arm.differences[metric]
        colour = {"better": good, "worse": bad}.get(found.verdict, neither)
        points = [of.scale * each for each in found.by_seed]
        ends = [of.scale * end for end in (found.low, found.high) if end is not None]
        figure.add_scatter(
            x=points,
            y=[row + 0.14 + 0.2 * place / max(1, len(points) - 1) for place in range(len(points))],
            text=[f"seed {seed}" for seed in _seeds(arm, reference)],
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.6},
            hovertemplate="%{text}: %{x:+.4g}<extra>" + arm.label + "</extra>",
        )
        if _outside(found, far):
            edge = 0.985 * math.copysign(far, found.mean or 0)
            side = "left" if ((found.mean or 0) < 0) != of.less_is_better else "right"
            figure.add_scatter(
                x=[edge],
                y=[row],
                mode="markers",
                marker={"color": colour, "size": 12, "symbol": f"triangle-{side}"},
                hovertemplate=f"{found.figures()}<extra>{arm.label}</extra>",
            )
            figure.add_annotation(
                x=edge,
                y=row + 0.1,
                text=found.figures(),
                font={"color": ink()},
                showarrow=False,
                xanchor=side,
                yanchor="top",
            )
        if ends:
            figure.add_scatter(x=ends, y=[row, row], mode="lines", line={"color": colour, "width": 4}, hoverinfo="skip")
        figure.add_scatter(
            x=[of.scale * (found.mean or 0)],
            y=[row],
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "diamond" if ends else "diamond-open"},
            hovertemplate=f"{found.figures()}<extra>{arm.label}</extra>",
        )
        above(figure, row - 0.18, f"<b>{arm.label}</b>  {verdict(found)}")
    if metric == "accuracy":
        most = of.scale * float(study.spec["margin"])
        figure.add_vrect(x0=-most, x1=most, fillcolor=quiet(0.12), line_width=0, layer="below")
    sides(figure, "← worse", "better →")
    figure.update_xaxes(
        range=[far, -far] if of.less_is_better else [-far, far],
        title=f"{of.label}{f' ({of.unit.strip()})' * bool(of.unit)}: difference to tuned {reference.label}<br>"
        f"at {study.budget_words(budget)}",  # a saved image has no page around it
        zeroline=False,
        nticks=7,
    )
    figure.add_vline(x=0, line={"color": quiet(), "width": 2}, layer="below")
    figure.update_yaxes(range=[len(shown) - 0.45, -0.75], visible=False, fixedrange=True)
    figure.update_layout(showlegend=False)
    table = [
        {
            "optimizer": arm.label,
            "budget": study.budget_words(budget),
            "seeds": found.seeds,
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "p_holm": found.holm,
            "verdict": found.words(),
            **{f"seed_{seed}": value for seed, value in zip(_seeds(arm, reference), found.by_seed, strict=True)},
        }
        for arm in shown
        for found in [arm.differences[metric]]
    ]
    alt = f"Paired differences to tuned {reference.label}, test {of.label}. {study.verdict(budget, metric)}"
    plot(figure, alt=alt, key=key, height=86 + 62 * len(shown), top=24, table=columns(table))


def _reach(shown: Sequence[Arm], metric: str) -> float:
    """How far the axis goes from zero: to the furthest of all that is drawn, unless most are much nearer.

    One optimizer that fails by 70 points must not compress all others into a dot; it is off the axis, with a label.
    """
    ends = sorted(_furthest(arm.differences[metric]) for arm in shown)
    if not ends:
        return 1.0
    usual = OUTLYING * ends[(len(ends) - 1) // 2]
    return 1.08 * max([end for end in ends if end <= usual], default=ends[-1]) or 1.0


def _furthest(found: Difference) -> float:
    ends = [end for end in (found.low, found.high) if end is not None]
    return found.of.scale * max(abs(value) for value in (*found.by_seed, *ends))


def _outside(found: Difference, far: float) -> bool:
    """Whether the mean of a difference lies beyond the axis."""
    return abs(found.of.scale * (found.mean or 0)) > far


def _seeds(arm: Arm, reference: Arm) -> list[int]:
    """The seeds that a difference is over: both arms have finished them."""
    theirs = {run.seed for run in reference.finished}
    return [run.seed for run in arm.finished if run.seed in theirs]


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
