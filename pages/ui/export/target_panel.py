"""The Export page for runtimes other than ONNX Runtime: limits before the conversion, then downloads and the proof."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from pages.ui import browser
from pages.ui.app import context
from pages.ui.export import panel
from pages.ui.security import auth
from pages.ui.widgets import formatting
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.export_report import TargetReport
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import ExportTarget
from smallalign_core.service.users import Role
from smallalign_core.spec.target import TARGETS, Target
from smallalign_core.system import extras

RUNTIMES = {"onnx": "ONNX Runtime"} | {
    name: one.title + ("" if extras.installed(one.package) else " (not installed)") for name, one in TARGETS.items()
}


def show(row: RunRow, store: Store, target: Target) -> None:
    """All of the page below its menus."""
    st.markdown("\n".join(f"- {words}" for words in target.limits))
    if not extras.installed(target.package):
        st.info(f"{target.title} is not installed on this machine. To convert and check runs for it:")
        st.code(extras.command(target.package), language="bash", wrap_lines=True)
        return
    kept = (store.root / "exports" / row.id / f"parity-{target.name}.json").is_file()
    looks = auth.current_user().role is Role.VIEWER
    if not kept and not st.button(
        f"Convert to {target.title}",
        icon=":material/swap_horiz:",
        type="primary",
        disabled=looks,
        help="Requires the runner role."
        if looks
        else "Takes up to a minute. Every test image is compared with PyTorch.",
    ):
        return
    try:
        report = context.call(
            ExportTarget(row.id, target.name), f"Converting to {target.title} and comparing predictions with PyTorch"
        )
    except SmallAlignError as error:
        st.error(str(error), icon=":material/error:")
        return
    _downloads(row, report, target)
    _proof(report, target)


def _downloads(row: RunRow, report: TargetReport, target: Target) -> None:
    st.subheader("Download")

    def url(ending: str) -> str:
        return browser.artifact_url(row.id, f"model-{target.name}{ending}", download=True)

    with st.container(horizontal=True, vertical_alignment="center"):
        for at, ending in enumerate(target.endings):
            kind: Literal["primary", "secondary"] = "primary" if at == 0 else "secondary"
            st.link_button(f"{ending} file", url(ending), icon=":material/download:", type=kind)
        st.link_button("Bundle (model card, parity report, code)", url(".zip"), icon=":material/folder_zip:")
    st.caption(panel.cost(report.footprint))
    st.caption(
        f"{formatting.size(report.bytes)}, written by {report.runtime}. The bundle adds a model card, parity report, "
        "class labels, and sample code."
    )
    with st.expander("Inputs and outputs, SHA-256, verification"):
        channels, height, width = report.input_shape
        size = f"[N, H, W, {channels}]   any N, H, W;" if target.any_size else f"[1, {height}, {width}, {channels}]  "
        classes = len(report.classes)
        st.code(
            f"images         uint8   {size} trained on {height} x {width}\n"
            f"logits         float32 [N, {classes}]\nprobabilities  float32 [N, {classes}]   temperature "
            "fitted on validation",
            language=None,
        )
        st.caption("SHA-256 of the file")
        st.code(report.sha256, language=None, wrap_lines=True)
        st.caption(f"Verify it on any machine with SmallAlign and {target.title}; modified files are rejected:")
        name = f"{row.id}-model-{target.name}{target.endings[0]}"
        st.code(f"python -m smallalign_core verify {name}", language="bash", wrap_lines=True)


def _proof(report: TargetReport, target: Target) -> None:
    st.subheader(f"Parity check (PyTorch, {target.title})")
    parity = report.parity
    st.success(
        f"Parity check passed: top-1 agreement of {target.title} and PyTorch is "
        f"{formatting.percent(parity.top1_agreement, 2)} on {parity.images:,} test images; max. absolute logit "
        f"difference {parity.max_abs_diff:.1e}, {parity.relative_diff:.1e} of their standard deviation.",
        icon=":material/verified:",
    )
    head = ("Runtime", "Accuracy", "Latency p50", "Latency p95")
    rows = [
        ("PyTorch", formatting.percent(parity.reference_accuracy, 2), "–", "–"),
        (
            report.runtime,
            formatting.percent(parity.accuracy, 2),
            f"{parity.p50_ms:.2f} ms",
            f"{parity.p95_ms:.2f} ms",
        ),
    ]
    st.table({name: [one[at] for one in rows] for at, name in enumerate(head)}, width="content", hide_index=True)
    st.caption(
        f"Accuracy drop on test: {panel.lost(report.loss.test)} points, with 95% CI. Latency: this machine, batch size "
        "1, one CPU thread. A file that misses the parity check is not offered."
    )
