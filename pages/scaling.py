"""Scaling: what data, augmentation, optimizer and distillation are worth as students shrink; a study, or its form."""

import streamlit as st

from pages.ui import backstage, picks, scalingform, scalingview, studylist

store = backstage.store()
if reference := st.query_params.get("study"):
    scalingview.show(reference, store)
    st.stop()

st.title("Scaling")
st.markdown(
    "What are clean data, augmentation, optimizer and distillation **worth** as your student shrinks? Each is measured "
    "in one currency: how many times the parameters, or the images, you would need without it."
)
studylist.listing(store, scalingview.SCALING)
form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("A new study", anchor=False)
    source, facts = picks.pick_data(store)
    if facts is None:
        st.info("Name a dataset, or type the path of a folder with one sub-folder per class.")
        st.stop()
    asked = scalingform.form(source, facts, store)
with side, backstage.told():
    st.subheader("Start", anchor=False)
    scalingform.begin(asked)
