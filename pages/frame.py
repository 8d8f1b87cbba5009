"""The frame around every page: menu, URL, status strip, and the one place where errors become messages."""

from pathlib import Path

import streamlit as st

from pages.ui.app import status, titles
from pages.ui.app.context import show_errors
from pages.ui.charts.basic import sign, wordmark
from pages.ui.security import auth
from pages.ui.widgets import url_state

HERE = Path(__file__).parent / "ui"

st.set_page_config(page_title="SmallAlign", page_icon=str(HERE / "icon.svg"), layout="wide")

st.html(HERE / "style.css")
st.logo(wordmark(), size="large", icon_image=sign())

auth.gate()
page = st.navigation(
    sections := {
        "Prepare": [
            st.Page(
                "home.py",
                title="Home",
                icon=":material/home:",
                default=True,
                help="Overview, demo and recent runs.",
            ),
            st.Page(
                "data.py",
                title="Data",
                icon=":material/photo_library:",
                help="Classes, counts, images and quality of a dataset.",
            ),
            st.Page(
                "augment.py",
                title="Augmentation",
                icon=":material/auto_fix_high:",
                help="Build an augmentation policy, preview it and check label preservation.",
            ),
            st.Page(
                "lessons.py",
                title="Lessons",
                icon=":material/school:",
                help="One question and one control each, computed live.",
            ),
        ],
        "Train": [
            st.Page(
                "distil.py",
                title="Distill",
                icon=":material/science:",
                help="Choose dataset, teacher and student, and start training.",
            ),
            st.Page(
                "shrink.py",
                title="Smallest model",
                icon=":material/compress:",
                help="The smallest file within limits of size, latency and accuracy.",
            ),
            st.Page(
                "optimizers.py",
                title="Optimizers",
                icon=":material/leaderboard:",
                help="Compare optimizers with equal tuning budgets, over seeds and epochs.",
            ),
            st.Page(
                "scaling.py",
                title="Scaling study",
                icon=":material/open_in_full:",
                help="Effect of data, augmentation, optimizer and distillation across student sizes.",
            ),
        ],
        "Evaluate": [
            st.Page("runs.py", title="Runs", icon=":material/list_alt:", help="All runs, live and finished."),
            st.Page(
                "compare.py", title="Compare", icon=":material/compare:", help="Compare a student with its teacher."
            ),
        ],
        "Deploy": [
            st.Page(
                "export.py",
                title="Export",
                icon=":material/deployed_code:",
                help="One ONNX file, verified to produce the same predictions.",
            ),
        ],
    },
    position="hidden",
)
if not st.context.is_embedded:
    with st.sidebar:  # drawn here: Streamlit's own menu with sections is a list that screen readers cannot follow
        for name, members in sections.items():
            with st.container(gap="xxsmall"):
                st.caption(name)
                for member in members:
                    st.page_link(member)
titles.name("" if page.url_path == "" else page.title)
status.strip()  # before the page: one that stops early keeps its strip
url_state.on_page(page.url_path)
with show_errors():
    page.run()
