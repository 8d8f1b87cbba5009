"""Commands about models: pretrained `networks`, `import` and `preflight` of teachers, `convert` of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from smallalign_core.cli._shared import MODELS, JsonOption, StoreOption, answer
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import CheckTeacher
from smallalign_core.spec import parse_data
from smallalign_core.spec.catalog import PRETRAINED
from smallalign_core.system import extras, sandbox
from smallalign_core.system.files import write
from smallalign_core.system.machine import set_threads
from smallalign_core.system.typed import plain

DataOption = Annotated[str, typer.Option("--data", help="A dataset's name, or a path.")]


def networks(json: JsonOption = False) -> None:
    """List small pretrained networks of timm, and teachers for them: sizes, licenses, and where their weights are."""
    from smallalign_core import networks as built

    known = extras.installed("timm")
    listed = [{**asdict(one), "weights": built.where_weights_are(one.name) if known else None} for one in PRETRAINED]
    line = "{:<43}{:>11}{:>10}{:>8}  {:<11} {}".format
    rows = [line("name", "parameters", "MACs", "pixels", "license", "weights")]
    for one, found in zip(PRETRAINED, listed, strict=True):
        counts = (f"{one.params / 1e6:.2f} M", f"{one.macs / 1e6:,.0f} M", one.size)
        rows.append(line(one.name, *counts, one.license, found["weights"] or "").rstrip())
    first = next(place for place, one in enumerate(PRETRAINED) if one.role == "teacher")
    rows.insert(first + 1, "\nteachers:")
    words = "Weights: in the cache, a download on first use, or a file to give as `weights`."
    rows += ["", "network: {kind: timm, name: NAME, pretrained: true}. Figures are those without the head."]
    rows.append(words if known else f"They need timm: {extras.command('timm')}")
    answer({"networks": listed}, json, "\n".join(rows))


def import_(
    file: Annotated[Path, typer.Argument(help="An ONNX classifier, in one file.")],
    data_source: DataOption,
    classes: ClassesOption = None,
    name: Annotated[str | None, typer.Option("--as", help="Publish it in the zoo under this name.")] = None,
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
    """Import an ONNX classifier into the store, as a teacher or for comparison."""
    from smallalign_core.runs import imported, model_card

    set_threads()
    place = Store(store)
    if name is not None:
        place.claim_zoo_name(name)  # before the work, not after it
    options = format_options(classes, output, layout, size, white, mean, std, order, answers)
    run = imported.import_onnx(file, parse_data(data_source), place, **options)
    if name is not None:
        run = model_card.publish(run, place, name)
    assert run.imported is not None
    result = run.result or {}
    assumed = result.get("assumed") or {"words": []}  # equal imports of older versions kept none
    kept = {key: result[key] for key in ("val", "test", "params", "bytes")} | {"assumed": assumed}
    value = {"id": run.id, "name": run.name, **run.imported.model_dump(mode="json"), **kept}
    text = (
        f"{run.name}: {run.title}\n{result['params']:,} parameters; validation accuracy "
        f"{result['val']['accuracy']:.2%}, test accuracy {result['test']['accuracy']:.2%}"
    )
    text += "".join(f"\nassumed: {words}" for words in assumed["words"])
    answer(value, json, text)


def preflight(
    reference: Annotated[str, typer.Argument(metavar="TEACHER", help="A finished run or an import.")],
    data_source: Annotated[
        str | None, typer.Option("--data", help="The training images; default: those of the teacher's own run.")
    ] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Check a teacher on the validation images of a dataset. Exit code 1 if it is no better than chance."""
    set_threads()
    data = None if data_source is None else parse_data(data_source)
    found = handlers.preflight(Store(store), CheckTeacher(reference, data))
    answer(plain(found) | {"words": found.words()}, json, found.words())
    if found.refused:
        raise typer.Exit(1)


def convert(
    file: Annotated[Path, typer.Argument(help="A PyTorch checkpoint: .pt or .pth.")],
    to: Annotated[Path, typer.Option("--to", help="The .safetensors file to write.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Which weights, if the file has several: state_dict, ... Default: EMA, if any."),
    ] = None,
    store: StoreOption = MODELS,  # noqa: ARG001  # unused; every command takes it
    json: JsonOption = False,
) -> None:
    """Convert a PyTorch checkpoint to safetensors without executing any code in it."""
    if to.suffix != ".safetensors" or not to.parent.is_dir():
        raise BadInput(
            "--to is not a .safetensors file in an existing folder",
            given=to,
            do="write for example --to weights.safetensors",
        )
    content, facts = sandbox.convert(file, which=weights)
    write(to, content)
    value = {"file": str(to), "bytes": len(content), **facts}
    answer(
        value,
        json,
        f"{to}: {facts['tensors']} tensors, {facts['params']:,} numbers"
        + "".join(f"\n{line}" for line in sandbox.taken(facts)),
    )
