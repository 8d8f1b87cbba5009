"""Scaling study: effect of data, augmentation, optimizer and distillation across sizes; a study, or its form."""

import streamlit as st

from pages.ui.app import context
from pages.ui.studies import study_form, study_list
from pages.ui.studies.scaling import setup_form
from pages.ui.studies.scaling.view import VIEW
from pages.ui.widgets import url_state

store = context.store()
if reference := st.query_params.get("study"):
    VIEW.show(reference, store)
    st.stop()

st.title("Scaling study")
st.markdown(
    "Measures the value of clean data, augmentation, optimizer and distillation in equivalent parameters and images, "
    "expressed as a multiplier: how many times the parameters, or images, you would need without it."
)
study_list.listing(store, VIEW.kind)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("New study", anchor=False)
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    spec = setup_form.form(source, facts, store)
with side, context.show_errors():
    st.subheader("Start", anchor=False)
    study_form.power(facts.fingerprint, store, seeds=spec["replicates"], tests=max(1, len(spec["recipes"]) - 1))
    setup_form.begin(spec)
