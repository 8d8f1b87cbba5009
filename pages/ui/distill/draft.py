"""The draft of a run: the form's entries in the address, so that a reload keeps them and a link shares them."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from pages.ui.app import keys
from pages.ui.widgets import formatting, forms, url_state
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, parse, shortest

KEY = "spec"
"""The URL parameter."""
OF_DATA = {"source", "fingerprint", *url_state.READING}
"""Fields of `data` with URL parameters, or forms, of their own; those of a run are its teachers and `start`."""


def receive(store: Store, key: str) -> None:
    """Fill the form of `key` from the address, if that was changed and not the form: a run to copy, or a draft."""
    if like := st.query_params.get("like"):
        _copy(store.run(like).spec, key)
    if size := st.query_params.get("size"):  # of a teacher's images
        del st.query_params["size"]
        _fill({"data": {"size": size}}, key)
    if (written := url_state.changed(KEY)) is not None:
        _fill(written, key)


def _copy(spec: RunSpec, key: str) -> None:
    """Fill the form with a run's spec, once: its link gives way to those of the form's fields."""
    forms.fill(spec.model_dump(mode="json", exclude={"data": {"fingerprint"}, "teacher": True}), key=key)
    st.session_state[f"{key}.data.source"] = None
    st.query_params.clear()
    st.session_state.pop(url_state.own("teacher-seen"), None)  # the URL sets it again
    st.query_params["teacher"], *st.session_state[keys.MORE_TEACHERS] = spec.teachers or (url_state.NONE,)
    st.query_params["start"] = spec.start or url_state.NONE
    st.session_state[keys.DATA] = spec.data.source
    url_state.read_as(spec.data)


def _fill(written: str | dict[str, Any], key: str) -> None:
    given = written if isinstance(written, str) else json.dumps(written)
    try:
        fields = json.loads(given)
        teachers = [*([st.query_params["teacher"]] if "teacher" in st.query_params else []), *fields.pop("also", [])]
        taught = {"teacher": teachers} if teachers and teachers != [url_state.NONE] else {}
        spec = parse({"network": "cnn", **fields, "data": {**fields.get("data", {}), "source": "digits"}} | taught)
    except (BadSpec, ValueError, AttributeError, TypeError, RecursionError):
        st.warning(f"Invalid link parameter. Given: {formatting.given(KEY, given)}. Configure the run below.")
        return
    if isinstance(written, dict):
        forms.fill({"data": {"size": spec.data.size}}, key=key)
        return
    forms.fill(spec.model_dump(mode="json", exclude={"data": OF_DATA, "teacher": True, "start": True}), key=key)
    st.session_state[keys.MORE_TEACHERS] = teachers[1:]


def keep(spec: RunSpec) -> None:
    """Write the form's entries into the address."""
    fields = shortest(spec)
    fields["data"] = {name: value for name, value in fields["data"].items() if name not in OF_DATA}
    for name in ("teacher", "start"):
        fields.pop(name, None)
    fields["loss"] = spec.loss.model_dump(mode="json")  # its default depends on the teacher
    if also := spec.teachers[1:]:
        fields["also"] = list(also)
    url_state.keep(KEY, json.dumps(fields, separators=(",", ":")))
