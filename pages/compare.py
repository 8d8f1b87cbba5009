"""Compare: do teacher and student agree, who is right where, and on which images do they differ."""

import streamlit as st

from pages.ui import backstage, charts, disagreements, listing, picks, wording

SPLITS = {"test": "Test", "val": "Validation"}

store = backstage.store()
st.title("Compare")
found = listing.finished(store)
taught = next((row for row in found if row.teacher and any(other.id == row.teacher for other in found)), None)
if len(found) < 2:
    st.info("A comparison needs two trained models: a teacher and a student. One click on Home makes the first pair.")
    st.page_link("home.py", label="Distil a student now", icon=":material/play_arrow:")
    st.stop()
columns = st.columns([3, 3, 1], vertical_alignment="bottom")
with columns[0]:
    teacher = picks.pick_row("Teacher", found, key="teacher", first=taught.teacher if taught else None)
pupils = [row for row in found if teacher and row.classes == teacher.classes and row.id != teacher.id]
if teacher is None or not pupils:
    st.info("No other trained model knows the same classes. Distil a student from this teacher first.")
    st.stop()
own = next((row for row in pupils if row.teacher == teacher.id), None)
with columns[1]:
    student = picks.pick_row("Student", pupils, key="student", first=own.id if own else None)
with columns[2]:
    split = st.selectbox("Images", list(SPLITS), format_func=SPLITS.__getitem__, key="split", bind="query-params")
if student is None:
    st.stop()

report = disagreements.report(teacher.id, student.id, str(split), str(store.root))
with st.grid(min_column_width=160):
    st.metric(
        "They agree on",
        wording.percent(report["agreement"], 2),
        border=True,
        height="stretch",
        help="Share of images with the same top-1. It says nothing about who is right.",
    )
    st.metric(
        "Teacher accuracy",
        wording.percent(report["teacher"]["accuracy"], 2),
        border=True,
        height="stretch",
        help=f"95 % interval {charts.wilson_of(report['teacher'])}.",
    )
    gap = report["student"]["accuracy"] - report["teacher"]["accuracy"]
    st.metric(
        "Student accuracy",
        wording.percent(report["student"]["accuracy"], 2),
        f"{100 * gap:+.1f} points",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=f"95 % interval {charts.wilson_of(report['student'])}.",
    )
    st.metric(
        "Mean KL",
        f"{report['kl']:.4f}",
        border=True,
        height="stretch",
        help="KL(teacher || student) in nats: how far the probabilities are apart. 0 is equal.",
    )
    if teacher.params and student.params:
        st.metric(
            "Student's size",
            wording.percent(student.params / teacher.params),
            border=True,
            height="stretch",
            help=f"{student.params:,} of {teacher.params:,} parameters.",
        )
st.caption(
    f"{report['images']:,} {SPLITS[str(split)].lower()} images. 95 % intervals: teacher "
    f"{charts.wilson_of(report['teacher'])}, "
    f"student {charts.wilson_of(report['student'])}, agreement "
    f"{wording.interval(report['agreement_low'], report['agreement_high'])}. "
    f"{wording.mcnemar(report['mcnemar_p'], report['teacher_only'], report['student_only'])} "
    f"Both make the same mistake on {report['inherited']:,}."
)
st.page_link("export.py", label="Export the student", icon=":material/deployed_code:", query_params={"run": student.id})

st.subheader("Who is right")
cells = [
    ("Both right", "both_right"),
    ("Only teacher right", "teacher_only"),
    ("Only student right", "student_only"),
    ("Both wrong", "both_wrong"),
]
with st.grid(columns=4, min_column_width=155):
    for name, field in cells:
        st.metric(name, f"{report[field]:,}", border=True, height="stretch")

st.subheader("Confusion matrices")
highest = max(
    (
        value
        for who in ("teacher", "student")
        for true, line in enumerate(report[f"{who}_confusion"])
        for said, value in enumerate(line)
        if said != true
    ),
    default=1,
)
for column, who in zip(st.columns(2), ("teacher", "student"), strict=True):
    with column:
        st.markdown(f"**{who.capitalize()}**")
        charts.confusion(report[f"{who}_confusion"], report["classes"], highest=highest, key=f"confusion-{who}")
st.caption("Rows are true classes, columns what the model said. Mistakes are coloured, on one scale for both.")

st.subheader(f"Where they differ: {report['disagreement_count']:,} images")
disagreements.gallery(report, student, store)
