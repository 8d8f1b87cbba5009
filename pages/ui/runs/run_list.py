"""The list of all runs: filter, columns, studies as one row each, selection; it polls while runs are active."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.runs import selection
from pages.ui.widgets import formatting, run_table, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core import search  # noqa: F401  # its import makes searches known to `membership`
from smallalign_core.errors import BadInput
from smallalign_core.runs import query
from smallalign_core.runs.baseline import against
from smallalign_core.runs.store import State, Store
from smallalign_core.studies import membership

TICK_SECONDS = 2
PAGES = {"optimizers": "optimizers.py", "scaling": "scaling.py", "search": "shrink.py"}
"""The page of each kind of study."""
SHOWN: dict[str, tuple[str, Callable[[RunRow], Any]]] = {
    "tags": ("Tags", lambda row: list(row.tags)),
    "data": ("Dataset", lambda row: Path(row.source).name),
    "teacher": ("Teacher", lambda row: row.teacher_name),
    "loss": ("Loss", lambda row: row.loss),
    "optimizer": ("Optimizer", lambda row: row.optimizer),
    "epochs": ("Epochs", lambda row: row.epochs),
    "seed": ("Seed", lambda row: None if row.imported else row.seed),
    "study": ("Study", lambda row: row.study_title),
    "macro": ("Macro recall", lambda row: row.macro),
    "validation": ("Validation accuracy", lambda row: row.validation),
    "time": ("Training time (s)", lambda row: row.seconds),
}
"""Columns to choose from: label, and value of a row."""
FIRST = ("tags", "data", "teacher", "loss", "optimizer", "seed", "study")
EXAMPLE = "cnn state:finished teacher:resnet acc>0.95 -tag:old sort:-acc"
SYNTAX = (
    "All terms must match. A word is searched in name, dataset, teacher, tags and notes. `field:text` contains, "
    "`field=text` equals, `acc>0.95`, `params<50k`, `created>2026-11-30` compare, `-term` excludes, `sort:field` and "
    f"`sort:-field` sort. Fields: {', '.join((*query.TEXT, *query.NUMBERS))}."
)
AGAINST = "Against baseline"
PERCENT = ("Test accuracy", "Macro recall", "Validation accuracy")


@dataclass(frozen=True)
class Line:
    """A row of the table: a run, or the runs of a collapsed study."""

    rows: tuple[RunRow, ...]
    study: str = ""

    @property
    def id(self) -> str:
        """Of the run or, with a mark, of the study."""
        return f"study:{self.study}" if self.study else self.rows[0].name


def show(store: Store) -> None:
    """Draw the list; it polls only while a run or study is active."""
    rows = run_table.rows(store)
    if all(row.in_zoo for row in rows):
        st.info("No runs yet. Start the demo on Home, or configure a run on Distill.")
        with st.container(horizontal=True):
            st.page_link("home.py", label="Run the demo (30 s)", icon=":material/play_arrow:")
            st.page_link("distil.py", label="Configure a run", icon=":material/science:")
    active = any(row.state in (State.QUEUED, State.RUNNING) for row in rows)
    st.fragment(_draw, run_every=context.pace(TICK_SECONDS) if active else None, key="run-list")(store, active)


def _draw(store: Store, was_active: bool) -> None:
    with context.show_errors():
        if opened := st.session_state.pop(keys.RUNS_OPEN, None):
            st.switch_page("runs.py", query_params=opened)
        rows = membership.rows(store)
        active = any(row.state in (State.QUEUED, State.RUNNING) for row in rows)
        if active is not was_active:
            st.rerun()  # polling starts or stops
        selection.undo(store)
        text, found, grouped = _chosen(rows)
        lines, baseline = _lines(found, grouped), _baseline(rows)
        if rows and not lines:
            st.caption("No runs match the filter.")
        if lines:
            _table(lines, baseline, store)
        _caption(lines, found, rows)
        if "study:" in text or "study=" in text:
            _study_links({row.study: row for row in found if row.study}, store)
        if chosen := [
            row for line in lines if line.id in st.session_state.get(keys.RUNS_SELECTED, ()) for row in line.rows
        ]:
            selection.panel(chosen, store)
        selection.trash(store)


def _chosen(rows: Sequence[RunRow]) -> tuple[str, list[RunRow], bool]:
    """The filter's text, the rows that it keeps, and whether studies are collapsed."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="run-filter"):
        text = url_state.pick_text("Filter and sort", key="filter", placeholder=EXAMPLE, help=SYNTAX)
        if any(row.study for row in rows):
            collapsed = url_state.switch("Studies", {"collapsed": "Collapsed", "all": "Expanded"}, key="studies")
        else:
            collapsed = "all"
        with st.popover("Columns", icon=":material/view_column:"):
            _pin(rows)
            options = {name: label for name, (label, _) in SHOWN.items()}
            picked = url_state.pick_some("Columns", options, key="columns", first=FIRST)
            st.caption("A column is hidden where all rows have the same value.")
    st.session_state[url_state.own("columns-shown")] = picked
    try:
        parsed = query.parse(text)
    except BadInput as error:
        st.error(formatting.plain(str(error)), icon=":material/error:")
        return text, [], True
    return text, parsed.select(rows), collapsed == "collapsed" and "study" not in parsed.fields


