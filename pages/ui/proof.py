"""The proof that an exported file answers as its run does: PyTorch, ONNX Runtime and the browser side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from pages.ui import backstage, browser, listing, wording
from pages.ui.listing import Row
from smallalign_core.store import Store

MODEL = "the exported file"


def bundle(run: str, store: Store) -> dict[str, Any]:
    """The desk's report of a run's export, made now if it is not there."""
    file = store.root / "exports" / run / "parity.json"
    return _bundle(run, str(store.root), file.stat().st_mtime_ns if file.exists() else 0)


@st.cache_data(max_entries=32, show_spinner=False)
def _bundle(
    run: str,
    root: str,  # noqa: ARG001  # this and the next are part of the cache's key
    changed: int,  # noqa: ARG001
) -> dict[str, Any]:
    return backstage.ask("bundle", "Exporting, and comparing every test image with PyTorch", run=run)


def signature(report: dict[str, Any]) -> str:
    """The file's input and outputs, one a line."""
    _, height, width, channels = report["shape"]
    classes = len(report["classes"])
    return (
        f"images         uint8   [N, H, W, {channels}]   any N, H, W; trained on {height} x {width}\n"
        f"logits         float32 [N, {classes}]\nprobabilities  float32 [N, {classes}]   temperature "
        "fitted on validation"
    )


def sentence(report: dict[str, Any]) -> str:
    """The verdict on ONNX Runtime against PyTorch."""
    parity = report["parity"]
    return (
        f"{'Yes' if parity['ok'] else 'No'}: on {parity['images']:,} test images ONNX Runtime and PyTorch agree on "
        f"{wording.percent(parity['top1_agreement'], 2)}; "
        f"the largest difference of any logit is {parity['max_abs_diff']:.1e}."
    )


def check(row: Row, report: dict[str, Any], store: Store) -> None:
    """The table of all three, with the browser's column once the visitor has asked for it."""
    asked = f"browser-check-{report['sha256']}"
    count, height, width, channels = report["shape"]
    answer = None
    if not st.session_state.get(asked) and st.button(
        "Check in this browser", icon=":material/travel_explore:", type="primary"
    ):
        st.session_state[asked] = True
        st.rerun()
    if st.session_state.get(asked):
        answer = browser.parity(
            key="parity",
            request=report["sha256"],
            models={MODEL: browser.artifact_url(row.id, "model.onnx")},
            images=browser.artifact_url(row.id, "images.bin"),
            count=count,
            shape=(height, width, channels),
            classes=len(report["classes"]),
        )
    st.table(_table(report, answer, _expected(row, report, store) if answer else None), width="content")
    if answer:
        runtime = answer.runtime
        st.caption(f"onnxruntime-web {runtime.version}, {runtime.backend}: {runtime.why}. {runtime.user_agent}")
    else:
        st.caption(
            f"The check sends the file and {count:,} test images to this browser, which answers them "
            "on its own processor. Nothing leaves this machine."
        )


def _expected(row: Row, report: dict[str, Any], store: Store) -> NDArray[np.float32]:
    """What ONNX Runtime answered to the images that the browser gets: float32 [count, classes]."""
    file = store.root / "exports" / row.id / "logits.bin"
    return np.fromfile(file, "<f4").reshape(report["shape"][0], len(report["classes"]))


NAMES = (
    *("Images", "Accuracy", "Same top-1", "Largest logit difference"),
    *("p50 per image", "p95 per image", "Load", "Threads", "Backend"),
)


def _table(
    report: dict[str, Any], answer: browser.ParityResult | None, expected: NDArray[np.float32] | None
) -> dict[str, list[str]]:
    parity = report["parity"]
    images = f"{parity['images']:,}"
    torch = [images, wording.percent(parity["reference_accuracy"], 2), "reference", "reference", *"––––", "PyTorch"]
    onnx = [
        *(images, wording.percent(parity["accuracy"], 2), wording.percent(parity["top1_agreement"], 2)),
        *(f"{parity['max_abs_diff']:.1e}", f"{parity['p50_ms']:.2f} ms", f"{parity['p95_ms']:.2f} ms", "–", "1"),
        "ONNX Runtime, CPU",
    ]
    web = ["not checked yet", *["–"] * (len(NAMES) - 1)]
    if answer is not None and expected is not None:
        web = _of_browser(answer, expected, np.asarray(report["labels"]))
    return {"": list(NAMES), "PyTorch": torch, "ONNX Runtime": onnx, "This browser": web}


def _of_browser(answer: browser.ParityResult, expected: NDArray[np.float32], labels: NDArray[np.int64]) -> list[str]:
    logits, time = answer.logits[MODEL], answer.timings[MODEL]
    said = logits.argmax(1)
    return [
        f"{len(said):,}",
        wording.percent(float((said == labels).mean()), 2),
        wording.percent(float((said == expected.argmax(1)).mean()), 2),
        f"{np.abs(logits - expected).max():.1e}",
        f"{time.p50_ms:.2f} ms",
        f"{time.p95_ms:.2f} ms",
        f"{time.load_ms:.0f} ms",
        str(answer.runtime.threads),
        f"onnxruntime-web, {answer.runtime.backend}",
    ]


def pad(row: Row, report: dict[str, Any], store: Store) -> None:
    """The drawing pad, with the student and, if it had one, its teacher."""
    models = {"student" if row.teacher else "model": browser.artifact_url(row.id, "model.onnx")}
    if row.teacher and any(other.id == row.teacher for other in listing.finished(store)):
        bundle(row.teacher, store)
        models["teacher"] = browser.artifact_url(row.teacher, "model.onnx")
    _, height, width, channels = report["shape"]
    browser.draw(key="pad", models=models, classes=report["classes"], size=(height, width), channels=channels)
