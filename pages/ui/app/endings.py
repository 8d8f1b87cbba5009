"""A message when a run or study that this session opened while it was active ends."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from pages.ui.app import keys
from pages.ui.widgets import formatting, run_table
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import State, Store
from smallalign_core.studies import lifecycle


@dataclass(frozen=True)
class Ending:
    """How a run or study ended: `text` says which and how; `number` counts the messages of the session."""

    text: str
    number: int


def notice(store: Store) -> list[Ending]:
    """What ended since the last call, each with a toast unless its own page is open.

    Whatever is open and active now is watched from now on: a page that starts a run or study opens it.
    """
    watched: dict[str, str] = st.session_state.setdefault(keys.WATCHED, {})
    opened = {kind: st.query_params[kind] for kind in ("run", "study") if kind in st.query_params}
    found = []
    for reference, kind in list(watched.items()):
        if (text := _ended(kind, reference, store)) is None:
            continue
        del watched[reference]
        if text:
            st.session_state[keys.ENDINGS] = number = st.session_state.get(keys.ENDINGS, 0) + 1
            found.append(Ending(text, number))
            if opened.get(kind) != reference:
                st.toast(formatting.plain(text), icon=":material/flag:", duration="long")
    watched |= {name: kind for kind, name in opened.items() if _ended(kind, name, store) is None}
    return found


def _ended(kind: str, reference: str, store: Store) -> str | None:
    """How it ended, empty if it is gone; None while it is active."""
    try:
        if kind == "run":
            row = run_table.row(store.run(reference), store)
            if row.state in (State.QUEUED, State.RUNNING):
                return None
            scored = f", test accuracy {formatting.percent(row.accuracy)}" if row.accuracy is not None else ""
            return f"{row.display_name or row.title.split(' · ')[0]}: {row.state}{scored}"
        study = lifecycle.find(store, reference)
        return None if study.active else f"Study ended: {study.title}"
    except SmallAlignError:
        return ""
