"""The commands `export` (write a model file) and `verify` (check a model file)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from smallalign_core.cli._formats import (
    AnswersOption,
    ClassesOption,
    LayoutOption,
    MeanOption,
    OrderOption,
    OutputOption,
    SizeOption,
    StdOption,
    WhiteOption,
    format_options,
)
from smallalign_core.cli._shared import (
    MODELS,
    JsonOption,
    MovedOption,
    Reference,
    StoreOption,
    answer,
    found_at,
    percent,
)
from smallalign_core.errors import BadInput
from smallalign_core.runs.export_report import in_points
from smallalign_core.runs.store import Store
from smallalign_core.spec.precision import Calibration, Precision, Quantization, variant_of
from smallalign_core.system.machine import set_threads

MOST_LAYERS = 12


def export(
    reference: Reference,
    to: Annotated[
        Path, typer.Option("--to", help="The .onnx file to write, or a .zip with model card, parity report and code.")
    ],
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="fp16 halves the file size, int8 quarters it; the accuracy drop is measured."),
    ] = "fp32",
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            help="int8: percentage points of accuracy that it may lose on validation images, such as 0.5. The fewest "
            "layers that keep the limit are left in float.",
        ),
    ] = None,
    calibration: Annotated[
        Calibration | None,
        typer.Option(
            "--calibration",
            help="int8: how activations get their ranges. Default: the one that agrees best with fp32 on validation "
            "images.",
        ),
    ] = None,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Export a run as one ONNX file: raw uint8 pixels in, logits and probabilities out."""
    from smallalign_core import export as exporting

    how = Quantization(calibration, max_drop)
    variant_of(precision, how)  # before torch is loaded
    set_threads()
    place = Store(store)
    run = place.finished(reference)
    with found_at(data_source):
        if to.suffix == ".zip" and to.parent.is_dir():
            written = exporting.download(run, place, to, precision, how)
        else:
            written = exporting.export(run, to, place, precision=precision, quantization=how)
    text = f"{written['file']}: {precision}, {written['bytes']:,} bytes, SHA-256 {written['sha256']}"
    for split, loss in (written["loss"] or {}).items():
        text += (
            f"\n{split}: accuracy drop {100 * loss['loss']:.2f} points on {loss['images']:,} images (95% interval "
            f"{100 * loss['low']:.2f} to {100 * loss['high']:.2f}); top-1 agreement {percent(loss['agreement'])}"
        )
    if written["quantized"]:
        text += "".join(f"\n{line}" for line in _quantized(written["quantized"], written["bytes"]))
    if written["flagged"]:
        text += f"\nFLAGGED: the accuracy drop exceeds {percent(written['limit'])}"
    answer(written, json, text)


def _quantized(told: dict[str, Any], size: int) -> list[str]:
    """How int8 was made, one fact a line."""
    compared = ", ".join(f"{name} {percent(share)}" for name, share in told["agreement"].items())
    lines = [f"calibration {told['calibration']}; top-1 agreement with fp32 on validation: {compared}"]
    if told["max_drop"] is None:
        return lines
    kept = [layer for layer in told["layers"] if layer["in_float"]]
    lines += [
        f"limit {told['max_drop']:g} points met: {in_points(told['drop'])}",
        f"all layers in integers: {in_points(told['plain'])}, {size - told['paid']:,} bytes",
        f"{len(kept)} of {len(told['layers'])} layers computed in float (their weights stored in 8 bits): "
        f"{told['paid']:+,} bytes",
        f"sensitivity (KL divergence with this layer alone in integers, {told['images']} calibration images):",
    ]
    ranked = sorted(told["layers"], key=lambda layer: -layer["divergence"])
    for layer in ranked[:MOST_LAYERS]:
        lines.append(
            f"  {layer['divergence']:.2e}  {'float  ' if layer['in_float'] else 'integer'}  {layer['name']} "
            f"({layer['weights']:,} weights)"
        )
    if len(ranked) > MOST_LAYERS:
        lines.append(f"  and {len(ranked) - MOST_LAYERS} less sensitive layers (--json lists all)")
    return lines


def verify(
    file: Annotated[Path, typer.Argument(help="An .onnx file, exported by SmallAlign or not.")],
    run: Annotated[
        str | None, typer.Option("--run", help="Compare with this run instead of the one named in the file.")
    ] = None,
    data_source: Annotated[str | None, typer.Option("--data", help="Use the test images of this dataset.")] = None,
    proof: Annotated[
        Path | None, typer.Option("--proof", help="The parity.json of the bundle, to be checked against this file.")
    ] = None,
    classes: ClassesOption = None,
    output: OutputOption = None,
    layout: LayoutOption = None,
    size: SizeOption = None,
    white: WhiteOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    order: OrderOption = None,
    answers: AnswersOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Check that a model file is unchanged and makes the same predictions as its run. Exit code 1 if not."""
    from smallalign_core import export as exporting

    set_threads()
    given = {
        name: value
        for name, value in format_options(classes, output, layout, size, white, mean, std, order, answers).items()
        if value is not None
    }
    found = exporting.verify(file, Store(store), run=run, data_source=data_source, proof=proof, told=given)
    if found["sealed"] and given:
        raise BadInput(
            "an export of SmallAlign already contains these facts", given=", ".join(given), do="leave the options out"
        )
    assumed = [f"assumed: {words}" for words in found.get("assumed", {}).get("words", [])]
    answer(found, json, "\n".join([*_lines(found), *assumed]))
    if not found["ok"]:
        raise typer.Exit(1)


def _lines(found: dict[str, Any]) -> list[str]:
    doors = ", ".join(f"{door['name']} {door['shape']}" for door in found["outputs"])
    lines = [
        f"ONNX opset {found['opset']}, IR {found['ir']}, {found['nodes']:,} nodes, {found['params']:,} numbers, "
        f"{found['bytes']:,} bytes",
        f"{found['input']['name']} {found['input']['type']}{found['input']['shape']} -> {doors}",
        "checksum ok, seal whole: unchanged since export"
        if found["sealed"]
        else "no checksum: not an export of SmallAlign",
    ]
    if not found["images"]:
        return [*lines, f"compared with {found['compared_with']}"]
    gap = found["max_abs_diff"]
    compared = (
        ""
        if gap is None
        else f"top-1 agreement {percent(found['top1_agreement'])}, largest logit difference {gap:.2g}, "
    )
    lines.append(
        f"{'ok' if found['ok'] else 'NOT OK'}: {found['images']:,} images against {found['compared_with']}; {compared}"
        f"accuracy {percent(found['accuracy'])}, p50 {found['p50_ms']:.2f} ms"
    )
    if found.get("classes_named") is False:
        lines.append("the file has no class names: outputs are taken in the order of the dataset's classes")
    for half, again in (found.get("proof") or {}).items():
        lines.append(f"parity report ({half}): {'reproduced' if again else 'NOT reproduced'}")
    if found.get("flagged"):
        lines.append("FLAGGED at export: the accuracy drop at this precision exceeds the limit")
    return lines
