"""Data: contents of a dataset, its splits, its quality, and its images."""

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.charts import basic
from pages.ui.data import listing, quality, uploading
from pages.ui.widgets import formatting, image_grid, url_state

PER_PAGE = 60
SPLITS = {"train": "Train", "val": "Validation", "test": "Test"}

st.title("Data")
store = context.store()
uploading.panel(store)
source, facts = url_state.pick_data(store)
if facts is None:
    st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
    st.stop()
channels, height, width = facts.shape
sizes = {split: sum(tally.values()) for split, tally in facts.counts.items()}
with st.grid(min_column_width=125):
    st.metric("Images", f"{facts.images:,}", border=True)
    st.metric("Classes", len(facts.classes), border=True)
    st.metric("Size, grayscale" if channels == 1 else "Size, RGB", f"{width} × {height}", border=True)
    for split, size in sizes.items():
        st.metric(SPLITS[split], f"{size:,}", border=True)
looks = facts.test_looks
evaluated = (
    "an unknown number of times (test-looks.jsonl is unreadable)"
    if looks is None
    else f"{looks:,} time{'' if looks == 1 else 's'}"
)
st.caption(
    f"Test set evaluated {evaluated}; never used for selection. Validation is split from train. "
    f"Fingerprint `{facts.fingerprint}`: a digest of all pixels, labels and class names."
)
for note in facts.notes:
    st.caption(f":material/info: {formatting.plain(note)}")
if facts.unreadable:
    many = "1 file" if len(facts.unreadable) == 1 else f"{len(facts.unreadable):,} files"
    with st.expander(
        f"{many} could not be read and {'was' if len(facts.unreadable) == 1 else 'were'} skipped",
        icon=":material/warning:",
    ):
        st.code("\n".join(f"{name}: {facts.reasons[name]}" for name in facts.unreadable[:200]), language=None)

st.subheader("Images per class")
basic.counts(facts.counts, key="counts")

st.subheader("Data quality")
checked = st.container()  # filled last: nothing else on the page waits for it

st.subheader("Images")
splits = image_grid.splits(facts.spec, store)
with st.container(horizontal=True, vertical_alignment="bottom"):
    split = st.segmented_control(
        "Split",
        list(SPLITS),
        default="train",
        required=True,
        format_func=SPLITS.__getitem__,
        key="split",
        bind="query-params",
    )
    only = st.selectbox("Class", ["All classes", *facts.counts["train"]], key="class", bind="query-params", width=220)
    images = getattr(splits, str(split))
    if st.session_state.get(keys.FILES_OF, source) != source:
        url_state.clear("file")
    st.session_state[keys.FILES_OF] = source
    named = (
        url_state.pick_text("File name", key="file", placeholder="Part of a path", width=220)
        if images.paths is not None
        else ""
    )
rows = listing.rows(images, None if only == "All classes" else facts.classes.index(only), named)
pages = max(1, -(-len(rows) // PER_PAGE))
page = url_state.pick_page(pages)
shown = rows[(page - 1) * PER_PAGE : page * PER_PAGE]
if len(shown):
    image_grid.gallery(images, SPLITS[str(split)], shown, key="images")
    st.caption(
        f"Images {(page - 1) * PER_PAGE + 1:,} to {(page - 1) * PER_PAGE + len(shown):,} of {len(rows):,}"
        + (", classes in turn. " if only == "All classes" else ". ")
        + "Select an image to enlarge it."
    )
elif named:
    st.caption("No file name contains this text.")
else:
    st.caption("This split has no images of the selected class.")
st.page_link("augment.py", label="Preview augmentation", icon=":material/auto_fix_high:", query_params={"data": source})
st.page_link("distil.py", label="Distill on this dataset", icon=":material/science:", query_params={"data": source})
with checked, context.show_errors():
    quality.panel(store, facts)
