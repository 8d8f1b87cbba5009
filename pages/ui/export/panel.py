"""The Export page: three precisions side by side, the downloads, and the parity check, here and in the browser."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict
from typing import get_args

import streamlit as st

from pages.ui import browser
from pages.ui.app import context, keys
from pages.ui.security import auth
from pages.ui.widgets import formatting, run_table, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.export_report import ExportReport, Footprint, Loss, Parity, in_points
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import Export, SubmitParity
from smallalign_core.service.users import Role
from smallalign_core.spec.precision import (
    AUTOMATIC,
    CALIBRATED,
    LEAST_COVERAGE,
    MOST_COVERAGE,
    MOST_DROP,
    Calibration,
    FileOptions,
    file_name,
    variant_of,
)

PRECISIONS = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
}
CALIBRATIONS: dict[str, str] = {
    "": "Automatic",
    "minmax": "Min-max",
    "percentile": "Percentile",
    "mse": "Least squared error",
}
MODEL = "the exported file"


def explain_import(row: RunRow) -> None:
    """A notice that an imported model has no export."""
    st.info(
        "This model was imported as an ONNX file and needs no export: deploy that file. SmallAlign exports only models "
        "that it trained. For a smaller model, distill a student from this one."
    )
    st.caption("To inspect the file and evaluate it on images, in a sandboxed process:")
    st.code(f"python -m smallalign_core verify FILE.onnx --run {row.id}", language="bash", wrap_lines=True)


def options(precision: str) -> FileOptions:
    """Coverage, and calibration and accuracy limit of int8, kept in the URL."""
    percent = url_state.pick_number(
        st.number_input,
        "Reject uncertain images: coverage (%)",
        *(100 * LEAST_COVERAGE, 100 * MOST_COVERAGE, 1.0),
        key="coverage",
        first=None,
        empty="off: every image is accepted",
        format="%g",
        help="Adds the output `accepted` to the file: true for about this share of images like the validation "
        "images, false for the least confident predictions (split conformal prediction).",
    )
    coverage = round(percent / 100, 6) if percent else None
    if precision not in CALIBRATED:
        return FileOptions(coverage=coverage)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        calibration = url_state.pick("Calibration", CALIBRATIONS, key="calibration")
        drop = url_state.pick_number(
            st.number_input,
            "Max. accuracy drop (points)",
            *(0.0, MOST_DROP, 0.1),
            key="max-drop",
            first=None,
            empty="no limit",
            format="%g",
            help="With a limit, the fewest layers are left in float so that the upper end of the interval of the "
            "accuracy drop on validation images is within it. Takes minutes for deep networks.",
        )
    chosen = next((one for one in get_args(Calibration) if one == calibration), None)
    return FileOptions(chosen, drop or None, coverage)


def for_precision(how: FileOptions, precision: str) -> FileOptions:
    """Those of the options that a precision has."""
    return how if precision in CALIBRATED else FileOptions(coverage=how.coverage)


def bundles(run: str, store: Store, how: FileOptions = AUTOMATIC) -> dict[str, ExportReport | str]:
    """The backend's report of a run's export in each precision, made now if missing; a message where it fails.

    Args:
        how: the options; those of int8 are left out of the others.
    """
    found: dict[str, ExportReport | str] = {}
    for precision in PRECISIONS:
        try:
            found[precision] = bundle(run, store, variant_of(precision, for_precision(how, precision)))
        except SmallAlignError as error:
            found[precision] = str(error)
    return found


def bundle(run: str, store: Store, precision: str = "fp32") -> ExportReport:
    """The backend's report of a run's export in one precision, made now if missing.

    Args:
        precision: with the options of int8, as `variant_of` names it.
    """
    file = store.root / "exports" / run / file_name("parity.json", precision)
    return _bundle(run, precision, str(store.root), file.stat().st_mtime_ns if file.exists() else 0)


@st.cache_resource(max_entries=32, show_spinner=False)
def _bundle(
    run: str,
    precision: str,
    root: str,  # noqa: ARG001  # this and the next are part of the cache's key
    changed: int,  # noqa: ARG001
) -> ExportReport:
    waiting = f"Exporting {precision} and comparing predictions with PyTorch"
    return context.call(Export(run, precision), waiting)


# --- three precisions -------------------------------------------------------------------------------------------------


def sizes(reports: dict[str, ExportReport | str], chosen: str) -> None:
    """Size, accuracy drop and latency of all precisions side by side."""
    columns = ("", "Size", "Acc. drop (val.)", "Acc. drop (test)", "Top-1 match", "Latency p50")  # fits a phone
    rows = [_size_row(name, report, name == chosen) for name, report in reports.items()]
    st.table({name: [row[at] for row in rows] for at, name in enumerate(columns)}, width="content", hide_index=True)
    limit = next((report.limit for report in reports.values() if not isinstance(report, str)), 0.01)
    st.caption(
        f"Accuracy drop: percentage points relative to PyTorch fp32 on the same images, with 95% CI; drops above "
        f"{100 * limit:g} are flagged. Top-1 match: with PyTorch fp32 on test images. Latency: this machine, batch "
        "size 1, ONNX Runtime, one thread. Select by validation; report on test."
    )


def _size_row(name: str, report: ExportReport | str, chosen: bool) -> list[str]:
    first = f"**{name}**" if chosen else name
    if isinstance(report, str):
        return [first, "failed", "–", "–", "–", "–"]
    loss, proof = report.loss, report.parity
    return [
        first,
        formatting.size(report.bytes),
        lost(loss.val),
        lost(loss.test),
        formatting.percent(proof.top1_agreement, 2),
        f"{proof.p50_ms:.2f} ms",
    ]


def lost(loss: Loss) -> str:
    """Accuracy drop in points, with its interval; flagged above the limit."""
    points = f"{_points(loss.loss)} ({_points(loss.low)} to {_points(loss.high)})"
    return f":material/flag: {points}" if loss.flagged else points


def _points(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "−") if round(100 * share, 2) else "0"


def flag(report: ExportReport) -> None:
    """Warn of a precision with too large an accuracy drop, or with an inconclusive one."""
    limit, loss = report.limit, report.loss
    if report.flagged:
        st.warning(
            f"The accuracy drop of {report.precision} exceeds {100 * limit:g} percentage point on this dataset. "
            "Model card and parity report include this warning. Use fp16 for half the size without this drop.",
            icon=":material/flag:",
        )
    elif report.precision != "fp32" and loss.val.high > limit:
        st.caption(
            f"A drop above {100 * limit:g} percentage point is not ruled out: it is within the 95% CI on "
            f"{loss.val.images:,} validation images. More validation images would narrow the interval."
        )


def quantized(report: ExportReport) -> None:
    """How int8 was made: calibration, the limit, and what each layer costs."""
    told = report.quantized
    if told is None:
        return
    compared = ", ".join(f"{CALIBRATIONS[name]} {formatting.percent(one, 2)}" for name, one in told.agreement.items())
    st.caption(
        f"Calibration: {CALIBRATIONS[told.calibration]}. Top-1 agreement with fp32 on validation images: {compared}."
    )
    if told.drop is None or told.plain is None or told.paid is None:
        return
    st.success(
        f"Limit of {told.max_drop:g} points met: accuracy drop {in_points(asdict(told.drop))}.",
        icon=":material/verified:",
    )
    st.caption(
        f"{len(told.in_float)} of {len(told.layers)} layers are computed in float, their weights stored in 8 bits: "
        f"{told.paid:+,} bytes. With all layers in integers: {in_points(asdict(told.plain))}, "
        f"{formatting.size(report.bytes - told.paid)}. The level of the interval is corrected for the files compared."
    )
    with st.expander("Sensitivity by layer"):
        ranked = sorted(told.layers, key=lambda one: -one.divergence)
        st.dataframe(
            {
                "Layer": [one.name for one in ranked],
                "Weights": [one.weights for one in ranked],
                "KL divergence (nats)": [f"{one.divergence:.2e}" for one in ranked],
                "Computed in": ["float" if one.in_float else "integers" for one in ranked],
            },
            hide_index=True,
        )
        st.caption(
            f"KL divergence of the predictions with this layer alone in integers from those with none, on "
            f"{told.images:,} calibration images."
        )


def accepted(report: ExportReport) -> None:
    """Coverage and risk of the output `accepted`."""
    if report.acceptance is not None:
        st.info(formatting.plain(report.acceptance.words()), icon=":material/rule:")


# --- downloads --------------------------------------------------------------------------------------------------------


def downloads(row: RunRow, report: ExportReport) -> None:
    """The file, the zip and the demo; inputs and outputs; how to verify the file elsewhere."""

    def url(file: str) -> str:
        return browser.artifact_url(row.id, file_name(file, report.variant), download=True)

    with st.container(horizontal=True, vertical_alignment="center"):
        st.link_button("ONNX file", url("model.onnx"), icon=":material/download:", type="primary")
        st.link_button("Bundle (model card, parity report, code)", url("model.zip"), icon=":material/folder_zip:")
        if browser.installed():
            st.link_button("Browser demo", url("demo.zip"), icon=":material/web:")
    st.caption(cost(report.footprint))
    st.caption(
        f"One file of {formatting.size(report.bytes)}, opset {report.opset}. The bundle adds a model card, "
        "parity report, class labels, and sample code for Python, Node and HTML. The browser demo is a static site "
        "with drawing, image upload and camera input."
    )
    with st.expander("Inputs and outputs, SHA-256, verification"):
        st.code(signature(report), language=None)
        st.caption("SHA-256 of the file")
        st.code(report.sha256, language=None, wrap_lines=True)
        st.caption("Verify the downloaded file on any machine with SmallAlign; modified files are rejected:")
        name = f"{row.id}-{file_name('model.onnx', report.variant)}"
        st.code(f"python -m smallalign_core verify {name}", language="bash", wrap_lines=True)


def cost(footprint: Footprint) -> str:
    """What one image costs a device."""
    return (
        f"One image: {formatting.size(footprint.peak_bytes)} of activation memory at the peak, by the lifetimes of the "
        f"graph's tensors (alignment and scratch memory come on top), and {footprint.macs:,} multiply-accumulates."
    )


def signature(report: ExportReport) -> str:
    """The file's input and outputs, one a line."""
    _, height, width, channels = report.shape
    classes = len(report.classes)
    more = "" if report.acceptance is None else "\naccepted       bool    [N]\nenergy         float32 [N]"
    return (
        f"images         uint8   [N, H, W, {channels}]   any N, H, W; trained on {height} x {width}\n"
        f"logits         float32 [N, {classes}]\nprobabilities  float32 [N, {classes}]   temperature "
        f"fitted on validation{more}"
    )


