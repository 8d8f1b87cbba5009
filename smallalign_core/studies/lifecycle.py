"""Studies: questions that take many runs, which follow from one another as they are finished.

    <root>/studies/<id>/    study.json      what is asked; written once, and the id is its digest
                            active          a marker: workers take its runs by themselves
                            trouble         why a worker could not go on with it
                            needs           runs that it learns from, which are not deleted while it lacks runs
                            (and what its kind keeps there)

A study never says how far it is: that is read from the runs. Whatever is killed, the same question asked again goes on.
Each kind of study answers which runs it wants now, given those that are finished; this module sees to it that somebody
trains them. It imports no torch before something is trained.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from smallalign_core.errors import BadModel, Refused, SmallAlignError, UnknownRun, WorkFailed
from smallalign_core.runs.store import SCHEMA, Run, State, Store
from smallalign_core.spec import RunSpec, digest
from smallalign_core.studies import optimizers, scaling
from smallalign_core.system.files import read_json, write, write_json
from smallalign_core.training.runner import TOGETHER, Observer, run_lockstep

log = logging.getLogger("smallalign")

ATTEMPTS = 5
"""A worker takes a run by itself at most so often: one that kills its worker must not do so forever."""


class StudyKind(Protocol):
    """What the module of a kind of study must have; `spec` is resolved, `folder` is the study's own."""

    def parse_study(self, written: Mapping[str, Any], /) -> Any:
        """A frozen pydantic model, or BadSpec."""

    def study_id(self, spec: Any, /) -> str:
        """Its digest: 16 hexadecimal characters."""

    def title_of(self, spec: Any, /) -> str:
        """What is studied, in a few words."""

    def probes(self, spec: Any, /) -> list[RunSpec]:
        """One run of each sort: what refuses one of them refuses the study."""

    def resolved(self, spec: Any, run: RunSpec, store: Store, /) -> Any:
        """The spec with what was filled in of the first probe, so that ids do not change."""

    def wanted(self, spec: Any, store: Store, folder: Path, /) -> list[RunSpec]:
        """All runs that it wants as far as it can know now, in order: a pure function of what is finished."""

    def prepare(self, spec: Any, store: Store, folder: Path, device: str, stop: threading.Event, /) -> bool:
        """Measure what `wanted` needs besides runs, for seconds rather than minutes, and keep it; is some missing?"""

    def report(self, spec: Any, store: Store, folder: Path, /, *, active: bool, trouble: str | None) -> Any:
        """What is known now, with as_dict() and words()."""

    def expected(self, spec: Any, store: Store, folder: Path, device: str = "auto", /) -> float:
        """Seconds that what is missing takes here, from a few real steps."""


KINDS: dict[str, StudyKind] = {"optimizers": optimizers, "scaling": scaling}
"""The kinds of study, by the name that `study.json` has. Each has a page, and a verb of the command line."""


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
        with contextlib.suppress(BadModel):  # whose words are of runs
            written = read_json(self.folder / "study.json")
        whole = isinstance(written, dict) and isinstance(written.get("spec"), dict)
        if not whole or written.get("kind") not in list(KINDS):
            raise BadModel("the study's study.json is damaged", given=self.id, do="delete the study and ask again")
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
        """Who knows what it wants."""
        return KINDS[self.kind]

    @cached_property
    def spec(self) -> Any:
        """What it asks, resolved."""
        return self.module.parse_study(self._written["spec"])

    @property
    def title(self) -> str:
        return str(self.module.title_of(self.spec))

    @property
    def active(self) -> bool:
        """Whether workers take its runs by themselves."""
        return (self.folder / "active").exists()

    @property
    def trouble(self) -> str | None:
        """Why a worker could not go on with it."""
        with contextlib.suppress(OSError):
            return (self.folder / "trouble").read_text(errors="replace")
        return None

    @property
    def created(self) -> float:
        """Unix time at which it was first asked."""
        with contextlib.suppress(OSError):
            return (self.folder / "study.json").stat().st_mtime
        return 0.0

    def report(self, store: Store) -> Any:
        """What is known now; trains and queues nothing."""
        return self.module.report(self.spec, store, self.folder, active=self.active, trouble=self.trouble)

    def wanted(self, store: Store) -> list[RunSpec]:
        """All runs that it wants as far as it can know now, finished ones too."""
        found: list[RunSpec] = self.module.wanted(self.spec, store, self.folder)
        return found

    def missing(self, store: Store) -> list[RunSpec]:
        """Those of them that are to be trained: neither finished nor known to diverge."""
        return [spec for spec in self.wanted(store) if not is_settled(store.find(spec))]


