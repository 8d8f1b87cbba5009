"""The strip at the foot of every page: what is being trained, what waits, whether anybody works, and the room left."""

from __future__ import annotations

import shutil

import streamlit as st

from pages.ui import backstage, wording
from smallalign_core.spec import title
from smallalign_core.store import Run, State, Store

TICK_SECONDS = 2
LITTLE_ROOM = 2e9


def strip() -> None:
    """Draw the strip; it moves by itself only while a run is active."""
    store = backstage.store()
    active = [run for run in store.runs() if run.state.active]
    with st.bottom, backstage.told():
        st.fragment(_draw, run_every=TICK_SECONDS if active else None, key="status")(store, bool(active))


def _draw(store: Store, was_active: bool) -> None:
    runs = [(run, run.state) for run in store.runs()]
    running = [run for run, state in runs if state is State.RUNNING]
    waiting = sum(state is State.QUEUED for _, state in runs)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="status-strip"):
        for run in running[:1]:
            st.page_link("runs.py", label=_progress(run), icon=":material/play_circle:", query_params={"run": run.id})
        if not running:
            st.caption("No run is being trained" if not waiting else "The next run is about to start", width="content")
        st.caption(f"{waiting} waiting" if waiting else "Queue empty", width="content")
        if backstage.worker_alive():
            st.caption(":green[●] Worker ready" if not running else ":green[●] Worker busy", width="content")
        else:
            st.caption(":orange[●] Worker starting" if waiting or running else ":gray[●] No worker", width="content")
        free = shutil.disk_usage(
            next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
        ).free
        st.caption(
            f"{wording.size(free)} free" if free > LITTLE_ROOM else f":red[Only {wording.size(free)} free on the disk]",
            width="content",
        )
    if was_active and not running and not waiting:
        st.rerun()  # the page around the strip has something new to show, and the strip may rest


def _progress(run: Run) -> str:
    events = run.events("progress")
    name = title(run.spec).split(" · ")[0]
    if not events:
        return f"{name}: loading"
    last = events[-1]
    return f"{name}: {last['step'] / last['steps']:.0%}, {wording.duration(last['eta'])} left"
