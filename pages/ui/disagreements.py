"""The comparison of two runs, and the images that they call differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from pages.ui import backstage, charts, picks, pictures
from pages.ui.listing import Row
from smallalign_core.store import Store

PER_PAGE = 12
KINDS = {"all": "All", "teacher": "Teacher right", "student": "Student right", "neither": "Both wrong"}


@st.cache_data(max_entries=16, show_spinner=False)
def report(
    teacher: str,
    student: str,
    split: str,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> dict[str, Any]:
    """The desk's comparison. Finished runs do not change, so it is asked once."""
    return backstage.ask("compare", "Both models answer every image", teacher=teacher, student=student, split=split)


def gallery(found: dict[str, Any], student: Row, store: Store) -> None:
    """A page of images with the three likeliest classes of both models; filters and page live in the address."""
    if not found["disagreements"]:
        st.success("They give the same answer to every image.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.segmented_control(
            "Show",
            list(KINDS),
            default="all",
            required=True,
            format_func=KINDS.__getitem__,
            key="kind",
            bind="query-params",
        )
        only = st.selectbox(
            "True class", ["All classes", *found["classes"]], key="class", bind="query-params", width=220
        )
    chosen = [
        one for one in found["disagreements"] if kind in ("all", _kind(one)) and only in ("All classes", one["label"])
    ]
    if not chosen:
        st.caption("No disagreement of that kind in that class.")
        return
    pages = -(-len(chosen) // PER_PAGE)
    page = picks.pick_page(pages)
    shown = chosen[(page - 1) * PER_PAGE : page * PER_PAGE]
    spec = store.run(student.id).spec.data
    splits = pictures.splits(spec, store)
    images = getattr(splits, found["split"]).take(np.array([one["row"] for one in shown]))
    style, boxes = pictures.tiles(images.images[:])
    colours = charts.palette()
    longest = max(map(len, found["classes"]))
    cards = []
    for box, one in zip(boxes, shown, strict=True):
        teacher, student_said = (
            charts.answers(one[who], one["label"], colour, longest=longest)
            for who, colour in (("teacher", colours[1]), ("student", colours[0]))
        )
        cards.append(
            f'<div class="sa-card">{box}<div><span class="sa-kl">KL {one["kl"]:.2f}</span>'
            f"true class <b>{charts.safe(one['label'])}</b><small>Teacher</small>{teacher}"
            f"<small>Student</small>{student_said}</div></div>"
        )
    st.html(f'{style}<div class="sa-cards">{"".join(cards)}</div>')
    total = found["disagreement_count"]
    more = (
        f" The {len(found['disagreements'])} with the largest KL are kept."
        if total > len(found["disagreements"])
        else ""
    )
    st.caption(f"{len(chosen)} images, largest KL(teacher || student) first.{more}")


def _kind(one: dict[str, Any]) -> str:
    if one["teacher"][0][0] == one["label"]:
        return "teacher"
    return "student" if one["student"][0][0] == one["label"] else "neither"
