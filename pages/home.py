"""Home: what SmallAlign does, a demo, recent runs, and links to each step."""

import streamlit as st

from pages.ui.app import context
from pages.ui.home import recent
from pages.ui.widgets import run_table
from smallalign_core.errors import UnknownRun
from smallalign_core.service.requests import Submit
from smallalign_core.spec import title

STARTER = "digits-student"  # the zoo model whose spec, with a seed of its own, the big button trains

store = context.store()
rows = run_table.rows(store)
mine = [row for row in rows if not row.in_zoo]

st.title("How small can your image classifier be?")
st.markdown(
    "SmallAlign distills a large image classifier (the **teacher**) into a small one (the **student**), "
    "shows where their predictions differ, and exports an ONNX file that is verified to produce the same predictions "
    "in PyTorch, ONNX Runtime and your browser."
)

with st.container(border=True):
    find, why = st.columns([1, 3], vertical_alignment="center")
    if find.button("Find the smallest model", type="primary", icon=":material/compress:"):
        st.switch_page("shrink.py")
    why.markdown("Choose your images, set limits of size, latency or accuracy, and get one verified file.")

try:
    starter = store.run(STARTER).spec
except UnknownRun:
    st.info(
        f"The demo model `{STARTER}` is not in {store.root / 'zoo'}. Train a teacher of your own "
        "first, with no teacher selected."
    )
    st.page_link(
        "distil.py", label="Train a teacher on digits", icon=":material/science:", query_params={"data": "digits"}
    )
else:
    done = {row.title for row in mine if row.finished}
    seeds = (
        starter.model_copy(update={"seed": seed}) for seed in range(starter.seed + 1, starter.seed + 2 + len(mine))
    )
    spec = next(spec for spec in seeds if title(spec) not in done)
    with st.container(border=True):
        start, about = st.columns([1, 3], vertical_alignment="center")
        if start.button("Run the demo (30 s)", icon=":material/play_arrow:"):
            with context.show_errors():
                answer = context.call(Submit(spec), "Preparing the run")
                st.switch_page("runs.py", query_params={"run": answer.id})
        teacher = next((row for row in rows if row.name == starter.teacher or row.id == starter.teacher), None)
        student = next((row for row in rows if row.name == STARTER), None)
        if teacher and student:
            about.markdown(
                f"Trains a student with {student.params:,} parameters from a teacher with {teacher.params:,} on 1,797 "
                f"handwritten digits, with live metrics. Seed {spec.seed}."
            )

left, right = st.columns([3, 2], gap="large")
with left:
    recent.draw(store)

with right:
    st.subheader("Get started")
    latest = next((row for row in mine if row.finished), None) or next((row for row in rows if row.finished), None)
    chosen = {"run": latest.id} if latest else None
    pair = {"student": latest.id} | ({"teacher": latest.teacher} if latest.teacher else {}) if latest else None
    st.page_link(
        "data.py", label="1. Inspect the dataset", icon=":material/photo_library:", query_params={"data": "digits"}
    )
    st.page_link(
        "augment.py",
        label="2. Preview augmentation",
        icon=":material/auto_fix_high:",
        query_params={"data": "digits"},
    )
    st.page_link("distil.py", label="3. Choose a teacher and a student", icon=":material/science:")
    st.page_link("runs.py", label="4. Follow training", icon=":material/show_chart:", query_params=chosen)
    st.page_link("compare.py", label="5. Compare predictions", icon=":material/compare:", query_params=pair)
    st.page_link("export.py", label="6. Export, verify, download", icon=":material/deployed_code:", query_params=chosen)
