"""Compare: student against teacher in accuracy, agreement, calibration, robustness, size and latency."""

import streamlit as st

from pages.ui.app import context
from pages.ui.compare import Sides, calibration, gallery, overview, pairs, pareto, reporting, robustness, user_image
from pages.ui.widgets import run_table, url_state

SPLITS = {"test": "Test", "val": "Validation"}
TABS = ["Overview", "Images", "Calibration", "Robustness", "Your image", "Size and speed", "Report"]

store = context.store()
st.title("Compare")
found = run_table.finished(store)
taught = next((row for row in found if row.teacher and any(other.id == row.teacher for other in found)), None)
if len(found) < 2:
    st.info(
        "A comparison needs two trained models: a teacher and a student. The demo on Home trains the first student."
    )
    st.page_link("home.py", label="Run the demo (30 s)", icon=":material/play_arrow:")
    st.stop()
columns = st.columns([3, 3, 1.4], vertical_alignment="bottom")
with columns[0]:
    teacher = url_state.pick_row("Teacher", found, key="teacher", first=taught.teacher if taught else None)
pupils = [row for row in run_table.of_classes(store, teacher.classes) if row.id != teacher.id] if teacher else []
if teacher is None or not pupils:
    st.info("No other trained model has the same classes. Distill a student from this teacher first.")
    st.stop()
mine = next((row for row in pupils if row.teacher == teacher.id), None)
with columns[1]:
    student = url_state.pick_row("Student", pupils, key="student", first=mine.id if mine else None)
if student is None:
    st.stop()
with columns[2]:
    split = url_state.pick("Split", SPLITS, key="split")

others = url_state.pick_rows("Additional runs", [row for row in pupils if row.id != student.id], key="also", most=8)
sides = Sides((teacher, student, *others), split, store)
reports = pairs(sides.ids, split, str(store.root.resolve()))
overview.figures(reports[0], sides)

tabs = url_state.tabs(TABS, key="tab")
with tabs["Overview"]:
    if tabs["Overview"].open:
        overview.panel(reports, sides)
        st.page_link(
            "export.py", label="Export student", icon=":material/deployed_code:", query_params={"run": student.id}
        )
with tabs["Images"]:
    if tabs["Images"].open:
        gallery.panel(reports[0], sides)
with tabs["Calibration"]:
    if tabs["Calibration"].open:
        calibration.panel(reports[0], sides)
with tabs["Robustness"]:
    if tabs["Robustness"].open:
        robustness.panel(sides)
with tabs["Your image"]:
    if tabs["Your image"].open:
        user_image.panel(sides, reports[0].classes)
with tabs["Size and speed"]:
    if tabs["Size and speed"].open:
        pareto.panel(sides)
with tabs["Report"]:
    if tabs["Report"].open:
        reporting.panel(sides, pareto.kept())
