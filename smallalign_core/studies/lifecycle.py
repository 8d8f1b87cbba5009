"""Studies: sets of runs, in which later runs depend on the results of earlier ones.

    <root>/studies/<id>/    study.json      the spec; written once, and the id is its digest
                            active          a marker: workers take its runs automatically
                            trouble         why a worker could not continue it
                            needs           runs it depends on, protected from deletion until it is complete
                                                    (and files of its kind)

Progress is not stored: it is derived from the runs. After any interruption the same spec continues. Each kind of study
computes the runs it needs now, given those that are finished; this module gets them trained. It imports torch only for
training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from smallalign_core.errors import BadModel, Refused, SmallAlignError, UnknownRun, WorkFailed
from smallalign_core.runs.store import SCHEMA, Run, State, Store, Trashed
from smallalign_core.spec import RunSpec, digest, each_code
from smallalign_core.studies.base import StudyReport
from smallalign_core.studies.kinds import KINDS, StudyKind
from smallalign_core.system.files import read_json, write, write_json
from smallalign_core.training.runner import TOGETHER, Observer, run_lockstep

log = logging.getLogger("smallalign")

ATTEMPTS = 5
"""Max. automatic attempts per run, since a run may crash its worker."""


@dataclass(frozen=True)
class Study:
    """A view of a study's folder; never a copy."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def _written(self) -> dict[str, Any]:
        written: Any = None
        with contextlib.suppress(BadModel):  # its message is about runs
            written = read_json(self.folder / "study.json")
        whole = isinstance(written, dict) and isinstance(written.get("spec"), dict)
        if not whole or written.get("kind") not in list(KINDS):
            raise BadModel(
                "the study's study.json is damaged", given=self.id, do="delete the study and create it again"
            )
        found: dict[str, Any] = written
        return found

    @property
    def kind(self) -> str:
        """One of `KINDS`.

        Raises:
            BadModel: its file is damaged.
        """
        return str(self._written["kind"])

    @property
    def module(self) -> StudyKind:
        """The module of its kind."""
        return KINDS[self.kind]

    @cached_property
    def spec(self) -> Any:
        """Its resolved spec."""
        return self.module.parse_study(self._written["spec"])

    @property
    def title(self) -> str:
        return str(self.module.title_of(self.spec))

    @property
    def active(self) -> bool:
        """Whether workers take its runs automatically."""
        return (self.folder / "active").exists()

    @property
    def trouble(self) -> str | None:
        """Why a worker could not continue it."""
        with contextlib.suppress(OSError):
            return (self.folder / "trouble").read_text(errors="replace")
        return None

    @property
    def created(self) -> float:
        """Unix time of its creation."""
        with contextlib.suppress(OSError):
            return (self.folder / "study.json").stat().st_mtime
        return 0.0

    def report(self, store: Store) -> StudyReport:
        """The current report; trains and queues nothing."""
        return self.module.report(self.spec, store, self.folder, active=self.active, trouble=self.trouble)

    def wanted(self, store: Store) -> list[RunSpec]:
        """All runs needed as far as known now, including finished ones."""
        found: list[RunSpec] = self.module.wanted(self.spec, store, self.folder)
        return found

    def seconds_a_run(self, store: Store) -> float | None:
        """Mean wall time of its finished runs, each its share of those that trained in lockstep; None without any."""
        runs = [run for spec in self.wanted(store) if (run := store.find(spec)) is not None and run.result]
        shares = [run.result["seconds"] / max(1, run.result.get("together") or 1) for run in runs if run.result]
        return sum(shares) / len(shares) if shares else None

    def missing(self, store: Store) -> list[RunSpec]:
        """The runs still to be trained: neither finished nor diverged."""
        return [spec for spec in self.wanted(store) if not is_settled(store.find(spec))]


def is_settled(run: Run | None) -> bool:
    """Whether training it again would change nothing: it is finished, or has diverged."""
    if run is None:
        return False
    state = run.state
    return state is State.FINISHED or (state is State.FAILED and bool(run.status.get("diverged")))


def _claim(study: Study, store: Store) -> None:
    """Protect the runs that a study depends on until it is complete.

    A paused study protects them too, since it could not be continued without its teacher. Deleting a study removes the
    protection and leaves its finished runs.
    """
    every = [*study.module.probes(study.spec), *study.wanted(store)]
    needed = {name for spec in every for name in (*spec.teachers, spec.start) if name}
    if needed:
        write(study.folder / "needs", "\n".join(sorted(needed)))


def _release(study: Study, store: Store) -> None:
    """Remove the protection if it has all of its runs."""
    if not study.missing(store):
        (study.folder / "needs").unlink(missing_ok=True)


# --- creating ---------------------------------------------------------------------------------------------------------


