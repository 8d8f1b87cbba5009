"""What can be done with the selected runs of the list, and with deleted ones."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.browser import Curve, curves, smoothing
from pages.ui.runs import notes_form
from pages.ui.widgets import formatting, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs import spec_diff
from smallalign_core.runs.store import Run, Store
from smallalign_core.studies import lifecycle

CURVES = 10
"""Most runs in one chart."""
LISTED = 20
"""Most deleted runs that are listed."""
ALSO = 8
"""Most runs that Compare shows beside the first two."""
COLUMNS = (
    *("id", "name", "display_name", "state", "title", "source", "network", "teacher_name", "loss", "optimizer"),
    *("epochs", "seed", "study", "accuracy", "low", "high", "macro", "validation", "params", "seconds", "notes"),
)
"""Fields of a row in the CSV file; its tags follow."""


def panel(rows: Sequence[RunRow], store: Store) -> None:
    """Actions on the selected runs, their curves, and the differences of their specs."""
    with st.container(border=True, key="run-selection"):
        st.markdown(f"**{len(rows)} run{'s' if len(rows) > 1 else ''} selected**")
        with st.container(horizontal=True, vertical_alignment="center"):
            _links(rows)
            st.download_button(
                "Download CSV",
                functools.partial(_csv, tuple(rows)),
                "runs.csv",
                "text/csv",
                icon=":material/download:",
                on_click="ignore",
            )
            own = [row for row in rows if not row.in_zoo]
            if own:
                _tags(own, store)
                _delete(own, store)
        if len(rows) == 1 and own:
            notes_form.show(store.by_id(own[0].name), store, key="selected")
        _curves(rows, store)
        _differences(rows, store)


def _links(rows: Sequence[RunRow]) -> None:
    """To the pages for one run, or for several."""
    first, ids = rows[0], [row.id for row in rows]
    classes = {tuple(sorted(row.classes)) for row in rows}
    if len(rows) == 1:
        st.page_link("runs.py", label="Open", icon=":material/open_in_full:", query_params={"run": first.name})
        if first.finished and not first.imported and not first.headless:
            st.page_link("export.py", label="Export", icon=":material/deployed_code:", query_params={"run": first.id})
    elif all(row.finished and not row.headless for row in rows) and len(classes) == 1 and len(rows) <= ALSO + 2:
        teacher = next((row for row in rows if row.id in {one.teacher for one in rows}), None)
        teacher = teacher or max(rows, key=lambda row: row.params or 0)
        others = [id for id in ids if id != teacher.id]
        parameters = {"teacher": teacher.id, "student": others[0]}
        parameters |= {"also": ",".join(others[1:])} if others[1:] else {}
        st.page_link("compare.py", label="Compare", icon=":material/compare:", query_params=parameters)


def _csv(rows: Sequence[RunRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, "tags"])
    for row in rows:
        writer.writerow([*(_cell(getattr(row, name)) for name in COLUMNS), " ".join(row.tags)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value for a spreadsheet: text that one would compute as a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _tags(rows: Sequence[RunRow], store: Store) -> None:
    held = sorted({tag for row in rows for tag in row.tags})
    every = sorted({tag for row in run_table.rows(store) for tag in row.tags})
    with st.popover("Tag", icon=":material/sell:"), st.form("tag-runs", border=False, clear_on_submit=True):
        add = st.multiselect("Add tags", every, accept_new_options=True, placeholder="Choose or type")
        remove = st.multiselect("Remove tags", held, placeholder="None")
        if st.form_submit_button("Apply", type="primary"):
            with context.show_errors():
                store.annotate([row.name for row in rows], tag=[tag.strip() for tag in add], untag=remove)
                st.rerun()


def _delete(rows: Sequence[RunRow], store: Store) -> None:
    with st.popover("Delete", icon=":material/delete:"):
        many = f"these {len(rows)} runs" if len(rows) > 1 else "this run"
        st.write(f"Move {many} to the trash? They can be restored until the trash is emptied.")
        if st.button("Move to trash", type="primary"):
            delete([row.name for row in rows], store)
            st.rerun()


def delete(names: Sequence[str], store: Store) -> None:
    """Move runs to the trash; what stays is shown with the reason when the list is drawn next."""
    gone, kept = [], []
    for name in names:
        try:
            gone.append(lifecycle.delete_run(store, name).id)
        except SmallAlignError as error:
            kept.append(str(error))
    st.session_state[keys.RUNS_DELETED] = (gone, kept)
    st.session_state.pop(keys.RUNS_SELECTED, None)


def undo(store: Store) -> None:
    """What was just deleted, and the button that takes it back."""
    gone, kept = st.session_state.get(keys.RUNS_DELETED, ([], []))
    for text in dict.fromkeys(kept):
        st.warning(formatting.plain(text), icon=":material/warning:")
    there = {one.id for one in store.trash()} if gone else set()
    if back := [id for id in gone if id in there]:
        with st.container(horizontal=True, vertical_alignment="center", key="run-undo"):
            st.markdown(f":material/delete: {len(back)} run{'s' if len(back) > 1 else ''} moved to the trash.")
            if st.button("Undo", icon=":material/undo:"):
                for id in back:
                    store.restore(id)
                del st.session_state[keys.RUNS_DELETED]
                st.rerun()


def trash(store: Store) -> None:
    """The deleted runs, collapsed."""
    if not (found := store.trash()):
        return
    with st.expander(f"Trash: {len(found)} run{'s' if len(found) > 1 else ''}", icon=":material/delete:"):
        for one in found[:LISTED]:
            with st.container(horizontal=True, vertical_alignment="center"):
                row = run_table.row(one.run, store)
                st.markdown(f"{formatting.plain(row.called)} · `{one.id[:6]}` · deleted {formatting.ago(one.deleted)}")
                if st.button("Restore", key=f"restore-{one.run.folder.name}", type="tertiary"):
                    store.restore(one.id)
                    st.rerun()
        if len(found) > LISTED:
            st.caption(f"{len(found) - LISTED} more; `smallalign runs list --trash` lists all.")
        with st.popover("Empty trash", icon=":material/delete_forever:"):
            st.write("Delete these runs with their weights and curves? This cannot be undone.")
            if st.button("Delete permanently", type="primary"):
                store.empty_trash()
                st.rerun()


def _curves(rows: Sequence[RunRow], store: Store) -> None:
    """Validation accuracy and training loss of the selected runs, each run with one color."""
    scores, losses = [], []
    recorded = [(row, *found) for row in rows if any(found := _events(store.run(row.name)))]
    for at, (row, epochs, steps) in enumerate(recorded[:CURVES]):
        name = f"{row.called if len(row.called) < 40 else row.called[:39] + '…'} · {row.id[:6]}"
        if epochs:
            scores.append(Curve(name, [x for x, _ in epochs], [y for _, y in epochs], colour=at))
        if steps:
            losses.append(Curve(name, [x for x, _ in steps], [y for _, y in steps], colour=at))
    if not scores and not losses:
        st.caption("No training curves: zoo models and imports have none.")
        return
    smoothing()
    left, right = st.columns(2)
    for place, title, unit, series in (
        (left, "Validation accuracy", "accuracy", scores),
        (right, "Training loss", "loss (nats)", losses),
    ):
        with place:
            st.markdown(f"**{title}**")
            alt = f"{title} of the selected runs, by epoch."
            curves(key=f"selected-{title}", series=series, x_label="epoch", y_label=unit, alt=alt)
    if len(recorded) > CURVES:
        st.caption(f"Curves of the first {CURVES} of {len(recorded)} runs.")


def _events(run: Run) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(epoch, validation accuracy) and (epoch, loss) of a run."""
    file = run.folder / "events.jsonl"
    return _read(str(run.folder), file.stat().st_size if file.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _read(folder: str, size: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:  # noqa: ARG001  # a longer file is a new entry
    events = Run(Path(folder)).events()
    epochs = [(event["epoch"], event["accuracy"]) for event in events if "accuracy" in event and "epoch" in event]
    return epochs, [(event["epoch"], event["loss"]) for event in events if event["kind"] == "progress"]


def _differences(rows: Sequence[RunRow], store: Store) -> None:
    """The fields in which the specs differ, one column a run."""
    trained = [row for row in rows if not row.imported and row.state != run_table.DAMAGED][:CURVES]
    if len(trained) < 2:
        return
    found = spec_diff.differing([store.run(row.name) for row in trained])
    st.markdown("**Spec differences**")
    if not found:
        st.caption("The specs are equal.")
        return
    names = [f"{row.called} · {row.id[:6]}" for row in trained]
    columns = {"Field": list(found)} | {
        name: [values[at] for values in found.values()] for at, name in enumerate(names)
    }
    st.dataframe(columns, hide_index=True, lazy=False, alt="Fields in which the specs of the selected runs differ.")