def is_settled(run: Run | None) -> bool:
    """Whether training it would tell nothing new: it is finished, or its loss became infinite, as it always would."""
    if run is None:
        return False
    state = run.state
    return state is State.FINISHED or (state is State.FAILED and bool(run.status.get("diverged")))


def _claim(study: Study, store: Store) -> None:
    """Keep the runs that a study learns from until it has all of its own.

    A paused study keeps them too: it would be no use to go on with one whose teacher is gone. Who gives a study up
    deletes it, which leaves its finished runs; what is complete, once, claims nothing any more.
    """
    every = [*study.module.probes(study.spec), *study.wanted(store)]
    needed = {name for spec in every for name in (*spec.teachers, spec.start) if name}
    if needed:
        write(study.folder / "needs", "\n".join(sorted(needed)))


def _release(study: Study, store: Store) -> None:
    """Let go of them if it has all of its runs."""
    if not study.missing(store):
        (study.folder / "needs").unlink(missing_ok=True)


# --- asking -----------------------------------------------------------------------------------------------------------


def create(store: Store, kind: str, spec: Any) -> Study:
    """The study of a resolved spec; an equal one is the same study."""
    store.visitor.require("start studies")
    study = Study(store.root / "studies" / KINDS[kind].study_id(spec))
    if not (study.folder / "study.json").exists():
        study.folder.mkdir(parents=True, exist_ok=True)
        written = {"schema": SCHEMA, "kind": kind, "spec": spec.model_dump(mode="json")}
        write_json(study.folder / "study.json", written)
    return study


def start(store: Store, study: Study) -> None:
    """Let workers take its runs by themselves. Those that were stopped, or failed, go on from their checkpoints.

    Raises:
        Refused: who asks may only look, or there is no room in the queue for those that go on; then nothing changed.
    """
    store.visitor.require("start studies")
    found = [store.find(spec) for spec in study.missing(store)]
    stopped = [run for run in found if run is not None and run.state.resumable]
    store.visitor.check_room(store.root, len(stopped))
    (study.folder / "trouble").unlink(missing_ok=True)
    _claim(study, store)
    write(study.folder / "active", "")
    for run in stopped:
        store.enqueue(run, together=True)


def pause(store: Store, study: Study) -> None:
    """Stop its runs for now; each keeps a checkpoint."""
    store.visitor.require("pause studies")
    (study.folder / "active").unlink(missing_ok=True)
    for spec in study.missing(store):
        run = store.find(spec)
        if run is not None and run.state.active:
            with contextlib.suppress(Refused):  # finished at this moment
                run.request("pause")


def listing(store: Store, kind: str | None = None) -> list[Study]:
    """All studies, newest first; damaged ones too, unless a kind is asked for."""
    folder = store.root / "studies"
    children = [child for child in folder.iterdir() if child.name[0] != "."] if folder.is_dir() else []
    found = [Study(child) for child in children if (child / "study.json").is_file()]
    if kind is not None:
        found = [study for study in found if _kind_of(study) == kind]
    return sorted(found, key=lambda study: study.created, reverse=True)


def any_active(store: Store) -> bool:
    """Whether workers have a study to go on with."""
    return next((store.root / "studies").glob("*/active"), None) is not None


def _kind_of(study: Study) -> str | None:
    with contextlib.suppress(SmallAlignError):
        return study.kind
    return None


def find(store: Store, reference: str) -> Study:
    """The study whose id begins so.

    Raises:
        UnknownRun: none does, or more than one.
    """
    found = [study for study in listing(store) if reference and study.id.startswith(reference)]
    if len(found) != 1:
        wrong = f"{len(found)} studies begin so" if found else "no study goes by that name"
        raise UnknownRun(wrong, given=reference, do="give an id of a study of this store")
    return found[0]


def delete(store: Store, study: Study, *, runs: bool = False) -> list[str]:
    """Delete a study; with `runs`, also those that no other study wants and nobody trains or learns from.

    Returns:
        The ids of the runs that were deleted.

    Raises:
        Refused: it is active, or who asks may only look.
    """
    store.visitor.require("delete studies")
    if study.active:
        raise Refused("the study is active", given=study.id, do="pause it first")
    own = list(dict.fromkeys(map(digest, study.wanted(store)))) if runs else []
    aside = study.folder.with_name(f".deleted-{study.id}-{os.getpid()}")
    study.folder.rename(aside)  # first: it would keep the teachers among its own runs
    shutil.rmtree(aside, ignore_errors=True)
    others: set[str] = set()
    for other in listing(store) if runs else ():
        with contextlib.suppress(SmallAlignError):
            others |= set(map(digest, other.wanted(store)))
    gone: list[str] = []
    for name in reversed(own):  # students before their teachers
        if name not in others and store.by_id(name).record.exists():
            with contextlib.suppress(Refused):
                gone.append(store.delete(name).name)
    return gone


