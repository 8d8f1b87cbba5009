"""Teacher selection and evaluation before a distillation, and its baselines."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.widgets import formatting, forms, run_table, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.analysis.teacher_report import Preflight
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import CheckTeacher, Cost, DatasetFacts, Submit, Submitted
from smallalign_core.spec import HintonKd, Loss, RunSpec, parse_data
from smallalign_core.spec.catalog import PRETRAINED
from smallalign_core.studies import ablation
from smallalign_core.studies.ablation import What, capital

FINE_TUNED = 5
"""Epochs of a pretrained network, which needs few."""
SIDE_BY_SIDE: tuple[What, ...] = ("teacher", "shuffled")
"""The baselines of a distillation."""
PRETRAINING = (
    "Pretraining: the student learns the teacher's features, on images with and without labels, and gets no head. Then "
    "train it on labels: choose the finished run under Initial weights."
)


def pick(
    store: Store,
    source: str,
    facts: DatasetFacts,
    *,
    none: str | None,
    help: str | None = None,
    of_features: bool = False,
) -> tuple[RunRow | None, list[RunRow]]:
    """A menu of teachers for a dataset, initially the most accurate one; (the selected one, all classifiers of them).

    Args:
        of_features: whether networks without a head are offered too.

    A teacher selected for another dataset is not carried over, unless the URL sets it again.
    """
    offered = run_table.teachers(store, source, facts)
    features = [row for row in run_table.headless(store) if of_features]
    if st.session_state.get(keys.TEACHER_FOR) != facts.fingerprint:
        st.session_state[keys.TEACHER_FOR] = facts.fingerprint
        if url_state.changed("teacher") is None:
            st.session_state.pop(url_state.own("teacher"), None)
    first = run_table.default_teacher(offered)
    every = [*offered, *features]
    chosen = url_state.pick_row("Teacher", every, key="teacher", first=first, none=none, help=help)
    if offered and first is None and none:
        evaluated = sum(row.here is not None for row in offered)
        reason = (
            "all models evaluated on this dataset were distilled themselves"
            if evaluated
            else "no model with these class names was evaluated on this dataset"
        )
        st.caption(f"No teacher is preselected: {reason}.")
    return chosen, offered


def offer_pretrained(key: str) -> None:
    """Where no model has the classes: a button that fills the form of `key` with a pretrained network."""
    best = next(one for one in PRETRAINED if one.role == "teacher")
    st.caption("No trained model has these classes yet. Train a larger network first and use it as the teacher.")
    st.button(
        "Fine-tune a pretrained teacher",
        icon=":material/school:",
        on_click=forms.fill,
        args=({"network": {"kind": "timm", "name": best.name, "pretrained": True}, "epochs": FINE_TUNED},),
        kwargs={"key": key},
        help=f"Fills the form with {best.name}: {best.words}. When it is finished, *Use as teacher* on its page.",
    )


def seen(cost: Cost, teacher: RunRow | None) -> None:
    """The result of a run's teacher check, beside its cost."""
    if not (found := cost.preflight):
        return
    interval = formatting.interval(found.accuracy_low, found.accuracy_high)
    st.caption(
        f"Teacher accuracy on {found.images:,} validation images of this run: "
        f"{formatting.percent(found.accuracy)} (95% CI {interval}), "
        f"chance level {formatting.percent(found.chance)}." + _numbers(cost.loss)
    )
    if cost.unlabeled:
        st.caption(f"{cost.unlabeled:,} unlabeled images join the training images, with the teacher's targets only.")
    for warning in found.warnings:
        st.warning(capital(warning) + ".")
    if teacher and teacher.params and teacher.params < cost.params:
        st.warning(f"The teacher has {teacher.params:,} parameters, fewer than the student's {cost.params:,}.")


def _numbers(loss: Loss) -> str:
    """The resolved values of `auto`."""
    if not isinstance(loss, HintonKd):
        return ""
    return f" Distillation loss: T = {loss.temperature:g}, weight {loss.weight:g}."


