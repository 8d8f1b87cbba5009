"""Augmentation: build a policy, preview it on real images, check label preservation, export it."""

import secrets

import streamlit as st

from pages.ui.ablation import panel
from pages.ui.app import context
from pages.ui.augment import augmented_images, label_preservation, policy
from pages.ui.distill import teacher_check
from pages.ui.studies import student_form
from pages.ui.widgets import image_grid, url_state
from smallalign_core.service.requests import AugmentBatch, AugmentImages, CheckLabels
from smallalign_core.spec import parse_policy


def shuffle() -> None:
    """Set another seed; in a callback, since the value must be set before the field is drawn."""
    seed = url_state.own("seed")
    st.session_state[seed] = (st.session_state[seed] + 1 + secrets.randbelow(9_999)) % 10_000


store = context.store()
st.title("Augmentation")
left, right = st.columns([2, 3], gap="large")
with left:
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    classes, shape = facts.classes, facts.shape
    teacher, _ = teacher_check.pick(
        store,
        source,
        facts,
        none="None (preview only)",
        help="Predicts a class for each augmented image, to measure how often augmentation changes the label.",
    )
    parts = policy.build()
    policy.saved(store, key=policy.KEY, parts=parts)

with right:
    strength = url_state.pick_number(
        st.slider,
        "Global strength",
        0.0,
        2.0,
        0.05,
        key="strength",
        first=1.0,
        help="Scales every transform: 0 disables the policy, 1 applies it as written, 2 doubles its magnitudes.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        numbers = {
            name: url_state.pick_number(
                st.number_input, label, low, high, 1, key=name, first=first, width=118, help=help
            )
            for name, label, low, high, first, help in (
                ("epoch", "Epoch", 1, 100_000, 1, "First epoch of the preview."),
                ("batch", "Batch size", 2, 65_536, 128, "As in the training run: determines MixUp and CutMix pairs."),
                ("seed", "Seed", 0, 2**31 - 1, 0, "Seed of the training run: fixes data order and augmentation."),
            )
        }
        st.button("Shuffle", icon=":material/casino:", on_click=shuffle, help="Draw another random seed.")
    rows, own = None, None
    with st.container(horizontal=True, vertical_alignment="center"):
        mine = st.segmented_control(
            "Images", ["Dataset", "Upload"], default="Dataset", required=True, label_visibility="collapsed", key="mine"
        )
        if mine == "Dataset":
            splits = image_grid.splits(facts.spec, store)
            rows = augmented_images.choose(splits.train, facts.fingerprint)
    with context.show_errors():
        own = augmented_images.drop(shape) if rows is None else None
    if not parts:
        st.info("The policy is empty: training would use the original images. Add a transform.")
        st.stop()
    fine = False
    with policy.checked():
        checked, data = parse_policy(parts), facts.spec
        epoch, seed, batch = numbers["epoch"], numbers["seed"], numbers["batch"]
        if rows or own:
            grid = AugmentImages(
                checked,
                data,
                strength=strength,
                seed=seed,
                batch=batch,
                rows=None if rows is None else tuple(rows),
                own=own,
                draws=augmented_images.fitting(shape)[1],
                first=epoch - 1,
            )
            augmented_images.draw(grid, teacher, store)
        fine = True
if not fine:
    st.stop()

st.subheader(f"Training batch preview, epoch {epoch}", anchor=False)
first = AugmentBatch(checked, data, strength=strength, seed=seed, batch=batch, epoch=epoch - 1)
augmented_images.epoch(first, store)
st.caption(
    f"Original and augmented image of each pair. A run with seed {seed} and batch size {batch} trains on exactly these "
    f"pixels, in this order, at the start of epoch {epoch}; teacher and student receive the same augmented images."
)
st.subheader("Label preservation", anchor=False)
risk = st.container()  # filled last: nothing else on the page waits for it

st.subheader("Export policy", anchor=False)
carried = policy.take_along(first, teacher)

measured = st.container()

with risk, context.show_errors():
    if teacher is None:
        st.info("No teacher selected. Choose one above, or train one on this dataset first.")
        st.page_link("distil.py", label="Train a teacher", icon=":material/science:", query_params={"data": source})
    else:
        limit = label_preservation.limit()
        asked = CheckLabels(checked, data, teacher.id, strength=strength, seed=seed, limit=limit)
        label_preservation.panel(asked, teacher, looked_at=sum(facts.counts["val"].values()), store=store)

with measured, context.show_errors():
    st.subheader("Ablation: with vs. without augmentation", anchor=False)
    pupil = student_form.form(facts, store, key="student")
    panel.panel(pupil | {"augment": carried, "batch": batch, "seed": seed}, "augment", store, key="worth")
