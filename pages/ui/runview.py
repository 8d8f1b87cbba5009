"""One run: what it does now, how it learned, how good it is, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from pages.ui import backstage, charts, listing, wording
from pages.ui.browser import Curve, curves
from pages.ui.listing import Row
from smallalign_core.spec import RunSpec, to_yaml
from smallalign_core.store import Run, State, Store

TICK_SECONDS = 1
EVIDENCE = 3
"""Seeds below which a difference is not called evidence."""


def show(run: Run, store: Store) -> None:
    """The whole view of `run`; it moves by itself only while the run is active."""
    row = listing.row(run, store)
    colour, icon = wording.STATES[row.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.header(row.name if row.in_zoo else row.title.split(" · ")[0], anchor=False, width="content")
        st.badge(row.state, icon=icon, color=colour)
    if row.state == listing.DAMAGED:
        st.caption(f"Run `{row.id}`")
        st.error(row.reason or "This run's folder cannot be read.", icon=":material/broken_image:")
        _delete(run, store)
        return
    st.caption(f"{row.title} · run `{row.id}`")
    _actions(run, row, store)
    if row.state == State.FAILED:
        st.error(f"Why it stopped: {row.reason or 'its log may tell'}", icon=":material/error:")
    elif row.reason:
        st.warning(f"Why it paused: {row.reason}", icon=":material/pause_circle:")
    elif row.state == State.INTERRUPTED:
        st.warning(
            "Its worker died (the machine or the process was stopped). Resume goes on from the last checkpoint; nothing is lost."
        )
    above = st.container()  # always there: the curves below keep their place, and so their zoom, when the run ends
    st.fragment(_live, run_every=TICK_SECONDS if State(row.state).active else None, key="live")(run, row.state, store)
    if row.finished and run.result:
        with above:
            _scores(run.result, row, store)
    _details(run, row, store)


def _actions(run: Run, row: Row, store: Store) -> None:
    state, asked = State(row.state), run.asked
    with st.container(horizontal=True, vertical_alignment="center", key="run-actions"):
        if state.active:
            if st.button("Pause", icon=":material/pause:", disabled=asked is not None):
                run.ask("pause")
                st.rerun()
            with st.popover("Cancel", icon=":material/cancel:", disabled=asked == "cancel"):
                st.write("Stop this run? Its last checkpoint is kept, so it can be resumed.")
                if st.button("Cancel this run", type="primary"):
                    run.ask("cancel")
                    st.rerun()
        if state.resumable and not row.in_zoo and st.button("Resume", icon=":material/play_arrow:", type="primary"):
            store.enqueue(run)
            st.rerun()
        if state is State.FINISHED:
            if row.teacher:
                st.page_link(
                    "compare.py",
                    label="Compare with its teacher",
                    icon=":material/compare:",
                    query_params={"teacher": row.teacher, "student": row.id},
                )
            st.page_link("export.py", label="Export", icon=":material/deployed_code:", query_params={"run": row.id})
            st.page_link(
                "distil.py",
                label="Use as teacher",
                icon=":material/school:",
                query_params={"teacher": row.id, "data": row.source},
            )
        if not row.in_zoo:
            st.page_link(
                "distil.py", label="Change and run again", icon=":material/edit:", query_params={"like": row.id}
            )
        if not state.active and not row.in_zoo:
            _delete(run, store)


def _delete(run: Run, store: Store) -> None:
    with st.popover("Delete", icon=":material/delete:"):
        st.write("Delete this run with its weights and curves? This cannot be undone.")
        if st.button("Delete for good", type="primary"):
            store.delete(run.name)
            st.switch_page("runs.py")


def _live(run: Run, drawn: str, store: Store) -> None:
    """Progress and curves. A change of state concerns the whole page, which is then drawn anew, once."""
    with backstage.told():
        state = run.state
        if state != drawn:
            st.rerun()
        events = run.events()
        progress = [event for event in events if event["kind"] == "progress"]
        epochs = [event for event in events if event["kind"] == "epoch"]
        if state.active:
            _progress(run, state, progress, epochs, store)
        if progress or epochs:
            _curves(run, progress, epochs, store)


def _progress(
    run: Run, state: State, progress: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]], store: Store
) -> None:
    if state is State.QUEUED:
        place = [waiting.name for waiting in store.queue()].index(run.name) + 1 if run in store.queue() else 1
        st.progress(0, text="Waiting for the worker" if place == 1 else f"Waiting: number {place} in the queue")
        if not backstage.worker_alive():
            st.caption(
                f"The worker is starting. If this lasts, start one by hand: `python -m smallalign_core worker --store {store.root}`"
            )
        return
    asked = {"pause": "Pausing. ", "cancel": "Cancelling. "}.get(run.asked or "", "")
    if not progress:
        st.progress(0, text=f"{asked}Loading images and networks")
        return
    last = progress[-1]
    best = max((event["accuracy"] for event in epochs), default=None)
    text = (
        f"{asked}Step {last['step']:,} of {last['steps']:,} · {wording.duration(last['eta'])} left · "
        f"{last['images_per_second']:,.0f} images/s · best validation accuracy {wording.percent(best)}"
    )
    st.progress(min(1.0, last["step"] / last["steps"]), text=text)


def _curves(run: Run, progress: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]], store: Store) -> None:
    x = [event["epoch"] for event in progress]
    terms = list(progress[-1]["terms"]) if progress else []
    losses = [Curve("total", x, [event["loss"] for event in progress])]
    if len(terms) > 1:
        losses += [
            Curve(f"{name} term", x, [event["terms"].get(name, float("nan")) for event in progress], colour=1 + at)
            for at, name in enumerate(terms)
        ]
    steps = [event["epoch"] for event in epochs]
    scores = [
        Curve("student" if run.spec.teacher else "validation accuracy", steps, [event["accuracy"] for event in epochs])
    ]
    if run.spec.teacher and steps:
        teacher = next((row for row in listing.finished(store) if row.id == run.spec.teacher), None)
        known = store.run(teacher.name).result if teacher else None
        if known:
            scores.append(
                Curve(
                    "teacher",
                    [min(steps), max(*steps, min(steps) + 1)],
                    [known["val"]["accuracy"]] * 2,
                    dashed=True,
                    colour=1,
                )
            )
    left, right = st.columns(2)
    with left:
        st.markdown("**Training loss**")
        if progress:
            alt = "Training loss over epochs."
            curves(key=f"loss-{run.name}", series=losses, x_label="epoch", y_label="loss (nats)", alt=alt)
        else:
            st.caption("It stopped before a loss was recorded.")
    with right:
        st.markdown("**Validation accuracy**")
        alt = "Validation accuracy over epochs."
        curves(key=f"accuracy-{run.name}", series=scores, x_label="epoch", y_label="accuracy", alt=alt)


def _scores(result: dict[str, Any], row: Row, store: Store) -> None:
    test, calibrated = result["test"], result["test_calibrated"]
    with st.grid(min_column_width=150):
        st.metric("Test accuracy", wording.percent(test["accuracy"], 2), border=True)
        st.metric(
            "Test NLL", f"{test['nll']:.4f}", border=True, help="Mean negative log-likelihood, nats. Lower is better."
        )
        st.metric(
            "Test ECE", wording.percent(test["ece"], 2), border=True,
            help=f"Expected calibration error. {calibrated['ece']:.2%} with the temperature {result['temperature']:.3f} that was fitted on validation.",
        )  # fmt: skip
        st.metric(
            "Parameters",
            f"{result['params']:,}",
            border=True,
            help=f"{result['macs']:,} multiply-accumulates an image.",
        )
        st.metric(
            "Training took",
            wording.duration(result["seconds"]),
            border=True,
            help=f"{result['images_per_second']:,.0f} images a second on {result['device']}.",
        )
    same = listing.siblings(store, row)
    seeds = f"{len(same)} seed{'s' if len(same) > 1 else ''}"
    text = (
        f"95 % interval {wording.interval(test['accuracy_low'], test['accuracy_high'])} on {test['images']:,} test images. "
        f"Best weights by validation: epoch {result['best_epoch']}, {wording.percent(result['val']['accuracy'])} on {result['val']['images']:,} images. "
    )
    if len(same) > 1:
        found = [other.accuracy or 0 for other in same]
        text += f"Over {seeds} of this spec: mean {wording.percent(sum(found) / len(found), 2)}, {wording.percent(min(found))} to {wording.percent(max(found))}. "
    st.caption(
        text
        + (f"**{seeds}: not evidence.** Run other seeds before you conclude anything." if len(same) < EVIDENCE else "")
    )


def _details(run: Run, row: Row, store: Store) -> None:
    names = ["Spec and command", "Per class", "Log"] if row.finished else ["Spec and command", "Log"]
    tabs = dict(zip(names, st.tabs(names, key="tab", on_change="rerun", bind="query-params"), strict=True))
    with tabs["Spec and command"]:
        command(run.spec, store)
    if "Per class" in tabs and tabs["Per class"].open and run.result:
        with tabs["Per class"]:
            charts.recall({"test": run.result["test"]["recall"]}, key="recall")
    if tabs["Log"].open:
        with tabs["Log"]:
            st.code(
                _tail(run.folder / "log.txt") or "The log is empty: the run has not started, or is part of the zoo.",
                language=None,
                height=280,
            )


def command(spec: RunSpec, store: Store) -> None:
    """A spec as YAML, and the command that trains it without the dashboard."""
    yaml = to_yaml(spec.model_copy(update={"teacher": store.name_of(spec.teacher) if spec.teacher else None}))
    st.code(yaml, language="yaml", wrap_lines=True)
    st.caption("Save it as spec.yaml; this trains it, and an equal spec is never trained twice:")
    st.code("python -m smallalign_core train spec.yaml", language="bash", wrap_lines=True)


def _tail(file: Path, most: int = 20_000) -> str:
    """The end of a log; empty if there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - most))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
