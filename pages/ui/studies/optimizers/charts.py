"""Detail charts of an optimizer study: training curves, learning rates, and cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, cast

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.ui.charts import theme
from pages.ui.charts.plotting import columns, plot
from pages.ui.studies.optimizers.forest import OUTLYING, colours
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.optimizers import Arm, Curve, OptimizerStudy

Axis = Literal["step", "gradients", "seconds"]
AXES: dict[str, str] = {
    "step": "optimizer steps",
    "gradients": "gradient evaluations",
    "seconds": "compute time (s)",
}
MOST_POINTS = 200
"""Longer curves are subsampled."""


def _close_up(
    figure: go.Figure,
    arms: Sequence[Arm],
    final: dict[str, float],
    spans: dict[str, tuple[float, float]],
    *,
    less_is_better: bool = False,
) -> list[str]:
    """Limit the y axis to the typical arms if some are far behind; returns those out of range.

    Args:
        final: final value of each arm; `spans`: the range of its values to show.
        less_is_better: then the axis always is that of `spans`: initial values have no bound.
    """
    if not arms:
        return []
    best = (min if less_is_better else max)(final.values())
    behind = sorted(abs(best - value) for value in final.values())
    usual = OUTLYING * behind[len(behind) // 2]
    inside = [arm for arm in arms if abs(best - final[arm.name]) <= usual] if usual else list(arms)
    if len(inside) == len(arms) and not less_is_better:
        return []
    bottom = min(spans[arm.name][0] for arm in inside)
    top = max(spans[arm.name][1] for arm in inside)
    air = 0.06 * max(top - bottom, 1e-3)
    figure.update_yaxes(range=[bottom - air, top + air])
    return [arm.label for arm in arms if arm not in inside]


# --- training curves --------------------------------------------------------------------------------------------------


def curves(study: OptimizerStudy, found: Sequence[Curve], axis: str, metric: str, *, key: str) -> list[str]:
    """Validation metrics over cost: the mean over seeds, with the min-max band.

    Returns:
        The optimizers outside of the plotted range.
    """
    less_is_better = METRICS[metric].less_is_better
    figure, colour = go.Figure(), colours(study)
    rows, drawn, final, spans = [], [], {}, {}
    for place, arm in enumerate(study.at(found[0].budget)):
        mine = [curve for curve in found if curve.name == arm.name]
        if not mine:
            continue
        shortest = min(len(curve.points) for curve in mine)
        stride = -(-shortest // MOST_POINTS)
        places = sorted({*range(0, shortest, stride), shortest - 1})
        steps = [[curve.points[place] for curve in mine] for place in places]
        x = [statistics.fmean(getattr(point, axis) for point in step) for step in steps]
        y = [[getattr(point, metric) for point in step] for step in steps]
        name = f"{arm.label} ({len(mine)} seed{'s' * (len(mine) > 1)})"
        if len(mine) > 1:
            figure.add_scatter(
                x=[*x, *reversed(x)],
                y=[*map(max, y), *map(min, reversed(y))],
                mode="lines",  # or few points would be dots
                fill="toself",
                fillcolor=theme.faint(colour[arm.name], 0.13),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=arm.name,
            )
        means = [statistics.fmean(each) for each in y]
        drawn.append(arm)
        late = means[len(means) // 2 :]
        final[arm.name] = means[-1]
        spans[arm.name] = (min(map(min, y)), max(late)) if less_is_better else (late[0], max(map(max, y)))
        dash = "dash" if arm.name == study.reference else "solid" if place < len(theme.palette()) else "dot"
        figure.add_scatter(
            x=x,
            y=means,
            mode="lines",
            line={"color": colour[arm.name], "width": 2, "dash": dash},
            name=name,
            legendgroup=arm.name,
            hovertemplate="%{y:.4g}<extra>" + arm.label + "</extra>",
        )
        rows += [
            {"optimizer": arm.label, "budget": study.budget_words(curve.budget), "seed": curve.seed, **vars(point)}
            for curve in mine
            for point in curve.points
        ]
    share = metric == "accuracy"
    if share and (target := study.targets[found[0].budget]):
        figure.add_hline(y=target, line={"color": theme.quiet(), "dash": "dot"})
    figure.update_xaxes(title=AXES[axis])
    figure.update_yaxes(title="validation " + METRICS[metric].label, tickformat=".0%" if share else None)
    figure.update_layout(hovermode="x unified")
    outside = _close_up(figure, drawn, final, spans, less_is_better=less_is_better)
    alt = f"Validation {METRICS[metric].label} over {AXES[axis]}, mean and range of the seeds of each optimizer."
    plot(figure, alt=alt, key=key, height=430, table=columns(rows))
    return outside


def to_target(study: OptimizerStudy, budget: int, axis: str, *, key: str) -> None:
    """Cost to reach the target, median over seeds; in compute time with the LR tuning before it."""
    arms = [arm for arm in study.at(budget) if arm.finished]
    took = {arm.name: arm.to_target(cast(Axis, axis)) for arm in arms}
    tuning = {arm.name: arm.tuning_seconds if axis == "seconds" else 0.0 for arm in arms}
    arms.sort(key=lambda arm: (took[arm.name] is None, tuning[arm.name] + (took[arm.name] or 0)))
    names, colour = [arm.label for arm in arms], colours(study)
    figure = go.Figure()
    if axis == "seconds":
        figure.add_bar(
            x=[tuning[arm.name] for arm in arms],
            y=names,
            orientation="h",
            marker_color=theme.quiet(0.45),
            hovertemplate="%{x:.3g} s of tuning<extra>%{y}</extra>",
        )
    figure.add_bar(
        x=[took[arm.name] or 0 for arm in arms],
        y=names,
        orientation="h",
        marker_color=[colour[arm.name] for arm in arms],
        text=["" if took[arm.name] is not None else " not reached" for arm in arms],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x:.4g} to the target<extra>%{y}</extra>",
    )
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=False)
    longest = max(tuning[arm.name] + (took[arm.name] or 0) for arm in arms) or 1.0
    figure.update_xaxes(title=AXES[axis], range=[0, 1.25 * longest])  # room for text at the end of the longest
    figure.update_yaxes(autorange="reversed", automargin=True)
    rows = [
        {
            "optimizer": arm.label,
            "budget": study.budget_words(budget),
            "target": study.targets[budget],
            f"{axis}_to_target": took[arm.name],
            "tuning_seconds": arm.tuning_seconds,
        }
        for arm in arms
    ]
    alt = f"{AXES[axis].capitalize()} until validation accuracy reached the target, by optimizer."
    plot(figure, alt=alt, key=key, height=90 + 34 * len(arms), table=columns(rows))


# --- learning rates ---------------------------------------------------------------------------------------------------


def sensitivity(study: OptimizerStudy, budget: int, *, key: str) -> None:
    """Validation accuracy of every LR trial; rings mark the selected one, crosses the library default."""
    arms = [arm for arm in study.at(budget) if any(trial.accuracy is not None for trial in arm.trials)]
    figure, colour = go.Figure(), colours(study)
    scores = [trial.accuracy for arm in arms for trial in arm.trials if trial.accuracy is not None]
    floor = min(scores)
    rows = []
    for arm in arms:
        floor -= 0.018 * (max(scores) - min(scores) or 1)  # a row for each: many defaults are equal
        known = [trial for trial in arm.trials if trial.accuracy is not None]
        figure.add_scatter(
            x=[trial.rate for trial in known],
            y=[trial.accuracy for trial in known],
            mode="lines+markers",
            line={"color": colour[arm.name], "width": 2},
            marker={
                "size": [13 if trial.chosen else 7 for trial in known],
                "symbol": ["circle-open-dot" if trial.chosen else "circle" for trial in known],
                "line": {"width": 2},
            },
            name=arm.label,
            legendgroup=arm.name,
            hovertemplate="%{x:.3g}: %{y:.2%}<extra>" + arm.label + "</extra>",
        )
        figure.add_scatter(
            x=[arm.default_rate],
            y=[floor],
            mode="markers",
            marker={"symbol": "x-thin", "size": 11, "line": {"width": 3, "color": colour[arm.name]}},
            legendgroup=arm.name,
            showlegend=False,
            hovertemplate="library default %{x:.3g}<extra>" + arm.label + "</extra>",
        )
        rows += [
            {
                "optimizer": arm.label,
                "budget": study.budget_words(budget),
                "learning_rate": trial.rate,
                "validation_accuracy": trial.accuracy,
                "diverged": trial.diverged,
                "chosen": trial.chosen,
                "why": trial.why,
                "library_default": arm.default_rate,
            }
            for trial in arm.trials
        ]
    figure.update_xaxes(title="learning rate", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title="validation accuracy", tickformat=".0%")
    alt = "Validation accuracy over learning rate, with library defaults marked."
    plot(figure, alt=alt, key=key, height=420, table=columns(rows))


def finder(arm: Arm, colour: str, *, key: str) -> None:
    """An LR range test: the loss over increasing LR, its steepest descent, its minimum, and the library default."""
    found = arm.finder
    assert found is not None
    figure = go.Figure()
    figure.add_scatter(
        x=list(found.rates),
        y=list(found.losses),
        mode="lines",
        line={"color": colour},
        hovertemplate="%{x:.3g}: loss %{y:.4g}<extra></extra>",
    )
    lines = [
        (found.steepest, "steepest", "dot", "top"),
        (found.minimum, "minimum", "dash", "top"),
        (arm.default_rate, "library default", "solid", "bottom"),
    ]
    for rate, text, dash, side in lines:
        if rate is None:
            continue
        figure.add_vline(x=rate, line={"color": theme.quiet(), "dash": dash})
        figure.add_annotation(
            x=math.log10(rate),  # on a logarithmic axis, annotations alone are placed so
            y=0 if side == "bottom" else 1,
            yref="paper",
            text=text,
            textangle=-90,
            font={"size": 11, "color": theme.ink()},
            showarrow=False,
            xanchor="right",
            yanchor=side,
        )
    figure.update_xaxes(title="learning rate", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title="smoothed training loss")
    figure.update_layout(showlegend=False)
    table = {"learning_rate": found.rates, "smoothed_loss": found.losses}
    alt = f"LR range test of {arm.label}: loss over learning rate."
    plot(figure, alt=alt, key=key, height=320, table=table)


# --- cost -------------------------------------------------------------------------------------------------------------


def pareto(study: OptimizerStudy, budget: int, *, tuning: bool, key: str) -> list[str]:
    """Test accuracy over compute time, with the Pareto front.

    Returns:
        The optimizers below the plotted range.
    """
    arms = [arm for arm in study.at(budget) if arm.finished and arm.median("alone_seconds") is not None]
    cost = {arm.name: (arm.median("alone_seconds") or 0) + (arm.tuning_seconds if tuning else 0) for arm in arms}
    score = {arm.name: arm.mean("accuracy") or 0.0 for arm in arms}
    arms.sort(key=lambda arm: (cost[arm.name], -score[arm.name]))
    front, best = [], -1.0
    for arm in arms:
        if score[arm.name] > best:
            front.append(arm)
            best = score[arm.name]
    figure, colour = go.Figure(), colours(study)
    figure.add_scatter(
        x=[cost[arm.name] for arm in front],
        y=[score[arm.name] for arm in front],
        mode="lines",
        line={"color": theme.quiet(0.6), "shape": "hv", "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    for arm in arms:
        figure.add_scatter(
            x=[cost[arm.name]],
            y=[score[arm.name]],
            error_y={"array": [arm.sd("accuracy") or 0.0], "thickness": 1.2, "width": 3},
            mode="markers",
            marker={"color": colour[arm.name], "size": 11, "symbol": "square" if arm.track != "tuned" else "circle"},
            name=arm.label,
            hovertemplate="%{y:.2%} for %{x:.3g} s<extra>" + arm.label + "</extra>",
        )
    figure.update_xaxes(
        title="compute time (s), " + ("including LR tuning" if tuning else "one run"), rangemode="tozero"
    )
    figure.update_yaxes(title="test accuracy", tickformat=".1%")
    rows = [
        {
            "optimizer": arm.label,
            "budget": study.budget_words(budget),
            "track": arm.track,
            "seconds": cost[arm.name],
            "test_accuracy": score[arm.name],
            "sd": arm.sd("accuracy"),
            "on_front": arm in front,
        }
        for arm in arms
    ]
    around = {arm.name: arm.sd("accuracy") or 0.0 for arm in arms}
    spans = {name: (mean - around[name], mean + around[name]) for name, mean in score.items()}
    outside = _close_up(figure, arms, score, spans)
    alt = "Test accuracy over compute time, with the Pareto front."
    plot(figure, alt=alt, key=key, height=420, table=columns(rows))
    return outside


def slopes(study: OptimizerStudy, budget: int, *, key: str) -> list[str]:
    """Test accuracy of every seed, one line per seed over all optimizers: parallel lines make pairing effective.

    Returns:
        The optimizers below the plotted range.
    """
    arms = [arm for arm in study.at(budget) if arm.finished]
    arms.sort(key=lambda arm: arm.mean("accuracy") or 0.0)
    figure = go.Figure()
    for place, seed in enumerate(study.seeds):
        of_seed = {
            arm.label: run.test["accuracy"] for arm in arms for run in arm.finished if run.seed == seed and run.test
        }
        figure.add_scatter(
            x=list(of_seed),
            y=list(of_seed.values()),
            mode="lines+markers",
            line={"color": theme.palette()[place % len(theme.palette())], "width": 1.5},
            name=f"seed {seed}",
            hovertemplate="%{x}: %{y:.2%}<extra>seed " + str(seed) + "</extra>",
        )
    figure.update_xaxes(categoryorder="array", categoryarray=[arm.label for arm in arms], title="optimizer")
    figure.update_yaxes(title="test accuracy", tickformat=".1%")
    scores = {arm.name: [run.test["accuracy"] for run in arm.finished if run.test] for arm in arms}
    final = {name: statistics.fmean(each) for name, each in scores.items()}
    outside = _close_up(figure, arms, final, {name: (min(each), max(each)) for name, each in scores.items()})
    alt = "Test accuracy by optimizer, one line per seed."
    plot(figure, alt=alt, key=key, height=420)
    return outside


def bars(study: OptimizerStudy, budget: int, *, key: str) -> None:
    """Optimizer state, memory of a step, and time of a step."""
    arms = [arm for arm in study.at(budget) if arm.finished]
    measures: list[tuple[str, Callable[[Arm], float | None]]] = [
        ("optimizer state (kB)", lambda arm: _per(arm.median("state_bytes"), 1e3)),
        ("memory per step (MB)", lambda arm: _per(arm.median("memory_bytes"), 1e6)),
        ("compute time per step (ms)", lambda arm: arm.median("step_ms")),
    ]
    names, colour = [arm.label for arm in arms], colours(study)
    figure = make_subplots(rows=1, cols=len(measures), shared_yaxes=True, horizontal_spacing=0.05)
    for col, (title, of) in enumerate(measures, 1):
        figure.add_bar(
            x=[of(arm) for arm in arms],
            y=names,
            orientation="h",
            marker_color=[colour[arm.name] for arm in arms],
            hovertemplate="%{x:.3g}<extra>%{y}</extra>",
            row=1,
            col=col,
        )
        figure.update_xaxes(title=title, row=1, col=col, nticks=4)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(showlegend=False, bargap=0.35)
    rows = [{"optimizer": arm.label} | {title: of(arm) for title, of in measures} for arm in arms]
    alt = "Optimizer state, memory per step and compute time per step, by optimizer."
    plot(figure, alt=alt, key=key, height=80 + 32 * len(arms), table=columns(rows))


def _per(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
