"""Widgets with their state in the URL: a pasted link or a reload restores the same view."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.data import uploading
from pages.ui.widgets import formatting, forms, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.data import NAMED
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import DatasetFacts
from smallalign_core.spec import DataSpec, parse_data

LATE = 5.0
"""Seconds during which a click may still come with an address that the page has replaced since: the browser sends its
address with each click, and gets a new one only with the answer. Such a value is no link."""
NONE = "none"
"""URL value of a run menu with no run selected."""


def on_page(name: str) -> None:
    """Give widgets drawn from now on the keys of the page `name`; the frame calls it."""
    st.session_state[keys.PAGE] = name


def own(key: str) -> str:
    """`key` in the session of this page alone.

    Two pages with the same URL parameter must not share its value: an option of one (such as the error of a scaling
    study) need not be an option of the other.
    """
    return f"{st.session_state.get(keys.PAGE, '')}/{key}"


def kept(key: str, options: Mapping[str, Any], first: str) -> str:
    """The value of a menu of this page that is drawn elsewhere, or later; `first` if it is not among `options`."""
    chosen = st.session_state.get(own(key))
    return str(chosen) if chosen in options else first


def pick(label: str, options: Mapping[str, str], *, key: str, first: str | None = None, help: str | None = None) -> str:
    """A menu of `options` (value to text) kept in the URL as `key`.

    Streamlit's own binding writes the displayed text into the URL; a link should hold the id. The page keeps a value of
    the URL that is no option until another one is chosen: a run that a link refers to may be there a moment later. For
    the same reason `NONE` is not kept where it is only for lack of a `first`, which is taken as soon as there is one.
    """
    widget, lacking = own(key), own(f"{key}-lacking")
    linked = changed(key)
    if (named := _named(linked, options)) is not None:
        st.session_state[widget] = named
    elif linked is not None:
        st.warning(
            f"Invalid link parameter: no such option. Given: {formatting.given(key, linked)}. Choose an option below."
        )
    elif st.session_state.get(lacking) and first in options:
        st.session_state[widget] = first
    if first in options:
        st.session_state.pop(lacking, None)
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = first if first in options else next(iter(options))
        if st.session_state[widget] == NONE != first:
            st.session_state[lacking] = True
    chosen = st.selectbox(
        label,
        list(options),
        index=list(options).index(st.session_state[widget]),
        format_func=lambda value: options[value],
        key=widget,
        help=help,
        on_change=_choose,
        args=(key,),
    )
    if (linked is None or named is not None) and not st.session_state.get(lacking):
        keep(key, chosen)
    return str(chosen)


def _choose(key: str) -> None:
    """Keep what the user chose in a menu; a callback."""
    st.session_state.pop(own(f"{key}-lacking"), None)
    keep(key, st.session_state[own(key)])


def _named(linked: str | None, options: Mapping[str, str]) -> str | None:
    """The option that a URL parameter refers to: by value, or by text, as in older links."""
    return linked if linked in options else next((value for value, text in options.items() if text == linked), None)


def changed(key: str) -> str | None:
    """The URL parameter `key` if the page did not write it itself: a link, a reload, or browser history."""
    linked = st.query_params.get(key)
    if linked == st.session_state.get(own(f"{key}-seen")):
        return None
    now = time.monotonic()
    late = any(value == linked and now - when < LATE for value, when in st.session_state.get(own(f"{key}-before"), ()))
    return None if late else linked


def keep(key: str, chosen: str) -> None:
    """Write a value into the URL, and remember that the page did."""
    seen, before = own(f"{key}-seen"), own(f"{key}-before")
    if (last := st.session_state.get(seen)) != chosen:
        st.session_state[before] = [*st.session_state.get(before, [])[-7:], (last, time.monotonic())]
    st.session_state[seen] = chosen
    st.query_params[key] = chosen


def tabs(names: Sequence[str], *, key: str) -> dict[str, Any]:
    """Tabs by name, the open one kept in the URL; a link with no valid tab opens the first."""
    widget, linked = own(key), changed(key)
    if linked in names:
        st.session_state[widget] = linked
    if st.session_state.get(widget) not in names:
        st.session_state[widget] = names[0]
    # No default: for Streamlit, tabs with another default are other tabs, and a second click on the first is lost.
    found = dict(zip(names, st.tabs(list(names), key=widget, on_change="rerun"), strict=True))
    keep(key, next((name for name, tab in found.items() if tab.open), names[0]))
    return found


def switch(label: str, options: dict[str, str], *, key: str) -> str:
    """A segmented control, kept in the URL."""
    widget = own(key)
    if (named := _named(changed(key), options)) is not None:
        st.session_state[widget] = named
    if st.session_state.get(widget) not in options:
        st.session_state[widget] = next(iter(options))
    chosen = st.segmented_control(
        label,
        list(options),
        default=st.session_state[widget],
        required=True,
        format_func=options.__getitem__,
        key=widget,
        persist_state="session",
    )
    keep(key, str(chosen))
    return str(chosen)


def pick_number(
    draw: Callable[..., Any],
    label: str,
    low: float,
    high: float,
    step: float,
    *,
    key: str,
    first: float | None,
    empty: str | None = None,
    **look: Any,
) -> Any:
    """A number kept in the URL as `key`; an out-of-range value in a link gives a warning.

    Args:
        draw: `st.slider` or `st.number_input`. Ints give whole numbers, floats any.
        empty: what the field shows where it may be left empty, which gives None.
    """
    widget, cast = own(key), type(step)
    look |= {"placeholder": empty} if empty else {}
    if (linked := changed(key)) is not None:
        try:
            if linked == "" and empty:
                given = None
            elif not low <= (given := cast(linked)) <= high:
                raise ValueError
            st.session_state[widget] = given
        except ValueError:
            st.warning(
                f"Invalid link parameter. Given: {formatting.given(key, linked)}. "
                f"Use a number between {low:g} and {high:g}."
            )
    held = st.session_state.get(widget, ...)
    if not (low <= held <= high if isinstance(held, int | float) else held is None and empty):
        st.session_state[widget] = first
    chosen = draw(label, low, high, st.session_state[widget], step, key=widget, persist_state="session", **look)
    keep(key, "" if chosen is None else f"{chosen:g}" if cast is float else str(chosen))
    return chosen


def pick_some(
    label: str, options: Mapping[str, str], *, key: str, first: Sequence[str], help: str | None = None
) -> list[str]:
    """Some of `options` (value to text), kept in the URL as `key`: their values, joined by commas."""
    widget = own(key)
    if (linked := changed(key)) is not None:
        given = [value for value in linked.split(",") if value]
        if all(value in options for value in given):
            st.session_state[widget] = given
        else:
            st.warning(
                f"Invalid link parameter: no such option. Given: {formatting.given(key, linked)}. Choose options below."
            )
    held = st.session_state.setdefault(widget, list(first))
    if any(value not in options for value in held or ()):  # of other options, which the page offered before
        st.session_state[widget] = [value for value in held if value in options]
    chosen = st.pills(
        label,
        list(options),
        selection_mode="multi",
        default=st.session_state[widget],
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
    """A menu of runs; with `none`, a first entry for no run. None if no run is selected."""
    found = {row.id: row for row in rows}
    for row in rows:  # links may hold the name of a zoo model
        if st.query_params.get(key) == row.name != row.id:
            st.query_params[key] = row.id
    options = ({NONE: none} if none else {}) | {id: row.label for id, row in found.items()}
    return found.get(pick(label, options, key=key, first=first, help=help))


def pick_rows(label: str, rows: Sequence[RunRow], *, key: str, most: int, help: str | None = None) -> list[RunRow]:
    """A menu of any number of runs up to `most`, kept in the URL as comma-separated ids."""
    found, widget = {row.id: row for row in rows}, own(key)
    named = {row.name: row.id for row in rows}
    if (linked := changed(key)) is not None:
        given = [named.get(name, name) for name in linked.split(",") if name]
        if unknown := [name for name in given if name not in found]:
            st.warning(
                f"Invalid link parameter: no comparable runs. Given: {formatting.given('', ', '.join(unknown))}. "
                "Choose other runs."
            )
        st.session_state[widget] = [name for name in given if name in found][:most]
    if not found:  # nothing to choose: no empty menu
        return []
    st.session_state[widget] = [name for name in st.session_state.get(widget, []) if name in found]
    chosen = st.multiselect(
        label,
        list(found),
        default=st.session_state[widget],
        format_func=lambda id: found[id].label,
        key=widget,
        max_selections=most,
        placeholder="None",
        help=help,
    )
    keep(key, ",".join(chosen))
    return [found[id] for id in chosen]


def pick_data(store: Store) -> tuple[str, DatasetFacts | None]:
    """A menu of datasets that also takes a path; returns the source and its summary, None without a selection.

    Raises:
        BadData: the source cannot be used; the message gives the reason.
    """
    used = {row.source: None for row in run_table.rows(store) if row.source}
    kept = {uploading.shown(file): None for file in uploads.kept(store) if str(file) not in used}
    others = {str(one): None for one in (st.query_params.get("data"), st.session_state.get(keys.DATA)) if one}
    options = list({**dict.fromkeys(NAMED), **used, **kept, **others})
    source = st.selectbox(
        "Dataset",
        options,
        key=keys.DATA,
        bind="query-params",
        accept_new_options=True,
        placeholder="Name, or path of a folder, zip or table",
        help="A name, or a path: a folder with one sub-folder per class (optionally under train/, val/, test/), "
        "a zip of such a folder, a table of labels (CSV, TSV, JSON Lines, Parquet, Arrow) with paths relative to it, "
        "or a folder of IDX files; or hf://owner/name. Enter a path and press Enter.",
    )
    source = str(source or "").strip()
    if not source:
        return source, None
    return source, context.read(parse_data({"source": source, **_reading(source)}))


READING = ("columns", "levels")
"""Fields of `data` that say how a source is read."""


def _reading(source: str) -> dict[str, Any]:
    """The entered fields of `READING`; they are cleared for another source."""
    if source in NAMED:
        return {}
    if st.session_state.get(keys.READ_SOURCE) not in (None, source):
        read_as(DataSpec(source=source))
    st.session_state[keys.READ_SOURCE] = source
    with st.popover("Labels", icon=":material/table:"):
        st.caption("Columns of a table of labels by their names, and levels of class folders. Empty: guessed.")
        return forms.part(DataSpec, key=keys.READING, only=READING)


def read_as(spec: DataSpec) -> None:
    """Fill the fields of `READING` from a spec before they are drawn."""
    st.session_state[keys.READ_SOURCE] = spec.source
    forms.fill(spec.model_dump(mode="json", include=set(READING)), key=keys.READING)


def pick_page(pages: int) -> int:
    """The page number of a long list; a filter that leaves fewer pages returns to the first."""
    widget, linked = own("page"), changed("page")
    if linked is not None and linked.isdecimal() and len(linked) < 9:
        st.session_state[widget] = int(linked)
    if not 1 <= st.session_state.get(widget, 1) <= pages:
        st.session_state[widget] = 1
    if pages < 2:
        return 1
    chosen = int(st.pagination(pages, default=st.session_state.get(widget, 1), key=widget))
    keep("page", str(chosen))
    return chosen


def first_page() -> None:
    """Go back to the first page of a long list."""
    st.session_state[own("page")] = 1


def clear(key: str) -> None:
    """Empty the line of text `key` before it is drawn."""
    st.session_state[own(key)] = ""
    st.query_params.pop(key, None)


def pick_text(label: str, *, key: str, **look: Any) -> str:
    """A line of text kept in the URL as `key`, and by the page while other pages are open."""
    widget = own(key)
    if (linked := changed(key)) is not None:
        st.session_state[widget] = linked
    held = st.session_state.get(widget, "")
    chosen = str(st.text_input(label, held, key=widget, persist_state="session", **look) or "")
    if chosen:
        keep(key, chosen)
    elif key in st.query_params:
        del st.query_params[key]
    return chosen
