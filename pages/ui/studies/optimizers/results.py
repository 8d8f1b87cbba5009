"""Results of an optimizer study: the conclusion and the forest plot first, then details in tabs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from pages.ui.charts.plotting import columns
from pages.ui.landscape import panel
from pages.ui.studies import study_form
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
    """All results of a study, at the budget and in the metric of the URL."""
    shown = [one for one in report.budgets if any(arm.finished for arm in report.at(one))]
    if not shown:
        if not report.active:
            st.info("No final runs yet. LR tuning results are below.")
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
        budget = int(url_state.switch("Training budget", names, key="budget")) if len(shown) > 1 else shown[0]
        metric = url_state.switch("Metric", SCORES, key="metric")
    verdicts = [arm.differences[metric].verdict for arm in report.at(budget)]
    text = f"**{report.verdict(budget, metric)}**"
    if "better" in verdicts:
        st.success(text, icon=":material/trending_up:")
    else:
        st.info(text, icon=":material/balance:")
    if any(arm.differences[metric].mean is not None for arm in report.at(budget)):
        forest.forest(report, budget, metric, key="optimizers-forest")
        extra = " Band: equivalence margin." if metric == "accuracy" else ""
        st.caption(
            "Diamond: mean; bar: 95% CI; dots: seeds; colored if significantly better or worse."
            f"{extra} {report.scope()}"
        )
    _defaults(report, budget)
    return budget


def _defaults(report: OptimizerStudy, budget: int) -> None:
    """Tuned learning rates against library defaults: a warning only if AdamW at its default is significantly worse."""
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
            "Difference": st.column_config.TextColumn(width=235, help="To tuned AdamW, with 95% CI."),
            "Result": st.column_config.TextColumn(width=240),
            "Std. dev.": st.column_config.NumberColumn(format="%.2f", help="Over seeds."),
            "p (Holm)": st.column_config.NumberColumn(format="%.2g", help="Corrected over the optimizers of a budget."),
            "Learning rate": st.column_config.NumberColumn(format="%.3g"),
            "LR / default": st.column_config.TextColumn(help="Tuned learning rate relative to the library default."),
            "Tuning (s)": st.column_config.NumberColumn(
                format="%.1f", help="Compute time of LR range test and LR trials."
            ),
            "Run (s)": st.column_config.NumberColumn(format="%.2f", help="Median compute time."),
            "To target (s)": st.column_config.NumberColumn(
                format="%.2f", help="Median compute time, including tuning; empty: not reached."
            ),
            "Gradients": st.column_config.NumberColumn(format="localized", help="Gradient evaluations per run."),
            "State": st.column_config.TextColumn(help="Memory of the optimizer state."),
            "Memory": st.column_config.TextColumn(help="Weights, gradients, state and activations of a step."),
            "Train − test": st.column_config.NumberColumn(format="%.1f", help="Accuracy gap in percentage points."),
            "ρ": st.column_config.NumberColumn(
                format="%.2f",
                help="Correlation with the reference over seeds: high values make paired differences precise.",
            ),
        },
    )
    st.caption(f"At {report.budget_words(budget)}. Hover over the table for a CSV download.")


def _columns(study: OptimizerStudy, budget: int, metric: str) -> dict[str, list[Any]]:
    """All arms of a budget with all their metrics, as table columns."""
    of = METRICS[metric]
    sign = 1 if of.less_is_better else -1
    known = {arm.name: arm.mean(metric) for arm in study.at(budget)}
    arms = sorted(study.at(budget), key=lambda arm: (known[arm.name] is None, sign * (known[arm.name] or 0.0)))
    rows = [
        {
            "Optimizer": arm.label,
            f"Test {of.label}": None if (mean := known[arm.name]) is None else of.scale * mean,
            "Std. dev.": None if (sd := arm.sd(metric)) is None else of.scale * sd,
            "Difference": arm.differences[metric].figures(),
            "Result": _standing(arm, metric),
            "p (Holm)": arm.differences[metric].holm,
            "Learning rate": arm.rate,
            "LR / default": None if arm.track != "tuned" or arm.ratio is None else f"×{arm.ratio:.3g}",
            "Tuning (s)": arm.tuning_seconds,
            "Run (s)": arm.median("alone_seconds"),
            "To target (s)": arm.score,
            "Gradients": arm.median("gradients"),
            "State": None if (kept := arm.median("state_bytes")) is None else formatting.size(kept),
            "Memory": None if (most := arm.median("memory_bytes")) is None else formatting.size(most),
            "Train − test": None if (gap := arm.median("gap")) is None else 100 * gap,
            "ρ": arm.differences[metric].rho,
        }
        for arm in arms
    ]
    return columns(rows)


def _standing(arm: Arm, metric: str) -> str:
    """The result, with remarks on divergence and the LR range."""
    remarks = [arm.differences[metric].words()] if arm.finished else []
    remarks += [f"diverged on {arm.diverged} of {len(arm.runs)} seeds"] if arm.diverged else []
    remarks += ["best LR at the edge of the tested range"] if arm.edge and arm.rate is not None else []
    if not remarks and arm.trials and all(trial.diverged for trial in arm.trials):
        return "diverged at every LR"
    return "; ".join(remarks) or "no final runs yet"


def _curves(report: OptimizerStudy, study: Study, store: Store, budget: int) -> None:
    found = optimizers.curves(study.spec, store, study.folder, budget)
    if not found:
        st.caption("No final run has finished an epoch yet.")
        return
    axis = url_state.switch("X axis", charts.AXES, key="against")
    metric = url_state.kept("metric", SCORES, "accuracy")
    outside = charts.curves(report, found, axis, metric, key="optimizers-curves")
    st.caption(
        "Mean over seeds on validation images; band: min to max. Evaluation time excluded. Before the end, ranks "
        "depend on the schedule as much as on the optimizer."
        + (" Dotted: target." if report.targets[budget] and metric == "accuracy" else "")
        + _below(outside, "Above" if METRICS[metric].less_is_better else "Below")
    )


def _below(outside: list[str], where: str = "Below") -> str:
    return f" {where} the plotted range: {', '.join(outside)}; double-click to show all." if outside else ""


def _target(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    target = report.targets[budget]
    axis = url_state.switch("X axis", charts.AXES, key="against")
    charts.to_target(report, budget, axis, key="optimizers-target")
    reference = report.arm(report.reference, budget).label
    origin = "set in the study" if report.spec.target else f"the median of tuned {reference}"
    st.caption(
        f"Target: validation accuracy {formatting.percent(target, 2)}, {origin}. Medians over seeds; seeds that never "
        "reach it count as infinite. Resolution: one epoch." + (" Gray: LR tuning." if axis == "seconds" else "")
    )


def _rates(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    arms = [arm for arm in report.at(budget) if arm.finder is not None]
    if any(trial.accuracy is not None for arm in arms for trial in arm.trials):
        charts.sensitivity(report, budget, key="optimizers-rates")
        st.caption("Ring: selected LR. Cross at the bottom, in the same color: library default.")
        lost = [(arm, arm.sensitivity) for arm in arms if arm.sensitivity is not None]
        if lost:
            lost.sort(key=lambda one: one[1])
            words = ", ".join(f"{arm.label} {100 * value:.1f}" for arm, value in lost)
            st.caption(
                f"LR sensitivity (mean accuracy drop in points for an LR up to 4x off, within the trials): {words}."
            )
    st.markdown("**LR range test**")
    chosen = url_state.switch("Optimizer", {arm.name: arm.label for arm in arms}, key="finder")
    arm = next(one for one in arms if one.name == chosen)
    charts.finder(arm, forest.colours(report)[arm.name], key="optimizers-finder")
    assert arm.finder is not None
    st.caption(
        f"{len(arm.finder.rates)} steps with increasing LR on the study's loss"
        + (", stopped early because the loss diverged" if arm.finder.stopped else "")
        + f"; {formatting.duration(arm.finder.seconds)}. It proposes LRs for the trials."
    )


def _pareto(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    tuning = st.toggle("Include LR tuning", value=True, key="with-tuning", persist_state="session")
    outside = charts.pareto(report, budget, tuning=tuning, key="optimizers-pareto")
    st.caption(
        "Mean over seeds, bars: one standard deviation; squares: untuned. Dotted: Pareto front of the means; see the "
        "forest plot for significance." + _below(outside)
    )


def _slopes(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    outside = charts.slopes(report, budget, key="optimizers-seeds")
    rho = [(arm.label, found.rho, found.gain) for arm in report.at(budget) for found in [arm.differences["accuracy"]]]
    listed = [f"{label} " + f"{rho:+.2f}".replace("-", "−") for label, rho, _ in rho if rho is not None]
    if listed:
        st.caption(
            "A seed fixes initial weights, data order and augmentation; parallel lines give narrower paired intervals. "
            f"Correlation with the reference: {', '.join(listed)}." + _below(outside)
        )


def _bars(report: OptimizerStudy, _: Study, __: Store, budget: int) -> None:
    charts.bars(report, budget, key="optimizers-memory")
    st.caption("Medians over seeds. Compute time: forward, backward and optimizer, without augmentation and teacher.")


def _landscape(report: OptimizerStudy, _: Study, store: Store, budget: int) -> None:
    first = {arm.label: store.run(arm.finished[0].id) for arm in report.at(budget) if arm.finished}
    st.caption("One run of each optimizer, of its first finished seed.")
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
                st.caption("no final runs yet", width="content")
    st.caption("Regular runs: each can be opened, exported and compared.")


def _spec(_: OptimizerStudy, study: Study, store: Store, __: int) -> None:
    study_form.command(setup_form.KIND, setup_form.written(study.spec, store))


def _always(_: OptimizerStudy, __: int) -> bool:
    return True


def _begun(report: OptimizerStudy, budget: int) -> bool:
    return any(run.state in formatting.STATES for arm in report.at(budget) for run in arm.runs)


def _trained(report: OptimizerStudy, budget: int) -> bool:
    return any(arm.finished for arm in report.at(budget))


TABS: dict[str, tuple[Callable[[OptimizerStudy, int], bool], Panel]] = {
    "All metrics": (_trained, _table),
    "Curves": (_begun, _curves),
    "Time to target": (lambda report, budget: _trained(report, budget) and bool(report.targets[budget]), _target),
    "Learning rates": (lambda report, budget: any(arm.finder for arm in report.at(budget)), _rates),
    "Accuracy vs. cost": (_trained, _pareto),
    "By seed": (_trained, _slopes),
    "Memory and time": (_trained, _bars),
    "Landscape": (_trained, _landscape),
    "Runs": (_always, _runs),
    "Spec and command": (_always, _spec),
}
"""Tabs in order: condition, and function that draws it."""
