"""The command `shrink`: the smallest model within limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from smallalign_core import search as searching
from smallalign_core.cli._shared import (
    MODELS,
    DeviceOption,
    JsonOption,
    QueueOption,
    SetOption,
    StoreOption,
    answer,
    progress_console,
)
from smallalign_core.cli.studies import RayOption, carry_out
from smallalign_core.errors import BadInput, Refused
from smallalign_core.runs.store import Store
from smallalign_core.spec import set_field
from smallalign_core.studies import lifecycle
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.files import write


def shrink(
    data_source: Annotated[str, typer.Argument(metavar="DATA", help="A dataset's name, or a path.")],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="A run to distill from; default: the best of the store, or a new one; or none."),
    ] = None,
    max_kb: Annotated[float | None, typer.Option("--max-kb", help="Max. file size in kB of 1,000 bytes.")] = None,
    max_ms: Annotated[
        float | None, typer.Option("--max-ms", help="Max. latency (p50) for one image on this machine.")
    ] = None,
    min_accuracy: Annotated[
        str | None, typer.Option("--min-accuracy", help='Min. accuracy: 0.95, 95% or "98% of teacher".')
    ] = None,
    budget: Annotated[
        str,
        typer.Option("--budget", help="What it may cost: 30m, 90s, 1h, or 12trials, which can be repeated exactly."),
    ] = "30m",
    to: Annotated[
        Path | None, typer.Option("--to", help="The .onnx file to write, or a .zip with model card and parity report.")
    ] = None,
    queue: QueueOption = False,
    set: SetOption = None,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    ray: RayOption = None,
    json: JsonOption = False,
) -> None:
    """Find the smallest model within limits of size, latency and accuracy. Repeat the command to continue, with a
    larger budget to search further. Exit code 1 if no model is shown to meet the limits.
    """
    since = time.monotonic()
    allowed = searching.parse_budget(budget)
    written: dict[str, Any] = {"data": {"source": data_source}, "teacher": teacher, "max_kb": max_kb, "max_ms": max_ms}
    written |= searching.parse_accuracy(min_accuracy) if min_accuracy is not None else {}
    for override in set or []:
        written = set_field(written, override)
    spec = searching.parse_study(written | {"budget": allowed.model_dump()})
    _check_target(to)
    place = Store(store)
    progress_console.print("loading torch and data …", style="dim")
    found = lifecycle.create(place, searching.KIND, resolve_study(place, searching.KIND, spec, device))
    searching.begin(found.folder, found.spec.budget, time.monotonic() - since)
    searching.extend(found.folder, found.spec.budget, allowed)
    carry_out(found, place, queue, device, ray)
    report = searching.report(found.spec, place, found.folder, active=found.active, trouble=found.trouble)
    file = None
    if to is not None and report.complete and report.met:
        _deliver(report, place, to)
        file = str(to)
    value = report.as_dict() | {"file": file, "words": report.words()}
    answer(value, json, report.words() + (f"\n{file}" if file else ""))
    if not queue and not (report.complete and report.met):
        raise typer.Exit(1)


def _check_target(to: Path | None) -> None:
    if to is None:
        return
    if to.suffix not in (".onnx", ".zip") or not to.parent.is_dir():
        raise BadInput(
            "--to is not an .onnx or .zip file in an existing folder", given=to, do="write for example --to small.onnx"
        )
    if to.exists():
        raise Refused("the file exists already", given=to, do="choose another name for --to, or delete the file")


def _deliver(report: searching.BudgetSearch, place: Store, to: Path) -> None:
    """Write the winner's file, or its whole bundle; the bundle was made and verified when the search ended."""
    from smallalign_core import export

    assert report.row is not None
    assert report.row.run is not None
    run, (precision, how) = place.finished(report.row.run), export.parse_variant(str(report.row.precision))
    _check_target(to)
    if to.suffix == ".zip":
        export.download(run, place, to, precision, how)
        return
    kept = export.kept_bundle(run, place, precision, how)
    kept = kept or export.bundle(run, place, precision=precision, options=how)
    write(to, (export.bundle_folder(run, place) / str(kept["file"])).read_bytes())