# --- the parity check -------------------------------------------------------------------------------------------------


def sentence(report: ExportReport) -> str:
    """The result of ONNX Runtime against PyTorch."""
    parity = report.parity
    return (
        f"Parity check {'passed' if parity.ok else 'failed'}: top-1 agreement of ONNX Runtime and PyTorch is "
        f"{formatting.percent(parity.top1_agreement, 2)} on {parity.images:,} test images; "
        f"max. absolute logit difference {parity.max_abs_diff:.1e}."
    )


def check(row: RunRow, report: ExportReport) -> None:
    """The table of all three runtimes; the browser's row after a check, computed from the logits that it sent."""
    memory = f"browser-check-{report.sha256}"
    turn = st.session_state.get(memory, 0)
    again = report.browser is not None
    looks = auth.current_user().role is Role.VIEWER
    if st.button(
        "Repeat check in this browser" if again else "Run check in this browser",
        icon=":material/travel_explore:",
        type="secondary" if again else "primary",
        disabled=looks,
        help="Requires the runner role: results become part of the parity report." if looks else None,
    ):
        turn = st.session_state[memory] = turn + 1
    if turn:
        report = _answered(row, report, f"{report.sha256}-{turn}")
    st.html(_table(report))
    st.caption(_caption(report))


def _answered(row: RunRow, report: ExportReport, request: str) -> ExportReport:
    """The report with this browser's logits, which the backend evaluates and writes into the bundle."""
    count, height, width, channels = report.shape
    answer = browser.parity(
        key="parity",
        request=request,
        models={MODEL: browser.artifact_url(row.id, report.file)},
        images=browser.artifact_url(row.id, "images.bin"),
        count=count,
        shape=(height, width, channels),
        classes=len(report.classes),
    )
    reported = st.session_state.get(keys.BROWSER_TOLD)
    if answer is None or reported == request:
        return report
    timing = asdict(answer.timings[MODEL])
    said = {
        "logits": base64.b64encode(answer.logits[MODEL].astype("<f4").tobytes()).decode(),
        "sha256": timing["sha256"],
        "images_sha256": answer.images_sha256,
        "runtime": asdict(answer.runtime),
        "timing": timing,
    }
    found = context.call(SubmitParity(row.id, report.variant, said), "Evaluating the browser's predictions")
    st.session_state[keys.BROWSER_TOLD] = request
    return found


