"""Where a run of a study stands, read from its folder: not started, in work, settled, failed or damaged.

It imports no torch: the dashboard reads through it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.system.files import read_json

NOT_STARTED, DAMAGED = "not started", "damaged"
Needs = tuple[tuple[str, ...], ...]
"""The numbers that a result must have, each as the names on the way to it: `("val", "accuracy")`."""


@dataclass(frozen=True)
class RunStatus:
    """What a run's folder says now.

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
        said = run.status
        return RunStatus(name, state, said.get("reason"), state is State.FAILED and bool(said.get("diverged")))
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
