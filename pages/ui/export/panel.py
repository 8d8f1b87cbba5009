"""What the Export page shows: three precisions side by side, the downloads, and the proof, here and in the browser."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict
from typing import Any

import streamlit as st

from pages.ui import browser
from pages.ui.app import context, keys
from pages.ui.security import auth
from pages.ui.widgets import formatting, run_table
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.service.users import Role
from smallalign_core.spec.precision import file_name

PRECISIONS = {
    "fp32": "fp32, full size",
    "fp16": "fp16, half",
    "int8": "int8, a quarter",
}
MODEL = "the exported file"
Report = dict[str, Any]


def explain_import(row: RunRow) -> None:
    """Why an import has no export."""
    st.info(
        "This model was imported as an ONNX file, so it is one already: give that file to whoever needs it. "
        "SmallAlign exports what it trained itself. To ship something smaller, distil a student from it."
    )
    st.caption("To look at the file, and to score it on images, in a process with limits:")
    st.code(f"python -m smallalign_core verify FILE.onnx --run {row.id}", language="bash", wrap_lines=True)


def bundles(run: str, store: Store) -> dict[str, Report | str]:
    """The desk's report of a run's export in each precision, made now if it is not there; a sentence where it fails."""
    found: dict[str, Report | str] = {}
    for precision in PRECISIONS:
        try:
            found[precision] = bundle(run, store, precision)
        except SmallAlignError as error:
            found[precision] = str(error)
    return found


def bundle(run: str, store: Store, precision: str = "fp32") -> Report:
    """The desk's report of a run's export in one precision, made now if it is not there."""
    file = store.root / "exports" / run / file_name("parity.json", precision)
    return _bundle(run, precision, str(store.root), file.stat().st_mtime_ns if file.exists() else 0)


@st.cache_data(max_entries=32, show_spinner=False)
def _bundle(
    run: str,
    precision: str,
    root: str,  # noqa: ARG001  # this and the next are part of the cache's key
    changed: int,  # noqa: ARG001
) -> Report:
    waiting = f"Exporting {precision}, and comparing every held-out image with PyTorch"
    return context.call("bundle", waiting, run=run, precision=precision)


# --- three precisions -------------------------------------------------------------------------------------------------


def sizes(reports: dict[str, Report | str], chosen: str) -> None:
    """Size, loss and latency of all precisions side by side."""
    columns = ("", "Size", "Lost on validation", "Lost on test", "Same top-1", "p50 here")
    rows = [_size_row(name, report, name == chosen) for name, report in reports.items()]
    st.table({name: [row[at] for row in rows] for at, name in enumerate(columns)}, width="content", hide_index=True)
    limit = next((report["limit"] for report in reports.values() if not isinstance(report, str)), 0.01)
    st.caption(
        f"Lost: points of accuracy against PyTorch in fp32 on the same images, with the 95 % interval; more than "
        f"{100 * limit:g} is flagged. Same top-1: on test. p50: one image, ONNX Runtime, one thread of this machine. "
        "Choose by validation: test is for reporting."
    )


def _size_row(name: str, report: Report | str, chosen: bool) -> list[str]:
    first = f"**{name}**" if chosen else name
    if isinstance(report, str):
        return [first, "failed", "–", "–", "–", "–"]
    loss, proof = report["loss"], report["parity"]
    return [
        first,
        formatting.size(report["bytes"]),
        lost(loss["val"]),
        lost(loss["test"]),
        formatting.percent(proof["top1_agreement"], 2),
        f"{proof['p50_ms']:.2f} ms",
    ]


def lost(loss: dict[str, Any]) -> str:
    """Points of accuracy, with their interval; a flag where it is too much."""
    points = f"{_points(loss['loss'])} ({_points(loss['low'])} to {_points(loss['high'])})"
    return f":material/flag: {points}" if loss["flagged"] else points


def _points(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "−") if round(100 * share, 2) else "0"


def flag(report: Report) -> None:
    """Say that a precision loses too much, or that nobody can tell yet."""
    limit, loss = report["limit"], report["loss"]
    if report["flagged"]:
        st.warning(
            f"{report['precision']} loses more than {100 * limit:g} point of accuracy here. The file, its card and its "
            "JSON say so. fp16 is half the size without that loss.",
            icon=":material/flag:",
        )
    elif report["precision"] != "fp32" and loss["val"]["high"] > limit:
        st.caption(
            f"A loss of more than {100 * limit:g} point is not ruled out: the interval on {loss['val']['images']:,} "
            "validation images reaches beyond it. More images would tell."
        )


# --- downloads --------------------------------------------------------------------------------------------------------


def downloads(row: RunRow, report: Report) -> None:
    """The file, the zip and the demo; what the file takes; how to check it elsewhere."""
    precision = report["precision"]

    def url(file: str) -> str:
        return browser.artifact_url(row.id, file_name(file, precision), download=True)

    with st.container(horizontal=True, vertical_alignment="center"):
        st.link_button("ONNX file", url("model.onnx"), icon=":material/download:", type="primary")
        st.link_button("Zip with card, proof and snippets", url("model.zip"), icon=":material/folder_zip:")
        if browser.installed():
            st.link_button("Browser demo", url("demo.zip"), icon=":material/web:")
    st.caption(
        f"{formatting.size(report['bytes'])}, opset {report['opset']}, one file. The zip holds it with its model card, "
        "proof, labels, and code for Python, Node and a plain page. The demo is a folder that any static host serves: "
        "draw, drop a picture, or use the camera."
    )
    with st.expander("Input, outputs, SHA-256, and how to check the file elsewhere"):
        st.code(signature(report), language=None)
        st.caption("SHA-256 of the file")
        st.code(report["sha256"], language=None, wrap_lines=True)
        st.caption("Check the downloaded file on any machine that has SmallAlign; a changed file is refused:")
        name = f"{row.id}-{file_name('model.onnx', precision)}"
        st.code(f"python -m smallalign_core verify {name}", language="bash", wrap_lines=True)


def signature(report: Report) -> str:
    """The file's input and outputs, one a line."""
    _, height, width, channels = report["shape"]
    classes = len(report["classes"])
    return (
        f"images         uint8   [N, H, W, {channels}]   any N, H, W; trained on {height} x {width}\n"
        f"logits         float32 [N, {classes}]\nprobabilities  float32 [N, {classes}]   temperature "
        "fitted on validation"
    )


