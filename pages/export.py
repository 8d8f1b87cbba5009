"""Export: a run as one ONNX file in three precisions, the proof that it answers as PyTorch does, and the downloads."""

import streamlit as st

from pages.ui import backstage, listing, picks, proof, wording

store = backstage.store()
st.title("Export")
found = listing.finished(store)
if not [row for row in found if not row.imported]:
    st.info("Nothing is trained yet, so there is nothing to export. One click on Home makes a student.")
    st.page_link("home.py", label="Distil a student now", icon=":material/play_arrow:")
    st.stop()
with st.container(horizontal=True, vertical_alignment="bottom"):
    row = picks.pick_row("Run", [*(r for r in found if not r.imported), *(r for r in found if r.imported)], key="run")
    precision = picks.pick("Precision", proof.PRECISIONS, key="precision")
if row is None:
    st.stop()
if row.imported:
    proof.explain_import(row)
    st.stop()

reports = proof.bundles(row.id, store)
proof.sizes(reports, precision)
report = reports[precision]
if isinstance(report, str):
    st.error(report, icon=":material/error:")
    st.stop()
proof.flag(report)

st.subheader("Download")
proof.downloads(row, report)

st.subheader("Does it give the same answers?")
if report["parity"]["ok"]:
    st.success(proof.sentence(report), icon=":material/verified:")
else:
    st.error(proof.sentence(report), icon=":material/error:")
proof.check(row, report)

st.subheader("Try it in this browser")
st.caption(f"The file of {wording.size(report['bytes'])} answers while you draw.")
proof.pad(row, report, store)
