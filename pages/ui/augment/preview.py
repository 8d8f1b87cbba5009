"""The preview of a policy: a grid of images and draws, and the first images of an epoch."""

from __future__ import annotations

from contextlib import AbstractContextManager

import streamlit as st

from pages.ui.app import context
from pages.ui.augment import augmented_images
from pages.ui.widgets import image_grid
from pages.ui.widgets.run_table import RunRow
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import AugmentBatch, AugmentImages, DatasetFacts


def show(
    first: AugmentBatch,
    facts: DatasetFacts,
    teacher: RunRow | None,
    store: Store,
    *,
    busy: AbstractContextManager[object],
) -> None:
    """Choose images and show them under the policy of `first`, with the teacher's predictions.

    Args:
        busy: where spinners are drawn.
    """
    rows, own = None, None
    with st.container(horizontal=True, vertical_alignment="center"):
        mine = st.segmented_control(
            "Images", ["Dataset", "Upload"], default="Dataset", required=True, label_visibility="collapsed", key="mine"
        )
        if mine == "Dataset":
            splits = image_grid.splits(facts.spec, store)
            rows = augmented_images.choose(splits.train, facts.fingerprint)
    with context.show_errors():
        own = augmented_images.drop(facts.shape) if rows is None else None
    if rows or own:
        grid = AugmentImages(
            first.policy,
            first.data,
            strength=first.strength,
            seed=first.seed,
            batch=first.batch,
            rows=None if rows is None else tuple(rows),
            own=own,
            draws=augmented_images.fitting(facts.shape)[1],
            first=first.epoch,
        )
        augmented_images.draw(grid, teacher, store, busy=busy)
    st.subheader(f"Training batch, epoch {first.epoch + 1}", anchor=False)
    augmented_images.epoch(first, store, busy=busy)
    st.caption(
        f"Original and augmented image of each pair. A run with seed {first.seed} and batch size {first.batch} trains "
        f"on exactly these pixels, in this order, at the start of epoch {first.epoch + 1}; teacher and student receive "
        "the same augmented images."
    )