def delete_run(store: Store, reference: str) -> Run:
    """Delete a run as `Store.delete` does. A study that has all of its runs by now, though it was paused before the
    last of them or another study trained it, holds its teacher no longer.

    Raises:
        UnknownRun, Refused: as of `Store.delete`.
    """
    store.visitor.require("delete runs")
    for name in store.studies_that_need(store.run(reference)):
        study = Study(store.root / "studies" / name)
        with contextlib.suppress(SmallAlignError):
            if study.report(store).complete:
                (study.folder / "needs").unlink(missing_ok=True)
    return store.delete(reference)


# --- training ---------------------------------------------------------------------------------------------------------


def lockstep_groups(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Those of `specs` to train next: the first, and all that keep step with it, in groups as equal as can be."""
    chosen: list[RunSpec] = []
    for spec in specs:
        if all(spec.can_lockstep_with(other) for other in chosen):
            chosen.append(spec)
    groups = -(-len(chosen) // TOGETHER) or 1
    return chosen[: -(-len(chosen) // groups)]


class Executor(Protocol):
    """Who trains groups of runs that keep step."""

    @property
    def free(self) -> bool:
        """Whether another group may begin now."""

    def begin(self, runs: Sequence[Run]) -> None:
        """Take a group: each of its runs ends once, whatever happens to it."""

    def ended(self) -> list[tuple[list[Run], list[dict[str, Any] | SmallAlignError]]]:
        """The groups that ended since this was last asked, or parts of them; waits for a moment at least."""


class LocalExecutor:
    """The process that asks, which trains one group at a time; arguments as of `drive`."""

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
    crew: Executor | None = None,
) -> list[SmallAlignError]:
    """Train all that it wants, now, until there is nothing more or `stop` is set.

    Args:
        observe: is told which runs are trained next, and returns who watches them.
        crew: who trains them; this process if nobody is named.

    Returns:
        Why runs failed, each once; diverged ones among them.

    Raises:
        SmallAlignError: what it needs besides runs could not be measured.
    """
    stop, failed = stop or threading.Event(), []
    from smallalign_core.system._compat import load_compiler

    load_compiler()

    crew = crew or LocalExecutor(store, device, stop, observe)
    _claim(study, store)
    tried: set[str] = set()
    away: set[str] = set()
    more = True
    while not stop.is_set() and (more or away):
        if more:
            while study.module.prepare(study.spec, store, study.folder, device, stop) and not stop.is_set():
                pass
        while more and crew.free and not stop.is_set():
            some = lockstep_groups([spec for spec in study.missing(store) if digest(spec) not in tried | away])
            if more := bool(some):
                runs = [store.create(spec) for spec in some]
                away |= {run.id for run in runs}
                crew.begin(runs)
        for ended, how in crew.ended() if away else ():
            failed += [one for one in how if isinstance(one, SmallAlignError)]
            away -= {run.id for run in ended}
            tried |= {run.id for run in ended}
            more = True  # what is finished may ask for others
    if not stop.is_set():
        _release(study, store)
    return failed


def queue_next(store: Store, device: str, stop: threading.Event) -> bool:
    """Go on with the oldest active study that has anything to do: queue its next runs, or prepare them for some
    seconds, after which the queue comes first again. Returns whether there was one.

    A study that has nothing more to train is let go: it is finished, or waits for a person.
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
        except Exception as error:  # whatever is wrong with one study, the worker serves the others
            if stop.is_set():
                return False
            log.exception("study %s cannot go on", study.id)
            told = error if isinstance(error, SmallAlignError) else WorkFailed("it went wrong", given=repr(error))
            with contextlib.suppress(Refused):  # the disk may be full
                write(study.folder / "trouble", str(told))
            (study.folder / "active").unlink(missing_ok=True)
    return False


def _by_itself(run: Run | None) -> bool:
    """Whether a worker may take it without being asked: nobody stopped it, and it did not fail."""
    if run is None:
        return True
    return run.state is State.INTERRUPTED and int(run.status.get("attempt", 0)) < ATTEMPTS


def summary(study: Study, store: Store) -> dict[str, Any]:
    """One line of a list of studies; a damaged one is named and hides no other."""
    line: dict[str, Any] = {"id": study.id, "created": study.created, "active": study.active}
    try:
        wanted = study.wanted(store)
        done = sum(is_settled(store.find(spec)) for spec in wanted)
        return line | {"kind": study.kind, "title": study.title, "done": done, "known": len(wanted)}
    except SmallAlignError as error:
        return line | {"kind": "damaged", "title": str(error), "done": 0, "known": 0}
