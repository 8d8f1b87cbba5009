"""All of it in one file for a colleague: made in short steps, then downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from pages.ui.app import keys
from pages.ui.compare import Sides, wanted
from pages.ui.widgets import formatting, polling


def panel(sides: Sides, limits: dict[str, Any]) -> None:
    """A button that makes the report, and two that download it."""
    asked = f"{sides.key} {limits}"
    about = (
        "One HTML file that opens in any browser, without SmallAlign, network or scripts, in light and dark, and can "
        "be printed; and the same as JSON. It holds all that these tabs show but your own image: robustness and "
        "latency are measured now if they were not before."
    )
    if not wanted("report-wanted", asked, "Make the report", about, icon=":material/description:"):
        return
    files = _files(asked, sides, limits)
    with st.container(horizontal=True):
        for file, kind, mime, look in zip(
            files, ("HTML", "JSON"), ("text/html", "application/json"), ("primary", "secondary"), strict=True
        ):
            st.download_button(
                f"Download {kind}, {formatting.size(file.stat().st_size)}",
                file.read_bytes,
                file_name=f"{sides.names[1]}-against-{sides.names[0]}{file.suffix}",
                mime=mime,
                icon=":material/download:",
                type=look,  # type: ignore[arg-type]
                on_click="ignore",
            )
    names = " ".join(run.name for run in sides.runs)
    st.caption("The same from the command line:")
    st.code(
        f"python -m smallalign_core compare {names} --split {sides.split} --report comparison.html",
        language="bash",
        wrap_lines=True,
    )


def _files(asked: str, sides: Sides, limits: dict[str, Any]) -> list[Path]:
    """The report's files; made once a session, or again if the cache was emptied."""
    known: dict[str, Any] = st.session_state.get(keys.REPORT_FILES, {})
    files = [Path(name) for name in known.get(asked, [])]
    if not files or not all(file.is_file() for file in files):
        held = polling.wait(
            lambda: polling.step("report", runs=list(sides.ids), split=sides.split, limits=limits), "Making the report"
        )
        st.session_state[keys.REPORT_FILES] = {asked: held["files"]}
        files = [Path(name) for name in held["files"]]
    return files
