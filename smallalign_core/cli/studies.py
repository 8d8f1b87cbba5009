"""The commands that train and evaluate many runs: `optimizers` and `scale`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import worker
from smallalign_core.studies import kinds, lifecycle, optimizers as optimstudy, ray_executor
from smallalign_core.studies.resolve import resolve_study

RayOption = Annotated[
    str | None, typer.Option("--ray", help="Train on this Ray cluster: host:port of its head node, or auto.")
]
StudyFile = Annotated[Path, typer.Argument(help="A YAML or JSON file with a student and `optimizers`.")]


def optimizers(
    study: StudyFile,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Number of seeds; overrides the file.")] = None,
    queue: QueueOption = False,
    set: SetOption = None,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    ray: RayOption = None,
    json: JsonOption = False,
) -> None:
    """Compare optimizers at the same tuning budget, on the same seeds. Exit code 1 if incomplete."""
    overrides = [*(set or []), *([] if seeds is None else [f"seeds={seeds}"])]
    _answer("optimizers", study, overrides, Store(store), queue, device, ray, json)


def scale(
    study: Annotated[Path, typer.Argument(help="A YAML or JSON file with a student, `recipes`, sizes and images.")],
    preset: Annotated[str | None, typer.Option("--preset", help="quick, standard or paper; overrides the file.")] = (
        None
    ),
    queue: QueueOption = False,
    set: SetOption = None,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    ray: RayOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the value of clean data, augmentation, optimizer and distillation, in equivalent parameters and images.
    Exit code 1 if incomplete.
    """
    overrides = [*(set or []), *([] if preset is None else [f"preset={preset}"])]
    _answer("scaling", study, overrides, Store(store), queue, device, ray, json)


def _answer(
    kind: str,
    file: Path,
    overrides: Sequence[str],
    place: Store,
    queue: bool,
    device: str,
    ray: str | None,
    json: bool,
) -> None:
    """Train the missing runs of a study, here or in workers, and print its report."""
    spec = kinds.read(kind, file, overrides)  # validated before torch is loaded
    progress_console.print("loading torch and data …", style="dim")
    found = lifecycle.create(place, kind, resolve_study(place, kind, spec, device))
    carry_out(found, place, queue, device, ray)
    report = found.report(place)
    more = {"curves": _curves(found, place)} if json and kind == "optimizers" else {}
    answer(report.as_dict() | more | {"words": report.words()}, json, report.words())
    if not queue and not report.complete:
        raise typer.Exit(1)


def _curves(study: lifecycle.Study, place: Store) -> list[dict[str, Any]]:
    """Learning curves of all final runs, per epoch: against steps, gradients and seconds."""
    budgets, folder = study.spec.budgets, study.folder
    return [asdict(curve) for one in budgets for curve in optimstudy.curves(study.spec, place, folder, one)]


def carry_out(study: lifecycle.Study, place: Store, queue: bool, device: str, ray: str | None) -> None:
    """Leave the missing runs to workers, or train them here or on a cluster, with a progress bar for the study and one
    for the current runs."""
    if queue:
        lifecycle.start(place, study)
        return
    worker.keep_freed_memory()
    stop = worker.stop_on_signals()
    with ExitStack() as held:
        cluster = held.enter_context(ray_executor.Cluster(ray, place, device=device)) if ray else None
        observe = held.enter_context(_watched(study, place))
        if cluster is not None:
            cluster.observe = observe
        for error in lifecycle.run_to_end(study, place, device=device, stop=stop, observe=observe, executor=cluster):
            progress_console.print(str(error), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _watched(study: lifecycle.Study, place: Store) -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn()
    with Progress(*columns, console=progress_console) as bar:
        whole = bar.add_task("study", total=None, note="preparing")
        now = bar.add_task("now", total=None, note="")

        def observe(runs: Sequence[Run]) -> worker.Observer:
            report = study.report(place)
            bar.update(
                whole, total=report.runs, completed=report.done, note=f"{report.done} of about {report.runs} runs"
            )
            spec = runs[0].spec
            bar.update(now, total=None, completed=0, note=f"{len(runs)} runs, {spec.epochs} epochs, seed {spec.seed}")

            def show(event: dict[str, Any]) -> None:
                if event["kind"] == "progress":
                    bar.update(now, total=event["steps"], completed=event["step"])
                elif event["kind"] == "away":
                    last = f", latest from {event['host']}" if event["host"] else ""
                    bar.update(now, note=f"{event['runs']} runs in {event['groups']} groups on the cluster{last}")

            return show

        yield observe
