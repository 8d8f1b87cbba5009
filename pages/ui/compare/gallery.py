"""Both confusion matrices, and the images behind any cell, class or kind of mistake."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import streamlit as st

from pages.ui.charts import basic
from pages.ui.compare import Sides, shown
from pages.ui.widgets import url_state
from smallalign_core.analysis import compare

PER_PAGE = 12
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "differ": ("They differ", compare.DIFFER),
    "inherited": ("Inherited mistakes", ("inherited",)),
    "regressions": ("Regressions", ("regressions",)),
    "fixes": ("Fixes", ("fixes",)),
    "wrong": ("Any mistake", tuple(compare.KINDS)),
    "any": ("All images", ()),
}
"""What stands in the address, what the page shows for it, and the kinds it means."""

ABOUT = {
    "differ": "Images that the two call differently",
    "inherited": "Images that both get wrong, and in the same way",
    "regressions": "Images that the teacher gets right and the student does not",
    "fixes": "Images that the student gets right and the teacher does not",
    "wrong": "Images that not both get right",
    "any": "All images",
}
ANY = "any"


def panel(found: dict[str, Any], sides: Sides) -> None:
    """Matrices above, images below; a click on a cell shows its images."""
    highest = compare.commonest_mistake(found)
    for column, who in zip(st.columns(2), ("teacher", "student"), strict=True):
        with column:
            st.markdown(f"**{who.capitalize()}**")
            basic.confusion(
                found[f"{who}_confusion"],
                found["classes"],
                highest=highest,
                key=f"confusion-{who}",
                on_cell=functools.partial(_choose, who),
            )
    st.caption(
        "Rows are true classes, columns what the model said. Mistakes are coloured, on one scale for both. "
        "Click a cell to see its images, or choose it below."
    )
    _gallery(found, sides)


def _choose(who: str, true: int, said: int) -> None:
    """Show the images of a cell, and nothing else."""
    st.session_state[url_state.own("cell")] = f"{who}-{true}-{said}"
    st.session_state[url_state.own("class")] = ANY
    st.session_state[url_state.own("kind")] = "any"
    url_state.first_page()


def _gallery(found: dict[str, Any], sides: Sides) -> None:
    classes = found["classes"]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = url_state.switch("Show", {name: text for name, (text, _) in KINDS.items()}, key="kind")
    left, right = st.columns(2)
    with left:
        names = {ANY: "All classes"} | {str(place): name for place, name in enumerate(classes)}  # whatever they are
        only = url_state.pick("True class", names, key="class")
    with right:
        cell = url_state.pick("Cell of a matrix", _cells(found), key="cell")
    who, true, said = cell.split("-") if cell != ANY else ("", "0", "0")
    pair = sides.pair()
    rows = pair.rows(
        kinds=KINDS[kind][1],
        label=None if only == ANY else int(only),
        cell=None if cell == ANY else (who, int(true), int(said)),
    )
    if not len(rows):
        st.info("No image passes all three filters. Show all images, or choose another class or cell.")
        return
    pages = -(-len(rows) // PER_PAGE)
    page = url_state.pick_page(pages)
    cases = [pair.case(row) for row in rows[(page - 1) * PER_PAGE : page * PER_PAGE].tolist()]
    st.html(cards(cases, sides, longest=max(map(len, classes))))
    st.caption(f"{ABOUT[kind]}: {len(rows):,} of {found['images']:,}. Largest KL(teacher || student) first.")


def _cells(found: dict[str, Any]) -> dict[str, str]:
    """The cells that hold images, mistakes first: address to text."""
    classes = found["classes"]
    mistakes: list[tuple[str, str]] = []
    hits: list[tuple[str, str]] = []
    for who in ("teacher", "student"):
        table = np.asarray(found[f"{who}_confusion"])
        for true, said in zip(*np.nonzero(table), strict=True):
            about = f"{who}: {classes[true]} called {classes[said]} ({table[true, said]:,})"
            (hits if true == said else mistakes).append((f"{who}-{true}-{said}", about))
    return {ANY: "All cells"} | dict(mistakes) | dict(hits)


def cards(cases: list[compare.Case], sides: Sides, *, longest: int) -> str:
    """HTML of images beside what both say to them."""
    style, boxes = shown(sides.images(), [one.row for one in cases])
    found = []
    for box, one in zip(boxes, cases, strict=True):
        teacher, student = (
            basic.answers(said, one.label, colour, longest=longest)
            for said, colour in zip((one.teacher, one.student), sides.colours, strict=False)
        )
        found.append(
            f'<div class="sa-card">{box}<div><span class="sa-kl">KL {one.kl:.2f}</span>'
            f"true class <b>{basic.safe(one.label)}</b><small>Teacher</small>{teacher}"
            f"<small>Student</small>{student}</div></div>"
        )
    return f'{style}<div class="sa-cards">{"".join(found)}</div>'