def create(store: Store, kind: str, spec: Any) -> Study:
    """Create the study of a resolved spec; an equal spec gives the existing study."""
    store.user.require("start studies")
    study = Study(store.root / "studies" / KINDS[kind].study_id(spec))
    if not (study.folder / "study.json").exists():
        study.folder.mkdir(parents=True, exist_ok=True)
        written = {"schema": SCHEMA, "kind": kind, "spec": spec.model_dump(mode="json")}
        write_json(study.folder / "study.json", written)
    return study


def start(store: Store, study: Study) -> None:
    """Let workers take its runs automatically. Stopped and failed ones continue from their checkpoints.

    Raises:
        Refused: read-only user, or no room in the queue; then nothing is changed.
    """
    store.user.require("start studies")
    missing = study.missing(store)
    if any(map(each_code, missing)):
        store.user.require_code()
    found = [store.find(spec) for spec in missing]
    stopped = [run for run in found if run is not None and run.state.resumable]
    store.user.check_room(store.root, len(stopped))
    (study.folder / "trouble").unlink(missing_ok=True)
    _claim(study, store)
    write(study.folder / "active", "")
    for run in stopped:
        store.enqueue(run, together=True)


def pause(store: Store, study: Study) -> None:
    """Pause its runs; each keeps a checkpoint."""
    store.user.require("pause studies")
    (study.folder / "active").unlink(missing_ok=True)
    for spec in study.missing(store):
        run = store.find(spec)
        if run is not None and run.state.active:
            with contextlib.suppress(Refused):  # finished meanwhile
                run.request("pause")


def listing(store: Store, kind: str | None = None) -> list[Study]:
    """All studies, newest first; damaged ones only if no kind is given."""
    folder = store.root / "studies"
    children = [child for child in folder.iterdir() if child.name[0] != "."] if folder.is_dir() else []
    found = [Study(child) for child in children if (child / "study.json").is_file()]
    if kind is not None:
        found = [study for study in found if _kind_of(study) == kind]
    return sorted(found, key=lambda study: study.created, reverse=True)


def any_active(store: Store) -> bool:
    """Whether workers have a study to continue."""
    return next((store.root / "studies").glob("*/active"), None) is not None


def _kind_of(study: Study) -> str | None:
    with contextlib.suppress(SmallAlignError):
        return study.kind
    return None


def find(store: Store, reference: str) -> Study:
    """The study with this id prefix.

    Raises:
        UnknownRun: none matches, or more than one.
    """
    found = [study for study in listing(store) if reference and study.id.startswith(reference)]
    if len(found) != 1:
        wrong = f"{len(found)} studies match the prefix" if found else "study not found"
        raise UnknownRun(wrong, given=reference, do="give an id of a study of this store")
    return found[0]


def delete(store: Store, study: Study, *, runs: bool = False) -> list[str]:
    """Delete a study; with `runs`, move its runs to the trash that no other study or run needs and that do not train.

    Returns:
        The ids of the runs that were deleted.

    Raises:
        Refused: it is active, or the user is read-only.
    """
    store.user.require("delete studies")
    if study.active:
        raise Refused("the study is active", given=study.id, do="pause it first")
    own = list(dict.fromkeys(map(digest, study.wanted(store)))) if runs else []
    aside = study.folder.with_name(f".deleted-{study.id}-{os.getpid()}")
    study.folder.rename(aside)  # first, since it would protect the teachers among its own runs
    shutil.rmtree(aside, ignore_errors=True)
    others: set[str] = set()
    for other in listing(store) if runs else ():
        with contextlib.suppress(SmallAlignError):
            others |= set(map(digest, other.wanted(store)))
    gone: list[str] = []
    for name in reversed(own):  # students before their teachers
        if name not in others and store.by_id(name).record.exists():
            with contextlib.suppress(Refused):
                gone.append(store.delete(name).id)
    return gone


def delete_run(store: Store, reference: str) -> Trashed:
    """Move a run to the trash as `Store.delete` does, after removing the protection by studies that are complete now.

    Raises:
        UnknownRun, Refused: as of `Store.delete`.
    """
    store.user.require("delete runs")
    for name in store.studies_that_need(store.run(reference)):
        study = Study(store.root / "studies" / name)
        with contextlib.suppress(SmallAlignError):
            if study.report(store).complete:
                (study.folder / "needs").unlink(missing_ok=True)
    return store.delete(reference)


# --- training ---------------------------------------------------------------------------------------------------------


