"""What is particular to the view of a search: its limits, progress, answer, chart and trials."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.search import charts, limits_form
from pages.ui.studies import study_view
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.search import Budget, BudgetSearch, parse_budget
from smallalign_core.spec.precision import parse_variant
from smallalign_core.studies.ablation import capital
from smallalign_core.studies.lifecycle import Study


def _size(_: Study, report: BudgetSearch) -> str:
    return f"Budget: {report.budget} · study `{report.id}`"


def _address(spec: Any) -> dict[str, str]:
    return limits_form.address(spec)


def _extend(_: Study, report: BudgetSearch) -> dict[str, Any] | None:
    """More budget, of the kind that it has."""
    now = parse_budget(report.budget)
    if now.trials is not None:
        trials = st.number_input("Budget (trials)", now.trials, 10_000, 2 * now.trials, key="extend-trials")
        return {"budget": Budget(trials=trials)}
    minutes = (now.seconds or 60.0) / 60
    more = st.number_input("Budget (minutes)", minutes, 10_000.0, 2 * minutes, 5.0, key="extend-minutes")
    return {"budget": Budget(seconds=60 * more)}


def _warnings(report: BudgetSearch) -> None:
    if report.verified is False:
        st.error("The exported file does not predict as PyTorch does on the test images.", icon=":material/error:")


def _rounds(report: BudgetSearch) -> int:
    return len(report.rows) + report.looks + (report.stopped is not None)


def _progress(report: BudgetSearch) -> None:
    budget = parse_budget(report.budget)
    tried = sum(row.state != "ruled out" for row in report.rows)
    done = report.spent / budget.seconds if budget.seconds else tried / (budget.trials or 1)
    st.progress(min(1.0, done), text=capital(report.states()))


def _doing(study: Study, report: BudgetSearch, store: Store) -> str:
    running = [run for run in map(store.find, study.missing(store)) if _state(run) == State.RUNNING]
    if running:
        spec = running[0].spec  # type: ignore[union-attr]  # a run that is running is there
        return f"Training {len(running)} runs in lockstep: {spec.epochs} epochs."
    return "Choosing and measuring the next candidates." if report.stopped is None else "Exporting the winner."


def _state(run: Run | None) -> State | None:
    return None if run is None else run.state


def _results(report: BudgetSearch, _: Study, __: Store) -> None:
    words = formatting.plain(report.answer())
    if report.met:
        st.success(words, icon=":material/verified:")
    elif report.complete:
        st.warning(words, icon=":material/balance:")
    else:
        st.info(words, icon=":material/hourglass_empty:")
    st.caption(formatting.plain(report.effort()))
    if report.row is not None and report.row.run is not None and report.complete:
        _next(report.row.run, report)
    if not report.rows:
        return
    charts.accuracy_over_size(report, key="search-sizes")
    st.caption(
        "Candidates that were stopped early have the accuracy of their last rung, in single precision. Bars: intervals "
        f"of evaluated files, corrected for their number ({report.looks}). Dashed: limits."
    )
    _table(report)


def _next(run: str, report: BudgetSearch) -> None:
    with st.container(horizontal=True):
        label = "Download and try in the browser" if report.met else "Export the nearest"
        st.page_link(
            "export.py",
            label=label,
            icon=":material/deployed_code:",
            query_params={"run": run, **_export_address(str(report.row and report.row.precision))},
        )
        pair = {"student": run} | ({"teacher": report.teacher_run} if report.teacher_run else {})
        st.page_link("compare.py", label="See its errors", icon=":material/compare:", query_params=pair)
        st.page_link("runs.py", label="Open the run", icon=":material/list_alt:", query_params={"run": run})


def _export_address(variant: str) -> dict[str, str]:
    """The fields of the export page for the file of a search."""
    precision, how = parse_variant(variant)
    return {"precision": precision} | ({} if how.max_drop is None else {"max-drop": f"{how.max_drop:g}"})


def _table(report: BudgetSearch) -> None:
    rows = report.rows
    st.dataframe(
        {
            "Trial": [row.number for row in rows],
            "Candidate": [row.label for row in rows],
            "Reason to try it": [row.why for row in rows],
            "State": [f"ruled out: {row.reason}" if row.state == "ruled out" else row.state for row in rows],
            "kB": [row.bytes / 1000 for row in rows],
            "Precision": [row.precision or "" for row in rows],
            "Latency (ms)": [row.latency_ms for row in rows],
            "Epochs": [row.epochs for row in rows],
            "Accuracy (val.)": [row.accuracy for row in rows],
            "Interval": ["" if row.low is None else formatting.interval(row.low, row.high or 1.0) for row in rows],
            "Accuracy limit": [row.verdict or "" for row in rows],
        },
        column_config={
            "kB": st.column_config.NumberColumn(format="%.1f"),
            "Latency (ms)": st.column_config.NumberColumn(format="%.3f"),
            "Accuracy (val.)": st.column_config.NumberColumn(format="percent"),
        },
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="All candidates: the reason to try each, its state, size, latency and accuracy.",
    )


VIEW: study_view.View[BudgetSearch] = study_view.View(
    kind=limits_form.KIND,
    size=_size,
    address=_address,
    extend=_extend,
    warnings=_warnings,
    rounds=_rounds,
    progress=_progress,
    doing=_doing,
    results=_results,
)
