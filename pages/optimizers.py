"""Optimizers: compare them fairly on a student of your own; one study, live and finished, or a form for a new one."""

import streamlit as st

from pages.ui import backstage, contenders, picks, students, studyform, studylist, studyview

store = backstage.store()
if reference := st.query_params.get("study"):
    studyview.show(reference, store)
    st.stop()

st.title("Optimizers")
st.markdown(
    "Which optimizer trains **your** student best? Each gets its learning rate found and tried alike, then all race on "
    "the same seeds: same first weights, images and views, in lockstep. You get paired differences with intervals."
)
studylist.listing(store, studyview.OPTIMIZERS)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("A new study", anchor=False)
    source, facts = picks.pick_data(store)
    if facts is None:
        st.info("Name a dataset, or type the path of a folder with one sub-folder per class.")
        st.stop()
    student = students.form(
        source, tuple(facts["classes"]), store, key="student", only=("epochs", "batch"), lesson=True
    )
    st.subheader("Optimizers", anchor=False)
    tuned, fixed = contenders.choose(taught=student["teacher"] is not None)
    amount = studyform.effort()
with side, backstage.told():
    st.subheader("Start", anchor=False)
    studyform.begin(student | {"optimizers": tuned, "hands_off": fixed} | amount, store)
