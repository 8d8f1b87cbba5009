"""Before a distillation: is this teacher any good here? And beside it: the runs that show what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.charts import basic
from pages.ui.widgets import formatting, run_table, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec
from smallalign_core.studies import ablation
from smallalign_core.studies.ablation import CONTROLS, What, capital

SIDE_BY_SIDE: tuple[What, ...] = ("teacher", "shuffled")
"""The controls of a distillation: what they leave out shows what it was worth."""


def pick(
    store: Store, source: str, facts: Mapping[str, Any], *, none: str | None, help: str | None = None
) -> tuple[RunRow | None, list[RunRow]]:
    """A menu of teachers for a dataset, which begins with the one that did best on it; (the chosen one, all of them).

    A teacher that was chosen for other images is not carried over to these, unless the address names it anew.
    """
    offered = run_table.teachers(store, source, facts)
    if st.session_state.get(keys.TEACHER_FOR) != facts["fingerprint"]:
        st.session_state[keys.TEACHER_FOR] = facts["fingerprint"]
        if url_state.changed("teacher") is None:
            st.session_state.pop(url_state.own("teacher"), None)
    first = run_table.default_teacher(offered)
    chosen = url_state.pick_row("Teacher", offered, key="teacher", first=first, none=none, help=help)
    if offered and first is None and none:
        evaluated = sum(row.here is not None for row in offered)
        reason = (
            "the models evaluated on these images were distilled themselves"
            if evaluated
            else "no model with these class names was evaluated on these images"
        )
        st.caption(f"No teacher is preselected: {reason}.")
    return chosen, offered


def seen(cost: Mapping[str, Any], teacher: RunRow | None) -> None:
    """What the pre-flight of a run found, beside its cost."""
    if not (found := cost["preflight"]):
        return
    interval = formatting.interval(found["accuracy_low"], found["accuracy_high"])
    st.caption(
        f"Teacher on {found['images']:,} validation images of this run: accuracy "
        f"{formatting.percent(found['accuracy'])} (95 % interval {interval}), "
        f"chance {formatting.percent(found['chance'])}." + _numbers(cost["loss"])
    )
    for warning in found["warnings"]:
        st.warning(capital(warning) + ".")
    if teacher and teacher.params and teacher.params < cost["params"]:
        st.warning(f"The teacher has {teacher.params:,} parameters, fewer than the student's {cost['params']:,}.")


def _numbers(loss: Mapping[str, Any]) -> str:
    """What `auto` became."""
    if loss["kind"] != "kd":
        return ""
    return f" Soft targets at T = {loss['temperature']:g} with weight {loss['weight']:g}."


def more(fitting: list[RunRow], teacher: RunRow) -> tuple[str, ...]:
    """A menu of further teachers; returns their ids."""
    others = {row.id: row.label for row in fitting if row.id != teacher.id}
    if not others:
        return ()
    kept = [name for name in st.session_state.get(keys.MORE_TEACHERS, ()) if name in others]
    st.session_state[keys.MORE_TEACHERS] = kept
    return tuple(
        st.multiselect(
            "More teachers",
            list(others),
            format_func=others.__getitem__,
            key=keys.MORE_TEACHERS,
            max_selections=7,
            placeholder="None: one teacher",
            help="They answer together, with the mean of their probabilities.",
            persist_state="session",
        )
    )


@st.cache_data(max_entries=32, show_spinner=False)
def _report(teacher: str, data: str, root: str) -> dict[str, Any]:  # noqa: ARG001  # another store, another answer
    return context.call("preflight", "Asking the teacher", teacher=teacher, data_source=json.loads(data))


def preflight(teacher: RunRow, data: dict[str, Any], *, loss_key: str) -> None:
    """What is known of a teacher on the validation images; opened by the visitor, since it costs seconds.

    Args:
        loss_key: of the loss's form, whose temperature a button may set.
    """
    box = st.expander(
        "Is this teacher any good on these images?", icon=":material/fact_check:", key="preflight", on_change="rerun"
    )
    if not box.open:
        return
    with box, context.show_errors():
        found = _report(teacher.id, json.dumps(data), str(context.store().root.resolve()))
        scores = found["scores"]
        if found["refused"]:
            st.error(f"Not a teacher for these images: {formatting.plain(found['refused'])}", icon=":material/block:")
        for warning in found["warnings"]:
            st.warning(capital(warning) + ".")
        low, high = found["suggested"]
        with st.grid(min_column_width=120):
            st.metric(
                "Accuracy",
                formatting.percent(scores["accuracy"]),
                border=True,
                help=f"95 % interval {basic.wilson_of(scores)} on {scores['images']:,} validation images. "
                f"Chance is {found['chance']:.1%}.",
            )
            st.metric(
                "ECE",
                formatting.percent(scores["ece"]),
                border=True,
                help=f"{found['calibrated_ece']:.1%} with temperature {found['temperature']:.2f} fitted.",
            )
            st.metric(
                "Worth trying",
                f"T {low:.2g}–{high:.2g}",
                border=True,
                help="From where its confidence falls below 90 % to where half of it is left. A heuristic.",
            )
            st.metric("Speed", f"{formatting.count(found['images_per_second'])}/s", border=True, help=found["device"])
        worst = ", ".join(f"{name} {recall:.0%}" for name, recall in found["worst"])
        soft = ", ".join(f"{one['confidence']:.0%} at T = {one['temperature']:g}" for one in found["softness"])
        st.caption(
            f"Knows least of: {worst}. Mean confidence: {soft}. Asked again it differs by {found['repeat_diff']:.1g}, "
            f"one by one by {found['batch_diff']:.1g} (largest difference of a logit)."
        )
        if found["mapping"]:
            pairs = ", ".join(f"{ours} is its {theirs}" for ours, theirs in found["mapping"][:12])
            st.caption(f"Classes matched by name: {pairs}.")
        kind = st.session_state.get(f"{loss_key}.kind")
        widget = f"{loss_key}.{kind}.temperature"
        middle = round((low * high) ** 0.5 * 2) / 2 or 1.0
        if widget in st.session_state and st.session_state[widget] != middle:
            st.button(f"Use T = {middle:g}", key="use-temperature", on_click=_put, args=(widget, middle))


def _put(widget: str, value: float) -> None:
    st.session_state[widget] = value


def beside_it(spec: RunSpec) -> list[RunSpec]:
    """The runs that show whether the teacher of `spec` mattered: without it, and with its answers mixed up."""
    if spec.teacher is None or spec.shuffled:
        return []
    return [ablation.without(spec, what) for what in SIDE_BY_SIDE]


def start(spec: RunSpec, *, controls: bool) -> dict[str, Any]:
    """Queue a run, with its controls if asked, which the worker trains in lockstep; returns the answer for the run."""
    answer = context.call("submit", "Preparing the run", spec=spec.model_dump(mode="json"))
    # Of the run itself, not of what was asked: else `auto` might choose another precision for a control.
    for beside in beside_it(context.store().run(answer["id"]).spec) if controls else ():
        context.call("submit", "Preparing its controls", spec=beside.model_dump(mode="json"))
    return answer


def names() -> str:
    """What the controls are, in words."""
    return " and ".join(f"without {CONTROLS[what].name}" for what in SIDE_BY_SIDE)
