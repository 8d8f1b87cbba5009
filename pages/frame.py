"""The frame around every page: menu, address bar, status strip, and the one place where errors become sentences."""

from pathlib import Path

import streamlit as st

from pages.ui.app import status
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
        "Learn": [
            st.Page(
                "home.py",
                title="Home",
                icon=":material/home:",
                default=True,
                help="Start here: one click distils a student.",
            ),
            st.Page(
                "data.py",
                title="Data",
                icon=":material/photo_library:",
                help="Look at a dataset: classes, counts, images.",
            ),
            st.Page(
                "augment.py",
                title="Augment",
                icon=":material/auto_fix_high:",
                help="Build an augmentation policy, see what it does, and whether it is still the class.",
            ),
        ],
        "Train": [
            st.Page(
                "distil.py",
                title="Distil",
                icon=":material/science:",
                help="Choose data, teacher and student, and start a run.",
            ),
            st.Page(
                "optimizers.py",
                title="Optimizers",
                icon=":material/leaderboard:",
                help="Compare optimizers fairly on your student, over seeds and budgets.",
            ),
            st.Page(
                "scaling.py",
                title="Scaling",
                icon=":material/open_in_full:",
                help="What data, augmentation, optimizer and distillation are worth as the student shrinks.",
            ),
        ],
        "Judge": [
            st.Page("runs.py", title="Runs", icon=":material/list_alt:", help="All runs, live and finished."),
            st.Page("compare.py", title="Compare", icon=":material/compare:", help="Teacher and student side by side."),
        ],
        "Ship": [
            st.Page(
                "export.py",
                title="Export",
                icon=":material/deployed_code:",
                help="One ONNX file, and the proof that it answers the same.",
            ),
        ],
    },
    position="hidden",
)
with st.sidebar:  # drawn here: Streamlit's own menu with sections is a list that screen readers cannot follow
    for name, members in sections.items():
        with st.container(gap="xxsmall"):
            st.caption(name)
            for member in members:
                st.page_link(member)
status.strip()  # before the page: one that stops early keeps its strip
url_state.on_page(page.url_path)
with show_errors():
    page.run()
