"""The student of a study or an ablation: its form, and its URL parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.ui.distill import python_file
from pages.ui.widgets import forms, run_table, url_state
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import DatasetFacts
from smallalign_core.spec import Cnn, DataSpec, Network, RunSpec, loss_kinds, members, parse, shortest


def form(
    facts: DatasetFacts,
    store: Store,
    *,
    key: str,
    only: Sequence[str] = ("epochs",),
    whole: bool = False,
    distilled: bool = True,
) -> dict[str, Any]:
    """Draw the form of a student; returns the entered fields of a spec.

    They are kept in the URL: the teacher as `<key>-teacher`, the rest as `<key>`.

    Args:
        facts: the backend's summary of the dataset.
        only: the plain fields of a spec in the form, besides data, network and teacher.
        distilled: whether the form has a teacher.
        whole: whether the form has loss and augmentation; without, both have their defaults.
    """
    _from_address(facts.reading, key, (*only, *(("loss", "augment") if whole else ())))
    # A larger form has columns of its own, in which two more would be too narrow.
    left, right = (st.container(), st.container()) if whole or not distilled else st.columns(2, gap="medium")
    with left:
        network = forms.choice(
            "Student architecture", forms.offered(members(Network)), key=f"{key}.network", start=Cnn().kind
        )
    with right:
        fitting = run_table.of_classes(store, facts.classes)
        empty = "None (labels only)"
        teacher = url_state.pick_row("Teacher", fitting, key=f"{key}-teacher", none=empty) if distilled else None
        chosen: dict[str, Any] = {"teacher": teacher.id if teacher else None, "network": network}
        if whole:
            chosen["loss"] = forms.choice(
                "Loss", forms.offered(loss_kinds(taught=teacher is not None)), key=f"{key}.loss"
            )
        numbers, images = st.columns([len(only), 1])
        with numbers:
            chosen |= forms.part(RunSpec, key=key, only=only, across=len(only))
        with images:
            of_data = forms.part(DataSpec, key=f"{key}.data", only=("images",), across=1)
    if whole:
        carried = len(st.session_state.get(f"{key}.augment.rows", ()))
        with st.expander(
            f"Augmentation: {carried or 'no'} transform{'' if carried == 1 else 's'}", expanded=carried > 0
        ):
            chosen |= forms.part(RunSpec, key=key, only=("augment",))
    chosen["data"] = {**facts.reading, **of_data}
    python_file.allow(parse(chosen))
    written = shortest(parse(chosen))
    written["data"] = {name: value for name, value in written["data"].items() if name not in facts.reading}
    written.pop("teacher", None)
    if whole:  # defaults depend on the teacher, which has its own URL parameter
        written["loss"] = chosen["loss"]
    st.session_state[f"{key}-seen"] = st.query_params[key] = json.dumps(written, separators=(",", ":"))
    return chosen


def _from_address(source: Mapping[str, Any], key: str, named: Sequence[str]) -> None:
    """Fill the form from the URL, if that was changed and not the form."""
    linked = st.query_params.get(key)
    if linked is None or linked == st.session_state.get(f"{key}-seen"):
        return
    teacher = st.query_params.get(f"{key}-teacher", url_state.NONE)
    try:
        written = json.loads(linked)
        whole = {**written, "data": {**written.get("data", {}), **source}}
        spec = parse(whole | ({} if teacher == url_state.NONE else {"teacher": teacher}))
    except (BadSpec, ValueError, AttributeError, TypeError):
        st.warning(f"Invalid link parameter. Given: {key}={linked[:80]}. Configure the student below.")
        return
    plain = spec.model_dump(mode="json", include={"network": True, "data": {"images"}, **dict.fromkeys(named, True)})
    forms.fill(plain, key=key)
