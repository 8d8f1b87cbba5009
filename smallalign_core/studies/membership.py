"""The study that each run belongs to, and the list of all runs with it.

Derived, as everything about studies is: a study computes the runs that it needs. What it computed is kept in the
process until the study or, while it needs more, the set of runs changes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs import table
from smallalign_core.runs.store import Store
from smallalign_core.runs.table import RunRow
from smallalign_core.spec import digest
from smallalign_core.studies import lifecycle
from smallalign_core.studies.lifecycle import Study


@dataclass(frozen=True)
class Members:
    """The runs of a study as far as they are known.

    Attributes:
        id, kind: of the study.
        title: its kind and its title.
        active: whether workers take its runs automatically.
        runs: ids of its runs, whether they exist yet or not.
    """

    id: str
    kind: str
    title: str
    created: float
    active: bool
    runs: frozenset[str]


def studies(store: Store) -> list[Members]:
    """All readable studies with their runs, newest first."""
    runs = _changed(store.runs_folder)
    found = []
    for study in lifecycle.listing(store):
        open_ = study.active or (study.folder / "needs").exists()  # its results may lead to more runs
        stamp = (_changed(study.folder), _changed(study.folder / "study.json"), runs if open_ else 0)
        with contextlib.suppress(SmallAlignError, LookupError, TypeError, ValueError, OSError):
            found.append(_members(str(store.root), study.id, stamp))
    return found


def rows(store: Store) -> list[RunRow]:
    """All runs, newest first, then the zoo, as `table.rows`; with the names of teachers, and studies.

    A run of several studies is listed with the newest.
    """
    return _placed(table.named(table.rows(store)), studies(store))


def _placed(rows: Iterable[RunRow], known: list[Members]) -> list[RunRow]:
    of = {run: study for study in reversed(known) for run in study.runs}
    return [
        replace(row, study=found.id, study_title=found.title) if (found := of.get(row.id)) and not row.in_zoo else row
        for row in rows
    ]


@functools.lru_cache(maxsize=512)
def _members(root: str, id: str, stamp: tuple[int, ...]) -> Members:  # noqa: ARG001  # a change makes a new entry
    store = Store(root)
    study = Study(store.root / "studies" / id)
    wanted = frozenset(map(digest, study.wanted(store)))
    return Members(study.id, study.kind, f"{study.kind}: {study.title}", study.created, study.active, wanted)


def _changed(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime_ns
    return 0
