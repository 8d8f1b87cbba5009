"""The augmentation policy: its form, its URL parameter, and saved policies."""

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
from smallalign_core.service.requests import AugmentBatch, PolicyCode, WritePolicy
from smallalign_core.spec import Augment, RunSpec, canonical, members, parse, parse_policy
from smallalign_core.spec.python import unfilled

FIRST: tuple[dict[str, Any], ...] = ({"kind": "shift", "pixels": 1}, {"kind": "rotate", "degrees": 10})
"""The initial policy."""

KEY = "policy"


def build() -> list[dict[str, Any]]:
    """Draw the policy's form; returns its transforms as plain values, which may not be a valid policy yet."""
    linked = url_state.changed(KEY)
    if linked:
        try:
            take(parse_policy(json.loads(linked)), key=KEY)
        except (SmallAlignError, ValueError, RecursionError) as error:
            st.warning(f"Invalid link parameter: policy. {_why(error)}")
    if f"{KEY}.augment.rows" not in st.session_state:
        take([] if linked == "" else parse_policy(FIRST), key=KEY)
    field = RunSpec.model_fields["augment"]
    parts = forms.several(
        "Policy",
        members(Augment),
        key=f"{KEY}.augment",
        most=16,
        help=f"{field.description} Transforms are applied in this order; a mixing transform comes last.",
    )
    url_state.keep(KEY, written(parts))
    return parts


def receive(key: str) -> None:
    """Fill the form of a run with the policy, seed and batch size of a link, once."""
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
        st.warning(f"Invalid link parameter: policy, seed or batch. {_why(error)}")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, SmallAlignError) else "The value is not in the expected format."


def take(parts: Sequence[Augment], *, key: str) -> None:
    """Put a policy into the form of that key before it is drawn."""
    forms.fill({"augment": [part.model_dump() for part in parts]}, key=key)


def written(parts: Sequence[dict[str, Any]]) -> str:
    """Transforms as a short text for the URL, which `build` reads back. Empty for none."""
    try:
        short: list[Any] = [canonical(unfilled(part)) for part in parse_policy(parts)]
    except SmallAlignError:  # not a valid policy yet: the URL still restores it
        short = list(parts)
    return json.dumps(short, separators=(",", ":")) if short else ""


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Show an error as its message, with transforms numbered as in the form."""
    try:
        yield
    except SmallAlignError as error:
        st.error(re.sub(r"`augment\.(\d+)(?:\.(\w+))?`", _counted, str(error)), icon=":material/error:")


def _counted(found: re.Match[str]) -> str:
    field = f"`{found[2]}` of transform" if found[2] else "Transform"
    return f"{field} {int(found[1]) + 1}"


def at(request: AugmentBatch) -> PolicyCode:
    """The policy at its strength: transforms, YAML, code.

    Raises:
        BadInput: it cannot work on these images.
    """
    return _code(WritePolicy(request.policy, request.data, strength=request.strength))


def plain(carried: PolicyCode) -> list[dict[str, Any]]:
    """Its transforms as a spec has them."""
    return [part.model_dump(mode="json") for part in carried.parts]


def use(request: AugmentBatch, carried: PolicyCode, teacher: RunRow | None) -> None:
    """A link to training with this policy, data, teacher, seed and batch size."""
    if not carried.parts:
        return
    chosen = {"data": request.data.source} | ({"teacher": teacher.id} if teacher else {})
    chosen |= {KEY: written(plain(carried)), "seed": str(request.seed), "batch": str(request.batch)}
    st.page_link("distil.py", label="Use in training", icon=":material/science:", query_params=chosen)


def export(request: AugmentBatch, carried: PolicyCode, teacher: RunRow | None) -> None:
    """The policy as YAML, code and command."""
    st.caption("The policy at this strength: the `augment` field of a spec, or the input file of `preview`.")
    st.code(carried.policy, language="yaml", wrap_lines=True)
    st.caption("With torchvision:")
    st.code(carried.code, language="python", wrap_lines=True)
    words = ["python -m smallalign_core preview policy.yaml --data", shlex.quote(request.data.source), "--to sheet"]
    words += ["--teacher", shlex.quote(teacher.name)] if teacher else []
    words += ["--seed", str(request.seed)] if request.seed else []
    st.caption("Save the YAML as policy.yaml; this command writes a PNG of augmented images and the predictions:")
    st.code(" ".join(words), language="bash", wrap_lines=True)


@st.cache_data(max_entries=64, show_spinner=False)
def _code(request: WritePolicy) -> PolicyCode:
    return context.call(request, "Generating code")


def saved(store: Store, *, key: str, parts: Sequence[dict[str, Any]] | None = None) -> None:
    """A menu of saved policies that fills the form of `key`; with `parts`, also a form to save them."""
    names = policies.names(store)
    result = f"{key}.saved.result"
    with st.popover("Saved policies", icon=":material/bookmark:", width="stretch"):
        if names:
            name = st.selectbox("Policy", names, key=f"{key}.saved.name")
            with st.container(horizontal=True):
                st.button("Load", key=f"{key}.saved.load", on_click=_load, args=(store, name, key, result))
                if parts is not None:
                    st.button(
                        "Delete",
                        key=f"{key}.saved.delete",
                        icon=":material/delete:",
                        type="tertiary",
                        on_click=_delete,
                        args=(store, name, result),
                    )
        else:
            st.caption("No saved policies." if parts is not None else "No saved policies. Save one on Augmentation.")
        if parts is not None:
            st.text_input("Policy name", key=f"{key}.saved.as", placeholder="e.g. mild-geometric")
            st.button(
                "Save",
                key=f"{key}.saved.save",
                icon=":material/save:",
                on_click=_save,
                args=(store, list(parts), key, result),
            )
    if done := st.session_state.pop(result, None):
        (st.success if done[0] else st.error)(done[1])


def _report(result: str, done: str, error: SmallAlignError | OSError | None = None) -> None:
    st.session_state[result] = (error is None, done if error is None else str(error))


def _load(store: Store, name: str, key: str, result: str) -> None:
    try:
        take(policies.load(store, name), key=key)
    except SmallAlignError as error:
        _report(result, "", error)
    else:
        _report(result, f"Loaded {name}.")


def _delete(store: Store, name: str, result: str) -> None:
    try:
        policies.delete(store, name)
    except (SmallAlignError, OSError) as error:
        _report(result, "", error)
    else:
        _report(result, f"Deleted {name}.")


def _save(store: Store, parts: list[dict[str, Any]], key: str, result: str) -> None:
    name = str(st.session_state.get(f"{key}.saved.as") or "").strip()
    try:
        policies.save(store, name, parse_policy(parts))
    except SmallAlignError as error:
        _report(result, "", error)
    else:
        _report(result, f"Saved as {name}: `policies/{name}.yaml` in the store.")
