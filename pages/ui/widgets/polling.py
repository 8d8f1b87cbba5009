"""Long work of the backend, in short steps: a click on the page interrupts the wait and never the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import streamlit as st

from pages.ui.app import context
from smallalign_core.service.wire import LongRequest, Progress

PATIENCE = 0.4
"""Seconds that the backend works before it answers how far it is."""
TICK_SECONDS = 0.6
"""Interval of `watch`."""
SOON = 3
"""An estimate of fewer seconds is not worth showing."""
Found = TypeVar("Found")
R = TypeVar("R")


class Place(Protocol):
    """What of `st.empty()` is used here."""

    def progress(self, value: float, text: str) -> Any: ...
    def empty(self) -> Any: ...


class Unfinished(Exception):
    """The work is not finished, or not started. Streamlit's caches do not keep what is raised."""

    def __init__(self, answer: Progress[object]) -> None:
        self.answer = answer


def step(request: LongRequest[Progress[R]]) -> R:
    """The report of the backend's answer; repeated, it goes on where it was.

    Raises:
        Unfinished: it has none yet.
    """
    answer = context.client().call(replace(request, patience=PATIENCE))
    if answer.report is None:
        raise Unfinished(answer)
    return answer.report


def wait(
    take: Callable[[], Found],
    saying: str | Callable[[float], str],
    *,
    place: Place | None = None,
    started: Callable[[Progress[object]], bool] = lambda _: True,
) -> Found:
    """What `take` returns, once it does, with a bar and about how long it still takes until then.

    Args:
        take: calls `step`, directly or below a cache.
        saying: what is being done; or a function of the finished share.
        place: where the bar is drawn, and left to the caller; without it, where the page is, until it is finished.
        started: whether the work goes on by itself; if not, `Unfinished` is the caller's.
    """
    began = time.monotonic()
    bar: Place = st.empty() if place is None else place
    while True:
        try:
            found = take()
        except Unfinished as so_far:
            if not started(so_far.answer):
                raise
            done, spent = so_far.answer.done, time.monotonic() - began
            left = spent / done - spent if done > 0.05 else 0.0
            about = f", about {left:.0f} s left" if left > SOON else ""
            bar.progress(done, f"{saying if isinstance(saying, str) else saying(done)}: {done:.0%}{about}")
            continue
        if place is None:
            bar.empty()
        return found


def watch(take: Callable[[], object], saying: str, *, key: str) -> None:
    """A bar while `take`, as for `wait`, is unfinished; then the page reruns.

    One step a tick: between two, everything else on the page that updates by itself does.
    """
    st.fragment(_tick, run_every=TICK_SECONDS, key=key)(take, saying)


def _tick(take: Callable[[], object], saying: str) -> None:
    with context.show_errors():
        try:
            take()
        except Unfinished as so_far:
            st.progress(so_far.answer.done, f"{saying}: {so_far.answer.done:.0%}")
        else:
            st.rerun()
