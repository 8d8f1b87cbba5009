"""All runs of a store as rows: what lists of them show, filter and sort. Finished runs are read once a process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.metrics import macro_of
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.store._notes import or_empty
from smallalign_core.spec import canonical, id_of, nest
from smallalign_core.spec.loss import short_name

DAMAGED = "damaged"
RACY_NS = 2_000_000_000
"""A folder that changed within this time may change again at the same time stamp: its row is not kept."""
_BAD = (SmallAlignError, KeyError, TypeError, ValueError, AttributeError, OSError)  # a folder may hold any nonsense


@dataclass(frozen=True)
class RunRow:
    """One run, or one zoo model.

    Attributes:
        state: a `State`, or `damaged` with the reason in `reason`.
        title: network, loss, data, epochs and seed, in one line.
        display_name, notes, tags: what people wrote; see `Store.annotate`.
        source: where its images come from.
        network, loss, optimizer: short names; empty for an import.
        family: equal for runs that differ in nothing but the seed.
        imported: whether it was trained elsewhere: then there is no spec, and nothing to export.
        progress: finished share of the steps of a run in training.
        accuracy, low, high: on test, with the 95% confidence interval; None before the run is finished.
        macro: macro recall on test.
        validation: accuracy on validation, used for selection.
        seconds: how long its training took.
        data: fingerprint of the images that it was trained or, if it was imported, scored on.
        digest: of its weights.
        teacher_name: the teacher as lists call it; filled in by `named`.
        study, study_title: id and title of the study that it belongs to; filled in by `studies.membership`.
        here: of a teacher that is offered for some images, its accuracy on validation images of them; None where
            it was not evaluated there. `note` is shown in its label then, instead of its accuracy on its own images.
        headless: whether it is finished and its network gives features and no class; `cosine`: the mean cosine
            similarity of its projected features to its teacher's on validation images, None without a teacher.
    """

    id: str
    name: str
    state: str
    title: str
    created: float
    in_zoo: bool = False
    display_name: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    teacher: str | None = None
    source: str = ""
    network: str = ""
    loss: str = ""
    optimizer: str = ""
    epochs: int | None = None
    seed: int = 0
    family: str = ""
    classes: tuple[str, ...] = ()
    progress: float | None = None
    accuracy: float | None = None
    macro: float | None = None
    validation: float | None = None
    low: float | None = None
    high: float | None = None
    params: int | None = None
    seconds: float | None = None
    reason: str | None = None
    imported: bool = False
    data: str = ""
    digest: str = ""
    teacher_name: str = ""
    study: str = ""
    study_title: str = ""
    here: float | None = None
    note: str = ""
    headless: bool = False
    cosine: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it can be a teacher and, unless it is `headless`, be compared and exported."""
        return self.state == State.FINISHED

    @property
    def called(self) -> str:
        """What lists call it: its own name, the zoo's, or its title."""
        return self.display_name or (self.name if self.in_zoo else self.title)

    @property
    def label(self) -> str:
        """Text of its menu entry."""
        first = self.name if self.in_zoo else f"{self.called} · {self.id[:6]}"
        if self.note:
            return f"{first} · {self.note}"
        first += f" · {Path(self.source).name}" if self.in_zoo else ""  # the accuracy is that on its own images
        if self.headless:
            return f"{first} · features" + (f", cosine {self.cosine:.3f}" if self.cosine is not None else "")
        return first + (f" · {self.accuracy:.1%}" if self.accuracy is not None else "")


def rows(store: Store) -> list[RunRow]:
    """All runs, newest first, then the zoo."""
    zoo = store.zoo()
    names = tuple(zoo_ids(zoo).items())
    try:
        with os.scandir(store.runs_folder) as entries:
            folders = [entry.path for entry in entries if not entry.name.startswith(".")]
    except OSError:
        folders = []
    own = [found for folder in folders if (found := _row_in(folder, names)) is not None]
    own.sort(key=lambda row: row.created, reverse=True)
    return [*own, *(_of(run, dict(names)) for run in zoo)]


def row(run: Run, store: Store) -> RunRow:
    """One run as a row; a damaged folder is a row too."""
    return _of(run, zoo_ids(store.zoo()))


