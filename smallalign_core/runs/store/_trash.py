"""Deleted runs, until the trash is emptied: `<root>/runs/.trash/<id>-<time>`, each a run's folder as it was.

The trash lies in the folder of the runs, thus on the same disk: moving a run there is one rename, which happens or
does not.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from smallalign_core.errors import Refused, UnknownRun
from smallalign_core.runs.store._run import Run, State
from smallalign_core.system.files import write_json

FOLDER = ".trash"
PLACE = re.compile(r"(.+)-(\d{19})")  # nanoseconds: no other folder that somebody put there is taken for a run


@dataclass(frozen=True)
class Trashed:
    """A deleted run.

    Attributes:
        id: what it was called, and is again when it is restored.
        run: its folder in the trash.
        deleted: Unix time.
    """

    id: str
    run: Run
    deleted: float


def listed(runs: Path) -> list[Trashed]:
    """What is in the trash below the folder `runs`, the last deleted first."""
    trash = runs / FOLDER
    found = [
        Trashed(parts[1], Run(folder), int(parts[2]) / 1e9)
        for folder in (trash.iterdir() if trash.is_dir() else ())
        if (parts := PLACE.fullmatch(folder.name)) and folder.is_dir()
    ]
    return sorted(found, key=lambda one: one.deleted, reverse=True)


def put(run: Run) -> Trashed:
    """Move a run's folder to the trash.

    Raises:
        Refused: a worker has it.
    """
    place = run.folder.parent / FOLDER / f"{run.folder.name}-{time.time_ns()}"
    place.parent.mkdir(exist_ok=True)
    try:
        with run.lock(timeout=0.5):
            if (run.folder / "queued").exists() and not run.finished:  # restored, it does not start by itself
                write_json(run.folder / "state.json", {**run.status, "ended": State.CANCELLED, "reason": None})
            for marker in ("queued", "request"):
                (run.folder / marker).unlink(missing_ok=True)
            run.folder.rename(place)
    except Timeout:
        raise Refused("the run is being trained", given=run.name, do="cancel it first") from None
    return Trashed(run.folder.name, Run(place), time.time())


def find(runs: Path, reference: str) -> Trashed:
    """The run in the trash that `reference`, an id or a prefix of one, means; of several with one id the last deleted.

    Raises:
        UnknownRun: none is, or more than one.
    """
    found = [one for one in listed(runs) if reference and one.id.startswith(reference)]
    exact = [one for one in found if one.id == reference]
    ids = {one.id for one in exact or found}
    if len(ids) == 1:
        return (exact or found)[0]
    if ids:
        raise UnknownRun(
            f"{len(ids)} deleted runs match the prefix", given=reference, do="give more characters of the id"
        )
    raise UnknownRun(
        "no such run in the trash", given=reference, do="list deleted runs with `smallalign runs list --trash`"
    )


def restore(found: Trashed) -> Path:
    """Move a run back among the others; returns its folder.

    Raises:
        Refused: it was trained again meanwhile.
    """
    place = found.run.folder.parent.parent / found.id
    taken = Refused("a run with that id exists again", given=found.id, do="delete that one first")
    if Run(place).record.exists():
        raise taken
    with contextlib.suppress(OSError):  # an empty folder, or one with only a lock, is nothing
        if {child.name for child in place.iterdir()} <= {"lock"}:
            shutil.rmtree(place)
    try:
        found.run.folder.rename(place)
    except FileNotFoundError:
        raise UnknownRun("the run is no longer in the trash", given=found.id, do="train its spec again") from None
    except OSError:
        raise taken from None
    return place
