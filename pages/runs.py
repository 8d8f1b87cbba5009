"""Runs: all of them in a table, or one of them in detail."""

import hashlib

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.runs import run_view
from pages.ui.widgets import formatting, run_table, url_state
from smallalign_core.errors import UnknownRun

COLUMNS = {
    "State": st.column_config.TextColumn(width=95),
    "Run": st.column_config.TextColumn(width=285),
    "Test accuracy": st.column_config.NumberColumn(format="percent", width=110),
    "95% CI": st.column_config.TextColumn(width=130),
    "Parameters": st.column_config.NumberColumn(format="localized", width=100),
    "Created": st.column_config.DatetimeColumn(format="distance", width=115),
}

store = context.store()
if ticked := st.session_state.pop(keys.RUNS_OPEN, None):
    st.switch_page("runs.py", query_params={"run": ticked})
if reference := st.query_params.get("run"):
    if st.button("All runs", icon=":material/arrow_back:", type="tertiary"):  # a link to this page keeps its address
        st.query_params.clear()
        st.rerun()
    try:
        run_view.show(store.run(reference), store)
    except UnknownRun as error:
        st.error(str(error))
    st.stop()

st.title("Runs")
rows = run_table.rows(store)
if all(row.in_zoo for row in rows):
    st.info("No runs yet. Start the demo on Home, or configure a run on Distill.")
    with st.container(horizontal=True):
        st.page_link("home.py", label="Run the demo (30 s)", icon=":material/play_arrow:")
        st.page_link("distil.py", label="Configure a run", icon=":material/science:")
words = (
    url_state.pick_text(
        "Filter", key="filter", placeholder="Name, state, dataset or architecture, e.g. cnn digits finished"
    )
    .lower()
    .split()
)
shown = [
    row for row in rows if all(word in f"{row.title} {row.name} {row.state} {row.source}".lower() for word in words)
]
if rows and not shown:
    st.caption("No runs match the filter.")
if shown:
    ids = [row.name for row in shown]
    # Another listing is another table, so that a selection in one is never read as a row of another; and a new one
    # after each run that was opened, else its row would still be selected on the way back.
    key = f"runs-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:12]}-{st.session_state.get(keys.RUNS_OPENED, 0)}"

    def tick() -> None:
        """Runs before the page is redrawn: `ids` are still those of the table with the selection."""
        if rows := st.session_state[key].selection.rows:
            st.session_state[keys.RUNS_OPEN] = ids[rows[0]]
            st.session_state[keys.RUNS_OPENED] = st.session_state.get(keys.RUNS_OPENED, 0) + 1

    table = {
        "State": [row.state for row in shown],
        "What": [f"{row.name}: {row.title}" if row.in_zoo else row.title for row in shown],
        "Test accuracy": [row.accuracy for row in shown],
        "95% CI": [formatting.interval(row.low, row.high) for row in shown],
        "Parameters": [row.params for row in shown],
        "Created": [run_table.when(row) for row in shown],
    }
    st.dataframe(
        table,
        column_config=COLUMNS,
        hide_index=True,
        on_select=tick,
        selection_mode="single-row",
        key=key,
        lazy=False,
        placeholder="–",
        height=min(38 + 35 * len(shown), 620),
        alt="All runs with state, accuracy and size.",
    )
    st.caption(f"{len(shown)} of {len(rows)} runs and zoo models. Select a row to open the run.")
