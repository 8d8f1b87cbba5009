"""Smallest model: a search within limits of size, latency and accuracy, or the form of a new one."""

import streamlit as st

from pages.ui.app import context
from pages.ui.search import limits_form
from pages.ui.search.view import VIEW
from pages.ui.studies import study_list
from pages.ui.widgets import url_state

store = context.store()
if reference := st.query_params.get("study"):
    VIEW.show(reference, store)
    st.stop()

st.title("Smallest model")
st.markdown(
    "Enter the limits of your application. The search trains small networks within a time budget and ends with one "
    "exported, verified file, or with the nearest one if no model is shown to meet the limits."
)
study_list.listing(store, VIEW.kind)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("New search", anchor=False)
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    fields = limits_form.form(source, facts, store)
with side, context.show_errors():
    st.subheader("Start", anchor=False)
    limits_form.begin(fields)
