"""The title of the browser's tab: the progress of the run in training, the page or run, and the product."""

from __future__ import annotations

import streamlit as st

from pages.ui.app import keys

PRODUCT = "SmallAlign"


def name(text: str) -> None:
    """Set what the page shows."""
    st.session_state[keys.TITLE] = text
    _show()


def progress(share: float | None) -> None:
    """Set the progress (0 to 1) of the run in training; None without one."""
    st.session_state[keys.TITLE_PROGRESS] = share
    _show()


def _show() -> None:
    share, text = st.session_state.get(keys.TITLE_PROGRESS), st.session_state.get(keys.TITLE, "")
    parts = [f"({share:.0%})"] if share is not None else []
    st.set_page_config(page_title=" ".join([*parts, f"{text} · {PRODUCT}" if text else PRODUCT]))
