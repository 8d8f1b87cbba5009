"""Where the runs of a study stand, read from their folders: not started, in work, settled, failed or damaged.

It imports no torch: the dashboard reads through it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.spec import RunSpec, digest
from smallalign_core.system.files import read_json

NOT_STARTED, DAMAGED = "not started", "damaged"
Needs = tuple[tuple[str, ...], ...]
"""The numbers that a result must have, each as the names on the way to it: `("val", "accuracy")`."""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run's folder.

    Attributes:
        state: a `State`, `not started`, or `damaged`.
        reason: why it failed or paused, if that is known.
        diverged: whether its loss became NaN or infinite, as it always would.
        result: of a finished run whose result has the numbers that are needed; else None.
    """

    id: str
    state: str
    reason: str | None = None
    diverged: bool = False
    result: dict[str, Any] | None = None

    @property
    def settled(self) -> bool:
        """Whether training it again would change nothing."""
        return self.state == State.FINISHED or self.diverged


@functools.lru_cache(maxsize=16_384)
def id_of(spec: RunSpec) -> str:
    """The id of the run of a resolved spec, cached: a page needs hundreds per second."""
    return digest(spec)


class Tally:
    """Counts of the runs of a study by state, see `StudyReport`."""

    def __init__(self) -> None:
        self.done = self.running = self.missing = 0
        self.failed: list[str] = []

    def add(self, found: RunStatus, what: str) -> None:
        """Count a run.

        Args:
            what: the run, in a few words, should it have failed.
        """
        if found.settled:
            self.done += 1
        elif found.state in (State.QUEUED, State.RUNNING):
            self.running += 1
        elif found.state in (State.FAILED, DAMAGED):
            self.failed.append(f"{what}: {found.reason or found.state}")
        else:
            self.missing += 1


def status_of(store: Store, name: str, needs: Needs) -> RunStatus:
    """Where the run of that id stands."""
    run = store.by_id(name)
    if not (run.folder / "spec.json").exists():
        return RunStatus(name, NOT_STARTED)
    try:
        state = run.state
        if state is State.FINISHED:
            stamp = (run.folder / "result.json").stat().st_mtime_ns
            return RunStatus(name, state, result=_result(run.folder, stamp, needs))
        status = run.status
        return RunStatus(name, state, status.get("reason"), state is State.FAILED and bool(status.get("diverged")))
    except (SmallAlignError, OSError, KeyError, TypeError, ValueError) as error:  # a folder may hold any nonsense
        return RunStatus(name, DAMAGED, str(error) if isinstance(error, SmallAlignError) else "a file of it is damaged")


def result_of(run: Run, needs: Needs) -> dict[str, Any] | None:
    """A finished run's result; None if it has none with the numbers that are needed."""
    try:
        return _result(run.folder, (run.folder / "result.json").stat().st_mtime_ns, needs)
    except (OSError, SmallAlignError, KeyError, TypeError, ValueError):
        return None


@functools.lru_cache(maxsize=8192)
def _result(folder: Path, _: int, needs: Needs) -> dict[str, Any]:
    """A result, read once for each time that it was written.

    Raises:
        KeyError, TypeError, ValueError: it lacks a number.
    """
    result: dict[str, Any] = read_json(folder / "result.json")
    for path in needs:
        value: Any = result
        for name in path:
            value = value[name]
        float(value)
    return result
