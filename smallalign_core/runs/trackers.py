"""The record of a run for experiment trackers: CSV, TensorBoard, MLflow, Weights & Biases. Everything stays local.

One reader, `history`, takes numbers from `events.jsonl`; each tracker's function writes what it returns. A record of a
run is never written twice; one that was cut off, or that the run has outgrown since, is replaced. Nothing else is.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeGuard

from smallalign_core.errors import BadInput, MissingExtra, SmallAlignError
from smallalign_core.runs.spec_diff import fields
from smallalign_core.runs.store import Run, State
from smallalign_core.system import extras
from smallalign_core.system.files import write

Tracker = Literal["csv", "tensorboard", "mlflow", "wandb", "trackio"]

PROJECT = "smallalign"
"""Name of the experiment (MLflow) or project (Weights & Biases)."""
TRAINING = ("loss", "images_per_second", "gradients", "evaluations")
VALIDATION = (
    *("accuracy", "macro_recall", "nll", "ece", "fitted_nll", "fitted_ece", "agreement", "kl"),
    *("embedding_loss", "cosine"),
)
TEST = ("accuracy", "macro_recall", "nll", "ece")
MARK, EXTENT = "smallalign.txt", "smallalign.extent"
"""The file, and MLflow's tag, that are written last: they say how much of the run a record has."""
AT_ONCE = 1000
"""Metrics that MLflow takes in one call."""
LONGEST = 500
"""Characters of a parameter's value in MLflow."""


@dataclass(frozen=True)
class Point:
    """Metrics at one step.

    Attributes:
        step: of the optimizer.
        epoch: passes over the training images so far.
        time: Unix time in seconds.
        values: by name: `train/...` while training, `val/...` after an epoch.
    """

    step: int
    epoch: float
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class History:
    """What a tracker shows of a run.

    Attributes:
        params: fields of the spec by path, as text.
        points: oldest first, none of an attempt that a resume has undone.
        summary: test metrics and size of a finished run; empty before.
    """

    id: str
    name: str
    title: str
    notes: str
    tags: tuple[str, ...]
    state: State
    params: Mapping[str, str]
    points: tuple[Point, ...]
    summary: Mapping[str, float]

    @property
    def extent(self) -> str:
        """How much of the run the record has."""
        return f"{len(self.points)} points, {self.state}"


@dataclass(frozen=True)
class Exported:
    """Where a record was written (a file, folder or address), and how many steps and numbers it has."""

    to: str
    run: str
    tracker: Tracker
    points: int
    numbers: int


def history(run: Run) -> History:
    """The record of a run so far, finished or not.

    Raises:
        BadInput: it has no record: a model of the zoo, an import, or a run that did not begin.
    """
    points = tuple(point for event in run.events() if (point := _point(event)) is not None)
    if not points:
        raise BadInput(
            "the run has no record of its training",
            given=f"{run.name}, {run.state}",
            do="export a run that was trained in this store",
        )
    result = run.result or {}
    summary = {f"test/{name}": value for name in TEST if _number(value := result.get("test", {}).get(name))}
    summary |= {name: result[name] for name in ("params", "macs", "best_epoch", "seconds") if name in result}
    notes, called = run.notes, run.notes.name or run.title
    return History(
        *(run.id, called, run.title, notes.text, tuple(notes.tags), run.state),
        *(fields(run.spec), points, summary),
    )


def _point(event: Mapping[str, Any]) -> Point | None:
    group, names = {"progress": ("train", TRAINING), "epoch": ("val", VALIDATION)}.get(event["kind"], ("", ()))
    values = {f"{group}/{name}": event.get(name) for name in names}
    terms = event.get("terms")
    values |= {f"train/loss/{name}": value for name, value in terms.items()} if isinstance(terms, dict) else {}
    known = {name: float(value) for name, value in values.items() if _number(value)}
    return Point(event["step"], float(event["epoch"]), float(event["time"]), known) if known else None


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def export(run: Run, tracker: Tracker, to: str | None = None) -> Exported:
    """Write the record of a run for a tracker.

    Args:
        to: CSV: a file; TensorBoard and Weights & Biases: a folder; MLflow: a file for its database, or a server's
            address. Default: in the current folder.

    Raises:
        BadInput: the run has no record; `to` has one of this run, or is something else.
        MissingExtra: the tracker's client is not installed.
    """
    known = history(run)
    return WRITERS[tracker](known, to)


# --- files ------------------------------------------------------------------------------------------------------------


def _csv(known: History, to: str | None) -> Exported:
    file = Path(to or f"{known.id}.csv")
    if file.exists() or not file.parent.is_dir():
        wrong = "the file exists already" if file.exists() else "the folder of the file does not exist"
        raise BadInput(wrong, given=file, do="name another file with --at")
    names = sorted({name for point in known.points for name in point.values})
    text = io.StringIO()
    table = csv.DictWriter(text, ["step", "epoch", "timestamp", *names], lineterminator="\n")
    table.writeheader()
    for point in known.points:
        about = {
            "step": point.step,
            "epoch": point.epoch,
            "timestamp": datetime.fromtimestamp(point.time, UTC).isoformat(),
        }
        table.writerow(about | dict(point.values))
    write(file, text.getvalue())
    return _exported(known, "csv", str(file))