def more(fitting: list[RunRow], teacher: RunRow) -> tuple[str, ...]:
    """A menu of further teachers; returns their ids."""
    others = {row.id: row.label for row in fitting if row.id != teacher.id}
    if not others:
        return ()
    kept = [name for name in st.session_state.get(keys.MORE_TEACHERS, ()) if name in others]
    st.session_state[keys.MORE_TEACHERS] = kept
    return tuple(
        st.multiselect(
            "Additional teachers",
            list(others),
            format_func=others.__getitem__,
            key=keys.MORE_TEACHERS,
            max_selections=7,
            placeholder="None (single teacher)",
            help="The ensemble uses the mean of their probabilities.",
            persist_state="session",
        )
    )


@st.cache_data(max_entries=32, show_spinner=False)
def _report(teacher: str, data: str, root: str) -> Preflight:  # noqa: ARG001  # part of the cache's key
    return context.call(CheckTeacher(teacher, parse_data(json.loads(data))), "Evaluating the teacher")


def preflight(teacher: RunRow, data: dict[str, Any], *, loss_key: str) -> None:
    """The teacher's metrics on the validation images; collapsed at first, since it takes seconds.

    Args:
        loss_key: of the loss's form, whose temperature a button may set.
    """
    box = st.expander("Check teacher", icon=":material/fact_check:", key="preflight", on_change="rerun")
    if not box.open:
        return
    with box, context.show_errors():
        found = _report(teacher.id, json.dumps(data), str(context.store().root.resolve()))
        scores = found.scores
        if found.refused:
            st.error(f"Unsuitable teacher for this dataset: {formatting.plain(found.refused)}", icon=":material/block:")
        for warning in found.warnings:
            st.warning(capital(warning) + ".")
        low, high = found.suggested
        with st.grid(min_column_width=120):
            st.metric(
                "Accuracy",
                formatting.percent(scores.accuracy),
                border=True,
                help=f"95% CI {formatting.interval(scores.accuracy_low, scores.accuracy_high)} on {scores.images:,} "
                f"validation images. Chance level {found.chance:.1%}.",
            )
            st.metric(
                "ECE",
                formatting.percent(scores.ece),
                border=True,
                help=f"{found.calibrated_ece:.1%} temperature-scaled (T = {found.temperature:.2f}).",
            )
            st.metric(
                "Suggested T",
                f"{low:.2g}–{high:.2g}",
                border=True,
                help="Temperatures from a mean confidence below 90% to half of the initial confidence. A heuristic.",
            )
            st.metric("Images/s", formatting.count(found.images_per_second), border=True, help=found.device)
        worst = ", ".join(f"{name} {recall:.0%}" for name, recall in found.worst)
        soft = ", ".join(f"{one.confidence:.0%} at T = {one.temperature:g}" for one in found.softness)
        st.caption(
            f"Lowest recall: {worst}. Mean confidence: {soft}. Determinism (max. logit difference): "
            f"{found.repeat_diff:.1g} (repeat), {found.batch_diff:.1g} (batch of 1)."
        )
        if found.mapping:
            pairs = ", ".join(f"{ours} → {theirs}" for ours, theirs in found.mapping[:12])
            st.caption(f"Classes matched by name (dataset → teacher): {pairs}.")
        kind = st.session_state.get(f"{loss_key}.kind")
        widget = f"{loss_key}.{kind}.temperature"
        middle = round((low * high) ** 0.5 * 2) / 2 or 1.0
        if widget in st.session_state and st.session_state[widget] != middle:
            st.button(f"Use T = {middle:g}", key="use-temperature", on_click=_put, args=(widget, middle))


def _put(widget: str, value: float) -> None:
    st.session_state[widget] = value


def beside_it(spec: RunSpec) -> list[RunSpec]:
    """The baselines of `spec`: without the teacher, and with shuffled teacher logits."""
    if spec.teacher is None or spec.shuffled or spec.headless:
        return []
    return [ablation.without(spec, what) for what in SIDE_BY_SIDE]


def start(spec: RunSpec, *, controls: bool) -> Submitted:
    """Queue a run, optionally with its baselines, which the worker trains in lockstep."""
    answer = context.call(Submit(spec), "Preparing the run")
    # From the run's spec, not the submitted one: else `auto` might choose another precision for a baseline.
    for beside in beside_it(context.store().run(answer.id).spec) if controls else ():
        context.call(Submit(beside), "Preparing baselines")
    return answer
