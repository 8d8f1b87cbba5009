"""The status strip at the bottom of every page: current run, queue, worker state, and free disk space."""

from __future__ import annotations

import shutil

import streamlit as st

from pages.ui import browser
from pages.ui.app import context, endings, keys, titles
from pages.ui.widgets import formatting, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.runs.store import State, Store
from smallalign_core.studies import lifecycle

TICK_SECONDS = 2
LITTLE_ROOM = 2e9


def strip() -> None:
    """Draw the strip; it updates by itself only while a run or a study is active."""
    store = context.store()
    active = _active(store)
    with st.bottom:
        st.fragment(_draw, run_every=context.pace(TICK_SECONDS) if active else None, key="status")(store, active)


def _active(store: Store) -> bool:
    """Whether anything is running or queued; a study in its LR range tests has no run in the queue."""
    busy = any(row.state in (State.RUNNING, State.QUEUED) for row in run_table.rows(store))
    return busy or lifecycle.any_active(store)


def _draw(store: Store, was_active: bool) -> None:
    if was_active and not _active(store):
        st.rerun()  # the page has something new to show, and the strip stops updating
    ended = endings.notice(store)
    rows = run_table.rows(store)
    running = [row for row in rows if row.state == State.RUNNING]
    titles.progress(running[0].progress if running else None)
    waiting = sum(row.state == State.QUEUED for row in rows)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="status-strip"):
        for row in running[:1]:
            label = _progress(row, store)
            st.page_link("runs.py", label=label, icon=":material/play_circle:", query_params={"run": row.name})
        if not running:
            _show("Idle" if not waiting else "Starting")
        _show(f"{waiting} queued" if waiting else "Queue empty")
        _show(_workers(store.workers(), busy=bool(running), waiting=bool(waiting)))
        there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
        free = shutil.disk_usage(there).free
        _show(
            f"{formatting.size(free)} free"
            if free > LITTLE_ROOM
            else f":red[Low disk space: {formatting.size(free)} free]"
        )
        browser.frame(_spoken(rows, running), [(one.number, one.text) for one in ended])


def _spoken(rows: list[RunRow], running: list[RunRow]) -> str:
    """What screen readers announce when it changes: progress in tenths, then how the run ended."""
    last = st.session_state.get(keys.SPOKEN_OF)
    if running:
        st.session_state[keys.SPOKEN_OF] = running[0].name
        return f"{running[0].called}: {int(10 * (running[0].progress or 0)) * 10}%"
    ended = next((row for row in rows if row.name == last), None)
    if ended is None:
        return ""
    scored = f", test accuracy {formatting.percent(ended.accuracy)}" if ended.accuracy is not None else ""
    return f"{ended.called}: {ended.state}{scored}"


def _workers(devices: list[str], *, busy: bool, waiting: bool) -> str:
    """Whether workers serve the store; several of them with their devices."""
    if not devices:
        return ":orange[●] Worker starting" if waiting else ":gray[●] No worker"
    if len(devices) > 1:
        return f":green[●] {len(devices)} workers: {', '.join(devices)}"
    return ":green[●] Worker busy" if busy else ":green[●] Worker ready"


def _show(text: str) -> None:
    st.caption(text, width="content")


def _progress(row: RunRow, store: Store) -> str:
    name = row.title.split(" · ")[0]
    events = store.by_id(row.name).events("progress")
    if not events:
        return f"{name}: loading"
    last = events[-1]
    return f"{name}: {last['step'] / last['steps']:.0%}, {formatting.duration(last['eta'])} left"
