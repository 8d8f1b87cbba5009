"""The loss landscape of finished runs: 1D and 2D slices, interpolation between two, Hessian spectrum, and measures.

`panel` is the public function. The backend computes in short steps, so that a click interrupts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import streamlit as st

from pages.ui.app import context
from pages.ui.landscape import charts
from pages.ui.widgets import formatting, polling
from pages.ui.widgets.run_table import RunRow
from smallalign_core.analysis.landscape_report import LandscapeCost, LandscapeReport
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import LandscapeProgress, MeasureLandscape
from smallalign_core.service.wire import Progress

SHORT = {"eval": "Running", "train": "Batch", "reestimate": "Re-estimated"}
MEASURES = {
    "line": "1D slices",
    "plane": "2D contours",
    "curvature": "Curvature",
    "predictiveness": "Gradient predictiveness",
    "path": "Interpolation",
    "between": "Plane between runs",
}


def panel(rows: Sequence[RunRow], store: Store, *, key: str = "landscape") -> None:
    """Choose runs and measures, see the cost, and compute.

    Args:
        rows: available runs; the first few are preselected.
        key: for widgets; the selection is kept for the session.
    """
    finished = {row.id: row for row in rows if row.finished and not row.imported}
    if not finished:
        st.caption("The loss landscape requires a finished run.")
        return
    if not st.toggle(
        "Loss landscape",
        key=f"{key}-open",
        help="Loss around the weights, its curvature, and gradient predictiveness, computed on training images with "
        "the run's own loss and teacher. Validation and test are not used.",
    ):
        return
    with context.show_errors():
        request = _request(finished, key)
        if request is not None:
            _computed(request, finished, store, key)


def _request(rows: Mapping[str, RunRow], key: str) -> MeasureLandscape | None:
    """The request to the backend; None if nothing is selected."""
    runs = list(rows)
    if len(rows) > 1:
        runs = st.multiselect(
            "Runs",
            runs,
            default=runs[:3],
            format_func=lambda one: rows[one].label,
            key=f"{key}-runs",
            help="Six runs of three or more sizes also give a test of whether smaller networks are more rugged.",
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
            "Batch-norm statistics",
            list(SHORT),
            default="eval",
            format_func=SHORT.__getitem__,
            key=f"{key}-norms",
            required=True,
            help="Running statistics (eval mode), batch statistics (train mode), or running statistics re-estimated "
            "at each point. Affects every measure: the same weights can be many times sharper in another mode.",
        )
        images = st.selectbox(
            "Images", [128, 256, 512, 1024, 2048], index=2, key=f"{key}-images", width=110, help="Training images."
        )
    if not runs or not measures:
        st.caption("Select at least one run and one measure.")
        return None
    return MeasureLandscape(tuple(runs), tuple(measures), norms, images)


@st.cache_resource(max_entries=16, show_spinner=False)
def _found(request: MeasureLandscape, root: str) -> LandscapeReport:  # noqa: ARG001  # part of the cache's key
    return polling.step(request)


def _computed(request: MeasureLandscape, rows: Mapping[str, RunRow], store: Store, key: str) -> None:
    root = str(store.root.resolve())
    place = st.empty()
    place.caption("Loading runs …")
    try:
        found = polling.wait(
            lambda: _found(replace(request, start=st.session_state.get(f"{key}-wanted") == request), root),
            "Computing",
            place=place,
            started=lambda answer: _cost(answer) is None,
        )
    except polling.Unfinished as priced:
        with place.container():
            if cost := _cost(priced.answer):
                _price(cost, request, key)
        return
    with place.container():
        charts.show(found, {id: row.label for id, row in rows.items()}, key=key)


def _cost(answer: Progress[object]) -> LandscapeCost | None:
    return answer.cost if isinstance(answer, LandscapeProgress) else None


def _price(cost: LandscapeCost, request: MeasureLandscape, key: str) -> None:
    kept = cost.tasks - cost.missing
    st.caption(
        f"About {formatting.duration(cost.seconds)} on one core: {cost.losses:,} batch losses and "
        f"{cost.gradients:,} batch gradients. {kept} of {cost.tasks} measures are cached."
    )
    st.button(
        "Compute",
        type="primary",
        icon=":material/landscape:",
        key=f"{key}-start",
        on_click=st.session_state.__setitem__,
        args=(f"{key}-wanted", request),
    )