def named(rows: Sequence[RunRow]) -> list[RunRow]:
    """`rows` with the names of teachers."""
    called = {row.id: row.called for row in rows}
    return [replace(row, teacher_name=called.get(row.teacher, row.teacher[:6])) if row.teacher else row for row in rows]


def zoo_ids(zoo: Iterable[Run]) -> dict[str, str]:
    """Ids of the zoo's models by name: a spec in the zoo refers to its teacher by name."""
    return {run.name: run.id for run in zoo}


def _row_in(folder: str, names: tuple[tuple[str, str], ...]) -> RunRow | None:
    """The row of a folder; None where it holds no run.

    A finished run is read again when something in its folder was written, removed or renamed, or its result or spec
    changed in place. Three looks at the file system a run, so that a list of 1,000 is a matter of milliseconds.
    """
    stamp = tuple(_changed(f"{folder}{name}") for name in ("", "/result.json", "/spec.json"))
    if stamp[1] and max(stamp) < time.time_ns() - RACY_NS and (kept := _finished(folder, stamp, names)) is not None:
        return kept
    run = Run(Path(folder))
    return _of(run, dict(names)) if run.record.is_file() else None


@functools.lru_cache(maxsize=16384)
def _finished(folder: str, stamp: tuple[int, ...], names: tuple[tuple[str, str], ...]) -> RunRow | None:  # noqa: ARG001  # a change makes a new entry
    run = Run(Path(folder))
    found = _of(run, dict(names)) if run.record.is_file() else None
    return found if found is not None and found.finished else None


def _of(run: Run, names: dict[str, str]) -> RunRow:
    written = or_empty(run.folder)
    about: dict[str, Any] = {"display_name": written.name, "notes": written.text, "tags": written.tags}
    try:
        state = run.state
        text = _of_spec(run.folder, _changed(run.record))
        scores: dict[str, Any] = {}
        if state is State.FINISHED:
            scores = _of_result(run.folder, _changed(run.folder / "result.json"))
        status = {} if scores else run.status
        reason = None if status.get("reason") == "asked" else status.get("reason")  # a user's own request
        text = text | {"teacher": names.get(given, given) if (given := text.get("teacher")) else None}
        known: dict[str, Any] = {"id": run.name, "params": status.get("params"), "reason": reason} | text | scores
        if state is State.RUNNING and (steps := run.events("progress")):
            known["progress"] = min(1.0, steps[-1]["step"] / steps[-1]["steps"])
        return RunRow(name=run.name, state=str(state), created=run.created, in_zoo=run.in_zoo, **about, **known)
    except _BAD as error:
        why = (
            str(error)
            if isinstance(error, SmallAlignError)
            else f"A file of this run cannot be read. Given: {type(error).__name__}. Delete the run."
        )
        return RunRow(
            run.name, run.name, DAMAGED, "Unreadable run folder", run.created, in_zoo=run.in_zoo, reason=why, **about
        )


def _changed(file: Path | str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(file).st_mtime_ns  # noqa: PTH116  # a third of the time that pathlib takes
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
    return {
        "title": run.title,
        "teacher": next(iter(spec.teachers), None),
        "source": spec.data.source,
        "network": run.title.split(" · ")[0],
        "loss": short_name(spec.loss),
        "optimizer": " + ".join(one.kind for one in nest(spec.optimizer)),
        "epochs": spec.epochs,
        "seed": spec.seed,
        "family": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(),
        "data": spec.data.fingerprint or "",
    }


@functools.lru_cache(maxsize=8192)
def _of_result(folder: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001  # a change makes a new entry
    result = Run(folder).result or {}
    known = {
        "id": str(result["id"]),
        "params": int(result["params"]),
        "seconds": float(took) if isinstance(took := result.get("seconds"), int | float) else None,
        "classes": tuple(result["classes"]),
        **({} if result.get("imported") else {"digest": str(result.get("weights_sha256", ""))}),
    }
    if not known["classes"]:
        return known | {"headless": True, "cosine": result["embedding"].get("cosine")}
    test, recall = result["test"], result["test"].get("recall") or {}
    return known | {
        "accuracy": float(test["accuracy"]),
        "macro": macro_of(recall) if any(share is not None for share in recall.values()) else None,
        "validation": float(result["val"]["accuracy"]),
        "low": float(test["accuracy_low"]),
        "high": float(test["accuracy_high"]),
    }
