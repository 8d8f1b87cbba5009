"""Every run of the store as one row. What cannot change any more is read once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.spec import canonical
from smallalign_core.store import Run, State, Store

DAMAGED = "damaged"
_BAD = (SmallAlignError, KeyError, TypeError, ValueError, AttributeError, OSError)  # a folder may hold any nonsense


@dataclass(frozen=True)
class Row:
    """One run, or one zoo model.

    Attributes:
        state: a `State`, or `damaged` with the reason in `reason`.
        source: where its images come from.
        family: equal for runs that differ in nothing but the seed.
        imported: whether it was made elsewhere: then there is no spec, and nothing to export.
        accuracy, low, high: on test, with the 95 % interval; None before the run is finished.
        validation: accuracy on validation, by which a choice may be made.
        seconds: how long its training took.
    """

    id: str
    name: str
    state: str
    title: str
    created: float
    in_zoo: bool = False
    teacher: str | None = None
    source: str = ""
    seed: int = 0
    family: str = ""
    classes: tuple[str, ...] = ()
    accuracy: float | None = None
    validation: float | None = None
    low: float | None = None
    high: float | None = None
    params: int | None = None
    seconds: float | None = None
    reason: str | None = None
    imported: bool = False

    @property
    def finished(self) -> bool:
        """Whether it can be a teacher, be compared and be exported."""
        return self.state == State.FINISHED

    @property
    def label(self) -> str:
        """What menus show."""
        first = self.name if self.in_zoo else f"{self.title} · {self.id[:6]}"
        return first + (f" · {self.accuracy:.1%}" if self.accuracy is not None else "")


def rows(store: Store) -> list[Row]:
    """All runs, newest first, then the zoo."""
    zoo = store.zoo()
    names = _names(zoo)
    return [_row(run, names) for run in (*store.runs(), *zoo)]


def finished(store: Store) -> list[Row]:
    """All that is trained: runs newest first, then the zoo."""
    return [found for found in rows(store) if found.finished]


def row(run: Run, store: Store) -> Row:
    """One run as a row; a damaged folder is a row too."""
    return _row(run, _names(store.zoo()))


def _names(zoo: list[Run]) -> dict[str, str]:
    """Ids of the zoo's models by their names: a spec in the zoo names its teacher as people do."""
    return {run.name: run.id for run in zoo}


def _row(run: Run, names: Mapping[str, str]) -> Row:
    try:
        state = run.state
        text = _of_spec(run.folder, _changed(run.record))
        scores: dict[str, Any] = {}
        if state is State.FINISHED:
            scores = _of_result(run.folder, _changed(run.folder / "result.json"))
        said = {} if scores else run.said
        reason = None if said.get("reason") == "asked" else said.get("reason")  # whoever asked knows why
        text = text | {"teacher": names.get(told, told) if (told := text.get("teacher")) else None}
        known: dict[str, Any] = {"id": run.name, "params": said.get("params"), "reason": reason} | text | scores
        return Row(name=run.name, state=str(state), created=run.created, in_zoo=run.in_zoo, **known)
    except _BAD as error:
        why = (
            str(error)
            if isinstance(error, SmallAlignError)
            else f"A file of this run is damaged ({type(error).__name__}). Delete the run."
        )
        return Row(
            run.name, run.name, DAMAGED, "A folder that cannot be read", run.created, in_zoo=run.in_zoo, reason=why
        )


def likeliest(among: list[Row], source: str) -> str | None:
    """The id of the best teacher for images from `source`: of those that learned from them, if any did.

    By validation: nothing is ever chosen on test. Equally good ones are ranked by size, the largest first.
    """
    best = max(among, key=lambda one: (one.source == source, one.validation or 0, one.params or 0), default=None)
    return best.id if best else None


def siblings(store: Store, one: Row) -> list[Row]:
    """The finished runs that differ from `one` in nothing but the seed, itself among them; one a seed."""
    return list({other.seed: other for other in finished(store) if other.family == one.family}.values())


def _changed(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime_ns
    return 0


@functools.lru_cache(maxsize=8192)
def _of_spec(folder: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001  # a change makes a new entry
    run = Run(folder)
    if run.imported is not None:
        return {"title": run.title, "source": run.data.source, "family": run.folder.name, "imported": True}
    spec = run.spec
    kept = canonical(spec)
    kept.pop("seed", None)
    family = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {
        "title": run.title,
        "teacher": next(iter(spec.teachers), None),
        "source": spec.data.source,
        "seed": spec.seed,
        "family": family,
    }


@functools.lru_cache(maxsize=8192)
def _of_result(folder: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001  # a change makes a new entry
    result = Run(folder).result or {}
    test = result["test"]
    return {
        "id": str(result["id"]),
        "accuracy": float(test["accuracy"]),
        "validation": float(result["val"]["accuracy"]),
        "low": float(test["accuracy_low"]),
        "high": float(test["accuracy_high"]),
        "params": int(result["params"]),
        "seconds": float(took) if isinstance(took := result.get("seconds"), int | float) else None,
        "classes": tuple(result["classes"]),
    }


def when(one: Row) -> datetime | None:
    """When it was first submitted; a zoo model's files only say when they were copied here."""
    return None if one.in_zoo else datetime.fromtimestamp(one.created, tz=UTC)
