"""The commands `export` (write a model file), `push` (upload it) and `verify` (check a model file)."""

from __future__ import annotations

from dataclasses import asdict
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
    progress_console,
)
from smallalign_core.errors import BadInput
from smallalign_core.runs.export_report import Acceptance, in_points
from smallalign_core.runs.store import Store
from smallalign_core.spec import parse_data
from smallalign_core.spec.precision import Calibration, FileOptions, Precision, variant_of
from smallalign_core.spec.target import target_of
from smallalign_core.system import extras
from smallalign_core.system.machine import set_threads

MOST_LAYERS = 12


def export(
    reference: Reference,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            help="The .onnx file to write, or a .zip with model card, parity report and code; .xml is for OpenVINO, "
            ".pte for ExecuTorch.",
        ),
    ],
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            help="fp16 halves the file, int8 quarters its weights: of small files less; the accuracy drop is measured.",
        ),
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
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            metavar="SHARE",
            help="Add the output `accepted`, true for about this share of images like the validation images "
            "(split conformal), and `energy`, an out-of-distribution score. Such as 0.9.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="DATA", help="With --coverage: what is accepted of another dataset."),
    ] = None,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Export a run as one ONNX file, or for another runtime: raw uint8 pixels in, logits and probabilities out."""
    how = FileOptions(calibration, max_drop, coverage)
    if against is not None and coverage is None:
        raise BadInput("--against measures what is accepted", given=against, do="give --coverage too, such as 0.9")
    elsewhere = None if against is None else parse_data(against)
    variant_of(precision, how)  # before torch is loaded
    target = target_of(to)
    if target is not None:
        extras.require(target.package, f"export to {target.title}")
        for words in target.limits:
            progress_console.print(f"{target.title}: {words}", soft_wrap=True)
    from smallalign_core import export as exporting

    set_threads()
    place = Store(store)
    run = place.finished(reference)
    with found_at(data_source):
        if to.suffix == ".zip" and to.parent.is_dir():
            written = exporting.download(run, place, to, precision, how, elsewhere)
        else:
            written = exporting.export(run, to, place, precision=precision, options=how, elsewhere=elsewhere)
    if target is not None:
        answer(written, json, f"{_of_target(written)}\n{_footprint(written['footprint'])}")
        return
    text = f"{written['file']}: {precision}, {written['bytes']:,} bytes, SHA-256 {written['sha256']}"
    text += f"\n{_footprint(written['footprint'])}"
    for split, loss in (written["loss"] or {}).items():
        text += (
            f"\n{split}: accuracy drop {100 * loss['loss']:.2f} points on {loss['images']:,} images (95% interval "
            f"{100 * loss['low']:.2f} to {100 * loss['high']:.2f}); top-1 agreement {percent(loss['agreement'])}"
        )
    if written["quantized"]:
        text += "".join(f"\n{line}" for line in _quantized(written["quantized"], written["bytes"]))
    if written["acceptance"]:
        text += f"\n{Acceptance.of(written['acceptance']).words()}"
    if written["flagged"]:
        text += f"\nFLAGGED: the accuracy drop exceeds {percent(written['limit'])}"
    answer(written, json, text)


def _footprint(cost: dict[str, int]) -> str:
    return (
        f"one image: {cost['macs']:,} multiply-accumulates, {cost['peak_bytes']:,} bytes of activations at the peak "
        "(tensor lifetimes, without scratch memory)"
    )


def _of_target(written: dict[str, Any]) -> str:
    """What an export for another runtime is, and its proof."""
    proof, beside = written["parity"], "".join(f" and {Path(file).name}" for file in written["beside"])
    return (
        f"{written['file']}{beside}: {written['runtime']}, fp32, {written['bytes']:,} bytes, SHA-256 "
        f"{written['sha256']}\nparity check passed: {proof['images']:,} test images against PyTorch; top-1 agreement "
        f"{percent(proof['top1_agreement'])}, largest logit difference {proof['max_abs_diff']:.2g} "
        f"({proof['relative_diff']:.1e} of their standard deviation), p50 {proof['p50_ms']:.2f} ms"
    )


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


def push(
    reference: Reference,
    to: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="A model repository of the Hugging Face hub.")],
    precision: Annotated[Precision, typer.Option("--precision", help="Of the ONNX file.")] = "fp32",
    public: Annotated[bool, typer.Option("--public", help="To a repository that everybody can read.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Commit to a repository that exists.")] = False,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Upload a finished run to the Hugging Face hub: ONNX, proof, card, config.json for transformers.js. No images."""
    from smallalign_core import export as exporting

    set_threads()
    place = Store(store)
    run = place.finished(reference)
    with found_at(data_source):
        found = exporting.push(run, place, to, public=public, update=update, precision=precision)
    seen = "private" if found.private else "public"
    text = f"{found.url}: {seen}, {len(found.files)} files, commit {found.commit[:12]}, SHA-256 {found.sha256}"
    answer(asdict(found), json, text)


def verify(
    file: Annotated[
        Path, typer.Argument(help="An .onnx file, exported by SmallAlign or not; an .xml or .pte of its exports.")
    ],
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


def _about(found: dict[str, Any]) -> list[str]:
    if "target" in found:
        return [
            f"{found['runtime']}, written by {found['written_by']}, {found['bytes']:,} bytes",
            "checksum ok: unchanged since export",
        ]
    doors = ", ".join(f"{door['name']} {door['shape']}" for door in found["outputs"])
    return [
        f"ONNX opset {found['opset']}, IR {found['ir']}, {found['nodes']:,} nodes, {found['params']:,} numbers, "
        f"{found['bytes']:,} bytes",
        f"{found['input']['name']} {found['input']['type']}{found['input']['shape']} -> {doors}",
        "checksum ok, seal whole: unchanged since export"
        if found["sealed"]
        else "no checksum: not an export of SmallAlign",
    ]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = _about(found)
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
    if accepting := found.get("acceptance"):
        lines.append(_accepting(accepting))
    for half, again in (found.get("proof") or {}).items():
        lines.append(f"parity report ({half}): {'reproduced' if again else 'NOT reproduced'}")
    if found.get("flagged"):
        lines.append("FLAGGED at export: the accuracy drop at this precision exceeds the limit")
    return lines


def _accepting(found: dict[str, Any]) -> str:
    """The outputs `accepted` and `energy`, run again."""
    test, stored = found["test"], found["stored"]
    text = (
        f"outputs accepted and energy {'reproduced' if found['ok'] else 'NOT reproduced'}: coverage "
        f"{percent(test['coverage'])}, risk {percent(test['risk'])}"
    )
    if stored is not None:
        text += f"; stored {percent(stored['coverage'])} and {percent(stored['risk'])}"
    return text + ("" if found["consistent"] else "; they do not follow from probabilities, thresholds and logits")
