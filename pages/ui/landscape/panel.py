"""The landscape around finished runs: a band, contours, the way between two, a spectrum, and figures with their modes.

`panel` is the whole of it; a page mounts it in one line. The desk measures in short steps, so that a click interrupts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.landscape import charts
from pages.ui.widgets import formatting, polling
from pages.ui.widgets.run_table import RunRow
from smallalign_core.runs.store import Store

SHORT = {"eval": "Running", "train": "Batch", "reestimate": "Anew"}
MEASURES = {
    "line": "Band",
    "plane": "Contours",
    "curvature": "Curvature",
    "predictiveness": "Gradients",
    "path": "Ways",
    "between": "Between",
}


def panel(rows: Sequence[RunRow], store: Store, *, key: str = "landscape") -> None:
    """Choose what to look at, see what it costs, and look.

    Args:
        rows: runs that may be looked at; the first few are chosen to begin with.
        key: for widgets; what is chosen is kept for the visit.
    """
    finished = {row.id: row for row in rows if row.finished and not row.imported}
    if not finished:
        st.caption("A landscape needs a finished run.")
        return
    if not st.toggle(
        "Look at the landscape",
        key=f"{key}-open",
        help="The loss around the weights, its curvature, and how far its gradient can be trusted. Measured on "
        "training images with the run's own loss and teacher; validation and test are not touched.",
    ):
        return
    with context.show_errors():
        asked = _asked(finished, key)
        if asked is not None:
            _looked(asked, finished, store, key)


def _asked(rows: Mapping[str, RunRow], key: str) -> dict[str, Any] | None:
    """What to ask the desk; None if nothing is chosen."""
    runs = list(rows)
    if len(rows) > 1:
        runs = st.multiselect(
            "Runs",
            runs,
            default=runs[:3],
            format_func=lambda one: rows[one].label,
            key=f"{key}-runs",
            help="With three sizes or more, and six runs, the panel also says whether smaller is more rugged.",
        )
    offered = [name for name in MEASURES if name not in ("path", "between") or len(runs) > 1]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measures = st.pills(
            "Measures",
            offered,
            selection_mode="multi",
            default=["line", "curvature", "predictiveness"],
            format_func=MEASURES.__getitem__,
            key=f"{key}-measures",
        )
        norms = st.segmented_control(
            "Batch norm uses",
            list(SHORT),
            default="eval",
            format_func=SHORT.__getitem__,
            key=f"{key}-norms",
            required=True,
            help="Its running statistics (eval, as the student is used), those of each batch (train, as it learned), "
            "or running ones estimated anew at each place. It changes every number: the same weights can look many "
            "times sharper in one mode than in another.",
        )
        images = st.selectbox(
            "Images", [128, 256, 512, 1024, 2048], index=2, key=f"{key}-images", width=110, help="Training images."
        )
    if not runs or not measures:
        st.caption("Choose a run and a measure.")
        return None
    return {"runs": runs, "measures": list(measures), "norms": norms, "images": images}


@st.cache_data(max_entries=16, show_spinner=False)
def _found(asked: str, root: str, start: bool) -> dict[str, Any]:  # noqa: ARG001  # another store, another answer
    found: dict[str, Any] = polling.step("landscape", start=start, **json.loads(asked))["report"]
    return found


def _looked(values: dict[str, Any], rows: Mapping[str, RunRow], store: Store, key: str) -> None:
    asked, root = json.dumps(values, sort_keys=True), str(store.root.resolve())
    place = st.empty()
    place.caption("Reading the runs …")
    try:
        found = polling.wait(
            lambda: _found(asked, root, st.session_state.get(f"{key}-wanted") == asked),
            "Looking around",
            place=place,
            started=lambda answer: "cost" not in answer,
        )
    except polling.Unfinished as priced:
        with place.container():
            _price(priced.answer["cost"], asked, key)
        return
    with place.container():
        charts.show(found, {id: row.label for id, row in rows.items()}, key=key)


def _price(cost: dict[str, Any], asked: str, key: str) -> None:
    kept = cost["tasks"] - cost["missing"]
    st.caption(
        f"About {formatting.duration(cost['seconds'])} of one core: {cost['losses']:,} losses and "
        f"{cost['gradients']:,} "
        f"gradients of a batch. {kept} of {cost['tasks']} measures are kept already."
    )
    st.button(
        "Look around",
        type="primary",
        icon=":material/landscape:",
        key=f"{key}-start",
        on_click=st.session_state.__setitem__,
        args=(f"{key}-wanted", asked),
    )
