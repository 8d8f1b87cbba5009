"""What an optimizer study found: the verdict and the forest plot first, then everything behind them in tabs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from pages.ui.landscape import panel
from pages.ui.studies.optimizers import charts, forest, setup_form
from pages.ui.widgets import formatting, run_table, url_state
from smallalign_core.runs.store import Store
from smallalign_core.studies import optimizers
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.optimizers import Arm, OptimizerStudy

SCORES = {"accuracy": "Accuracy", "nll": "NLL"}
Panel = Callable[[OptimizerStudy, Study, Store, int], None]


def draw(report: OptimizerStudy, study: Study, store: Store) -> None:
    """All results of a study, at the budget and in the metric that the address names."""
    shown = [one for one in report.budgets if any(arm.finished for arm in report.at(one))]
    if not shown:
        if not report.active:
            st.info("Nothing is raced yet. What was found so far is below.")
        budget = report.budgets[0]
    else:
        budget = _headline(report, shown)
    names = [name for name, (needs, _) in TABS.items() if needs(report, budget)]
    if not names:
        return
    for name, tab in url_state.tabs(names, key="part").items():
        if tab.open:  # only the open one is drawn
            with tab:
                TABS[name][1](report, study, store, budget)


def _headline(report: OptimizerStudy, shown: list[int]) -> int:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = {str(one): report.budget_words(one) for one in shown}
        budget = int(url_state.switch("Budget", names, key="budget")) if len(shown) > 1 else shown[0]
        metric = url_state.switch("Scored by", SCORES, key="metric")
    told = [arm.differences[metric].verdict for arm in report.at(budget)]
    text = f"**{report.verdict(budget, metric)}**"
    if "better" in told:
        st.success(text, icon=":material/trending_up:")
    else:
        st.info(text, icon=":material/balance:")
    if any(arm.differences[metric].mean is not None for arm in report.at(budget)):
        forest.forest(report, budget, metric, key="optimizers-forest")
        extra = " Band: differences that you said do not matter." if metric == "accuracy" else ""
        st.caption(
            "Diamond: mean; bar: 95 % interval; dots: one a seed; colour only where the verdict is better or worse."
            f"{extra} {report.scope()}"
        )
    _defaults(report, budget)
    return budget


def _defaults(report: OptimizerStudy, budget: int) -> None:
    """How far tuned rates are from library defaults: a warning only where AdamW as it comes is shown to be worse."""
    if text := report.defaults(budget):
        plain = report.default_arm(budget)
        worse = plain is not None and plain.differences["accuracy"].verdict == "worse"
        (st.warning if worse else st.info)(text, icon=":material/tune:")


# --- tabs -------------------------------------------------------------------------------------------------------------


def _table(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    metric = url_state.kept("metric", SCORES, "accuracy")
    table = _columns(report, budget, metric)
    score = f"Test {METRICS[metric].label}"
    st.dataframe(
        table,
        hide_index=True,
        lazy=False,
        placeholder="–",
        height=38 + 35 * len(table["Optimizer"]),
        alt="All optimizers with score, difference, learning rate and costs.",
        column_config={
            "Optimizer": st.column_config.TextColumn(pinned=True),
            score: st.column_config.NumberColumn(format="%.2f%%" if metric == "accuracy" else "%.4f"),
            "Difference": st.column_config.TextColumn(width=235, help="To tuned AdamW, with its 95 % interval."),
            "Verdict": st.column_config.TextColumn(width=240),
            "Spread": st.column_config.NumberColumn(format="%.2f", help="Standard deviation over seeds."),
            "Holm p": st.column_config.NumberColumn(format="%.2g", help="Corrected over the optimizers of a budget."),
            "Learning rate": st.column_config.NumberColumn(format="%.3g"),
            "Of default": st.column_config.TextColumn(help="Chosen learning rate over the library's default."),
            "Tuning (s)": st.column_config.NumberColumn(format="%.1f", help="Finder and trials, as if alone."),
            "A run (s)": st.column_config.NumberColumn(format="%.2f", help="Median, as if alone."),
            "To target (s)": st.column_config.NumberColumn(
                format="%.2f", help="Median, as if alone, with the tuning; empty: not reached."
            ),
            "Gradients": st.column_config.NumberColumn(format="localized", help="Of the loss, in a whole run."),
            "State": st.column_config.TextColumn(help="What the optimizer keeps beside the weights."),
            "Memory": st.column_config.TextColumn(help="Weights, gradients, state and the backward pass of a step."),
            "Train − test": st.column_config.NumberColumn(format="%.1f", help="Accuracy, in points."),
            "ρ": st.column_config.NumberColumn(
                format="%.2f", help="Correlation with the reference over seeds: what pairing lives on."
            ),
        },
    )
    st.caption(f"At {report.budget_words(budget)}. Hover a table and use its corner to save it as CSV.")


def _columns(study: OptimizerStudy, budget: int, metric: str) -> dict[str, list[Any]]:
    """All arms of a budget with all that is known of them, as columns for people."""
    of = METRICS[metric]
    sign = 1 if of.less_is_better else -1
    known = {arm.name: arm.mean(metric) for arm in study.at(budget)}
    arms = sorted(study.at(budget), key=lambda arm: (known[arm.name] is None, sign * (known[arm.name] or 0.0)))
    rows = [
        {
            "Optimizer": arm.label,
            f"Test {of.label}": None if (mean := known[arm.name]) is None else of.scale * mean,
            "Spread": None if (sd := arm.sd(metric)) is None else of.scale * sd,
            "Difference": arm.differences[metric].figures(),
            "Verdict": _standing(arm, metric),
            "Holm p": arm.differences[metric].holm,
            "Learning rate": arm.rate,
            "Of default": None if arm.track != "tuned" or arm.ratio is None else f"×{arm.ratio:.3g}",
            "Tuning (s)": arm.tuning_seconds,
            "A run (s)": arm.median("alone_seconds"),
            "To target (s)": arm.score,
            "Gradients": arm.median("gradients"),
            "State": None if (kept := arm.median("state_bytes")) is None else formatting.size(kept),
            "Memory": None if (most := arm.median("memory_bytes")) is None else formatting.size(most),
            "Train − test": None if (gap := arm.median("gap")) is None else 100 * gap,
            "ρ": arm.differences[metric].rho,
        }
        for arm in arms
    ]
    return forest.columns(rows)


def _standing(arm: Arm, metric: str) -> str:
    """The verdict, and what else a reader of the table must know of an arm."""
    told = [arm.differences[metric].words()] if arm.finished else []
    told += [f"diverged on {arm.diverged} of {len(arm.runs)} seeds"] if arm.diverged else []
    told += ["rate at the edge of those tried"] if arm.edge and arm.rate is not None else []
    if not told and arm.trials and all(trial.diverged for trial in arm.trials):
        return "diverged at every rate that was tried"
    return "; ".join(told) or "not raced yet"


def _curves(report: OptimizerStudy, study: Study, store: Store, budget: int) -> None:
    found = optimizers.curves(study.spec, store, study.folder, budget)
    if not found:
        st.caption("No run of the race has an epoch behind it.")
        return
    axis = url_state.switch("Against", charts.AXES, key="against")
    metric = url_state.kept("metric", SCORES, "accuracy")
    outside = charts.curves(report, found, axis, metric, key="optimizers-curves")
    st.caption(
        "Mean of the seeds on validation images; band: lowest to highest seed. Evaluation is off the clock. Before the "
        "end, ranks follow the schedule as much as the optimizer."
        + (" Dotted: the target." if report.targets[budget] and metric == "accuracy" else "")
        + _below(outside, "Above" if METRICS[metric].less_is_better else "Below")
    )


def _below(outside: list[str], where: str = "Below") -> str:
    return f" {where} the picture: {', '.join(outside)}; double-click it to see all." if outside else ""


def _target(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    target = report.targets[budget]
    axis = url_state.switch("Count", charts.AXES, key="against")
    charts.to_target(report, budget, axis, key="optimizers-target")
    reference = report.arm(report.reference, budget).label
    whose = "as the study asks" if report.spec.get("target") else f"the median of tuned {reference}"
    st.caption(
        f"Target: validation accuracy {formatting.percent(target, 2)}, {whose}. Medians over seeds; one that never got "
        "there counts as forever. At the end of an epoch, so a fast one is known to the epoch only."
        + (" Grey: finding the learning rate." if axis == "seconds" else "")
    )


def _rates(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    arms = [arm for arm in report.at(budget) if arm.finder is not None]
    if any(trial.accuracy is not None for arm in arms for trial in arm.trials):
        charts.sensitivity(report, budget, key="optimizers-rates")
        st.caption("Ring: the chosen rate. Cross on the floor, in the same colour: the library's default.")
        lost = [(arm, arm.sensitivity) for arm in arms if arm.sensitivity is not None]
        if lost:
            lost.sort(key=lambda one: one[1])
            words = ", ".join(f"{arm.label} {100 * value:.1f}" for arm, value in lost)
            st.caption(f"Points lost on average by a rate up to four times off, within the trials: {words}.")
    st.markdown("**The finder**")
    chosen = url_state.switch("Optimizer", {arm.name: arm.label for arm in arms}, key="finder")
    arm = next(one for one in arms if one.name == chosen)
    charts.finder(arm, forest.colours(report)[arm.name], key="optimizers-finder")
    assert arm.finder is not None
    st.caption(
        f"{len(arm.finder.rates)} steps on the study's own loss while the rate grew"
        + (", ended early since the loss shot up" if arm.finder.stopped else "")
        + f"; {formatting.duration(arm.finder.seconds)}. It proposes rates; the trials decide."
    )


def _pareto(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    tuning = st.toggle("Count the search for the learning rate", value=True, key="with-tuning", persist_state="session")
    outside = charts.pareto(report, budget, tuning=tuning, key="optimizers-pareto")
    st.caption(
        "Mean over seeds, bars one standard deviation; squares: hands-off. Dotted: no other is both cheaper and "
        "better, by means alone: who is really better, the forest plot says." + _below(outside)
    )


def _slopes(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    outside = charts.slopes(report, budget, key="optimizers-seeds")
    rho = [(arm.label, found.rho, found.gain) for arm in report.at(budget) for found in [arm.differences["accuracy"]]]
    told = [f"{label} " + f"{rho:+.2f}".replace("-", "−") for label, rho, _ in rho if rho is not None]
    if told:
        st.caption(
            "A seed fixes first weights, order and views, so lines that run alike make paired differences narrower. "
            f"Correlation with the reference: {', '.join(told)}." + _below(outside)
        )


def _bars(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    charts.bars(report, budget, key="optimizers-memory")
    st.caption("Medians over seeds. Own time: forward, backward and the optimizer, without views and teacher.")


def _landscape(report: OptimizerStudy, _: Study, store: Store, budget: int) -> None:
    first = {arm.label: store.run(arm.finished[0].id) for arm in report.at(budget) if arm.finished}
    st.caption("One run of each optimizer, all of the first seed that it finished.")
    panel.panel([replace(run_table.row(run, store), title=label) for label, run in first.items()], store)


def _runs(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    for arm in report.at(budget):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{arm.label}**", width=200)
            for run in arm.runs:
                score = (
                    formatting.percent(run.test["accuracy"]) if run.test else "diverged" if run.diverged else run.state
                )
                label = f"seed {run.seed}: {score}"
                if run.state not in formatting.STATES:
                    st.caption(label, width="content")
                    continue
                icon = formatting.STATES[run.state][1]
                st.page_link("runs.py", label=label, icon=icon, query_params={"run": run.id}, width="content")
            if not arm.runs:
                st.caption("not raced yet", width="content")
    st.caption("Ordinary runs: each can be opened, exported and compared.")


def _spec(_: OptimizerStudy, study: Study, store: Store, __: int) -> None:
    setup_form.command(study.spec, store)


def _always(_: OptimizerStudy, __: int) -> bool:
    return True


def _begun(report: OptimizerStudy, budget: int) -> bool:
    return any(run.state in formatting.STATES for arm in report.at(budget) for run in arm.runs)


def _raced(report: OptimizerStudy, budget: int) -> bool:
    return any(arm.finished for arm in report.at(budget))


TABS: dict[str, tuple[Callable[[OptimizerStudy, int], bool], Panel]] = {
    "All figures": (_raced, _table),
    "Curves": (_begun, _curves),
    "Time to target": (lambda report, budget: _raced(report, budget) and bool(report.targets[budget]), _target),
    "Learning rates": (lambda report, budget: any(arm.finder for arm in report.at(budget)), _rates),
    "Accuracy and cost": (_raced, _pareto),
    "By seed": (_raced, _slopes),
    "Memory and time": (_raced, _bars),
    "Landscape": (_raced, _landscape),
    "Runs": (_always, _runs),
    "Spec and command": (_always, _spec),
}
"""Tabs in their order: when there is something to show, and who draws it."""
