"""The store: one folder per run, read by all three entry points, written by one worker at a time.

    <root>/runs/<id>/   spec.json             what to train; written once
                        queued, request       markers: waits for a worker; a pending `pause` or `cancel`
                        lock                  held by the worker; released by the system when it dies
                        state.json            last status of the worker: attempt, pid, why it stopped
                        events.jsonl          append-only, one line an event
                        checkpoints.json      the last two checkpoints with their SHA-256
                        weights.safetensors   the best weights by validation
                        logits.safetensors    their logits on each validation and test image; may be deleted
                        code/                 copies of the user's Python files in its spec
                        notes.json            name, notes and tags; changed under `notes.lock` of the store
                        result.json, log.txt  written last: its existence means finished; the workers' log
    <root>/runs/<id>/   import.json, model.onnx, result.json: an imported classifier, and its scores
    <root>/runs/.trash/ deleted runs, until the trash is emptied
    <root>/zoo/<name>/  spec.yaml, weights.safetensors, result.json, card.md: starter models, committed
    <root>/policies/    augmentation policies that were saved under a name
    <root>/decisions/   cleaning decisions about single images; kept/ holds those used by runs
    <root>/studies/<id>/needs   ids of the runs that an unfinished study depends on: see
                        `smallalign_core.studies.lifecycle`
    <root>/cache/       can be deleted at any time

A run's state is derived from these files, in the order of its life cycle, and stored nowhere. Files are written
atomically. This module does not import torch: the dashboard reads through it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from smallalign_core import data
from smallalign_core.errors import BadInput, BadModel, Refused, SmallAlignError, UnknownRun, of_system
from smallalign_core.runs import python_files
from smallalign_core.runs.queue import UNRESTRICTED, Access, queued
from smallalign_core.runs.store import _notes, _take, _trash
from smallalign_core.runs.store._notes import Notes as Notes
from smallalign_core.runs.store._run import Run as Run, State as State
from smallalign_core.runs.store._trash import Trashed as Trashed
from smallalign_core.spec import GivenNetwork, LibraryNetwork, RunSpec, digest, each_code
from smallalign_core.spec.parts import REST
from smallalign_core.system import limits, sandbox
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.files import SCHEMA as SCHEMA, append, is_held, read_lines, write_json

log = logging.getLogger("smallalign")

SHIPPED_ZOO = next(
    (zoo for zoo in (PACKAGE / "_models" / "zoo", PACKAGE.parent / "models" / "zoo") if zoo.is_dir()),
    PACKAGE / "_models" / "zoo",
)
"""The starter models: package data of an installed wheel, and `models/zoo` of a checkout. They are only read."""
NAME = "[a-z][a-z0-9-]{2,47}"
"""What people may call a zoo model, or a policy."""


def looked_at(times: int | None) -> str:
    """The number of test-set evaluations, as text."""
    return (
        "evaluated an unknown number of times: test-looks.jsonl cannot be read"
        if times is None
        else f"evaluated {times:,} {'time' if times == 1 else 'times'}"
    )


def check_root(root: Path) -> None:
    """Check that a folder is a store or can become one.

    Raises:
        Refused: the path leads to a file, through a loop of links, or is too long.
    """
    try:
        kind = root.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        found = of_system(error)
        assert found is not None
        raise Refused(f"the store cannot be used: {found.wrong}", given=root, do="choose another folder") from None
    if not stat.S_ISDIR(kind):
        raise Refused("the store cannot be used: it is a file, not a folder", given=root, do="choose another folder")


class Store:
    """All runs below one folder, and the zoo.

    Args:
        root: the folder; made when something is first written. By default SMALLALIGN_STORE, or `models` in the working
            directory.
        user: the user it acts for; the library and the command line act for the owner, with all rights.
        showing: what is computed fills a page that was opened, which is no look at test: see `count_test_look`.
    """

    def __init__(self, root: Path | str | None = None, user: Access = UNRESTRICTED, *, showing: bool = False) -> None:
        root = (os.environ.get("SMALLALIGN_STORE") or "models") if root is None else root
        if not str(root).strip():
            raise Refused("the store's path is empty", do="give a folder, or leave the option out")
        self.root, self.user, self.showing = Path(root), user, showing

    def _at(self, folder: Path) -> Run:
        return Run(folder, self.user)

    @property
    def runs_folder(self) -> Path:
        return self.root / "runs"

    def by_id(self, name: str) -> Run:
        """The run of exactly that id, whether it is there or not; see `run` for what people type."""
        return self._at(self.runs_folder / name)

    @property
    def data_cache(self) -> Path:
        return self.root / "cache" / "data"

    @property
    def teacher_cache(self) -> Path:
        return self.root / "cache" / "teacher"

    @property
    def preflights(self) -> Path:
        """What teachers answered to validation images before runs learned from them."""
        return self.root / "cache" / "preflight"

    def zoo(self) -> list[Run]:
        """The starter models: the store's own, and those that ship with SmallAlign."""
        folders: dict[str, Path] = {}
        for zoo in (SHIPPED_ZOO, self.root / "zoo"):
            if zoo.is_dir():
                folders |= {child.name: child for child in sorted(zoo.iterdir()) if (child / "result.json").is_file()}
        return [self._at(folder) for folder in folders.values()]

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        folder = self.runs_folder
        children = folder.iterdir() if folder.is_dir() else ()
        found = [run for run in map(self._at, children) if run.record.is_file() and not run.folder.name.startswith(".")]
        return sorted(found, key=lambda run: run.created, reverse=True)

    def run(self, reference: str) -> Run:
        """The run called `reference`: an id, a unique prefix of one (4 or more), a zoo name, a path, or its own name.

        Raises:
            UnknownRun: none is, or more than one.
        """
        zoo = {run.name: run for run in self.zoo()}
        if reference in zoo:
            return zoo[reference]
        if re.fullmatch("[0-9a-f]{4,16}", reference):
            found = {run.id: run for run in zoo.values() if run.id.startswith(reference)}
            for child in self.runs_folder.glob(f"{reference}*"):
                if self._at(child).record.is_file():
                    found[child.name] = self._at(child)
            if len(found) == 1:
                return next(iter(found.values()))
            if found:
                raise UnknownRun(
                    f"{len(found)} runs match the prefix", given=reference, do="give more characters of the id"
                )
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, `~nobody`, a zero byte
            limits.check_path(path := Path(reference).expanduser(), "that run")
            if (there := self._at(path)).record.is_file():
                return there
        called = [run for run in self.runs() if reference and _notes.or_empty(run.folder).name == reference]
        if len(called) == 1:
            return called[0]
        if called:
            given = f"{reference}: {', '.join(run.name for run in called[:3])}"
            raise UnknownRun(f"{len(called)} runs have that name", given=given, do="give an id")
        if len(reference) >= 4 and any(one.id.startswith(reference) for one in self.trash()):
            do = f"take it back with `smallalign runs restore {reference}`"
            raise UnknownRun("the run was deleted and is in the trash", given=reference, do=do)
        raise UnknownRun("run not found", given=reference, do="list all runs with `smallalign runs`")

    def claim_zoo_name(self, name: str) -> Path:
        """The folder for a new zoo model of that name.

        Raises:
            Refused: it is taken, or not a name.
        """
        if not re.fullmatch(NAME, name) or re.fullmatch("[0-9a-f]{4,16}", name):
            raise Refused(
                "a zoo name must be 3 to 48 of a-z, 0-9 and -, and not look like an id",
                given=name,
                do="choose another name",
            )
        if any(run.name == name for run in self.zoo()):
            raise Refused("a zoo model with that name exists", given=name, do="choose another name")
        return self.root / "zoo" / name

    def finished(self, reference: str, *, headless: bool = False) -> Run:
        """As `run`, and it is finished; its network has a head, unless it may be `headless` (give features only).

        Raises:
            UnknownRun, Refused: it is not there; it is not finished, or has no head.
        """
        run = self.run(reference)
        run.require_finished(headless=headless)
        return run

    def name_of(self, reference: str) -> str:
        """The familiar name: the zoo's for its ids, else the reference itself."""
        return next((run.name for run in self.zoo() if run.id == reference), reference)

    def named(self, spec: RunSpec) -> RunSpec:
        """`spec` with its teachers called as people call them."""
        return spec.with_teachers([self.name_of(reference) for reference in spec.teachers])

    def resolve(self, spec: RunSpec, splits: data.Splits, precision: str) -> RunSpec:
        """`spec` with everything filled in that its digest depends on: fingerprints, ids of other runs, precision.

        A teacher or start given as a path is taken into the store, so that the run can always be repeated.

        Raises:
            UnknownRun, Refused: a teacher or start is not there, or not finished.
            BadModel: the weights to start from cannot be used.
        """
        spec = python_files.filled(spec, self.user)
        network, features = spec.network, spec.of_features
        teachers = [self.finished(name, headless=features) for name in spec.teachers]
        start = self.finished(spec.start, headless=True) if spec.start else None
        for run in (*teachers, *([start] if start else [])):
            _take.run(run, self)
        source = data.absolute(spec.data.source)  # the worker may run in another folder
        filled = splits.filled(spec.data).model_copy(update={"source": source})
        if filled.unlabeled not in (None, REST):
            filled = filled.model_copy(update={"unlabeled": data.absolute(str(filled.unlabeled))})
        if filled.decisions:  # whoever goes on deciding must not change what this run learns from
            filled = filled.model_copy(update={"decisions": str(_take.decisions(filled.decisions, self.root))})
        if isinstance(network, GivenNetwork) and network.weights is not None:
            file = Path(network.weights).expanduser().resolve()
            limits.check_path(file, "the file of weights")
            if sandbox.is_checkpoint(file):
                file = _take.checkpoint(file, self.root)
            accepted = {"weights": str(file), "weights_sha256": sandbox.accepted_weights(file)}
            network = network.model_copy(update=accepted)
        if isinstance(network, LibraryNetwork) and network.size is None:
            from smallalign_core import networks  # imports torch: only here

            network = network.model_copy(update={"size": networks.input_size(network)})
        known = {"data": filled, "network": network, "precision": precision, "start": start.id if start else None}
        return spec.with_teachers([run.id for run in teachers]).model_copy(update=known)

    def find(self, spec: RunSpec) -> Run | None:
        """The run that a resolved `spec` describes; None if there is none yet."""
        run = self.by_id(digest(spec))
        return run if (run.folder / "spec.json").exists() else None

    def create(self, spec: RunSpec) -> Run:
        """The run that a resolved `spec` describes; an equal spec is the same run, whatever its state."""
        run, known = self.by_id(digest(spec)), self.find(spec)
        if not known:
            limits.check_disk(self.root)
            run.folder.mkdir(parents=True, exist_ok=True)
        python_files.keep(spec, run.folder)
        if not known or _places(Run(run.folder).spec) != _places(spec):  # the same images or weights, moved
            write_json(run.folder / "spec.json", {"spec": spec.model_dump(mode="json")})
        if not is_held(run.folder / "lock"):
            (run.folder / "request").unlink(missing_ok=True)  # for an attempt that is over
        return run

    def submit(self, spec: RunSpec, *, together: bool = False) -> Run:
        """Put the run of a resolved `spec` into the queue, unless it is there, running or finished already.

        Raises:
            Refused: the user may not start runs, or not so many; `together`: see `Access.check_room`.
        """
        self.user.require("start runs")
        if self.find(spec) is None:  # before there is a folder
            self.user.check_room(self.root, together=together)
        return self.enqueue(self.create(spec), together=together)

    def enqueue(self, run: Run, *, together: bool = False) -> Run:
        """Queue `run` (again); a paused, cancelled or failed one goes on from its last checkpoint."""
        if run.state not in (State.FINISHED, State.RUNNING, State.QUEUED):
            with contextlib.suppress(BadModel):  # a damaged run says so when it is taken
                if each_code(run.spec):
                    self.user.require_code()
            # Under the lock: a worker that takes or finishes it at this moment must not be left a stale marker.
            with (
                self.user.admit(self.root, together=together) as turn,
                contextlib.suppress(Timeout),
                run.lock(timeout=2.0),
            ):
                if not run.finished and not (run.folder / "queued").exists():  # two clicks are one start
                    (run.folder / "request").unlink(missing_ok=True)
                    if run.status.get("deaths"):  # a new request resets the count
                        write_json(run.folder / "state.json", {**run.status, "deaths": 0})
                    turn.write(run.folder / "queued")
        return run

    def worker_lock(self, device: str) -> Path:
        """The lock that the worker of this store on `device` holds as long as it lives."""
        return self.root / f"worker-{device.replace(':', '-')}.lock"

    def workers(self) -> list[str]:
        """The devices, as they were named (`auto`, `cpu`, `cuda-1`), on which living workers serve this store."""
        locks = sorted(self.root.glob(self.worker_lock("*").name))
        return [lock.stem.removeprefix("worker-") for lock in locks if is_held(lock)]

    def queue(self) -> list[Run]:
        """Runs that wait, in the order in which they will be trained: users take turns."""
        return [run for run in map(self._at, queued(self.root)) if not run.finished]

    def _own(self, reference: str, verb: str) -> Run:
        """As `run`, and it is one of this store's own.

        Raises:
            UnknownRun, Refused: it is not there; it is in the zoo, or elsewhere.
        """
        run = self.run(reference)
        if run.in_zoo:
            raise Refused(f"zoo models are part of SmallAlign and are not {verb}", given=run.name)
        if run.folder.resolve().parent != self.runs_folder.resolve():
            raise Refused(f"only runs of this store are {verb}", given=run.folder, do="use the store it is in")
        return run

    def annotate(
        self,
        references: Sequence[str],
        *,
        name: str | None = None,
        text: str | None = None,
        tag: Sequence[str] = (),
        untag: Sequence[str] = (),
    ) -> list[Run]:
        """Change the name, the notes (`text`) or tags of runs; what is None stays. All is checked before any changes.

        Raises:
            BadInput: the name, the notes or a tag cannot be one; a name for several runs.
            UnknownRun, Refused: a run is not there, in the zoo, or elsewhere; read-only user.
            BadModel: the notes of a run are damaged.
        """
        self.user.require("change names, notes and tags")
        name = None if name is None else _notes.checked_name(name)
        text = None if text is None else _notes.checked_text(text)
        tag = _notes.checked_tags(tag)
        if name and (len(references) > 1 or name in {run.name for run in self.zoo()}):
            what = "several runs cannot have one name" if len(references) > 1 else "a starter model has that name"
            raise BadInput(what, given=name, do="choose a name for one run, or use a tag")
        runs = [self._own(reference, "renamed") for reference in references]
        try:
            with FileLock(self.root / _notes.LOCK, timeout=10):
                changed = []
                for run in runs:
                    before = run.notes
                    tags = _notes.retagged(before.tags, tag, untag)
                    now = Notes(before.name if name is None else name, before.text if text is None else text, tags)
                    changed += [(run, now)] if now != before else []
                for run, now in changed:
                    _notes.write(run.folder, now)
        except Timeout:
            raise Refused("another process is changing names, notes or tags", do="try again") from None
        return runs

    def delete(self, reference: str) -> Trashed:
        """Move a run to the trash, from which `restore` takes it back; its exports and cached comparisons are removed.

        Raises:
            UnknownRun, Refused: it is not there; it is running, in the zoo, or the teacher of an unfinished run or
                study; read-only user.
        """
        self.user.require("delete runs")
        run = self._own(reference, "deleted")
        pupils = []
        for other in self.runs():
            with contextlib.suppress(SmallAlignError, KeyError, TypeError):  # a damaged run depends on no other
                if run.id in (*other.spec.teachers, other.spec.start) and other.state is not State.FINISHED:
                    pupils.append(other.name)
        if pupils:
            raise Refused("unfinished runs depend on it", given=", ".join(pupils[:3]), do="delete those first")
        if needing := self.studies_that_need(run):
            raise Refused(
                "unfinished studies depend on it",
                given=", ".join(needing[:3]),
                do="complete them, or delete them: their finished runs are kept",
            )
        gone = _trash.put(run)
        shutil.rmtree(self.root / "exports" / run.folder.name, ignore_errors=True)
        for kept in (self.root / "cache" / "compare").glob(f"*{run.folder.name}*"):
            kept.unlink(missing_ok=True)
        return gone

    def trash(self) -> list[Trashed]:
        """The deleted runs, the last deleted first."""
        return _trash.listed(self.runs_folder)

    def restore(self, reference: str) -> Run:
        """Take a run, by its id or a prefix of one, back from the trash.

        Raises:
            UnknownRun, Refused: it is not there; it was trained again meanwhile; read-only user.
        """
        self.user.require("restore runs")
        return self._at(_trash.restore(self.trashed(reference)))

    def trashed(self, reference: str) -> Trashed:
        """A run in the trash, as `restore` finds it."""
        return _trash.find(self.runs_folder, reference)

    def empty_trash(self) -> int:
        """Delete the runs in the trash for good; returns their number."""
        self.user.require("delete runs")
        found = self.trash()
        for one in found:
            shutil.rmtree(one.run.folder, ignore_errors=True)
        return len(found)

    def studies_that_need(self, run: Run) -> list[str]:
        """Ids of studies that lacked runs which would learn from this one, when they were last looked at."""
        found = []
        for file in self.root.glob("studies/[!.]*/study.json"):  # a folder without one is no study, and never ends
            with contextlib.suppress(OSError):  # finished at this moment
                if run.id in (file.parent / "needs").read_text(errors="replace").split():
                    found.append(file.parent.name)
        return sorted(found)

    def count_test_look(self, fingerprint: str, run: str, why: str) -> None:
        """Count a look at test: an evaluation on the labels of a test set that somebody started.

        These are the end of a training, an import, and what the command line or a script evaluates, compares, exports
        or verifies, where that computes something new. A page that shows a finished run is none, whatever it computes
        for that, nor is a stored result. Nothing is ever chosen on test.

        Where the list itself cannot be opened, work goes on without: `test_looks` and the doctor say so.

        Raises:
            Refused: the disk is full.
        """
        if self.showing:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        looks = self.root / "test-looks.jsonl"
        try:
            append(looks, {"data": fingerprint, "run": run, "why": why, "time": time.time()})
        except (PermissionError, IsADirectoryError) as error:
            log.warning("a test-set evaluation could not be recorded: %s, %s", looks, error.strerror)

    def test_looks(self, fingerprint: str) -> int | None:
        """How often the test set of that data was looked at, by any run; None where that cannot be read."""
        try:
            looks, damaged = read_lines(self.root / "test-looks.jsonl")
        except (OSError, Refused):
            return None
        return damaged + sum(look.get("data") == fingerprint for look in looks)  # one too many is the honest mistake


def _places(spec: RunSpec) -> tuple[str | None, ...]:
    """Where a run finds its images, the decisions about them, the weights that it starts from, and Python files."""
    files = (one.file for one in each_code(spec))
    return spec.data.source, spec.data.unlabeled, spec.data.decisions, getattr(spec.network, "weights", None), *files