def lockstep_groups(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs of `specs` to train next: the first, and all that can run in lockstep with it, in groups of similar
    size.
    """
    chosen: list[RunSpec] = []
    for spec in specs:
        if all(spec.can_lockstep_with(other) for other in chosen):
            chosen.append(spec)
    groups = -(-len(chosen) // TOGETHER) or 1
    return chosen[: -(-len(chosen) // groups)]


class Executor(Protocol):
    """Trains groups of runs in lockstep."""

    @property
    def free(self) -> bool:
        """Whether another group may begin now."""

    def begin(self, runs: Sequence[Run]) -> None:
        """Accept a group; each of its runs is reported exactly once."""

    def ended(self) -> list[tuple[list[Run], list[dict[str, Any] | SmallAlignError]]]:
        """The groups, or parts of them, that ended since the last call; waits for a moment."""


class LocalExecutor:
    """The calling process, which trains one group at a time; arguments as of `run_to_end`."""

    def __init__(
        self, store: Store, device: str, stop: threading.Event, observe: Callable[[Sequence[Run]], Observer]
    ) -> None:
        self._store, self._device, self._stop, self._observe = store, device, stop, observe
        self._runs: list[Run] = []

    @property
    def free(self) -> bool:
        return not self._runs

    def begin(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    def ended(self) -> list[tuple[list[Run], list[dict[str, Any] | SmallAlignError]]]:
        runs, self._runs = self._runs, []
        watching = self._observe(runs)
        how = run_lockstep(runs, self._store, device=self._device, observe=watching, stop=self._stop)
        return [(runs, how)]


def run_to_end(
    study: Study,
    store: Store,
    *,
    device: str = "auto",
    stop: threading.Event | None = None,
    observe: Callable[[Sequence[Run]], Observer] = lambda _: lambda __: None,
    executor: Executor | None = None,
) -> list[SmallAlignError]:
    """Train all runs of a study until it is complete or `stop` is set.

    Args:
        observe: called with the runs that are trained next; returns their observer.
        executor: the executor; default: this process.

    Returns:
        The errors of failed runs, including divergence, each once.

    Raises:
        SmallAlignError: what it needs besides runs could not be measured.
    """
    stop, failed = stop or threading.Event(), []
    from smallalign_core.system._compat import load_compiler

    load_compiler()

    executor = executor or LocalExecutor(store, device, stop, observe)
    _claim(study, store)
    tried: set[str] = set()
    away: set[str] = set()
    more = True
    while not stop.is_set() and (more or away):
        if more:
            while study.module.prepare(study.spec, store, study.folder, device, stop) and not stop.is_set():
                pass
        while more and executor.free and not stop.is_set():
            some = lockstep_groups([spec for spec in study.missing(store) if digest(spec) not in tried | away])
            if more := bool(some):
                runs = [store.create(spec) for spec in some]
                away |= {run.id for run in runs}
                executor.begin(runs)
        for ended, how in executor.ended() if away else ():
            failed += [one for one in how if isinstance(one, SmallAlignError)]
            away -= {run.id for run in ended}
            tried |= {run.id for run in ended}
            more = True  # finished runs may lead to others
    if not stop.is_set():
        _release(study, store)
    return failed


def queue_next(store: Store, device: str, stop: threading.Event) -> bool:
    """Continue the oldest active study with work left: queue its next runs, or prepare them for some seconds, before
    the queue is checked again. Returns whether there was one.

    A study without work left is deactivated: it is complete, or needs the user.
    """
    for study in reversed(listing(store)):
        if not study.active:
            continue
        try:
            unready = study.module.prepare(study.spec, store, study.folder, device, stop)
            if not study.active:  # paused or deleted meanwhile
                continue
            if unready:
                return True
            missing = study.missing(store)
            some = lockstep_groups([spec for spec in missing if _by_itself(store.find(spec))])
            for spec in some:
                store.submit(spec)
            if some:
                return True
            if not any(run is not None and run.state.active for run in map(store.find, missing)):
                (study.folder / "active").unlink(missing_ok=True)
                _release(study, store)
        except Exception as error:  # an error in one study must not block the others
            if stop.is_set():
                return False
            log.exception("study %s cannot continue", study.id)
            shown = (
                error
                if isinstance(error, SmallAlignError)
                else WorkFailed("the study failed", given=repr(error), do="see the worker's log")
            )
            with contextlib.suppress(Refused):  # the disk may be full
                write(study.folder / "trouble", str(shown))
            (study.folder / "active").unlink(missing_ok=True)
    return False


def _by_itself(run: Run | None) -> bool:
    """Whether a worker may take it automatically: it was not stopped and did not fail."""
    if run is None:
        return True
    return run.state is State.INTERRUPTED and int(run.status.get("attempt", 0)) < ATTEMPTS


@dataclass(frozen=True)
class StudySummary:
    """One line of a list of studies.

    Attributes:
        kind: one of `KINDS`; None if it is damaged: then the title says why.
        created: Unix time.
        done, known: numbers of runs: finished or diverged; all, as far as known.
    """

    id: str
    kind: str | None
    title: str
    created: float
    active: bool
    done: int
    known: int


def summary(study: Study, store: Store) -> StudySummary:
    """The line of a study."""
    try:
        kind, title, wanted = study.kind, study.title, study.wanted(store)
    except SmallAlignError as error:
        return StudySummary(study.id, None, str(error), study.created, study.active, 0, 0)
    done = sum(is_settled(store.find(spec)) for spec in wanted)
    return StudySummary(study.id, kind, title, study.created, study.active, done, len(wanted))
