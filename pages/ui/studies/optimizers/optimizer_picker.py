"""The optimizers of a study: a short list, more of them, and custom nested ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import streamlit as st
from pydantic import TypeAdapter, ValidationError

from pages.ui.app import keys
from pages.ui.widgets import formatting, forms, url_state
from smallalign_core.spec import (
    AdamW,
    Lookahead,
    Muon,
    Optimizer,
    Sam,
    canonical,
    members,
)
from smallalign_core.studies.optimizers import OptimizerStudySpec, label_of, name_of, offered

REFERENCE = OptimizerStudySpec.model_fields["reference"].default
USUAL = tuple(one for one in OptimizerStudySpec.model_fields["optimizers"].default if one != REFERENCE)
"""Preselected, besides AdamW, the reference."""
SHORT = (*USUAL, *(one for one in offered("tuned") if one not in USUAL))
MORE = (*offered("more"), Lookahead(inner=Muon()), Lookahead(inner=Sam()))
FIXED = offered("hands-off")
KEY, FIXED_KEY = "optimizers", "hands-off"

_ONE: TypeAdapter[Any] = TypeAdapter(Optimizer)


def short(optimizer: Any) -> Any:
    """An optimizer in its short form: its kind alone where all settings are defaults."""
    written = canonical(optimizer)
    return written["kind"] if len(written) == 1 else written


def link(optimizers: Iterable[Any]) -> str:
    """Optimizers as a URL parameter."""
    return json.dumps([short(one) for one in optimizers], separators=(",", ":"))


def choose(*, distilled: bool) -> tuple[list[Any], list[Any]]:
    """Draw the optimizer selection, kept in the URL; returns the tuned and the untuned ones.

    Args:
        distilled: whether there is a teacher: the Polyak step needs its loss.
    """
    built: list[Any] = [_ONE.validate_python(one) for one in st.session_state.get(keys.BUILT, ())]
    fixed = offered("hands-off", taught=distilled)
    _from_address(KEY, (*SHORT, *MORE, *built), USUAL)
    _from_address(FIXED_KEY, FIXED, fixed, others=False)
    built = [_ONE.validate_python(one) for one in st.session_state.get(keys.BUILT, ())]  # a link may have brought some
    st.markdown(
        "**Reference: tuned AdamW**",
        help="Tuned optimizers get an LR range test and the same number of full-length LR trials.",
    )
    tuned = _pills("Tuned", SHORT, key=KEY)
    with st.expander("More optimizers and wrappers"):
        more = _pills("Tuned (more)", (*MORE, *built), key=f"{KEY}-more")
        _build()
    used = _pills(
        "Untuned (defaults)",
        fixed,
        key=FIXED_KEY,
        rate=True,
        help="No LR tuning: AdamW at its library default, and learning-rate-free optimizers.",
    )
    _keep(KEY, chosen := [*tuned, *more])
    _keep(FIXED_KEY, used)
    return chosen, used


def _pills(label: str, offered: Sequence[Any], *, key: str, rate: bool = False, help: str | None = None) -> list[Any]:
    by_name = {name_of(one): one for one in offered}
    widget = f"contenders-{key}"
    st.session_state[widget] = [name for name in st.session_state.get(widget, ()) if name in by_name]
    chosen = st.pills(
        label,
        list(by_name),
        selection_mode="multi",
        default=st.session_state[widget],
        format_func=lambda name: label_of(by_name[name], rate=rate),
        key=widget,
        help=help,
        wrap=True,
        persist_state="session",
    )
    return [one for name, one in by_name.items() if name in (chosen or ())]


def _keep(key: str, chosen: Sequence[Any]) -> None:
    url_state.keep(key, link(chosen))


def _from_address(key: str, known: Sequence[Any], first: Sequence[Any], *, others: bool = True) -> None:
    """Select the optimizers of the URL, or `first`; with `others`, unknown ones join the custom ones."""
    linked, wanted = url_state.changed(key), None
    if linked is not None:
        try:
            wanted = [_ONE.validate_python(one) for one in json.loads(linked)]
            wanted = [one for one in wanted if one != AdamW()] if others else wanted
            if not others and any(one not in known for one in wanted):
                raise ValueError
        except (ValidationError, ValueError, TypeError, RecursionError):
            wanted = None
            st.warning(
                f"Invalid link parameter: no such optimizers. Given: {formatting.given(key, linked)}. Select below."
            )
    if wanted is None:
        if f"contenders-{key}" in st.session_state:
            return
        wanted = list(first)
    names = [name_of(one) for one in wanted]
    st.session_state[f"contenders-{key}"] = st.session_state[f"contenders-{key}-more"] = names
    if others:
        fresh = [one.model_dump(mode="json") for one in wanted if name_of(one) not in {name_of(each) for each in known}]
        st.session_state[keys.BUILT] = [*st.session_state.get(keys.BUILT, ()), *fresh]


def _build() -> None:
    """A form for any optimizer with any settings and wrappers; it joins the pills above, selected."""
    st.caption("Custom optimizer, with settings and nested wrappers (EMA, Lookahead, SAM).")
    made = forms.choice("Optimizer", members(Optimizer), key="contenders-own", start=Lookahead().kind, without=("lr",))
    st.button("Add optimizer", icon=":material/add:", key="contenders-add", on_click=_add, args=(made,))


def _add(made: Mapping[str, Any]) -> None:
    optimizer = _ONE.validate_python(made)
    name = name_of(optimizer)
    known = {name_of(one) for one in (*SHORT, *MORE)} | {
        name_of(_ONE.validate_python(one)) for one in st.session_state.get(keys.BUILT, ())
    }
    if name not in known and optimizer != AdamW():
        st.session_state[keys.BUILT] = [*st.session_state.get(keys.BUILT, ()), optimizer.model_dump(mode="json")]
    place = f"contenders-{KEY}" if name in {name_of(one) for one in SHORT} else f"contenders-{KEY}-more"
    if name not in st.session_state[place] and optimizer != AdamW():
        st.session_state[place] = [*st.session_state[place], name]


def others(spec: OptimizerStudySpec, *, key: str) -> list[Any]:
    """A selection of further optimizers to tune in a study."""
    known = {name_of(one) for one in (spec.reference, *spec.optimizers)}
    offered = {name_of(one): one for one in (*SHORT, *MORE) if name_of(one) not in known}
    chosen = st.pills(
        "Optimizers",
        list(offered),
        selection_mode="multi",
        format_func=lambda name: label_of(offered[name]),
        key=key,
        wrap=True,
    )
    return [offered[name] for name in chosen or ()]
