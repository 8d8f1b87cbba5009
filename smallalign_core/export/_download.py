"""The download: the model file with its card, parity report, labels, and a code snippet for each runtime."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from smallalign_core.export._parity import LIMIT
from smallalign_core.export._runtime import OnnxClassifier
from smallalign_core.runs import model_card
from smallalign_core.runs.export_report import Acceptance, in_points
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.target import Target

SNIPPETS = Path(__file__).parent / "snippets"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # no time in the zip: the same export gives the same bytes


def pack(run: Run, store: Store, report: dict[str, Any], content: bytes, browser_logits: bytes | None) -> bytes:
    """The download as a zip.

    Args:
        report: of the bundle.
        content: the .onnx file.
        browser_logits: float32 [count, classes] from a user's browser, so that its row of the report can be checked.
    """
    facts = OnnxClassifier(content).metadata
    public = {key: value for key, value in report.items() if key not in ("bundle", "files")} | {"file": "model.onnx"}
    files: dict[str, str | bytes] = {
        "model.onnx": content,
        "card.md": card_of(run, store, report),
        "labels.json": json.dumps(report["classes"], ensure_ascii=False),
        "parity.json": json.dumps(public, indent=1, allow_nan=False),
        "spec.yaml": facts["spec"],
        **{file.name: file.read_bytes() for file in sorted(SNIPPETS.iterdir()) if file.is_file()},
    }
    if browser_logits is not None:
        files["browser-logits.bin"] = browser_logits
    return zipped(files)


def zipped(files: dict[str, str | bytes]) -> bytes:
    """A zip of these files; equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in files.items():
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, held)
    return stream.getvalue()


def card_of(run: Run, store: Store, report: dict[str, Any]) -> str:
    """The run's card with what is known of this file: digests, what it loses, and the proof."""
    height, width, channels = report["shape"][1:]
    return f"""{model_card.card(run, store, run.name)}
## The file

| | |
|---|---|
| file | `model.onnx`, {report["precision"]}, {report["bytes"]:,} bytes, ONNX opset {report["opset"]}, one file |
| input | `images`: uint8 [any, any height, any width, {channels}], trained on {height} x {width} |
| outputs | `logits` and `probabilities` (temperature {report["temperature"]:.3f}, fitted on validation): float32 [N, {len(report["classes"])}] |
| file (SHA-256) | `{report["sha256"]}` |
| weights (SHA-256) | `{report["weights_sha256"]}` |
| data fingerprint | `{report["data"]["fingerprint"]}` |
| one image costs | {_footprint(report["footprint"])} |
| accuracy drop (val.) | {_loss(report["loss"]["val"])} |
| accuracy drop (test) | {_loss(report["loss"]["test"])} |

{_flag(report)}{_quantized(report)}{_acceptance(report)}
## Parity report

| | images | accuracy | top-1 agreement with PyTorch | largest logit difference | p50 | p95 | load | threads |
|---|---|---|---|---|---|---|---|---|
{_rows(report)}

{_browser(report)}
Verify the file, and repeat the Python part of the parity check on any machine with SmallAlign:

    python -m smallalign_core verify model.onnx --proof parity.json

The file contains a checksum of its own bytes, which shows whether it was changed since export. It does not authenticate
the author; for that compare the SHA-256 above with one from a trusted source.

## Running it

    pip install onnxruntime numpy pillow && python classify.py picture.png
    npm install && node classify.mjs picture.png
    npm install && python -m http.server      # then open http://localhost:8000/index.html

ONNX Runtime for Python sends telemetry from version 1.29 on (model and graph names, a device id, the path of the
program) unless `ORT_DISABLE_TELEMETRY=1` is set before it is imported. `classify.py` sets it; so should your program.
"""


def card_of_target(run: Run, store: Store, report: dict[str, Any], target: Target) -> str:
    """The run's card with what is known of its file for another runtime: digests, limits and the proof."""
    channels, height, width = report["input_shape"]
    proof, classes = report["parity"], len(report["classes"])
    size = f"[any, any height, any width, {channels}]" if target.any_size else f"[1, {height}, {width}, {channels}]"
    limits = "\n".join(f"- {words}" for words in target.limits)
    return f"""{model_card.card(run, store, run.name)}
## The file

| | |
|---|---|
| file | {", ".join(f"`model{ending}`" for ending in target.endings)}, fp32, {report["bytes"]:,} bytes, written by {report["runtime"]} |
| input | `images`: uint8 {size}, trained on {height} x {width} |
| outputs | `logits` and `probabilities` (temperature {report["temperature"]:.3f}, fitted on validation): float32 [N, {classes}] |
| file (SHA-256) | `{report["sha256"]}` |
| weights (SHA-256) | `{report["weights_sha256"]}` |
| data fingerprint | `{report["data"]["fingerprint"]}` |
| one image costs | {_footprint(report["footprint"])} |
| accuracy drop (val.) | {_loss(report["loss"]["val"])} |
| accuracy drop (test) | {_loss(report["loss"]["test"])} |

{limits}

## Parity report

| | images | accuracy | top-1 agreement with PyTorch | largest logit difference | p50 | p95 | load | threads |
|---|---|---|---|---|---|---|---|---|
| PyTorch | {proof["images"]:,} | {proof["reference_accuracy"]:.2%} | reference | reference | | | | |
| {report["runtime"]}, CPU | {_figures(proof)} | | 1 |

Verify the file, and repeat the parity check on any machine with SmallAlign and {target.title}:

    python -m smallalign_core verify model{target.endings[0]} --proof parity.json

## Running it

    pip install {target.package} numpy pillow && python classify.py picture.png
"""


