"""The command `landscape`: the loss landscape around finished runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.progress import Progress

from smallalign_core import data
from smallalign_core.cli._shared import MODELS, JsonOption, MovedOption, StoreOption, answer, found_at, progress_console
from smallalign_core.cli.train import train_all
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers, worker
from smallalign_core.service.requests import MeasureLandscape
from smallalign_core.training.resolve import resolve

PATIENCE = 0.5


def landscape(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs.")],
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", help="line, plane, path, between, curvature, predictiveness. May be repeated."),
    ] = None,
    bn: Annotated[str, typer.Option("--bn", help="Batch-norm statistics: eval, train, reestimate.")] = "eval",
    images: Annotated[int, typer.Option("--images", help="Approximate number of training images.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the image subset and the directions.")] = 0,
    widths: Annotated[
        str | None, typer.Option("--widths", help="Also train the run at these widths (4,8,16) and compare.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds per width.")] = 3,
    cost: Annotated[bool, typer.Option("--cost", help="Only estimate the cost.")] = False,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Loss landscape: slices, barriers, curvature and gradient predictiveness, on the run's own loss and images."""
    worker.set_threads()
    place = Store(store)
    if data_source is not None:
        with found_at(data_source):  # and remembered
            for name in runs:
                data.load(place.finished(name).data, place.data_cache)
    measures = measure or ["line", "curvature", "predictiveness"]
    if widths is not None:
        runs = _ladder(place, runs, widths, seeds)
    request = MeasureLandscape(tuple(runs), tuple(measures), bn, images, seed, patience=PATIENCE)
    price = handlers.landscape(place, replace(request, start=False))
    if (known := price.cost) is not None:
        text = (
            f"about {known.seconds:.0f} s: {known.losses:,} losses and {known.gradients:,} gradients of a "
            f"batch for {known.missing} of {known.tasks} measures; the others are cached"
        )
        progress_console.print(text, style="dim", highlight=False)
        if cost:
            answer({"done": price.done, "cost": known}, json, text)
            return
    with Progress(console=progress_console) as bar:
        task = bar.add_task("computing", total=1.0)
        while (report := (found := handlers.landscape(place, request)).report) is None:
            bar.update(task, completed=found.done)
        bar.update(task, completed=1.0)
    answer(report.as_dict(), json, "\n".join(report.words))


def _ladder(place: Store, runs: list[str], widths: str, seeds: int) -> list[str]:
    """The ids of the runs of all widths and seeds; runs that are not finished are trained first."""
    from smallalign_core.analysis import landscape as looking

    if len(runs) > 1 or not all(width.strip().isdecimal() for width in widths.split(",")):
        raise BadInput(
            "--widths takes whole numbers and one run",
            given=f"{len(runs)} runs, --widths {widths}",
            do="write --widths 4,8,16",
        )
    resolved = resolve(place, place.finished(runs[0]).spec)
    specs = looking.ladder(resolved, [int(width) for width in widths.split(",")], seeds)
    train_all(place, [(f"width {getattr(spec.network, 'width', '')} seed {spec.seed}", spec) for spec in specs])
    return [place.create(spec).id for spec in specs]
