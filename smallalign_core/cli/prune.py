"""The command `prune`: a run with fewer channels, from a finished one."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import typer

from smallalign_core.cli._shared import (
    MODELS,
    DeviceOption,
    JsonOption,
    QueueOption,
    Reference,
    StoreOption,
    answer,
    percent,
    progress_console,
)
from smallalign_core.cli.train import train_all
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, State, Store

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")


def prune(
    reference: Reference,
    to: Annotated[
        str, typer.Option("--to", metavar="SHARE", help="Share of the network that may be left, such as 50% or 0.5.")
    ],
    of: Annotated[
        Literal["macs", "params"],
        typer.Option("--of", help="Multiply-accumulates or parameters."),
    ] = "macs",
    criterion: Annotated[
        Literal["l2", "l1"], typer.Option("--criterion", help="Norm of the weights that a channel depends on.")
    ] = "l2",
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            help="Teacher of the pruned run: same (that of RUN; RUN itself if it has none), self, none, or a run.",
        ),
    ] = "same",
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=0, help="Default: as RUN; 0 evaluates the pruned weights.")
    ] = None,
    queue: QueueOption = False,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Remove the channels of a finished run that matter least, and train it again from those that are left.

    The pruned network is an ordinary run: its widths are in its spec.
    """
    share = _share(to)
    place = Store(store)
    run = place.finished(reference)
    progress_console.print("loading torch and data …", style="dim")
    from smallalign_core.training.pruned import spec_of
    from smallalign_core.training.resolve import resolve

    spec = spec_of(run, place, share, of=of, criterion=criterion, teacher=teacher, epochs=epochs)
    resolved = resolve(place, spec, device)
    if queue:
        made = place.submit(resolved)
        answer({"id": made.id, "state": str(made.state)}, json, f"{made.id}: {made.state}")
        return
    train_all(place, [("pruned", resolved)], device)
    made = place.run(place.create(resolved).id)
    if made.state is not State.FINISHED:
        raise typer.Exit(1)
    widths = spec.network.pruned.widths if spec.network.pruned else ()
    found = {
        "id": made.id,
        "of": run.id,
        "widths": {name: [outputs, inputs] for name, outputs, inputs in widths},
        "before": _facts(run),
        "after": _facts(made),
    }
    answer(found, json, _words(made, found))


def _share(text: str) -> float:
    """A share as a number between 0 and 1."""
    found = SHARE.fullmatch(text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share < 1:
        raise BadInput("the share to keep is not between 0 and 100%", given=text, do="give for example --to 50%")
    return share


def _facts(run: Run) -> dict[str, Any]:
    result = run.result or {}
    scores = {f"{split}_accuracy": result[split]["accuracy"] for split in ("val", "test")}
    ends = {f"test_accuracy_{end}": result["test"][f"accuracy_{end}"] for end in ("low", "high")}
    return {"params": result["params"], "macs": result["macs"], **scores, **ends}


def _words(run: Run, found: dict[str, Any]) -> str:
    before, after = found["before"], found["after"]
    lines = [
        f"{name}: {before[key]:,} to {after[key]:,} ({percent(after[key] / before[key])})"
        for name, key in (("parameters", "params"), ("multiply-accumulates", "macs"))
    ]
    accuracy = [
        f"{percent(one['test_accuracy'])} ({percent(one['test_accuracy_low'])} to {percent(one['test_accuracy_high'])})"
        for one in (before, after)
    ]
    return "\n".join(
        [f"{run.id}: {run.title}", *lines, f"test accuracy: {accuracy[0]} before, {accuracy[1]} after (95% intervals)"]
    )
