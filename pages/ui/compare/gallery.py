"""Both confusion matrices, and the images of any cell, class or kind of error."""

from __future__ import annotations

import functools

import numpy as np
import streamlit as st

from pages.ui.charts import basic
from pages.ui.compare import Sides, shown
from pages.ui.widgets import url_state
from smallalign_core.analysis import compare
from smallalign_core.analysis.compare import Comparison

PER_PAGE = 12
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "differ": ("Disagreements", compare.DIFFER),
    "inherited": ("Inherited errors", ("inherited",)),
    "regressions": ("Regressions", ("regressions",)),
    "fixes": ("Student-only correct", ("fixes",)),
    "wrong": ("Any error", tuple(compare.KINDS)),
    "any": ("All images", ()),
}
"""URL value, label, and kinds of image."""

ABOUT = {
    "differ": "Images on which predictions differ",
    "inherited": "Images that both misclassify as the same class",
    "regressions": "Images that only the teacher classifies correctly",
    "fixes": "Images that only the student classifies correctly",
    "wrong": "Images that at least one model misclassifies",
    "any": "All images",
}
ANY = "any"


def panel(found: Comparison, sides: Sides) -> None:
    """Matrices above, images below; a click on a cell shows its images."""
    highest = compare.commonest_mistake(found)
    places = list(range(len(found.classes)))
    if len(places) > basic.MOST_CLASSES:
        names = url_state.pick_text("Search classes", key="confused", placeholder="Part of a name")
        places = compare.most_confused(found, basic.READABLE_CLASSES, names)
        if not places:
            st.info("No class has this in its name.")
    for column, side in zip(st.columns(2), compare.SIDES, strict=True):
        with column:
            st.markdown(f"**{side.capitalize()}**")
            basic.confusion(
                [[row[place] for place in places] for row in map(found.confusion(side).__getitem__, places)],
                [found.classes[place] for place in places],
                highest=highest,
                key=f"confusion-{side}",
                on_cell=functools.partial(_choose, side, places),
            )
    if len(places) < len(found.classes):
        st.caption(
            f"{len(places)} of {len(found.classes):,} classes: those of the pairs that are confused most. Images "
            "predicted as other classes are not in the matrices; the list of cells below has all."
        )
    st.caption(
        "Rows: true class; columns: predicted class. Errors are colored, with one scale for both models. "
        "Click a cell, or select it below, to show its images."
    )
    _gallery(found, sides)


def _choose(side: str, places: list[int], true: int, predicted: int) -> None:
    """Show the images of one cell only; `places` are the classes of the matrix."""
    st.session_state[url_state.own("cell")] = f"{side}-{places[true]}-{places[predicted]}"
    st.session_state[url_state.own("class")] = ANY
    st.session_state[url_state.own("kind")] = "any"
    url_state.first_page()


def _gallery(found: Comparison, sides: Sides) -> None:
    classes = found.classes
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = url_state.switch("Show", {name: text for name, (text, _) in KINDS.items()}, key="kind")
    left, right = st.columns(2)
    with left:
        names = {ANY: "All classes"} | {str(place): name for place, name in enumerate(classes)}  # whatever they are
        only = url_state.pick("True class", names, key="class")
    with right:
        cell = url_state.pick("Confusion-matrix cell", _cells(found), key="cell")
    side, true, predicted = cell.split("-") if cell != ANY else ("", "0", "0")
    pair = sides.pair()
    rows = pair.rows(
        kinds=KINDS[kind][1],
        label=None if only == ANY else int(only),
        cell=None if cell == ANY else (side, int(true), int(predicted)),
    )
    if not len(rows):
        st.info("No images match all three filters. Show all images, or select another class or cell.")
        return
    pages = -(-len(rows) // PER_PAGE)
    page = url_state.pick_page(pages)
    cases = [pair.case(row) for row in rows[(page - 1) * PER_PAGE : page * PER_PAGE].tolist()]
    st.html(cards(cases, sides, longest=max(map(len, classes))))
    st.caption(f"{ABOUT[kind]}: {len(rows):,} of {found.images:,}. Largest KL(teacher || student) first.")


def _cells(found: Comparison) -> dict[str, str]:
    """The non-empty cells, errors first: URL value to text."""
    classes = found.classes
    mistakes: list[tuple[str, str]] = []
    hits: list[tuple[str, str]] = []
    for side in compare.SIDES:
        table = np.asarray(found.confusion(side))
        for true, predicted in zip(*np.nonzero(table), strict=True):
            about = f"{side}: {classes[true]} → {classes[predicted]} ({table[true, predicted]:,})"
            (hits if true == predicted else mistakes).append((f"{side}-{true}-{predicted}", about))
    return {ANY: "All cells"} | dict(mistakes) | dict(hits)


def cards(cases: list[compare.Case], sides: Sides, *, longest: int) -> str:
    """HTML of images with the predictions of both models."""
    style, boxes = shown(sides.images(), [one.row for one in cases])
    found = []
    for box, one in zip(boxes, cases, strict=True):
        teacher, student = (
            basic.answers(top, one.label, colour, longest=longest)
            for top, colour in zip((one.teacher, one.student), sides.colours, strict=False)
        )
        found.append(
            f'<div class="sa-card">{box}<div><span class="sa-kl">KL {one.kl:.2f}</span>'
            f"true class <b>{basic.safe(one.label)}</b><small>Teacher</small>{teacher}"
            f"<small>Student</small>{student}</div></div>"
        )
    return f'{style}<div class="sa-cards">{"".join(found)}</div>'