def _footprint(cost: dict[str, Any]) -> str:
    return (
        f"{cost['macs']:,} multiply-accumulates; {cost['peak_bytes']:,} bytes of activations at the peak, by the lifetimes "
        "of the graph's tensors (without alignment and scratch memory; fusing and working in place need less)"
    )


def _loss(loss: dict[str, Any]) -> str:
    return (
        f"{100 * loss['loss']:+.2f} points of accuracy on {loss['images']:,} images (95% interval "
        f"{100 * loss['low']:+.2f} to {100 * loss['high']:+.2f}); top-1 agreement {loss['agreement']:.2%}"
    )


def _flag(report: dict[str, Any]) -> str:
    if not report["flagged"]:
        return ""
    return (
        f"**Flagged: the accuracy drop at this precision exceeds {LIMIT:.0%}. Use fp32 or fp16, or check whether the drop is "
        "acceptable.**\n"
    )


def _quantized(report: dict[str, Any]) -> str:
    """How int8 was made, and by layer what it costs; empty for other precisions."""
    told = report["quantized"]
    if told is None:
        return ""
    compared = ", ".join(f"{name} {share:.2%}" for name, share in told["agreement"].items())
    text = (
        f"\n## Quantization\n\nCalibration: {told['calibration']} (top-1 agreement with fp32 on validation images: "
        f"{compared}).\n"
    )
    if told["max_drop"] is None:
        return text
    kept = [layer for layer in told["layers"] if layer["in_float"]]
    rows = "\n".join(
        f"| `{layer['name']}` | {layer['weights']:,} | {layer['divergence']:.2e} | "
        f"{'float' if layer['in_float'] else 'integers'} |"
        for layer in told["layers"]
    )
    return f"""{text}
Limit: at most {told["max_drop"]:g} percentage points of accuracy lost against fp32 on validation images. Met:
{in_points(told["drop"])}. With all layers in integers: {in_points(told["plain"])}.
The level of the interval is corrected for the files compared (Bonferroni).

{len(kept)} of {len(told["layers"])} layers are computed in float, with weights stored in 8 bits. That changes the size
by {told["paid"]:+,} bytes. Sensitivity is the KL divergence of the predictions with one layer alone in
integers from those with none, in nats, on {told["images"]:,} calibration images.

| layer | weights | sensitivity | computed in |
|---|---|---|---|
{rows}
"""


def _acceptance(report: dict[str, Any]) -> str:
    """What the output `accepted` does; empty without one."""
    if report["acceptance"] is None:
        return ""
    found = Acceptance.of(report["acceptance"])
    return f"""
## Accepted images

Output `accepted` (bool [N]) is true where the probability of the predicted class is at least a split-conformal
threshold of that class, `energy` (float32 [N]) is -logsumexp of the logits, higher for images unlike the training
images. {found.words()}

The target is approximate, since the validation images also selected the epoch, the calibration and, in a search, the
model; the evidence is the coverage measured on the test images.

"""


def _rows(report: dict[str, Any]) -> str:
    proof, browser = report["parity"], report["browser"]
    rows = [
        f"| PyTorch | {proof['images']:,} | {proof['reference_accuracy']:.2%} | reference | reference | | | | |",
        f"| ONNX Runtime, CPU | {_figures(proof)} | | 1 |",
        *(f"| {one['runtime']}, its own file, CPU | {_figures(one['parity'])} | | 1 |" for one in report["targets"]),
    ]
    if browser is not None:
        runtime, timing = browser["runtime"], browser["timing"]
        rows.append(
            f"| onnxruntime-web {runtime['version']}, {runtime['backend']} | {_figures(browser)} | "
            f"{timing['load_ms']:.0f} ms | {runtime['threads']} |"
        )
    return "\n".join(rows)


def _figures(found: dict[str, Any]) -> str:
    return (
        f"{found['images']:,} | {found['accuracy']:.2%} | {found['top1_agreement']:.2%} | {found['max_abs_diff']:.1e} | "
        f"{found['p50_ms']:.2f} ms | {found['p95_ms']:.2f} ms"
    )


def _browser(report: dict[str, Any]) -> str:
    browser = report["browser"]
    if browser is None:
        return "This file has not been checked in a browser yet.\n"
    return (
        f"The browser's row was submitted on {browser['when']}: {browser['what']}. Its logits are in "
        f"`browser-logits.bin` (SHA-256 `{browser['logits_sha256']}`). User agent: `{browser['runtime']['user_agent']}`.\n"
    )
