"""Lessons for a class room: one control, one question and the live result. `?lesson=temperature` opens one."""

import streamlit as st

from pages.ui.app import context
from pages.ui.lessons import calibration, optimizers, size, temperature, views
from pages.ui.widgets import url_state

LESSONS = {
    "temperature": temperature,
    "views": views,
    "optimizers": optimizers,
    "calibration": calibration,
    "size": size,
}

st.title("Lessons")
name = url_state.switch("Topic", {key: lesson.TITLE for key, lesson in LESSONS.items()}, key="lesson")
lesson = LESSONS[name]
st.subheader(lesson.QUESTION)
lesson.draw(context.store())
