"""The comparison as one HTML or JSON file: made in short steps, then downloaded."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.ui.app import keys
from pages.ui.compare import Sides, wanted
from pages.ui.widgets import formatting, polling
from smallalign_core.analysis.pareto import Limits
from smallalign_core.service.requests import WriteReport


def panel(sides: Sides, limits: Limits) -> None:
    """A button that creates the report, and two that download it."""
    content = f"{sides.key} {limits}"
    about = (
        "A self-contained, printable HTML file (no scripts, no network access), and the same data as JSON. It covers "
        "all tabs except Your image; robustness and latency are measured now if they have not been before."
    )
    if not wanted("report-wanted", content, "Create report", about, icon=":material/description:"):
        return
    files = _files(content, sides, limits)
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
    st.caption("Equivalent command line:")
    st.code(
        f"python -m smallalign_core compare {names} --split {sides.split} --report comparison.html",
        language="bash",
        wrap_lines=True,
    )


def _files(content: str, sides: Sides, limits: Limits) -> list[Path]:
    """The report's files; made once per session, or again if the cache was cleared."""
    known: dict[str, tuple[str, ...]] = st.session_state.get(keys.REPORT_FILES, {})
    files = [Path(name) for name in known.get(content, [])]
    if not files or not all(file.is_file() for file in files):
        held = polling.wait(lambda: polling.step(WriteReport(sides.ids, sides.split, limits)), "Creating report")
        st.session_state[keys.REPORT_FILES] = {content: held.files}
        files = [Path(name) for name in held.files]
    return files
