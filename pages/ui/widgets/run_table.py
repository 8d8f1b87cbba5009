"""What pages offer of the rows of `smallalign_core.runs.table`: finished runs, and teachers for some images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallalign_core import data
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.runs.table import DAMAGED as DAMAGED, RunRow as RunRow, row as row, rows as rows, zoo_ids
from smallalign_core.service.requests import DatasetFacts
from smallalign_core.system.files import read_json

_BAD = (SmallAlignError, KeyError, TypeError, ValueError, AttributeError, OSError)  # a folder may hold any nonsense


def finished(store: Store) -> list[RunRow]:
    """All trained classifiers: runs newest first, then the zoo."""
    return [found for found in rows(store) if found.finished and not found.headless]


def headless(store: Store) -> list[RunRow]:
    """Finished runs whose network has no head: teachers of features, and initial weights."""
    return [found for found in rows(store) if found.headless]


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
        names = zoo_ids(store.zoo())
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


def when(one: RunRow) -> datetime | None:
    """When it was first submitted; the files of a zoo model only have the time of the copy."""
    return None if one.in_zoo else datetime.fromtimestamp(one.created, tz=UTC)
