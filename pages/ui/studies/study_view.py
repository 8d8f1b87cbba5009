"""Shared part of the views of studies: title, actions, live progress; each kind draws its own results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import streamlit as st

from pages.ui.app import context
from pages.ui.runs import live
from pages.ui.studies import study_form, study_list
from pages.ui.studies.study_list import Kind
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Store
from smallalign_core.studies.base import StudyReport
from smallalign_core.studies.lifecycle import Study

Report = TypeVar("Report", bound=StudyReport)


@dataclass(frozen=True)
class Needed:
    """What is expected to decide the open comparisons of a finished study.

    Attributes:
        fields: those of its spec that change.
        words: how much that is, such as "4 seeds".
        runs: how many runs that adds, about.
    """

    fields: Mapping[str, Any]
    words: str
    runs: int


@dataclass(frozen=True)
class View(Generic[Report]):
    """What the views of two kinds of study do not share.

    Attributes:
        size: how much is compared, in a few words.
        address: the URL parameters of the setup form, of a spec.
        extend: draws the fields of a larger study; returns those of its spec that changed, or None if it cannot grow.
        warnings: draws what limits the results, such as diverged runs.
        rounds: grows when there are enough new runs to redraw the results, rather than at each run.
        progress: draws how far it is.
        doing: the current activity, in a sentence; may be empty.
        results: draws the results.
        needed: what would decide the open comparisons; None if nothing is open, or no number of runs is expected to.
    """

    kind: Kind
    size: Callable[[Study, Report], str]
    address: Callable[[Any], dict[str, str]]
    extend: Callable[[Study, Report], Mapping[str, Any] | None]
    warnings: Callable[[Report], None]
    rounds: Callable[[Report], int]
    progress: Callable[[Report], None]
    doing: Callable[[Study, Report, Store], str]
    results: Callable[[Report, Study, Store], None]
    needed: Callable[[Study, Report], Needed | None] = lambda _, __: None

    def show(self, reference: str, store: Store) -> None:
        """The whole view of a study; it updates by itself only while it is active."""
        if (found := study_list.opened(reference, store, self.kind)) is None:
            return
        study, report = found[0], cast("Report", found[1])
        study_list.title(report)
        st.caption(self.size(study, report))
        self._actions(study, report, store)
        study_list.failures(report.failed)
        self.warnings(report)
        if report.active:
            tick = context.pace(2 * live.TICK_SECONDS)
            key = f"{self.kind.name}-live"
            st.fragment(self._live, run_every=tick, key=key)(study, self.rounds(report), store)
        elif not report.complete:
            self.progress(report)
        self.results(report, study, store)

    def _actions(self, study: Study, report: Report, store: Store) -> None:
        with st.container(horizontal=True, vertical_alignment="center"):
            study_list.pause_or_resume(study, report, store)
            if report.complete and (needed := self.needed(study, report)):
                self._add(study, needed, store)
            with st.popover("Extend", icon=":material/add_circle:"):
                self._extend(study, report)
            st.page_link(
                self.kind.page,
                label="Duplicate and edit",
                icon=":material/edit:",
                query_params=self.address(study.spec),
            )
            if not report.active:
                study_list.delete(study, store, self.kind)

    def _add(self, study: Study, needed: Needed, store: Store) -> None:
        """The button that extends the study by what is needed."""
        seconds = study.seconds_a_run(store)
        time = "" if seconds is None else f" (about {formatting.duration(needed.runs * seconds)})"
        if st.button(
            f"Add what is needed{time}",
            type="primary",
            icon=":material/exposure_plus_1:",
            help=f"{needed.words} more, about {needed.runs:,} runs: expected to decide what is inconclusive, from the "
            "spread so far. Finished runs are reused. Intervals are not corrected for extending a study after its "
            "results were seen: decide once how many seeds are enough.",
        ):
            study_form.start(self.kind, study.spec.model_copy(update=needed.fields))

    def _extend(self, study: Study, report: Report) -> None:
        """A larger study; finished runs are reused."""
        st.caption("Adds to this study. Finished runs are reused.")
        if (more := self.extend(study, report)) is None:
            return
        grown = study.spec.model_copy(update=more)
        if st.button("Extend and start", type="primary", disabled=grown == study.spec):
            study_form.start(self.kind, grown)

    def _live(self, study: Study, rounds: int, store: Store) -> None:
        """Progress. When a round or the study ends, the whole page is redrawn, once."""
        with context.show_errors():
            report = cast("Report", study.report(store))
            if not report.active or self.rounds(report) != rounds:
                st.rerun()
            self.progress(report)
            if not context.worker_alive():
                st.caption(
                    "Starting the worker. If it does not start, run "
                    f"`python -m smallalign_core worker --store {store.root}`"
                )
            elif text := self.doing(study, report, store):
                st.caption(text)
