"""One run: progress, training curves, metrics, and actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import streamlit as st

from pages.ui.ablation import panel as worth
from pages.ui.app import context, keys, titles
from pages.ui.charts import basic
from pages.ui.distill import python_file, spec_summary
from pages.ui.landscape import panel as landscapes
from pages.ui.runs import live, notes_form
from pages.ui.widgets import formatting, run_table, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core import data
from smallalign_core.runs.result import RunResult, result_of
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service.requests import Prune
from smallalign_core.spec import each_code
from smallalign_core.studies import ablation, lifecycle
from smallalign_core.studies.ablation import What, capital

CONTROLS: dict[What, str] = {
    "teacher": "without teacher (labels only)",
    "shuffled": "with teacher logits shuffled within class",
    "balance": "without class balance",
}
SELECTED = {"accuracy": "accuracy", "macro": "macro recall"}
SIZES: dict[Literal["macs", "params"], str] = {"macs": "Multiply-accumulates", "params": "Parameters"}
EVIDENCE = 3
"""Seeds below which results carry a warning."""


def show(run: Run, store: Store) -> None:
    """The whole view of `run`; it updates by itself only while the run is active."""
    row = run_table.row(run, store)
    colour, icon = formatting.STATES[row.state]
    titles.name(row.name if row.in_zoo else row.display_name or row.title.split(" · ")[0])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(
            formatting.plain(row.name if row.in_zoo else row.display_name or row.title.split(" · ")[0]),
            anchor=False,
            width="content",
        )
        st.badge(row.state, icon=icon, color=colour)
    if row.state == run_table.DAMAGED:
        st.caption(f"Run `{row.id}`")
        st.error(
            formatting.plain(row.reason or "The folder of this run is unreadable."), icon=":material/broken_image:"
        )
        _delete(run, store)
        return
    st.caption(f"{formatting.plain(row.title)} · run `{row.id}`")
    if not row.in_zoo:
        tags = "".join(f" :gray-badge[{formatting.plain(tag)}]" for tag in row.tags)
        if row.notes or tags:
            st.markdown(f"{formatting.plain(row.notes)}{tags}")
        with st.popover("Name, notes and tags", icon=":material/edit_note:", type="tertiary"):
            notes_form.show(run, store, key="run")
    if row.imported:
        _imported(run, row, store)
        return
    _actions(run, row, store)
    if row.state == State.FAILED:
        st.error(f"The run failed: {formatting.plain(row.reason or 'see the log')}", icon=":material/error:")
    elif row.state == State.INTERRUPTED:
        by_itself = "The next worker resumes it automatically, at most twice. " if run.status.get("served") else ""
        st.warning(
            f"The worker process stopped. Resume to continue from the last checkpoint; no progress is lost. {by_itself}"
        )
    elif row.reason:
        paused = "The run paused: " if row.state == State.PAUSED else ""
        st.warning(
            f"{paused}{formatting.plain(row.reason)}",
            icon=":material/pause_circle:" if paused else ":material/warning:",
        )
    above = st.container()  # always there: the curves below keep their position, and so their zoom, when the run ends
    tick = context.pace(live.TICK_SECONDS) if State(row.state).active else None
    st.fragment(live.draw, run_every=tick, key="live")(run, row.state, store)
    if row.finished and (found := result_of(run)):
        with above:
            recall = found.test.recall if found.test else {}
            _features(found) if row.headless else _scores(found, row, store)
            if missed := sum(share == 0 for share in recall.values()):
                st.caption(
                    f":material/warning: {missed} of {len(recall)} classes have zero recall on "
                    "the test set; accuracy hides this for rare classes. See Per class, and Class balance on the page "
                    "Distill."
                )
        if not row.headless:
            landscapes.panel([row], store)
    _details(run, row, store)


def _imported(run: Run, row: RunRow, store: Store) -> None:
    """An imported classifier: its metrics here, and its input format."""
    found = result_of(run)
    assert found is not None
    with st.grid(min_column_width=150):
        for name, scores in (("Validation", found.val), ("Test", found.test)):
            if scores is not None:
                interval = formatting.interval(scores.accuracy_low, scores.accuracy_high)
                st.metric(
                    f"{name} accuracy",
                    formatting.percent(scores.accuracy, 2),
                    border=True,
                    help=f"95% CI {interval} on {scores.images:,} images.",
                )
        if found.test is not None:
            ece = formatting.percent(found.test.ece, 2)
            st.metric("Test ECE", ece, border=True, help="Expected calibration error.")
        st.metric("Parameters", f"{found.params:,}", border=True)
    with st.container(horizontal=True):
        chosen = {"teacher": row.id, "data": row.source}
        st.page_link("distil.py", label="Use as teacher", icon=":material/school:", query_params=chosen)
        if not row.in_zoo:
            _delete(run, store)
    st.caption("Imported model, not trained here.")
    assert run.imported is not None
    st.json(run.imported.model_dump(mode="json"), expanded=1)


def _actions(run: Run, row: RunRow, store: Store) -> None:
    state, pending = State(row.state), run.pending_request
    with st.container(horizontal=True, vertical_alignment="center", key="run-actions"):
        if state.active:
            if st.button("Pause", icon=":material/pause:", disabled=pending is not None):
                run.request("pause")
                st.rerun()
            with st.popover("Cancel", icon=":material/cancel:", disabled=pending == "cancel"):
                st.write("Cancel this run? The last checkpoint is kept, so the run can be resumed.")
                if st.button("Cancel run", type="primary"):
                    run.request("cancel")
                    st.rerun()
        if state.resumable and not row.in_zoo and st.button("Resume", icon=":material/play_arrow:", type="primary"):
            store.enqueue(run)
            st.rerun()
        if state is State.FINISHED:
            if row.headless:
                st.page_link(
                    "distil.py",
                    label="Train a head",
                    icon=":material/model_training:",
                    query_params={"start": row.id, "teacher": url_state.NONE, "data": row.source},
                )
            elif row.teacher:
                st.page_link(
                    "compare.py",
                    label="Compare with teacher",
                    icon=":material/compare:",
                    query_params={"teacher": row.teacher, "student": row.id},
                )
            if not row.headless:
                st.page_link("export.py", label="Export", icon=":material/deployed_code:", query_params={"run": row.id})
            st.page_link(
                "distil.py",
                label="Use as teacher",
                icon=":material/school:",
                query_params={"teacher": row.id, "data": row.source}
                | ({"size": str(run.spec.data.size)} if run.spec.data.size else {}),
            )
            if not row.headless:
                _prune(row)
        if not row.in_zoo:
            st.page_link("distil.py", label="Duplicate and edit", icon=":material/edit:", query_params={"like": row.id})
        if not state.active and not row.in_zoo:
            _delete(run, store)


def _prune(row: RunRow) -> None:
    with st.popover("Prune", icon=":material/content_cut:"):
        st.write(
            "Remove the channels that matter least, then train the smaller network again, with the teacher of this run "
            "or, without one, with this run as teacher. The result is a new run."
        )
        of = st.segmented_control("Size", list(SIZES), required=True, format_func=SIZES.__getitem__, key="prune-of")
        share = st.slider("Share to keep (%)", 5, 95, 50, 5, key="prune-share")
        if st.button("Start pruned run", type="primary"):
            begun = context.call(Prune(row.id, share / 100, of or "macs"), "Choosing channels")
            st.switch_page("runs.py", query_params={"run": begun.id})


def _delete(run: Run, store: Store) -> None:
    with st.popover("Delete", icon=":material/delete:"):
        st.write("Move this run to the trash? It can be restored until the trash is emptied.")
        if st.button("Move to trash", type="primary"):
            st.session_state[keys.RUNS_DELETED] = ([lifecycle.delete_run(store, run.name).id], [])
            st.switch_page("runs.py")


def _features(found: RunResult) -> None:
    """The result of a network without a head."""
    assert found.embedding is not None
    near = found.embedding
    with st.grid(min_column_width=150):
        st.metric("Features", f"{near.features:,}", border=True, help="Length of the vector before the head.")
        if near.cosine is not None:
            words = f"Projected features of student and teacher on {near.images:,} validation images, at best epoch "
            words += f"{found.best_epoch}."
            st.metric("Cosine similarity", f"{near.cosine:.4f}", border=True, help=words)
            st.metric("Embedding loss", f"{near.loss:.4f}", border=True, help=words)
        st.metric("Parameters", f"{found.params:,}", border=True)
        st.metric("Training time", formatting.duration(found.seconds), border=True)
    st.caption(
        "This network has no head, so it has no accuracy and is not exported. Train a head on labels, with this run as "
        "initial weights, or use it as a teacher of features."
    )


def _scores(found: RunResult, row: RunRow, store: Store) -> None:
    test, calibrated, val = found.test, found.test_calibrated, found.val
    assert test is not None
    assert calibrated is not None
    assert val is not None
    with st.grid(min_column_width=130):
        st.metric("Test accuracy", formatting.percent(test.accuracy, 2), border=True)
        st.metric(
            "Macro recall",
            formatting.percent(test.macro_recall, 2),
            border=True,
            help="Mean recall over classes (balanced accuracy): each class counts the same. "
            + (f"On test, with 95% CIs: {test.other_scores}." if test.other_scores else ""),
        )
        st.metric(
            "Test NLL", f"{test.nll:.4f}", border=True, help="Mean negative log-likelihood in nats. Lower is better."
        )
        st.metric(
            "Test ECE",
            formatting.percent(test.ece, 2),
            border=True,
            help=(
                f"Expected calibration error, uncalibrated. {calibrated.ece:.2%} temperature-scaled "
                f"(T = {found.temperature:.3f}, fitted on validation)."
            ),
        )
        st.metric(
            "Parameters",
            f"{found.params:,}",
            border=True,
            help=f"{found.macs:,} multiply-accumulate operations per image.",
        )
        st.metric(
            "Training time",
            formatting.duration(found.seconds),
            border=True,
            help=f"{found.images_per_second:,.0f} images/s on {found.device}."
            + (f" Peak memory of the process: {formatting.size(found.peak_bytes)}." if found.peak_bytes else ""),
        )
    if found.features:
        how = "computed once and cached" if found.features == "kept" else found.features
        st.caption(f"Frozen backbone; features were {how}.")
    for close in found.answers or ():
        st.caption(
            f"Teacher inference backend: ONNX Runtime ({store.run(row.id).spec.answers}). Top-1 agreement with PyTorch "
            f"{close.agreement:.1%} on {close.images:,} validation images; KL {close.kl:.2g} nats."
        )
    if seen := found.preflight:
        st.caption(
            f"Teacher accuracy on {seen.images:,} validation images of this dataset: "
            f"{formatting.percent(seen.accuracy)} (95% CI "
            f"{formatting.interval(seen.accuracy_low, seen.accuracy_high)}, "
            f"chance level {formatting.percent(seen.chance)})."
        )
        for warning in seen.warnings:
            st.warning(capital(warning) + ".")
    same = run_table.siblings(store, row)
    few = len(same) < EVIDENCE
    seeds = f"{len(same)} seed{'s' if len(same) > 1 else ''}"
    text = (
        f"Test accuracy 95% CI {formatting.interval(test.accuracy_low, test.accuracy_high)} on "
        f"{test.images:,} images. "
        f"Best epoch by validation {SELECTED[store.run(row.id).spec.select]}: {found.best_epoch} "
        f"({formatting.percent(val.accuracy)} on {val.images:,} images). "
    )
    if found.last_test is not None:
        text += f"Last epoch: test accuracy {formatting.percent(found.last_test.accuracy, 2)}. "
    if len(same) > 1:
        scores = [other.accuracy or 0 for other in same]
        text += (
            f"{capital(seeds)} of this spec: mean {formatting.percent(sum(scores) / len(scores), 2)}, "
            f"{formatting.percent(min(scores))} to {formatting.percent(max(scores))}. "
        )
    st.caption(
        text
        + (
            f"**{'Single seed' if len(same) == 1 else f'Only {seeds}'}; run more before drawing conclusions.**"
            if few
            else ""
        )
    )


def _details(run: Run, row: RunRow, store: Store) -> None:
    names = ["Spec and command", *(["Per class"] if row.finished and not row.headless else []), "Log"]
    names += ["Python files"] if each_code(run.spec) else []
    names += ["Ablation"] if _baselines(run) else []
    tabs = url_state.tabs(names, key="tab")
    with tabs["Spec and command"]:
        spec_summary.command(run.spec, store)
    if "Python files" in tabs and tabs["Python files"].open:
        with tabs["Python files"]:
            python_file.show(run)
    if "Per class" in tabs and tabs["Per class"].open and (found := result_of(run)):
        with tabs["Per class"]:
            _per_class(found)
    if tabs["Log"].open:
        with tabs["Log"]:
            st.code(
                _tail(run.folder / "log.txt") or "Empty log: the run has not started, or is part of the zoo.",
                language=None,
                height=280,
            )
    if "Ablation" in tabs and tabs["Ablation"].open:
        with tabs["Ablation"]:
            _ablation(run, store)


def _per_class(found: RunResult) -> None:
    """Recall, precision and calibration of each class."""
    assert found.test is not None
    recall = data.in_order(found.test.recall)
    basic.recall({"test": recall}, key="recall")
    if found.per_class is None:  # of a run from before they were computed
        return
    rows = [(name, found.per_class[name]) for name in recall]
    if len(rows) > basic.MOST_CLASSES:
        rows.sort(key=lambda row: (row[1].recall is None, row[1].recall))
        text = url_state.pick_text("Search classes", key="classes", placeholder="Part of a name")
        rows = [row for row in rows if text.strip().casefold() in row[0].casefold()]
        st.caption(f"{len(rows):,} of {len(recall):,} classes, lowest recall first.")
    columns: dict[str, list[Any]] = {
        "Class": [name for name, _ in rows],
        "Test images": [one.images for _, one in rows],
        "Recall": [one.recall for _, one in rows],
        "95% CI": [formatting.interval(one.recall_low, one.recall_high) for _, one in rows],
        "Precision": [one.precision for _, one in rows],
        "F1": [one.f1 for _, one in rows],
        "ECE": [one.ece for _, one in rows],
        "Mean probability minus share": [100 * one.excess for _, one in rows],
    }
    share = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        columns,
        column_config={name: share for name in ("Recall", "Precision", "F1", "ECE")}
        | {"Mean probability minus share": st.column_config.NumberColumn(format="%+.2f")},
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Each class: test images, recall, precision, F1 and calibration.",
    )
    st.caption(
        "ECE: calibration error of the class's own probability, temperature-scaled (classwise ECE; Kull et al., 2019). "
        "Mean probability minus share, in points: above zero, the class is overestimated. No precision: the class is "
        "never predicted."
    )


def _baselines(run: Run) -> dict[str, str]:
    """The baselines that this run can be compared with."""
    if run.spec.shuffled or run.spec.headless:  # itself one, or without an accuracy
        return {}
    return {str(what): text for what, text in CONTROLS.items() if ablation.CONTROLS[what].present(run.spec)}


def _ablation(run: Run, store: Store) -> None:
    """The run against its baselines, over seeds."""
    chosen = url_state.switch("Baseline", _baselines(run), key="control")
    what = next(one for one in CONTROLS if one == chosen)
    worth.panel(run.spec.model_dump(), what, store, key=f"worth-{what}")


def _tail(file: Path, most: int = 20_000) -> str:
    """The end of a log; empty if there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - most))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
