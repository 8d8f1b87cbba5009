"""Runs: all of them in a table, or one of them in detail."""

import streamlit as st

from pages.ui.app import context
from pages.ui.runs import run_list, run_view
from smallalign_core.errors import UnknownRun

store = context.store()
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
run_list.show(store)
