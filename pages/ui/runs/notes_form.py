"""Name, notes and tags of a run, changed in place."""

from __future__ import annotations

import streamlit as st

from pages.ui.app import context
from pages.ui.widgets import run_table
from smallalign_core.runs.store import Run, Store


def show(run: Run, store: Store, *, key: str) -> None:
    """The fields, saved when they are left or Enter is pressed."""
    with context.show_errors():
        notes = run.notes
        every = sorted({*notes.tags, *(tag for row in run_table.rows(store) for tag in row.tags)})
        own = f"{key}-{run.name}"
        left, right = st.columns([2, 3])
        name = left.text_input("Name", notes.name, key=f"{own}-name-{notes.name}", max_chars=80, placeholder=run.title)
        tags = right.multiselect(
            "Tags",
            every,
            list(notes.tags),
            key=f"{own}-tags-{'-'.join(notes.tags)}",
            accept_new_options=True,
            placeholder="None",
        )
        text = st.text_area("Notes", notes.text, key=f"{own}-notes-{hash(notes.text)}", max_chars=10_000, height=80)
        typed = [tag.strip() for tag in tags]
        if (name.strip(), text.strip(), sorted(typed)) != (notes.name, notes.text, list(notes.tags)):
            store.annotate(
                [run.name],
                name=name,
                text=text,
                tag=[tag for tag in typed if tag not in notes.tags],
                untag=[tag for tag in notes.tags if tag not in typed],
            )
            st.rerun()