def _tensorboard(known: History, to: str | None) -> Exported:
    extras.require("tensorboard", "export to TensorBoard")
    folder = Path(to or "tensorboard") / known.id
    if folder.exists():
        _incomplete(known, _marked(folder), folder)
        if any(file.name != MARK and not file.name.startswith("events.out.tfevents.") for file in folder.iterdir()):
            raise BadInput("the folder has other files", given=folder, do="name another place with --at")
        shutil.rmtree(folder)
    from torch.utils.tensorboard import SummaryWriter

    with _quiet(), _answering("TensorBoard", str(folder)), SummaryWriter(str(folder)) as board:
        lines = "\n".join(f"| {name} | {value} |" for name, value in known.params.items())
        board.add_text("spec", f"| field | value |\n|---|---|\n{lines}", 0, known.points[0].time)
        for point in known.points:
            for name, value in point.values.items():
                board.add_scalar(name, value, point.step, point.time)
        last = known.points[-1]
        for name, value in known.summary.items():
            board.add_scalar(name, value, last.step, last.time)
    write(folder / MARK, known.extent)
    return _exported(known, "tensorboard", str(folder))


# --- clients ----------------------------------------------------------------------------------------------------------


def _mlflow(known: History, to: str | None) -> Exported:
    mlflow = extras.load("mlflow", "export to MLflow")
    entities = extras.load("mlflow.entities", "export to MLflow")
    address = to or "mlflow.db"
    if "://" not in address:
        if not Path(address).absolute().parent.is_dir() or Path(address).is_dir():
            raise BadInput("MLflow keeps its database in a file", given=address, do="name one in an existing folder")
        address = f"sqlite:///{Path(address).absolute()}"
    with _quiet(), _answering("MLflow", address):
        client = mlflow.MlflowClient(tracking_uri=address)
        experiment = client.get_experiment_by_name(PROJECT)
        place = client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        for earlier in client.search_runs([place], f"tags.`smallalign.run` = '{known.id}'"):
            _incomplete(known, earlier.data.tags.get(EXTENT), _shown(address))
            client.delete_run(earlier.info.run_id)
        times = [round(1000 * point.time) for point in known.points]
        tags = {"smallalign.run": known.id, "smallalign.tags": " ".join(known.tags), "mlflow.note.content": known.notes}
        made = client.create_run(place, start_time=times[0], run_name=known.name, tags=tags).info.run_id
        numbers = [
            entities.Metric(name, value, time, point.step)
            for point, time in zip(known.points, times, strict=True)
            for name, value in point.values.items()
        ]
        last = known.points[-1].step
        numbers += [entities.Metric(name, value, times[-1], last) for name, value in known.summary.items()]
        for at in range(0, len(numbers), AT_ONCE):
            client.log_batch(made, metrics=numbers[at : at + AT_ONCE])
        params = [entities.Param(name, value[:LONGEST]) for name, value in known.params.items()]
        for at in range(0, len(params), 100):
            client.log_batch(made, params=params[at : at + 100])
        ended = {State.FINISHED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
        client.set_terminated(made, ended.get(known.state, "RUNNING"), times[-1])
        client.set_tag(made, EXTENT, known.extent)
    return _exported(known, "mlflow", _shown(address))


def _wandb(known: History, to: str | None) -> Exported:
    wandb = extras.load("wandb", "export to Weights & Biases")
    folder = Path(to or ".")
    if not folder.is_dir():
        raise BadInput("the folder does not exist", given=folder, do="create it, or name another with --at")
    for earlier in folder.glob(f"wandb/*run-*-{known.id}"):
        _incomplete(known, _marked(earlier), folder / "wandb")
        shutil.rmtree(earlier)
    settings = wandb.Settings(
        mode="offline",  # `wandb sync` uploads it, if its owner wants to
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    about = {"project": PROJECT, "id": known.id, "name": known.name, "notes": known.notes, "tags": list(known.tags)}
    with _quiet(), _answering("Weights & Biases", str(folder)):
        made = wandb.init(dir=str(folder), config=dict(known.params), settings=settings, reinit="create_new", **about)
        for point in known.points:
            made.log({"epoch": point.epoch, "_timestamp": point.time, **point.values}, step=point.step)
        made.summary.update(dict(known.summary))
        made.finish()
        place = Path(made.dir).parent
        write(place / MARK, known.extent)
    return _exported(known, "wandb", str(place))


def _trackio(known: History, _: str | None) -> Exported:
    raise MissingExtra(
        "trackio cannot be installed beside SmallAlign: it requires a version of Pillow below 13",
        given=f"Pillow {extras.version('pillow')}",
        do=f"run `smallalign runs export {known.id} --to csv`, and `trackio.import_csv` in an environment of its own",
    )


WRITERS: dict[Tracker, Callable[[History, str | None], Exported]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _exported(known: History, tracker: Tracker, to: str) -> Exported:
    numbers = sum(len(point.values) for point in known.points)
    return Exported(to, known.id, tracker, len(known.points), numbers)


def _incomplete(known: History, extent: str | None, place: object) -> None:
    """Raises where a record of this run, of which `extent` was written at its end, is whole."""
    if extent == known.extent:
        raise BadInput(f"the run {known.id} was exported there before", given=place, do="name another place with --at")


def _marked(folder: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / MARK).read_text("utf-8")
    return None


def _shown(address: str) -> str:
    """An address without the user's name and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what clients log while they work: the result is printed once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _answering(tracker: str, address: str) -> Iterator[None]:
    """One sentence where a client, its server or its database cannot be used."""
    try:
        yield
    except SmallAlignError:
        raise
    except Exception as found:  # noqa: BLE001  # its errors, those of its databases and of its HTTP client
        words = _shown(" ".join(str(found).split())[:150])
        raise BadInput(f"{tracker} refused the run: {words}", given=_shown(address), do="check the address") from None
