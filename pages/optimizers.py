"""Optimizers: compare them on a student with equal tuning budgets; one study, or the form for a new one."""

import streamlit as st

from pages.ui.app import context
from pages.ui.studies import student_form, study_form, study_list
from pages.ui.studies.optimizers import optimizer_picker, setup_form
from pages.ui.studies.optimizers.view import VIEW
from pages.ui.widgets import url_state

store = context.store()
if reference := st.query_params.get("study"):
    VIEW.show(reference, store)
    st.stop()

st.title("Optimizers")
st.markdown(
    "Compares optimizers on your student: each gets the same tuning budget, then all train on the same seeds (same "
    "initial weights, images and augmentation). Results are paired differences with confidence intervals."
)
study_list.listing(store, VIEW.kind)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("New study", anchor=False)
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    student = student_form.form(facts, store, key="student", only=("epochs", "batch"), whole=True)
    st.subheader("Optimizers", anchor=False)
    tuned, fixed = optimizer_picker.choose(distilled=student["teacher"] is not None)
    amount = setup_form.effort()
with side, context.show_errors():
    st.subheader("Start", anchor=False)
    compared = max(1, len(tuned) + len(fixed) - 1)  # with the reference, AdamW
    study_form.power(facts.fingerprint, store, seeds=amount["seeds"], tests=compared)
    setup_form.begin(student | {"optimizers": tuned, "hands_off": fixed} | amount, store)
