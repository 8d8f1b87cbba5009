"""What is going on in the store: what ended since the last visit, and recent studies and runs with their progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.runs import live
from pages.ui.runs.run_list import PAGES
from pages.ui.security import auth
from pages.ui.widgets import formatting
from smallalign_core.runs import visits
from smallalign_core.runs.store import State, Store
from smallalign_core.runs.table import RunRow
from smallalign_core.studies import membership

LISTED = 6
"""Number of studies and runs, together."""
NEW = 4
"""Number of links to what ended since the last visit."""
FRESH = 200
"""Number of newest runs among which those that ended since are looked for."""


@dataclass(frozen=True)
class Entry:
    """A study, or a run that belongs to none.

    Attributes:
        link: page and its parameter; `detail`: state and result, as Markdown.
        named: whether a person gave it a name.
        progress: 0 to 1 while it is active.
        ended: Unix time; None before that.
    """

    title: str
    link: tuple[str, dict[str, str]]
    icon: str
    detail: str
    created: float
    named: bool = False
    progress: float | None = None
    ended: float | None = None


def draw(store: Store) -> None:
    """The list; it updates by itself while anything in it is active."""
    busy = any(one.progress is not None for one in _entries(store))
    st.fragment(_draw, run_every=context.pace(live.TICK_SECONDS) if busy else None, key="recent")(store)


def _draw(store: Store) -> None:
    with context.show_errors():
        entries = list(_entries(store))
        _news(entries, store)
        st.subheader("Recent studies and runs")
        if not entries:
            st.caption("No runs yet. The demo above starts the first one.")
        # What is active, then what has a name, then the newest.
        entries.sort(key=lambda one: (one.progress is not None, one.named, one.created), reverse=True)
        for one in entries[:LISTED]:
            _line(one)
        if len(entries) > LISTED:
            st.page_link("runs.py", label="All runs", icon=":material/list_alt:")


def _line(one: Entry) -> None:
    page, parameters = one.link
    with st.container(border=True, gap=None):
        st.page_link(page, label=one.title, icon=one.icon, query_params=parameters)
        st.markdown(f"{one.detail} :small[{formatting.ago(one.created)}]")
        if one.progress is not None:
            st.progress(one.progress)


def _news(entries: list[Entry], store: Store) -> None:
    """Links to what ended since the last visit; nothing at the first."""
    if keys.LAST_VISIT not in st.session_state:
        st.session_state[keys.LAST_VISIT] = visits.enter(store, auth.current_user().name)
    last: float | None = st.session_state[keys.LAST_VISIT]
    if last is None:
        return
    new = sorted((one for one in entries if (one.ended or 0) > last), key=lambda one: one.ended or 0, reverse=True)
    if not new:
        return
    with st.container(border=True, key="news", gap="small"):
        st.markdown(f"**New since your last visit**, {formatting.ago(last)}")
        for one in new[:NEW]:
            page, parameters = one.link
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.page_link(page, label=one.title, icon=one.icon, query_params=parameters)
                st.markdown(one.detail)
        if len(new) > NEW:
            st.caption(f"and {len(new) - NEW} more.")


def _entries(store: Store) -> Iterator[Entry]:
    rows = [row for row in membership.rows(store) if not row.in_zoo]
    by_id = {row.id: row for row in rows}
    for study in membership.studies(store):
        if (page := PAGES.get(study.kind)) is not None:
            yield _study(study, page, by_id, store)
    for place, row in enumerate(row for row in rows if not row.study):
        yield _run(row, store, timed=place < FRESH)


def _study(study: membership.Members, page: str, rows: Mapping[str, RunRow], store: Store) -> Entry:
    there = [rows[name] for name in study.runs if name in rows]
    done = [row for row in there if row.finished]
    complete = not study.active and not (store.root / "studies" / study.id / "needs").exists()
    times = [at for row in done if (at := visits.ended(store.by_id(row.name)))] if complete else []
    state = "running" if study.active else "finished" if complete else "paused"
    colour, icon = formatting.STATES[state]
    return Entry(
        study.title,
        (page, {"study": study.id}),
        icon,
        f":{colour}-badge[{state}] :small[{len(done)} of {len(study.runs)} runs ·]",
        study.created,
        named=True,
        progress=len(done) / max(1, len(study.runs)) if study.active else None,
        ended=max(times, default=None),
    )


def _run(row: RunRow, store: Store, *, timed: bool) -> Entry:
    colour, icon = formatting.STATES[row.state]
    scored = f":small[{formatting.percent(row.accuracy)} test accuracy ·]" if row.accuracy is not None else ""
    active = row.state in (State.RUNNING, State.QUEUED)
    return Entry(
        row.called,
        ("runs.py", {"run": row.name}),
        icon,
        f":{colour}-badge[{row.state}] {scored}",
        row.created,
        named=bool(row.display_name),
        progress=row.progress or 0.0 if active else None,
        ended=visits.ended(store.by_id(row.name)) if timed and row.finished else None,
    )
