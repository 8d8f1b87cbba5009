"""Export: a run as one ONNX file in three precisions or for another runtime, the parity check, and the downloads."""

import streamlit as st

from pages.ui.app import context
from pages.ui.export import panel, target_panel
from pages.ui.widgets import formatting, run_table, url_state
from smallalign_core.spec.target import TARGETS

store = context.store()
st.title("Export")
found = run_table.finished(store)
if not [row for row in found if not row.imported]:
    st.info("No trained model to export yet. The demo on Home trains a student.")
    st.page_link("home.py", label="Run the demo (30 s)", icon=":material/play_arrow:")
    st.stop()
with st.container(horizontal=True, vertical_alignment="bottom"):
    row = url_state.pick_row(
        "Run", [*(r for r in found if not r.imported), *(r for r in found if r.imported)], key="run"
    )
    runtime = url_state.pick("Runtime", target_panel.RUNTIMES, key="runtime")
    precision = "fp32"
    if runtime not in TARGETS:
        precision = url_state.pick("Precision", panel.PRECISIONS, key="precision")
if row is None:
    st.stop()
if row.imported:
    panel.explain_import(row)
    st.stop()
if runtime in TARGETS:
    target_panel.show(row, store, TARGETS[runtime])
    st.stop()

how = panel.options(precision)
reports = panel.bundles(row.id, store, how)
panel.sizes(reports, precision)
report = reports[precision]
if isinstance(report, str):
    st.error(report, icon=":material/error:")
    st.stop()
panel.flag(report)
panel.quantized(report)
panel.accepted(report)

st.subheader("Download")
panel.downloads(row, report)

st.subheader("Parity check (PyTorch, ONNX Runtime, browser)")
if report.parity.ok:
    st.success(panel.sentence(report), icon=":material/verified:")
else:
    st.error(panel.sentence(report), icon=":material/error:")
panel.check(row, report)

st.subheader("Try it in this browser")
st.caption(f"The exported file ({formatting.size(report.bytes)}) runs in this browser while you draw.")
panel.pad(row, report, store)
