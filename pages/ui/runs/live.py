"""The part of a run's page that updates while it trains: progress and curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.browser import Curve, curves, smoothing
from pages.ui.widgets import formatting, run_table, url_state
from smallalign_core.runs.store import Run, State, Store

TICK_SECONDS = 1
TERMS = {"labels": "label loss", "teacher": "distillation loss", "smooth_l1": "smooth L1"}
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
    pending = {"pause": "Pausing. ", "cancel": "Canceling. "}.get(run.pending_request or "", "")
    if not progress:
        st.progress(0, text=f"{pending}Loading images and models")
        return
    last = progress[-1]
    of_features = run.spec.of_features
    seen = [event[name] for event in epochs if (name := "cosine" if of_features else "accuracy") in event]
    best = f"{max(seen):.4f}" if of_features and seen else formatting.percent(max(seen, default=None))
    where = f" on {device}" if (device := run.status.get("device")) else ""
    metric = "cosine" if of_features else "accuracy"
    text = (
        f"{pending}Step {last['step']:,} of {last['steps']:,} · {formatting.duration(last['eta'])} left · "
        f"{last['images_per_second']:,.0f} images/s{where} · best validation {metric} {best}"
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
    charts = [("Training loss", "loss (nats)" if not run.spec.of_features else "loss", losses if progress else [])]
    charts += _features(epochs) if run.spec.headless else _scores(run, epochs, store)
    measured = [event for event in epochs if "shares" in event and "agreement" in event]  # older runs have none
    with st.container(horizontal=True, vertical_alignment="bottom", key="charts-controls"):
        shown = "main"
        if run.spec.teacher and measured:
            views = {"main": "Loss and accuracy", "teacher": "Effect of the teacher"}
            shown = url_state.switch("Charts", views, key="charts") or "main"
        smoothing()
    if shown == "teacher":
        _evidence(run, measured)
        return
    for column, (title, label, series) in zip(st.columns(len(charts)), charts, strict=True):
        with column:
            st.markdown(f"**{title}**")
            if series:
                alt = f"{title} over epochs."
                curves(key=f"{title}-{run.name}", series=series, x_label="epoch", y_label=label, alt=alt)
            else:
                st.caption("Nothing recorded.")


def _scores(run: Run, epochs: Sequence[dict[str, Any]], store: Store) -> list[tuple[str, str, list[Curve]]]:
    """Charts of a classifier's loss and accuracy on validation images, with the accuracy of its teacher."""
    steps = [event["epoch"] for event in epochs]
    loss = [Curve("uncalibrated", steps, [event["nll"] for event in epochs])]
    if all("fitted_nll" in event for event in epochs):
        loss.append(Curve("temperature-scaled", steps, [event["fitted_nll"] for event in epochs], colour=2))
    scores = [
        Curve("student" if run.spec.teacher else "validation accuracy", steps, [event["accuracy"] for event in epochs])
    ]
    if run.spec.teacher and steps:
        known = run_table.teacher_here(run, store)
        if known is not None:
            line = [min(steps), max(*steps, min(steps) + 1)]
            scores.append(Curve("teacher", line, [known] * 2, dashed=True, colour=1))
    return [
        ("Validation loss", "NLL (nats)", loss if steps else []),
        ("Validation accuracy", "accuracy", scores),
    ]


def _features(epochs: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[Curve]]]:
    """Charts of how near projected features are to the teacher's on validation images."""
    near = [event for event in epochs if "cosine" in event]
    steps = [event["epoch"] for event in near]
    return [
        (title, label, [Curve(label, steps, [event[name] for event in near])] if near else [])
        for title, label, name in (
            ("Validation loss", "embedding loss", "embedding_loss"),
            ("Validation cosine similarity", "cosine", "cosine"),
        )
    ]


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
            )
    last = epochs[-1]
    st.caption(
        f"On the validation split. Epoch {last['epoch']}: KL(teacher || student) {last['kl']:.3f} nats, "
        f"NLL {last['nll']:.3f} ({last['fitted_nll']:.3f} temperature-scaled)."
        + (" Control run: teacher logits are shuffled within each class." if run.spec.shuffled else "")
    )