# --- the proof --------------------------------------------------------------------------------------------------------


def sentence(report: Report) -> str:
    """The verdict on ONNX Runtime against PyTorch."""
    parity = report["parity"]
    return (
        f"{'Yes' if parity['ok'] else 'No'}: on {parity['images']:,} test images ONNX Runtime and PyTorch agree on "
        f"{formatting.percent(parity['top1_agreement'], 2)}; "
        f"the largest difference of any logit is {parity['max_abs_diff']:.1e}."
    )


def check(row: RunRow, report: Report) -> None:
    """The table of all three; the browser's row once a visitor has asked for it, from the logits that it sent."""
    memory = f"browser-check-{report['sha256']}"
    turn = st.session_state.get(memory, 0)
    again = report["browser"] is not None
    looks = auth.visitor().role is Role.VIEWER
    if st.button(
        "Check again in this browser" if again else "Check in this browser",
        icon=":material/travel_explore:",
        type="secondary" if again else "primary",
        disabled=looks,
        help="The answers go into everybody's proof: ask for a runner's rights." if looks else None,
    ):
        turn = st.session_state[memory] = turn + 1
    if turn:
        report = _answered(row, report, f"{report['sha256']}-{turn}")
    st.html(_table(report))
    st.caption(_caption(report))


def _answered(row: RunRow, report: Report, request: str) -> Report:
    """The report with what this browser answered, which the desk scores and writes into card and download."""
    count, height, width, channels = report["shape"]
    answer = browser.parity(
        key="parity",
        request=request,
        models={MODEL: browser.artifact_url(row.id, report["file"])},
        images=browser.artifact_url(row.id, "images.bin"),
        count=count,
        shape=(height, width, channels),
        classes=len(report["classes"]),
    )
    told = st.session_state.get(keys.BROWSER_TOLD)
    if answer is None or told == request:
        return report
    timing = asdict(answer.timings[MODEL])
    said = {
        "logits": base64.b64encode(answer.logits[MODEL].astype("<f4").tobytes()).decode(),
        "sha256": timing["sha256"],
        "images_sha256": answer.images_sha256,
        "runtime": asdict(answer.runtime),
        "timing": timing,
    }
    found = context.call(
        "claim", "Scoring what your browser answered", run=row.id, precision=report["precision"], said=said
    )
    st.session_state[keys.BROWSER_TOLD] = request
    return found


