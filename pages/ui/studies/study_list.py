"""Shared parts of the study pages: the list, opening, pausing, resuming and deleting a study."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from pages.ui.app import titles
from pages.ui.widgets import formatting
from smallalign_core.errors import SmallAlignError, UnknownRun
from smallalign_core.runs.store import Store
from smallalign_core.search import KIND as SEARCH  # noqa: F401  # its import makes searches known to `lifecycle`
from smallalign_core.studies import lifecycle
from smallalign_core.studies.base import StudyReport
from smallalign_core.studies.lifecycle import Study, StudySummary

LISTED = 4
"""Number of studies listed before the rest is collapsed."""
SHOWN = 5
"""Number of distinct failure reasons shown."""
STATES = {name: formatting.STATES[name] for name in ("finished", "running", "paused", "failed")}


@dataclass(frozen=True)
class Kind:
    """A kind of study: the page that shows it, the command that runs it, the label of the button that starts one."""

    name: str
    page: str
    icon: str
    verb: str
    start: str = "Start study"


def listing(store: Store, kind: Kind) -> None:
    """The studies of this store, newest first, each a link."""
    lines = [lifecycle.summary(study, store) for study in lifecycle.listing(store)]
    lines = [line for line in lines if line.kind in (kind.name, None)]
    if not lines:
        st.caption(f"No studies yet. **{kind.start}** runs the defaults below.")
        return
    _lines(lines[:LISTED], kind)
    if len(lines) > LISTED:
        with st.expander(f"{len(lines) - LISTED} older stud{'y' if len(lines) == LISTED + 1 else 'ies'}"):
            _lines(lines[LISTED:], kind)


def _lines(lines: list[StudySummary], kind: Kind) -> None:
    for line in lines:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            lost = line.kind is None
            label = f"{'Damaged' if lost else line.title} · {line.id[:6]}"
            icon = ":material/broken_image:" if lost else ":material/play_circle:" if line.active else kind.icon
            st.page_link(kind.page, label=label, icon=icon, query_params={"study": line.id})
            if lost:
                st.caption(f":red[{formatting.plain(line.title)}]")
                continue
            state = "running" if line.active else "done" if line.done == line.known else "paused"
            st.caption(f"{state}, {line.done} of {line.known} runs · {formatting.ago(line.created)}")


def opened(reference: str, store: Store, kind: Kind) -> tuple[Study, StudyReport] | None:
    """The study of that id and its report; None after an error message."""
    if st.button("All studies", icon=":material/arrow_back:", type="tertiary"):
        st.query_params.clear()
        st.rerun()
    try:
        study = lifecycle.find(store, reference)
    except UnknownRun as error:
        st.error(formatting.plain(str(error)))
        return None
    try:
        return study, study.report(store)
    except SmallAlignError as error:
        st.error(formatting.plain(str(error)), icon=":material/broken_image:")
        delete(study, store, kind)
        return None


def state_of(report: StudyReport) -> str:
    """One of `STATES`."""
    if report.active:
        return "running"
    if report.complete:
        return "finished"
    return "failed" if report.failed else "paused"


def title(report: StudyReport) -> None:
    """The title of the study, and its state."""
    state = state_of(report)
    titles.name(report.title)
    colour, icon = STATES[state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(formatting.plain(report.title), anchor=False, width="content")
        st.badge(state, icon=icon, color=colour)


def pause_or_resume(study: Study, report: StudyReport, store: Store) -> None:
    """The button that pauses or resumes it."""
    if report.active:
        if st.button("Pause", icon=":material/pause:", help="Each run keeps its checkpoint; no progress is lost."):
            lifecycle.pause(store, study)
            st.rerun()
    elif not report.complete:
        word = "Retry" if state_of(report) == "failed" else "Resume"
        if st.button(word, icon=":material/play_arrow:", type="primary"):
            lifecycle.start(store, study)
            st.rerun()


def delete(study: Study, store: Store, kind: Kind) -> None:
    """Delete it, after confirmation."""
    with st.popover("Delete", icon=":material/delete:"):
        st.write("Delete this study? Its runs are kept unless selected below.")
        runs = st.toggle(
            "Also delete its runs", key="delete-runs", help="Except runs that other studies or students need."
        )
        if st.button("Delete permanently", type="primary"):
            lifecycle.delete(store, study, runs=runs)
            st.switch_page(kind.page)


def failures(failed: tuple[str, ...]) -> None:
    """Failed runs, grouped by reason, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for line in failed:
        which, _, why = line.partition(": ")
        known = why and "(given" not in which  # a failure of the whole study has no run
        reasons.setdefault(why if known else line, []).append(which if known else "")
    for why, runs in sorted(reasons.items(), key=lambda one: -len(one[1]))[:SHOWN]:
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        st.error(f"Run failed: {runs[0]}{more}: {why}" if runs[0] else why, icon=":material/error:")
    if len(reasons) > SHOWN:
        st.caption(f"{len(reasons) - SHOWN} more failure reasons.")
