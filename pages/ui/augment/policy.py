"""The policy that a visitor builds: its form, its place in the address, and those saved under a name."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.widgets import forms, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs import policies
from smallalign_core.runs.store import Store
from smallalign_core.spec import Augment, RunSpec, canonical, members, parse, parse_policy

FIRST: tuple[dict[str, Any], ...] = ({"kind": "shift", "pixels": 1}, {"kind": "rotate", "degrees": 10})
"""What a visitor finds who has built nothing yet."""

KEY = "policy"


def build() -> list[dict[str, Any]]:
    """Draw the policy's form; returns its parts as plain values, which need not be a policy yet."""
    asked = url_state.changed(KEY)
    if asked:
        try:
            take(parse_policy(json.loads(asked)), key=KEY)
        except (SmallAlignError, ValueError, RecursionError) as error:
            st.warning(f"The link's policy cannot be used. {_why(error)}")
    if f"{KEY}.augment.rows" not in st.session_state:
        take([] if asked == "" else parse_policy(FIRST), key=KEY)
    field = RunSpec.model_fields["augment"]
    parts = forms.several(
        "Policy",
        members(Augment),
        key=f"{KEY}.augment",
        most=16,
        help=f"{field.description} Parts are applied in this order; one that mixes images comes last.",
    )
    url_state.keep(KEY, written(parts))
    return parts


def receive(key: str) -> None:
    """Fill the form of a run with the policy, seed and batch that a link brings, once."""
    brought = {name: st.query_params[name] for name in (KEY, "seed", "batch") if name in st.query_params}
    for name in brought:
        del st.query_params[name]
    try:
        if brought.get(KEY):
            take(parse_policy(json.loads(brought[KEY])), key=key)
            forms.fill({"views": 0}, key=key)
        for name in ("seed", "batch"):
            if name in brought:
                spec = parse({"data": "digits", "network": "cnn", name: int(brought[name])})
                forms.fill({name: getattr(spec, name)}, key=key)
    except (SmallAlignError, ValueError, RecursionError) as error:
        st.warning(f"The link's policy, seed or batch cannot be used. {_why(error)}")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, SmallAlignError) else "It is not what this page writes."


def take(parts: Sequence[Augment], *, key: str) -> None:
    """Put a policy into the form of that key before it is drawn."""
    forms.fill({"augment": [part.model_dump() for part in parts]}, key=key)


def written(parts: Sequence[dict[str, Any]]) -> str:
    """Parts as a short text for the address; a text that `build` reads back. Empty for none."""
    try:
        short: list[Any] = [canonical(part) for part in parse_policy(parts)]
    except SmallAlignError:  # not a policy yet: the address still brings back what was there
        short = list(parts)
    return json.dumps(short, separators=(",", ":")) if short else ""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Show an error as its sentence, with parts counted as the form counts them."""
    try:
        yield
    except SmallAlignError as error:
        st.error(re.sub(r"`augment\.(\d+)(?:\.(\w+))?`", _counted, str(error)), icon=":material/error:")


def _counted(found: re.Match[str]) -> str:
    field = f"`{found[2]}` of part" if found[2] else "Part"
    return f"{field} {int(found[1]) + 1}"


def take_along(question: dict[str, Any], batch: int, teacher: RunRow | None) -> list[dict[str, Any]]:
    """The policy as YAML, code and command, and the way to a distillation with it; returns its parts at this strength.

    Args:
        question: policy, data, seed and strength, as asked of the desk.
    """
    answer = _code(json.dumps({name: question[name] for name in ("policy", "data_source", "strength")}))
    source = question["data_source"]["source"]
    if answer["parts"]:
        chosen = {"data": source} | ({"teacher": teacher.id} if teacher else {})
        carried = written(answer["parts"])
        with st.container(horizontal=True, vertical_alignment="center", key="take-along"):
            st.page_link(
                "distil.py",
                label="Use in a distillation",
                icon=":material/science:",
                query_params=chosen | {KEY: carried, "seed": question["seed"], "batch": batch},
            )
            st.caption("Takes data, teacher, policy, seed and batch to the Distil page.", width="content")
    yaml, code, command = st.tabs(["YAML", "torchvision", "Command line"], key="code", on_change="ignore")
    with yaml:
        st.code(answer["policy"], language="yaml", wrap_lines=True)
        st.caption("The policy at this strength: the `augment` of a spec, or a file for `views`.")
    with code:
        st.code(answer["code"], language="python", wrap_lines=True)
    with command:
        words = ["python -m smallalign_core views policy.yaml --data", shlex.quote(source), "--to sheet"]
        words += ["--teacher", shlex.quote(teacher.name)] if teacher else []
        words += ["--seed", str(question["seed"])] if question["seed"] else []
        st.code(" ".join(words), language="bash", wrap_lines=True)
        st.caption("Save the YAML as policy.yaml; this writes the pictures as one PNG, and says what the teacher says.")
    parts: list[dict[str, Any]] = answer["parts"]
    return parts


@st.cache_data(max_entries=64, show_spinner=False)
def _code(asked: str) -> dict[str, Any]:
    return context.call("code", "Writing the code", **json.loads(asked))


def saved(store: Store, *, key: str, parts: Sequence[dict[str, Any]] | None = None) -> None:
    """A menu of saved policies that fills the form of `key`; with `parts`, also a place to save those."""
    names = policies.names(store)
    told = f"{key}.saved.told"
    with st.popover("Saved policies", icon=":material/bookmark:", width="stretch"):
        if names:
            name = st.selectbox("Policy", names, key=f"{key}.saved.name")
            with st.container(horizontal=True):
                st.button("Load", key=f"{key}.saved.load", on_click=_load, args=(store, name, key, told))
                if parts is not None:
                    st.button(
                        "Delete",
                        key=f"{key}.saved.delete",
                        icon=":material/delete:",
                        type="tertiary",
                        on_click=_delete,
                        args=(store, name, told),
                    )
        else:
            st.caption("None yet." if parts is not None else "None yet: save one on the Augment page.")
        if parts is not None:
            st.text_input("Save this one as", key=f"{key}.saved.as", placeholder="for instance mild-moves")
            st.button(
                "Save",
                key=f"{key}.saved.save",
                icon=":material/save:",
                on_click=_save,
                args=(store, list(parts), key, told),
            )
    if said := st.session_state.pop(told, None):
        (st.success if said[0] else st.error)(said[1])


def _tell(told: str, done: str, error: SmallAlignError | OSError | None = None) -> None:
    st.session_state[told] = (error is None, done if error is None else str(error))


def _load(store: Store, name: str, key: str, told: str) -> None:
    try:
        take(policies.load(store, name), key=key)
    except SmallAlignError as error:
        _tell(told, "", error)
    else:
        _tell(told, f"Loaded {name}.")


def _delete(store: Store, name: str, told: str) -> None:
    try:
        policies.delete(store, name)
    except (SmallAlignError, OSError) as error:
        _tell(told, "", error)
    else:
        _tell(told, f"Deleted {name}.")


def _save(store: Store, parts: list[dict[str, Any]], key: str, told: str) -> None:
    name = str(st.session_state.get(f"{key}.saved.as") or "").strip()
    try:
        policies.save(store, name, parse_policy(parts))
    except SmallAlignError as error:
        _tell(told, "", error)
    else:
        _tell(told, f"Saved as {name}: `policies/{name}.yaml` in the store.")