def _pin(rows: Sequence[RunRow]) -> None:
    """The menu of the baseline, to which the others are compared."""
    finished = {row.name: row.label for row in rows if row.finished and not row.headless and not row.imported}
    if len(finished) > 1:
        url_state.pick(
            "Baseline",
            {url_state.NONE: "None", **finished},
            key="baseline",
            first=url_state.NONE,
            help="Shows by how much the test accuracy of each run differs from this one's, on the same images.",
        )


def _baseline(rows: Sequence[RunRow]) -> RunRow | None:
    named = st.session_state.get(url_state.own("baseline"))
    return next((row for row in rows if row.name == named and row.finished), None)


def _differences(lines: Sequence[Line], pinned: RunRow, store: Store) -> list[str]:
    """The difference of each run to the baseline in words; empty where there is none."""
    rows = [row for line in lines if (row := _single(line))]
    found = against(rows, store.run(pinned.name), store)
    words = {row.name: str(found.get(row.name, "")) for row in rows} | {pinned.name: "baseline"}
    return [words.get(row.name, "") if (row := _single(line)) else "" for line in lines]


def _lines(found: Sequence[RunRow], grouped: bool) -> list[Line]:
    """One line a run; where studies are collapsed one line a study, in the place of its first run."""
    if not grouped:
        return [Line((row,)) for row in found]
    members: dict[str, list[RunRow]] = {}
    for row in found:
        members.setdefault(row.study or row.name, []).append(row)
    return [Line(tuple(rows), rows[0].study) for rows in members.values()]


def _state(line: Line) -> str:
    if not line.study:
        row = line.rows[0]
        return row.state if row.progress is None else f"{row.state} {row.progress:.0%}"
    done = sum(row.finished for row in line.rows)
    running = sum(row.state == State.RUNNING for row in line.rows)
    return f"{done} of {len(line.rows)} done" + (f", {running} running" if running else "")


def _called(line: Line) -> str:
    row = line.rows[0]
    if line.study:
        return f"▸ {row.study_title} ({len(line.rows)} runs)"
    return f"{row.name}: {row.title}" if row.in_zoo else row.called


