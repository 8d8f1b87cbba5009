"""How accuracy falls with the width of the student, and what its teacher is worth at each."""

from __future__ import annotations

import streamlit as st

from pages.ui import lessons
from pages.ui.lessons import trained
from pages.ui.widgets import url_state
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, parse

TITLE = "Size"
QUESTION = "How small can the student be, and does a teacher help the small ones more?"
WIDTHS = (2, 4, 8, 16, 32)
PARAMETERS = (300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Ticks of the chart."""
LABELS, TEACHER = "labels only", "with teacher"


def spec_of(width: int, *, teacher: bool) -> RunSpec:
    """A student of the lesson."""
    taught = {"teacher": lessons.TEACHER, "loss": {"kind": "kd"}} if teacher else {}
    return parse({"data": "digits", "network": {"kind": "cnn", "width": width}, "epochs": 10, "seed": 0} | taught)


def draw(store: Store) -> None:
    """The control, two networks of that width, and the accuracy of all trained so far."""
    lessons.predictions(store)
    width = url_state.switch("Width (channels of the first layer)", {str(one): str(one) for one in WIDTHS}, key="width")
    specs = {str(one): {LABELS: spec_of(one, teacher=False), TEACHER: spec_of(one, teacher=True)} for one in WIDTHS}
    points = trained.draw(
        store, specs, width, x=None, axis="parameters", ticks=(300, 1_000, 3_000, 10_000, 30_000, 100_000)
    )
    st.caption(
        trained.caption(points)
        + "Both networks of a width begin with the same weights and see the same images in the same order; one also "
        "learns the teacher's softened probabilities (Hinton et al., 2015). At 4 bytes each, 1,000 parameters "
        "are 4 kB. *Studies* measures the difference with several seeds."
    )
