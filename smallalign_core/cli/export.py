"""Verbs about files that leave the house: write one, and see whether one gives the answers that it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
from smallalign_core.cli.models import (
    AnswersOption,
    ClassesOption,
    LayoutOption,
    MeanOption,
    OrderOption,
    OutputOption,
    SizeOption,
    StdOption,
    WhiteOption,
    told_of,
)
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.spec.precision import Precision
from smallalign_core.system.machine import set_threads


def export(
    reference: Reference,
    to: Annotated[Path, typer.Option("--to", help="The .onnx file to write, or a .zip with card, proof and snippets.")],
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="fp16 halves the file, int8 quarters it; their loss is measured."),
    ] = "fp32",
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Write a run as one ONNX file: raw uint8 pixels in, logits and probabilities out."""
    from smallalign_core import export as exporting

    set_threads()
    place = Store(store)
    run = place.finished(reference)
    with found_at(data_source):
        if to.suffix == ".zip" and to.parent.is_dir():
            written = exporting.download(run, place, to, precision)
        else:
            written = exporting.export(run, to, place, precision=precision)
    text = f"{written['file']}: {precision}, {written['bytes']:,} bytes, SHA-256 {written['sha256']}"
    for split, loss in (written["loss"] or {}).items():
        text += (
            f"\n{split}: loses {100 * loss['loss']:.2f} points of accuracy on {loss['images']:,} images (95 % interval "
            f"{100 * loss['low']:.2f} to {100 * loss['high']:.2f}); {percent(loss['agreement'])} keep their top-1"
        )
    if written["flagged"]:
        text += f"\nFLAGGED: it loses more than {percent(written['limit'])}"
    answer(written, json, text)


def verify(
    file: Annotated[Path, typer.Argument(help="An .onnx file, exported here or made elsewhere.")],
    run: Annotated[
        str | None, typer.Option("--run", help="Compare with this run instead of the one that the file names.")
    ] = None,
    data_source: Annotated[str | None, typer.Option("--data", help="Use the test images of this dataset.")] = None,
    proof: Annotated[
        Path | None, typer.Option("--proof", help="The parity.json that came with it: is it about this very file?")
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
    """Is a file unchanged, and does it give the same answers? Exit code 1 if not. Others' files are described too."""
    from smallalign_core import export as exporting

    set_threads()
    told = {
        name: value
        for name, value in told_of(classes, output, layout, size, white, mean, std, order, answers).items()
        if value is not None
    }
    found = exporting.verify(file, Store(store), run=run, data_source=data_source, proof=proof, told=told)
    if found["sealed"] and told:
        raise BadInput("an export of SmallAlign says all of that itself", given=", ".join(told), do="leave it out")
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
        "seal whole: not changed since it was exported" if found["sealed"] else "no seal: not an export of SmallAlign",
    ]
    if not found["images"]:
        return [*lines, f"compared with {found['compared_with']}"]
    gap = found["max_abs_diff"]
    compared = (
        "" if gap is None else f"top-1 agreement {percent(found['top1_agreement'])}, largest logit gap {gap:.2g}, "
    )
    lines.append(
        f"{'ok' if found['ok'] else 'NOT OK'}: {found['images']:,} images against {found['compared_with']}; {compared}"
        f"accuracy {percent(found['accuracy'])}, p50 {found['p50_ms']:.2f} ms"
    )
    if found.get("classes_named") is False:
        lines.append("the file names no classes: its answers were taken in the order of the data's classes")
    for half, again in (found.get("proof") or {}).items():
        lines.append(f"the proof's figures ({half}) {'come out again' if again else 'DO NOT come out again'}")
    if found.get("flagged"):
        lines.append("FLAGGED when it was exported: this precision loses more accuracy than the limit")
    return lines
