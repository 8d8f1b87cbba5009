"""Runs: all of them in a table, or one of them live."""

import streamlit as st

from pages.ui import backstage, listing, runview, wording
from smallalign_core.errors import UnknownRun

COLUMNS = {
    "State": st.column_config.TextColumn(width=95),
    "What": st.column_config.TextColumn(width=285),
    "Test accuracy": st.column_config.NumberColumn(format="percent", width=110),
    "95 % interval": st.column_config.TextColumn(width=130),
    "Parameters": st.column_config.NumberColumn(format="localized", width=100),
    "Created": st.column_config.DatetimeColumn(format="distance", width=115),
}

store = backstage.store()
if reference := st.query_params.get("run"):
    if st.button("All runs", icon=":material/arrow_back:", type="tertiary"):  # a link to this page keeps its address
        st.query_params.clear()
        st.rerun()
    try:
        runview.show(store.run(reference), store)
    except UnknownRun as error:
        st.error(str(error))
    st.stop()

st.title("Runs")
rows = listing.rows(store)
if all(row.in_zoo for row in rows):
    st.info("No run of yours yet. The button on Home starts one in a second; Distil lets you choose everything.")
    with st.container(horizontal=True):
        st.page_link("home.py", label="Distil a student now", icon=":material/play_arrow:")
        st.page_link("distil.py", label="Choose everything", icon=":material/science:")
wanted = st.text_input(
    "Filter",
    key="filter",
    bind="query-params",
    placeholder="Words in name, state, data or network, for instance: cnn digits finished",
)
words = (wanted or "").lower().split()
shown = [
    row for row in rows if all(word in f"{row.title} {row.name} {row.state} {row.source}".lower() for word in words)
]
if rows and not shown:
    st.caption("No run matches the filter.")
if shown:
    opened = st.session_state.get("runs-opened", 0)
    table = {
        "State": [row.state for row in shown],
        "What": [f"{row.name}: {row.title}" if row.in_zoo else row.title for row in shown],
        "Test accuracy": [row.accuracy for row in shown],
        "95 % interval": [wording.interval(row.low, row.high) for row in shown],
        "Parameters": [row.params for row in shown],
        "Created": [listing.when(row) for row in shown],
    }
    event = st.dataframe(
        table,
        column_config=COLUMNS,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"table-{opened}",
        lazy=False,
        placeholder="–",
        height=min(38 + 35 * len(shown), 620),
        alt="All runs with state, accuracy and size.",
    )
    st.caption(f"{len(shown)} of {len(rows)} runs and zoo models. Tick a row to open it.")
    if event.selection.rows:
        st.session_state["runs-opened"] = opened + 1  # else the row would still be ticked on the way back
        st.switch_page("runs.py", query_params={"run": shown[event.selection.rows[0]].name})
