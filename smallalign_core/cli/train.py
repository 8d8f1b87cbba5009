"""The commands that train runs or queue them: `train`, `submit`, `ablate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smallalign_core import data
from smallalign_core.cli._shared import (
    MODELS,
    DeviceOption,
    JsonOption,
    QueueOption,
    SetOption,
    StoreOption,
    answer,
    percent,
    progress_console,
    progress_line,
)
from smallalign_core.errors import SmallAlignError
from smallalign_core.metrics import in_words, zero_recall_classes
from smallalign_core.runs.store import State, Store
from smallalign_core.service import worker
from smallalign_core.spec import RunSpec, read
from smallalign_core.studies import ablation as measuring
from smallalign_core.training import runner
from smallalign_core.training.resolve import resolve

SpecFile = Annotated[Path, typer.Argument(help="A YAML or JSON file.")]


def train(
    spec: SpecFile,
    set: SetOption = None,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train a run in the foreground. Identical specs reuse the cached run.

    Under torchrun, several processes train it together (DDP).
    """
    from smallalign_core.training import distributed

    place, world = Store(store), distributed.join()
    worker.keep_freed_memory()
    stop = worker.stop_on_signals()
    try:
        if world.rank:
            runner.run_assistant(place.run(world.receive()), place, world, device)
            return
        wanted = read(spec, set or [])
        world.local_slice(wanted.batch)
        resolved = _resolved(place, wanted, device)
        run = place.create(resolved)
        for note in data.load(resolved.data, place.data_cache).notes:
            progress_line(note)
        world.broadcast(run.id)
        with _progress(epochs=True) as follow:
            result = worker.execute(run, place, device=device, observe=follow(run.name), stop=stop, world=world)
    finally:
        distributed.leave()
    if result["state"] != State.FINISHED:
        answer(result, json, f"{run.name}: {result['state']}, with a checkpoint. Repeat the command to continue.")
        raise typer.Exit(1)
    answer(result, json, f"{run.name}: {run.title}\n{_in_words(result)}")


def _in_words(result: dict[str, Any]) -> str:
    """The result of a run as text."""
    seen = result.get("preflight")
    text = (
        (f"teacher: {seen['accuracy']:.2%} on {seen['images']:,} validation images of this data\n" if seen else "")
        + (f"{more:,} unlabeled images with the teacher's targets\n" if (more := result.get("unlabeled")) else "")
        + "".join(f"warning: {warning}\n" for warning in (seen or {}).get("warnings", ()))
    )
    if near := result.get("embedding"):
        text += f"no head: {near['features']:,} features an image; train a head with `start: {result['id']}`\n"
        if "loss" in near:
            text += f"validation: embedding loss {near['loss']:.4f}, cosine {near['cosine']:.4f}\n"
    else:
        text += (
            f"test accuracy {percent(result['test']['accuracy'])}  "
            f"NLL {result['test']['nll']:.4f}  ECE {percent(result['test']['ece'])}\n"
            + (f"{words}\n" if (words := in_words(result["test"])) else "")
        )
    text += (
        f"{result['params']:,} parameters, {result['images_per_second']:,.0f} images/s, "
        f"best epoch {result['best_epoch']}"
    )
    if peak := result.get("peak_bytes"):
        text += f", peak memory {peak / 1e9:.2f} GB"
    if (features := result.get("features")) is not None:
        text += f"\nfeatures of the frozen body: {features}"
    if "test" in result and (missed := zero_recall_classes(result["test"]["recall"])):
        text += f"\n{missed}"
    return text


def submit(spec: SpecFile, set: SetOption = None, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Queue a run for a worker."""
    place = Store(store)
    run = place.submit(_resolved(place, read(spec, set or [])))
    answer({"id": run.id, "state": str(run.state)}, json, f"{run.id}: {run.state}")


def ablate(
    spec: SpecFile,
    without: Annotated[measuring.What, typer.Option("--without", help="The component to ablate.")],
    seeds: Annotated[
        int, typer.Option("--seeds", help="Number of paired seeds, from the spec's own seed upwards.")
    ] = 3,
    queue: QueueOption = False,
    set: SetOption = None,
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Ablation: train a run with and without one component, on paired seeds. Exit code 1 if a pair is not finished."""
    place = Store(store)
    wanted = read(spec, set or [])
    measuring.pairs(wanted, without, seeds)  # validated before torch is loaded
    resolved = _resolved(place, wanted, device)
    if queue:
        measuring.start(place, resolved, without, seeds)
    else:
        _train_pairs(place, measuring.pairs(resolved, without, seeds), device)
    found = measuring.report(place, resolved, without, seeds)
    answer(found.as_dict(), json, found.words())
    if not queue and found.finished < seeds:
        raise typer.Exit(1)


def _train_pairs(place: Store, pairs: list[tuple[RunSpec, RunSpec]], device: str) -> None:
    arms = [
        (f"seed {arm.seed} {name}", arm) for pair in pairs for name, arm in zip(("with", "without"), pair, strict=True)
    ]
    train_all(place, arms, device)


def train_all(place: Store, specs: Sequence[tuple[str, RunSpec]], device: str = "auto") -> None:
    """Train those of the labeled specs that are not finished. A failure is printed; the others continue."""
    worker.keep_freed_memory()
    stop = worker.stop_on_signals()
    with _progress(epochs=False) as follow:
        for label, spec in specs:
            run = place.create(spec)
            if stop.is_set() or run.finished:
                continue
            try:
                worker.execute(run, place, device=device, observe=follow(label), stop=stop)
            except SmallAlignError as error:
                progress_console.print(f"{label}: {error}", highlight=False, markup=False, soft_wrap=True)


def _resolved(place: Store, spec: RunSpec, device: str = "auto") -> RunSpec:
    progress_console.print("loading torch and data …", style="dim")
    return resolve(place, spec, device)


def _epoch(event: dict[str, Any]) -> str:
    """The scores of an epoch on validation images, as text."""
    if "accuracy" in event:
        return f"accuracy {event['accuracy']:.2%}, macro recall {event['macro_recall']:.2%}"
    if "cosine" in event:
        return f"embedding loss {event['embedding_loss']:.4f}, cosine {event['cosine']:.4f}"
    return "not scored: the network has no head, and there is no teacher"


@contextlib.contextmanager
def _progress(*, epochs: bool) -> Iterator[Callable[[str], worker.Observer]]:
    """Progress bars on stderr: yields a function from a label to an observer that updates the bar of that label.

    Args:
        epochs: whether to print each epoch's validation accuracy.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    with Progress(*columns, console=progress_console) as bar:

        def follow(label: str) -> worker.Observer:
            task = bar.add_task(label, total=None, note="loading")

            def show(event: dict[str, Any]) -> None:
                if event["kind"] == "progress":
                    note = f"loss {event['loss']:.4f}  {event['images_per_second']:,.0f} images/s"
                    bar.update(task, total=event["steps"], completed=event["step"], note=note)
                elif event["kind"] == "waiting":
                    bar.update(task, note=f"computing teacher outputs: {event['share']:.0%}")
                elif epochs:
                    best = " (best)" if event["best"] else ""
                    bar.console.print(f"epoch {event['epoch']}: validation {_epoch(event)}{best}")

            return show

        yield follow