def _table(lines: Sequence[Line], pinned: RunRow | None, store: Store) -> None:
    ids = [line.id for line in lines]
    # Another listing is another table, so that a selection in one is never read as a row of another.
    key = f"runs-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:12]}"

    def select() -> None:
        """Runs before the page is redrawn: `ids` are still those of the table with the selection."""
        st.session_state[keys.RUNS_SELECTED] = [ids[at] for at in st.session_state[key].selection.rows if at < len(ids)]

    def open_() -> None:
        """As `select`: the row is one of the table that was clicked."""
        if (clicked := st.session_state[f"{key}-open"]) is not None and clicked.row < len(ids):
            line = lines[clicked.row]
            st.session_state[keys.RUNS_OPEN] = {"filter": line.id} if line.study else {"run": line.id}

    data: dict[str, list[Any]] = {
        "State": [_state(line) for line in lines],
        "Run": [_called(line) for line in lines],
        "Test accuracy": [_of(line, lambda row: row.accuracy) for line in lines],
        "95% CI": [formatting.interval(row.low, row.high) if (row := _single(line)) else "" for line in lines],
        **({} if pinned is None else {AGAINST: _differences(lines, pinned, store)}),
        "Parameters": [_of(line, lambda row: row.params) for line in lines],
        **_optional(lines),
        "Created": [run_table.when(line.rows[0]) for line in lines],
    }
    before = st.session_state.get(keys.RUNS_SELECTED, ())
    ticked: Any = {"selection": {"rows": [at for at, id in enumerate(ids) if id in before]}}
    look: dict[str, Any] = {
        "State": st.column_config.TextColumn(width=105),
        "Run": st.column_config.ButtonColumn(
            width=370, type="tertiary", alignment="left", on_click=open_, key=f"{key}-open"
        ),
        "95% CI": st.column_config.TextColumn(width=125),
        AGAINST: st.column_config.TextColumn(
            width=170,
            help="Percentage points of test accuracy, with the paired 95% interval (Bonett & Price, 2012). An interval "
            "around 0 is undecided. Empty where the test images differ.",
        ),
        "Parameters": st.column_config.NumberColumn(format="localized", width=100),
        "Created": st.column_config.DatetimeColumn(format="distance", width=115),
        "Tags": st.column_config.ListColumn(width=120),
        "Training time (s)": st.column_config.NumberColumn(format="%.0f"),
    } | {name: st.column_config.NumberColumn(format="percent", width=110) for name in PERCENT}
    st.dataframe(
        data,
        column_config=look,
        hide_index=True,
        on_select=select,
        selection_mode="multi-row",
        selection_default=ticked,
        key=key,
        lazy=False,
        placeholder="–",
        height=min(38 + 35 * len(lines), 620),
        alt="All runs with state, accuracy and size.",
    )


def _single(line: Line) -> RunRow | None:
    return None if line.study else line.rows[0]


def _of(line: Line, value: Callable[[RunRow], Any]) -> Any:
    """A value of a run, or the one that all runs of a study have."""
    found = [value(row) for row in line.rows]
    return found[0] if all(one == found[0] for one in found) else None


def _optional(lines: Sequence[Line]) -> dict[str, list[Any]]:
    """The chosen columns that differ between rows."""
    every = [row for line in lines for row in line.rows]
    found = {}
    for name in st.session_state.get(url_state.own("columns-shown"), FIRST):
        label, value = SHOWN[name]
        if any(one != other for one, other in itertools.pairwise(map(value, every))):
            found[label] = [_of(line, value) for line in lines]
    return found


def _caption(lines: Sequence[Line], found: Sequence[RunRow], rows: Sequence[RunRow]) -> None:
    studies = sum(bool(line.study) for line in lines)
    collapsed = f" {studies} collapsed stud{'y' if studies == 1 else 'ies'}: open one by its name." if studies else ""
    if lines:
        st.caption(
            f"{len(found)} of {len(rows)} runs and zoo models.{collapsed} A click on a name opens the run; tick rows "
            "to compare, tag, export or delete them."
        )


def _study_links(found: Mapping[str, RunRow], store: Store) -> None:
    """Links to the pages of studies that the filter names."""
    kinds = {study.id: study.kind for study in membership.studies(store)}
    for id, row in list(found.items())[:4]:
        if kinds.get(id) in PAGES:
            label = f"Open study: {formatting.plain(row.study_title)}"
            st.page_link(PAGES[kinds[id]], label=label, icon=":material/open_in_new:", query_params={"study": id})