NAMES = ("", "Images", "Accuracy", "Same top-1", "Largest logit difference", "p50", "p95", "Load", "Threads", "Backend")


def _table(report: Report) -> str:
    """One row for each of PyTorch, ONNX Runtime and the browser, as HTML: a keyboard can scroll it on a telephone."""
    parity, said = report["parity"], report["browser"]
    accuracy = formatting.percent(parity["reference_accuracy"], 2)
    torch = ["PyTorch", f"{parity['images']:,}", accuracy, "reference", "reference", *"––––", "PyTorch"]
    onnx = ["ONNX Runtime", *_figures(parity), "–", "1", "CPU"]
    web = ["Your browser", "not checked yet", *["–"] * (len(NAMES) - 2)]
    if said is not None:
        runtime, load = said["runtime"], said["timing"]["load_ms"]
        web = [
            *("Your browser", *_figures(said), f"{load:.0f} ms", str(runtime["threads"])),
            f"onnxruntime-web, {runtime['backend']}",
        ]
    head = "".join(f'<th scope="col">{name}</th>' for name in NAMES)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in (torch, onnx, web)
    )
    return (
        '<div class="sa-scroll" tabindex="0" role="region" aria-label="PyTorch, ONNX Runtime and your browser">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figures(found: dict[str, Any]) -> list[str]:
    return [
        *(
            f"{found['images']:,}",
            formatting.percent(found["accuracy"], 2),
            formatting.percent(found["top1_agreement"], 2),
        ),
        *(f"{found['max_abs_diff']:.1e}", f"{found['p50_ms']:.2f} ms", f"{found['p95_ms']:.2f} ms"),
    ]


def _caption(report: Report) -> str:
    said = report["browser"]
    if said is None:
        return (
            f"The check sends the file and {report['shape'][0]:,} test images to this browser, which answers them on "
            "its own processor. Its answers come back, are scored here, and are written into the zip's model card."
        )
    runtime = said["runtime"]
    verdict = "within the limits" if said["ok"] else "NOT within the limits"
    return (
        f"The browser's answers are {verdict} of this precision. Scored here from its logits; the times are its own "
        f"word, of {said['when']}, and so written into the card. onnxruntime-web {runtime['version']}, "
        f"{runtime['backend']}: {runtime['why']}. {runtime['user_agent']}"
    )


def pad(row: RunRow, report: Report, store: Store) -> None:
    """The drawing pad, with the student and, if it had one, its teacher."""
    models = {"student" if row.teacher else "model": browser.artifact_url(row.id, report["file"])}
    teacher = next((other for other in run_table.finished(store) if other.id == row.teacher), None)
    if teacher is not None and not teacher.imported:
        bundle(teacher.id, store)
        models["teacher"] = browser.artifact_url(teacher.id, "model.onnx")
    _, height, width, channels = report["shape"]
    browser.draw(key="pad", models=models, classes=report["classes"], size=(height, width), channels=channels)
