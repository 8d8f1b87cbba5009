"""The main result of an optimizer study: a forest plot of paired differences to tuned AdamW, and the study's colors."""

from __future__ import annotations

from collections.abc import Sequence

from pages.ui.charts import forest as plot, theme
from pages.ui.charts.plotting import columns
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.optimizers import FAR, Arm, Difference, OptimizerStudy

OUTLYING = 4.0
"""A difference so many times as far from zero as the usual one does not stretch the axis."""


def colours(study: OptimizerStudy) -> dict[str, str]:
    """A color for each arm, the same in every chart of the study."""
    others = [arm.name for arm in study.at(study.budgets[0]) if arm.name != study.reference]
    return theme.colours(study.reference, others)


def verdict(difference: Difference) -> str:
    """A result short enough to fit above its line on a phone."""
    if difference.verdict != "undecided":
        return difference.words()
    if difference.more_seeds is None:
        return "inconclusive: too few test images"
    if difference.more_seeds > FAR:
        return f"inconclusive (over {FAR} more seeds needed)"
    return f"inconclusive (about {difference.more_seeds} more seeds needed)"


def forest(study: OptimizerStudy, budget: int, metric: str, *, key: str) -> None:
    """Paired differences to the reference, the best on top, each with its interval, its seeds and its result."""
    of, reference = METRICS[metric], study.arm(study.reference, budget)
    shown = [arm for arm in study.at(budget) if arm.differences[metric].mean is not None]
    shown.sort(key=lambda arm: (arm.differences[metric].mean or 0) * (1 if of.less_is_better else -1))
    far = _reach(shown, metric)
    panel = plot.Panel(
        [_line(arm, arm.differences[metric], _seeds(arm, reference), far) for arm in shown],
        far,
        title=f"{of.label}{f' ({of.unit.strip()})' * bool(of.unit)}: difference to tuned {reference.label}<br>"
        f"at {study.budget_words(budget)}",  # a saved image has no page around it
        reverse=of.less_is_better,
        band=of.scale * study.spec.margin if metric == "accuracy" else None,
    )
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
    plot.forest([panel], alt=alt, key=key, table=columns(table))


def _line(arm: Arm, found: Difference, seeds: Sequence[int], far: float) -> plot.Line:
    scale = found.of.scale
    low, high = (None if end is None else scale * end for end in (found.low, found.high))
    figures = f", {found.figures()}" if _outside(found, far) else ""
    return plot.Line(
        f"<b>{arm.label}</b>  {verdict(found)}{figures}",
        {"better": theme.good(), "worse": theme.bad()}.get(found.verdict, theme.gray()),
        scale * (found.mean or 0),
        low,
        high,
        hover=f"{arm.label}: {found.figures()}",
        points=[scale * each for each in found.by_seed],
        names=[f"seed {seed}" for seed in seeds],
    )


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
