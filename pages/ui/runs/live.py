"""The part of a run's page that updates while it trains: progress and curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.browser import Curve, curves
from pages.ui.widgets import formatting, run_table
from smallalign_core.runs.store import Run, State, Store

TICK_SECONDS = 1
TERMS = {"labels": "label loss", "teacher": "distillation loss"}
"""Names of loss terms on charts."""
RECENT = 10
"""Finished runs from which the queue wait is estimated."""


def draw(run: Run, drawn: str, store: Store) -> None:
    """Progress and curves. A change of state redraws the whole page, once."""
    with context.show_errors():
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
        st.progress(0, text=_waiting(run, store))
        if not context.worker_alive():
            st.caption(
                "Starting the worker. If it does not start, run `python -m smallalign_core "
                f"worker --store {store.root}`"
            )
        return
    asked = {"pause": "Pausing. ", "cancel": "Canceling. "}.get(run.pending_request or "", "")
    if not progress:
        st.progress(0, text=f"{asked}Loading images and models")
        return
    last = progress[-1]
    best = max((event["accuracy"] for event in epochs), default=None)
    text = (
        f"{asked}Step {last['step']:,} of {last['steps']:,} · {formatting.duration(last['eta'])} left · "
        f"{last['images_per_second']:,.0f} images/s · best validation accuracy {formatting.percent(best)}"
    )
    st.progress(min(1.0, last["step"] / last["steps"]), text=text)


def _waiting(run: Run, store: Store) -> str:
    """A run's position in the queue, and its estimated start."""
    ahead = [waiting.name for waiting in store.queue()]
    ahead = ahead[: ahead.index(run.name)] if run.name in ahead else []
    rows = run_table.rows(store)
    left = [
        events[-1]["eta"]
        for row in rows
        if row.state == State.RUNNING and (events := store.by_id(row.name).events("progress"))
    ]
    if not ahead and not left:
        return "Waiting for the worker"
    place = f"Queued at position {len(ahead) + 1}"
    took = [row.seconds for row in rows if row.seconds is not None and not row.in_zoo][:RECENT]
    if ahead and not took:
        return place
    usual = statistics.median(took) if took else 0.0
    wait = max(left, default=0.0) + len(ahead) * usual
    basis = f" (median of the last {len(took)} runs: {formatting.duration(usual)})" if ahead and len(took) > 1 else ""
    return f"{place}, estimated start in {formatting.duration(wait)}{basis}"


def _curves(run: Run, progress: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]], store: Store) -> None:
    x = [event["epoch"] for event in progress]
    terms = list(progress[-1]["terms"]) if progress else []
    losses = [Curve("total", x, [event["loss"] for event in progress])]
    if len(terms) > 1:
        losses += [
            Curve(
                TERMS.get(name, name), x, [event["terms"].get(name, float("nan")) for event in progress], colour=1 + at
            )
            for at, name in enumerate(terms)
        ]
    steps = [event["epoch"] for event in epochs]
    scores = [
        Curve("student" if run.spec.teacher else "validation accuracy", steps, [event["accuracy"] for event in epochs])
    ]
    if run.spec.teacher and steps:
        known = run_table.teacher_here(run, store)
        if known is not None:
            line = [min(steps), max(*steps, min(steps) + 1)]
            scores.append(Curve("teacher", line, [known] * 2, dashed=True, colour=1))
    left, right = st.columns(2)
    with left:
        st.markdown("**Training loss**")
        if progress:
            alt = "Training loss over epochs."
            curves(key=f"loss-{run.name}", series=losses, x_label="epoch", y_label="loss (nats)", alt=alt)
        else:
            st.caption("No loss recorded.")
    with right:
        st.markdown("**Validation accuracy**")
        alt = "Validation accuracy over epochs."
        curves(key=f"accuracy-{run.name}", series=scores, x_label="epoch", y_label="accuracy", alt=alt)
    measured = [event for event in epochs if "shares" in event]  # older runs have none
    if run.spec.teacher and measured:
        _evidence(run, measured)


def _evidence(run: Run, epochs: Sequence[dict[str, Any]]) -> None:
    """The teacher's effect on the student: agreement, gradient share by loss term, and calibration."""
    x = [event["epoch"] for event in epochs]
    pulls = [
        Curve(TERMS.get(name, name), x, [event["shares"].get(name, float("nan")) for event in epochs], colour=1 + at)
        for at, name in enumerate(epochs[-1]["shares"])
    ]
    charts = (
        ("Agreement with the teacher", "top-1 agreement", [Curve("agreement", x, [e["agreement"] for e in epochs])]),
        ("Gradient share by loss term", "share of gradient norm", pulls),
        (
            "Expected calibration error",
            "ECE",
            [
                Curve("uncalibrated", x, [event["ece"] for event in epochs]),
                Curve("temperature-scaled", x, [event["fitted_ece"] for event in epochs], colour=2),
            ],
        ),
    )
    for column, (title, label, series) in zip(st.columns(3), charts, strict=True):
        with column:
            st.markdown(f"**{title}**")
            curves(
                key=f"{title}-{run.name}",
                series=series,
                x_label="epoch",
                y_label=label,
                alt=f"{title}, by epoch.",
                height=200,
            )
    last = epochs[-1]
    st.caption(
        f"On the validation split. Epoch {last['epoch']}: KL(teacher || student) {last['kl']:.3f} nats, "
        f"NLL {last['nll']:.3f} ({last['fitted_nll']:.3f} temperature-scaled)."
        + (" Control run: teacher logits are shuffled within each class." if run.spec.shuffled else "")
    )
