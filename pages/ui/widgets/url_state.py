"""Menus whose choice lives in the address: a pasted link or F5 brings the same view back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.data import uploading
from pages.ui.widgets import formatting, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.data import NAMED
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store

NOBODY = "none"
"""What stands in the address when a menu of runs was left at nobody."""


def on_page(name: str) -> None:
    """Give the widgets that are drawn from now on the keys of the page `name`; the frame calls it."""
    st.session_state[keys.PAGE] = name


def own(key: str) -> str:
    """`key` in the session of this page alone.

    Two pages that give a field the same name in their addresses must not share its value: what is an option of one
    (the error of a scaling study, say) need not be one of the other.
    """
    return f"{st.session_state.get(keys.PAGE, '')}/{key}"


def kept(key: str, options: Mapping[str, Any], first: str) -> str:
    """The choice of a menu of this page that is drawn elsewhere, or not yet; `first` where it is none of `options`."""
    chosen = st.session_state.get(own(key))
    return str(chosen) if chosen in options else first


def pick(label: str, options: Mapping[str, str], *, key: str, first: str | None = None, help: str | None = None) -> str:
    """A menu of `options` (value to text) kept in the address as `key`.

    Streamlit's own binding writes the text that is shown into the address; a link should hold the id.
    """
    widget = own(key)
    asked = changed(key)
    if (named := _named(asked, options)) is not None:
        st.session_state[widget] = named
    elif asked is not None:
        st.warning(
            f"The link names something that does not exist. Given: {formatting.given(key, asked)}. "
            "Choose another one below."
        )
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = first if first in options else next(iter(options))
    chosen = st.selectbox(label, list(options), format_func=lambda value: options[value], key=widget, help=help)
    keep(key, chosen)
    return str(chosen)


def _named(asked: str | None, options: Mapping[str, str]) -> str | None:
    """The option that an address means: by its value, or by its text, which older links hold."""
    return asked if asked in options else next((value for value, text in options.items() if text == asked), None)


def changed(key: str) -> str | None:
    """What the address says under `key` if the page did not write that itself: a link, F5, or a step back."""
    asked = st.query_params.get(key)
    return None if asked == st.session_state.get(own(f"{key}-seen")) else asked


def keep(key: str, chosen: str) -> None:
    """Write a choice into the address, knowing that it was the page that did."""
    st.session_state[own(f"{key}-seen")] = chosen
    st.query_params[key] = chosen


def tabs(names: Sequence[str], *, key: str) -> dict[str, Any]:
    """Tabs by name, the open one kept in the address; a link that names none of them opens the first."""
    widget, asked = own(key), changed(key)
    if asked in names:
        st.session_state[widget] = asked
    if st.session_state.get(widget) not in names:
        st.session_state[widget] = names[0]
    found = dict(zip(names, st.tabs(list(names), key=widget, on_change="rerun"), strict=True))
    keep(key, next((name for name, tab in found.items() if tab.open), names[0]))
    return found


def switch(label: str, options: dict[str, str], *, key: str) -> str:
    """A choice of a few, kept in the address."""
    widget = own(key)
    if (named := _named(changed(key), options)) is not None:
        st.session_state[widget] = named
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = next(iter(options))
    chosen = st.segmented_control(
        label, list(options), required=True, format_func=options.__getitem__, key=widget, persist_state="session"
    )
    keep(key, str(chosen))
    return str(chosen)


def pick_number(
    draw: Callable[..., Any], label: str, low: float, high: float, step: float, *, key: str, first: float, **look: Any
) -> Any:
    """A number kept in the address as `key`; a link with one that is out of range gets a sentence.

    Args:
        draw: `st.slider` or `st.number_input`. Ints ask for whole numbers, floats for any.
    """
    widget, cast = own(key), type(first)
    if (asked := changed(key)) is not None:
        try:
            if not low <= (given := cast(asked)) <= high:
                raise ValueError
            st.session_state[widget] = given
        except ValueError:
            st.warning(
                f"The link asks for what cannot be. Given: {formatting.given(key, asked)}. "
                f"It lies between {low:g} and {high:g}."
            )
    held = st.session_state.get(widget)
    if not isinstance(held, int | float) or not low <= held <= high:
        st.session_state[widget] = first
    chosen = draw(label, low, high, step=step, key=widget, persist_state="session", **look)
    keep(key, f"{chosen:g}" if cast is float else str(chosen))
    return chosen


def pick_some(
    label: str, options: Mapping[str, str], *, key: str, first: Sequence[str], help: str | None = None
) -> list[str]:
    """Some of `options` (value to text), kept in the address as `key`: their values, joined by commas."""
    widget = own(key)
    if (asked := changed(key)) is not None:
        given = [value for value in asked.split(",") if value]
        if all(value in options for value in given):
            st.session_state[widget] = given
        else:
            st.warning(
                f"The link asks for what is not offered. Given: {formatting.given(key, asked)}. Choose again below."
            )
    held = st.session_state.setdefault(widget, list(first))
    if any(value not in options for value in held or ()):  # of other options, which the page offered before
        st.session_state[widget] = [value for value in held if value in options]
    chosen = st.pills(
        label,
        list(options),
        selection_mode="multi",
        format_func=options.__getitem__,
        key=widget,
        help=help,
        wrap=True,
        persist_state="session",
    )
    found = [value for value in options if value in (chosen or ())]
    keep(key, ",".join(found))
    return found


def pick_row(
    label: str,
    rows: Sequence[RunRow],
    *,
    key: str,
    first: str | None = None,
    none: str | None = None,
    help: str | None = None,
) -> RunRow | None:
    """A menu of runs; with `none`, a first entry that means nobody. None if nobody was chosen."""
    found = {row.id: row for row in rows}
    for row in rows:  # links may name a zoo model as people do
        if st.query_params.get(key) == row.name != row.id:
            st.query_params[key] = row.id
    options = ({NOBODY: none} if none else {}) | {id: row.label for id, row in found.items()}
    return found.get(pick(label, options, key=key, first=first, help=help))


def pick_rows(label: str, rows: Sequence[RunRow], *, key: str, most: int, help: str | None = None) -> list[RunRow]:
    """A menu of any number of runs up to `most`, kept in the address as ids with commas between them."""
    found, widget = {row.id: row for row in rows}, own(key)
    named = {row.name: row.id for row in rows}
    if (asked := changed(key)) is not None:
        given = [named.get(name, name) for name in asked.split(",") if name]
        if unknown := [name for name in given if name not in found]:
            st.warning(
                f"The link names runs that cannot stand here. Given: {formatting.given('', ', '.join(unknown))}. "
                "Choose others."
            )
        st.session_state[widget] = [name for name in given if name in found][:most]
    if not found:  # nothing to choose: no empty menu
        return []
    st.session_state[widget] = [name for name in st.session_state.get(widget, []) if name in found]
    chosen = st.multiselect(
        label,
        list(found),
        format_func=lambda id: found[id].label,
        key=widget,
        max_selections=most,
        placeholder="None",
        help=help,
    )
    keep(key, ",".join(chosen))
    return [found[id] for id in chosen]


def pick_data(store: Store) -> tuple[str, dict[str, Any] | None]:
    """A menu of datasets that also takes a path; returns the source and what is in it, None if nothing was named.

    Raises:
        BadData: the source cannot be used; the message says why.
    """
    used = {row.source: None for row in run_table.rows(store) if row.source}
    kept = {uploading.shown(file): None for file in uploads.kept(store) if str(file) not in used}
    asked = st.query_params.get("data", "")
    options = list({**dict.fromkeys(NAMED), **used, **kept} | ({asked: None} if asked else {}))
    source = st.selectbox(
        "Dataset",
        options,
        key=keys.DATA,
        bind="query-params",
        accept_new_options=True,
        placeholder="A name, or the path of a folder or zip",
        help="A name, or a path: a folder with one sub-folder per class (optionally below train/, val/, test/), "
        "a zip of one, or a folder of IDX files. Type a path and press Enter.",
    )
    source = str(source or "").strip()
    return source, context.read(source) if source else None


def pick_page(pages: int) -> int:
    """The page number of a long list; a filter that leaves fewer pages starts again at the first."""
    widget, asked = own("page"), changed("page")
    if asked is not None and asked.isdecimal() and len(asked) < 9:
        st.session_state[widget] = int(asked)
    if not 1 <= st.session_state.get(widget, 1) <= pages:
        st.session_state[widget] = 1
    if pages < 2:
        return 1
    chosen = int(st.pagination(pages, key=widget))
    keep("page", str(chosen))
    return chosen


def first_page() -> None:
    """Go back to the first page of a long list."""
    st.session_state[own("page")] = 1


def pick_text(label: str, *, key: str, **look: Any) -> str:
    """A line of text kept in the address as `key`, and by the page while the visitor looks at others."""
    widget = own(key)
    if (asked := changed(key)) is not None:
        st.session_state[widget] = asked
    chosen = str(st.text_input(label, key=widget, persist_state="session", **look) or "")
    if chosen:
        keep(key, chosen)
    elif key in st.query_params:
        del st.query_params[key]
    return chosen