NAMES = (
    *("Runtime", "Images", "Accuracy", "Top-1 agreement", "Max. logit difference"),
    *("Latency p50", "Latency p95", "Load time", "Threads", "Backend"),
)


def _table(report: ExportReport) -> str:
    """One row for each of PyTorch, ONNX Runtime and the browser, as HTML: it scrolls by keyboard and on a phone."""
    parity, said = report.parity, report.browser
    accuracy = formatting.percent(parity.reference_accuracy, 2)
    torch = ["PyTorch", f"{parity.images:,}", accuracy, "reference", "reference", *"––––", "PyTorch"]
    onnx = ["ONNX Runtime", *_figures(parity), "–", "1", "CPU"]
    web = ["This browser", "not checked yet", *["–"] * (len(NAMES) - 2)]
    if said is not None:
        runtime, load = said.runtime, said.timing["load_ms"]
        web = [
            *("This browser", *_figures(said), f"{load:.0f} ms", str(runtime["threads"])),
            f"onnxruntime-web, {runtime['backend']}",
        ]
    head = "".join(f'<th scope="col">{name}</th>' for name in NAMES)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in (torch, onnx, web)
    )
    return (
        '<div class="sa-scroll" tabindex="0" role="region" aria-label="PyTorch, ONNX Runtime and this browser">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figures(found: Parity) -> list[str]:
    return [
        *(
            f"{found.images:,}",
            formatting.percent(found.accuracy, 2),
            formatting.percent(found.top1_agreement, 2),
        ),
        *(f"{found.max_abs_diff:.1e}", f"{found.p50_ms:.2f} ms", f"{found.p95_ms:.2f} ms"),
    ]


def _caption(report: ExportReport) -> str:
    said = report.browser
    if said is None:
        return (
            f"The check sends the file and {report.shape[0]:,} test images to this browser, which runs inference "
            "locally and returns the logits. They are evaluated here and added to the model card in the bundle."
        )
    runtime = said.runtime
    verdict = "passed" if said.ok else "FAILED"
    return (
        f"Browser check {verdict} at the tolerances of this precision; metrics are computed on the server from the "
        f"returned logits, latencies are as reported by the browser ({said.when}). "
        f"onnxruntime-web {runtime['version']}, "
        f"{runtime['backend']}: {runtime['why']}. {runtime['user_agent']}"
    )


def pad(row: RunRow, report: ExportReport, store: Store) -> None:
    """The drawing pad, with the student and its teacher, if any."""
    models = {"student" if row.teacher else "model": browser.artifact_url(row.id, report.file)}
    teacher = next((other for other in run_table.finished(store) if other.id == row.teacher), None)
    if teacher is not None and not teacher.imported:
        bundle(teacher.id, store)
        models["teacher"] = browser.artifact_url(teacher.id, "model.onnx")
    _, height, width, channels = report.shape
    browser.draw(key="pad", models=models, classes=list(report.classes), size=(height, width), channels=channels)
