"""Every run of the store as one row. Finished runs are read once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallalign_core import data
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service.requests import DatasetFacts
from smallalign_core.spec import canonical, id_of
from smallalign_core.system.files import read_json

DAMAGED = "damaged"
_BAD = (SmallAlignError, KeyError, TypeError, ValueError, AttributeError, OSError)  # a folder may hold any nonsense


@dataclass(frozen=True)
class RunRow:
    """One run, or one zoo model.

    Attributes:
        state: a `State`, or `damaged` with the reason in `reason`.
        source: where its images come from.
        family: equal for runs that differ in nothing but the seed.
        imported: whether it was trained elsewhere: then there is no spec, and nothing to export.
        accuracy, low, high: on test, with the 95% confidence interval; None before the run is finished.
        validation: accuracy on validation, used for selection.
        seconds: how long its training took.
        data: fingerprint of the images that it was trained or, if it was imported, scored on.
        digest: of its weights.
        here: of a teacher that is offered for some images, its accuracy on validation images of them; None where
            it was not evaluated there. `note` is shown in its label then, instead of its accuracy on its own images.
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
    data: str = ""
    digest: str = ""
    here: float | None = None
    note: str = ""

    @property
    def finished(self) -> bool:
        """Whether it can be a teacher, be compared and be exported."""
        return self.state == State.FINISHED

    @property
    def label(self) -> str:
        """Text of its menu entry."""
        first = self.name if self.in_zoo else f"{self.title} · {self.id[:6]}"
        if self.note:
            return f"{first} · {self.note}"
        first += f" · {Path(self.source).name}" if self.in_zoo else ""  # the accuracy is that on its own images
        return first + (f" · {self.accuracy:.1%}" if self.accuracy is not None else "")


def rows(store: Store) -> list[RunRow]:
    """All runs, newest first, then the zoo."""
    zoo = store.zoo()
    names = _names(zoo)
    return [_row(run, names) for run in (*store.runs(), *zoo)]


def finished(store: Store) -> list[RunRow]:
    """All that is trained: runs newest first, then the zoo."""
    return [found for found in rows(store) if found.finished]


def row(run: Run, store: Store) -> RunRow:
    """One run as a row; a damaged folder is a row too."""
    return _row(run, _names(store.zoo()))


def _names(zoo: list[Run]) -> dict[str, str]:
    """Ids of the zoo's models by name: a spec in the zoo refers to its teacher by name."""
    return {run.name: run.id for run in zoo}


def _row(run: Run, names: Mapping[str, str]) -> RunRow:
    try:
        state = run.state
        text = _of_spec(run.folder, _changed(run.record))
        scores: dict[str, Any] = {}
        if state is State.FINISHED:
            scores = _of_result(run.folder, _changed(run.folder / "result.json"))
        status = {} if scores else run.status
        reason = None if status.get("reason") == "asked" else status.get("reason")  # a user's own request
        text = text | {"teacher": names.get(named, named) if (named := text.get("teacher")) else None}
        known: dict[str, Any] = {"id": run.name, "params": status.get("params"), "reason": reason} | text | scores
        return RunRow(name=run.name, state=str(state), created=run.created, in_zoo=run.in_zoo, **known)
    except _BAD as error:
        why = (
            str(error)
            if isinstance(error, SmallAlignError)
            else f"A file of this run cannot be read. Given: {type(error).__name__}. Delete the run."
        )
        return RunRow(run.name, run.name, DAMAGED, "Unreadable run folder", run.created, in_zoo=run.in_zoo, reason=why)


def of_classes(store: Store, classes: Iterable[str]) -> list[RunRow]:
    """Finished runs and imports with these classes, in whatever order: they are matched by name."""
    wanted = sorted(classes)
    return [row for row in finished(store) if sorted(row.classes) == wanted]


def teachers(store: Store, source: str, facts: DatasetFacts) -> list[RunRow]:
    """Finished runs and imports with the classes of a dataset, each with its accuracy on the dataset's validation
    images where available, the most accurate first.

    Args:
        source: where the images come from; `facts`: the `DatasetFacts` about them.
    """
    fitting = of_classes(store, facts.classes)
    seen = {(one["digest"], one["validation"]): one for one in preflights(store)}
    found = [_offered(row, source, facts, seen) for row in fitting]
    return sorted(found, key=lambda row: -1.0 if row.here is None else row.here, reverse=True)


def _offered(
    row: RunRow, source: str, facts: DatasetFacts, seen: Mapping[tuple[str, str], Mapping[str, Any]]
) -> RunRow:
    known = seen.get((row.digest, facts.validation))
    own = facts.fingerprint == row.data or _same(source, row)
    here = known["accuracy"] if known else row.validation if own else None
    if known and known["refused"]:
        return replace(row, note="not better than chance on these images")
    note = "not evaluated on these images" if here is None else f"{here:.1%} on validation images"
    return replace(row, here=here, note=note)


def _same(source: str, row: RunRow) -> bool:
    """Whether a run's images come from `source`: at another size or of another number they are still those."""
    return row.source in (source, data.absolute(source))


def preflights(store: Store) -> list[dict[str, Any]]:
    """Cached results of teacher checks."""
    files = store.preflights.glob("[!.]*.json") if store.preflights.is_dir() else ()
    return [found for file in files if (found := _preflight(file, _changed(file)))]


@functools.lru_cache(maxsize=1024)
def _preflight(file: Path, changed: int) -> dict[str, Any] | None:  # noqa: ARG001  # a change makes a new entry
    with contextlib.suppress(*_BAD):
        found = read_json(file)
        return {name: found[name] for name in ("digest", "validation", "accuracy", "refused")}
    return None


def default_teacher(among: Iterable[RunRow]) -> str | None:
    """The id of the preselected teacher among those of `teachers`; None if none is suitable.

    It was evaluated on these images and is no student itself. By validation: the test set is never used for
    selection. Of those within about a point, the largest.
    """
    suited = [row for row in among if row.here is not None and row.teacher is None]
    best = max(suited, key=lambda row: (round(row.here or 0, 2), row.params or 0), default=None)
    return best.id if best else None


def teacher_here(run: Run, store: Store) -> float | None:
    """The accuracy of a run's teacher on validation images of the run's own data; None where it is not known.

    Runs older than the teacher check have none; then the teacher's own validation accuracy on the same images is used.
    """
    kept = (run.result or {}).get("preflight") or run.status.get("preflight")
    with contextlib.suppress(*_BAD):
        if kept:
            return float(kept["accuracy"])
        names = _names(store.zoo())
        wanted = {names.get(name, name) for name in run.spec.teachers}
        if len(wanted) == 1:
            return next(
                (row.validation for row in finished(store) if row.id in wanted and row.data == run.data.fingerprint),
                None,
            )
    return None


def siblings(store: Store, one: RunRow) -> list[RunRow]:
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
        return {
            "title": run.title,
            "source": run.data.source,
            "family": run.folder.name,
            "imported": True,
            "data": run.data.fingerprint or "",
            "digest": id_of(run.imported),
        }
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
        "data": spec.data.fingerprint or "",
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
        **({} if result.get("imported") else {"digest": str(result.get("weights_sha256", ""))}),
    }


def when(one: RunRow) -> datetime | None:
    """When it was first submitted; the files of a zoo model only have the time of the copy."""
    return None if one.in_zoo else datetime.fromtimestamp(one.created, tz=UTC)
