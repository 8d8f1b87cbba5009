"""Export: one ONNX file, the proof that it answers as PyTorch does, here and in the browser, and the download."""

import streamlit as st

from pages.ui import backstage, browser, listing, picks, proof, wording

store = backstage.store()
st.title("Export")
found = [row for row in listing.finished(store) if not row.imported]
if not found:
    st.info("Nothing is trained yet, so there is nothing to export. One click on Home makes a student.")
    st.page_link("home.py", label="Distil a student now", icon=":material/play_arrow:")
    st.stop()
row = picks.pick_row("Run", found, key="run")
if row is None:
    st.stop()
report = proof.bundle(row.id, store)
ok = report["parity"]["ok"]

with st.container(horizontal=True, vertical_alignment="center"):
    st.link_button(
        "Download",
        browser.artifact_url(row.id, "model.onnx", download=True),
        icon=":material/download:",
        type="primary",
    )
    st.caption(
        f"{wording.size(report['bytes'])} · one ONNX file, opset {report['opset']}, no external data", width="content"
    )
with st.expander("Input, outputs, SHA-256, and how to check the file elsewhere"):
    st.code(proof.signature(report), language=None)
    st.caption("SHA-256 of the file")
    st.code(report["sha256"], language=None, wrap_lines=True)
    st.caption("Check the downloaded file on any machine that has SmallAlign:")
    st.code(f"python -m smallalign_core verify {row.id}-model.onnx", language="bash", wrap_lines=True)

st.subheader("Does it give the same answers?")
if ok:
    st.success(proof.sentence(report), icon=":material/verified:")
else:
    st.error(proof.sentence(report), icon=":material/error:")
proof.check(row, report, store)

st.subheader("Draw, and see both models answer")
proof.pad(row, report, store)
