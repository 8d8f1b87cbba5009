"""Lessons: one file each, with one control, one question and the live result, and the predictions that they share."""

from __future__ import annotations

import streamlit as st

from pages.ui.compare import Sides, pairs
from pages.ui.widgets import run_table
from smallalign_core.analysis.compare import Pair
from smallalign_core.runs.store import Store

TEACHER, STUDENT = "digits-teacher", "digits-student"
"""The models of the zoo that the lessons are about."""


def predictions(store: Store) -> tuple[Pair, Sides]:
    """Logits of teacher and student for the validation images of digits; the page ends where the zoo lacks them."""
    named = {row.name: row for row in run_table.rows(store) if row.in_zoo and row.finished}
    if not {TEACHER, STUDENT} <= set(named):
        st.info(f"The lessons use the models {TEACHER} and {STUDENT}, which are not in {store.root / 'zoo'}.")
        st.stop()
    sides = Sides((named[TEACHER], named[STUDENT]), "val", store)
    pairs(sides.ids, sides.split, str(store.root.resolve()))
    return sides.pair(), sides
