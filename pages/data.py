"""Data: what a dataset holds, how it was divided, and its images."""

import numpy as np
import streamlit as st

from pages.ui import backstage, charts, pictures
from smallalign_core.data import NAMED
from smallalign_core.spec import DataSpec

PER_PAGE = 60
SPLITS = {"train": "Train", "val": "Validation", "test": "Test"}

st.title("Data")
store = backstage.store()
source = st.text_input(
    "Dataset",
    value=st.query_params.get("data", "digits"),
    max_chars=1000,
    help="A name, or the path of: a folder with one sub-folder per class (optionally below train/, val/, test/), a zip of one, or a "
    "folder of IDX files.",
    placeholder="digits, or a path such as ~/pictures/flowers",
).strip()
st.caption("By name: " + ", ".join(f"`{name}`" for name in NAMED) + ". Or a path on this machine.")
if not source:
    st.info("Name a dataset, or give the path of a folder with one sub-folder per class.")
    st.stop()
if st.query_params.get("data") != source:
    st.query_params["data"] = source

facts = backstage.ask("inspect", f"Reading {source}", source=source)
channels, height, width = facts["shape"]
sizes = {split: sum(tally.values()) for split, tally in facts["counts"].items()}
with st.container(horizontal=True):
    st.metric("Images", f"{facts['images']:,}", border=True)
    st.metric("Classes", len(facts["classes"]), border=True)
    st.metric("Size", f"{width} × {height}, {'grey' if channels == 1 else 'colour'}", border=True)
    st.metric("Train / validation / test", " / ".join(f"{size:,}" for size in sizes.values()), border=True)
    st.metric("Looks at test", facts["test_looks"], border=True, help="How often any run or comparison has used this test set. Nothing is chosen on it.")
st.caption(f"Fingerprint `{facts['fingerprint']}`: changes with any pixel, label or class name. Validation is always held out of train.")
for note in facts["notes"]:
    st.caption(f":material/info: {note}")
if facts["unreadable"]:
    with st.expander(f"{len(facts['unreadable'])} files could not be read and were skipped", icon=":material/warning:"):
        st.code("\n".join(facts["unreadable"][:200]), language=None)

st.subheader("Images per class")
charts.counts(facts["counts"], key="counts")

st.subheader("Images")
splits = pictures.splits(DataSpec(source=source, fingerprint=facts["fingerprint"]), store, facts["images"], facts["shape"])
with st.container(horizontal=True, vertical_alignment="bottom"):
    split = st.segmented_control(
        "Split", list(SPLITS), default="train", required=True, format_func=lambda name: f"{SPLITS[name]} {sizes[name]:,}", key="split", bind="query-params"
    )
    only = st.selectbox("Class", ["All classes", *facts["classes"]], key="class", bind="query-params", width=220)
images = getattr(splits, str(split))
rows = np.arange(len(images)) if only == "All classes" else np.flatnonzero(images.labels == facts["classes"].index(only))
pages = max(1, -(-len(rows) // PER_PAGE))
page = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
shown = rows[(page - 1) * PER_PAGE : page * PER_PAGE]
if len(shown):
    pictures.gallery(images.take(shown))
    st.caption(f"Images {(page - 1) * PER_PAGE + 1:,} to {(page - 1) * PER_PAGE + len(shown):,} of {len(rows):,}.")
else:
    st.caption("This split has no images of that class.")
st.page_link("distil.py", label="Distil on this dataset", icon=":material/science:", query_params={"data": source})
