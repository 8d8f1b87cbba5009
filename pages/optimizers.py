"""Optimizers: compare them fairly on a student of your own; one study, live and finished, or a form for a new one."""

import streamlit as st

from pages.ui.app import context
from pages.ui.studies import student_form, study_list
from pages.ui.studies.optimizers import optimizer_picker, setup_form, view
from pages.ui.widgets import url_state

store = context.store()
if reference := st.query_params.get("study"):
    view.show(reference, store)
    st.stop()

st.title("Optimizers")
st.markdown(
    "Which optimizer trains **your** student best? Each gets its learning rate found and tried alike, then all race on "
    "the same seeds: same first weights, images and views, in lockstep. You get paired differences with intervals."
)
study_list.listing(store, view.OPTIMIZERS)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("A new study", anchor=False)
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("Name a dataset, or type the path of a folder with one sub-folder per class.")
        st.stop()
    student = student_form.form(
        source, tuple(facts["classes"]), store, key="student", only=("epochs", "batch"), lesson=True
    )
    st.subheader("Optimizers", anchor=False)
    tuned, fixed = optimizer_picker.choose(taught=student["teacher"] is not None)
    amount = setup_form.effort()
with side, context.show_errors():
    st.subheader("Start", anchor=False)
    setup_form.begin(student | {"optimizers": tuned, "hands_off": fixed} | amount, store)
