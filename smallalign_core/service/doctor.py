"""Checks of the installation and of the integrity of the store.

One pass over the store reads every data file and checks its checksum or digest; a second finds stale files. What `fix`
removes is rebuilt on demand, or no longer used.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from smallalign_core import data
from smallalign_core.errors import SmallAlignError, WorkFailed, of_system
from smallalign_core.runs.store import State, Store, check_root
from smallalign_core.service import integrity
from smallalign_core.system import extras, limits, sandbox, usercode
from smallalign_core.system.files import SCHEMA, is_held
from smallalign_core.system.telemetry import SILENT

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "pydantic", "safetensors")
YOUNG_SECONDS = 60
"""Younger files may still be written by another process."""
TOLD = 12
PLACES = (*integrity.FOLDERS, "cache/data", "cache/teacher", "cache/compare")
"""Folders of a store that may be on another disk, or have another owner."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        mend: files and folders whose removal is safe and resolves the finding.
    """

    name: str
    ok: bool
    found: str
    mend: tuple[Path, ...] = ()


def examine(store: Store) -> list[Check]:
    """All checks, in the order in which to fix them."""
    machine = [_python(), *_packages(), *_devices(), _silence(), _sandbox(), _trusted(), *_limits(), _users()]
    place = _place(store)
    if not place[0].ok and not os.path.isdir(store.root):  # noqa: PTH112  # pathlib raises for names that are too long
        return [*machine, *place]
    try:
        return [
            *machine,
            *place,
            _room(store),
            _bank(store),
            *_runs(store),
            *_files(store),
            _trash(store),
            _orphans(store),
        ]
    except (OSError, RuntimeError) as error:
        if (known := of_system(error)) is None:
            raise
        return [*machine, *place, Check("store", False, f"cannot be read: {known}")]


def fix(checks: list[Check]) -> list[Path]:
    """Remove the paths in `mend` of all checks. Returns the removed paths."""
    gone = []
    for path in (path for check in checks for path in check.mend):
        with contextlib.suppress(OSError):  # no permission, or gone: the next check reports it
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            gone.append(path)
    return gone


# --- the machine ------------------------------------------------------------------------------------------------------


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), f"{sys.version.split()[0]}; files of schema {SCHEMA}")


def _packages() -> list[Check]:
    checks = []
    for name in PACKAGES:
        try:
            checks.append(Check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, "missing: pip install smallalign"))
    for name in extras.EXTRA_OF:  # none of these is needed by what is installed
        found = extras.version(name) or f"not installed; {extras.command(name)} adds it"
        checks.append(Check(name, True, found))
    return checks


def _trusted() -> Check:
    """The user's own Python files that may run: not a fault, but what somebody who cares about it should see."""
    count, file = usercode.count_trusted(), usercode.trusted_list()
    return Check("Python files", True, f"{count} allowed to run for this user, listed in {file}")


def _devices() -> list[Check]:
    import torch

    from smallalign_core.system.machine import memory, processor, set_threads
    from smallalign_core.training.loop import pick_device

    device = pick_device()
    checks = [Check("device", True, f"{device}, {set_threads()} of {os.cpu_count()} threads")]
    for number in range(torch.cuda.device_count()):
        room = torch.cuda.get_device_properties(number).total_memory / 1024**3
        checks.append(Check(f"cuda:{number}", True, f"{torch.cuda.get_device_name(number)}, {room:.0f} GB"))
    return [*checks, Check("processor", True, f"{processor()}; {memory() / 1024**3:.1f} GB of memory")]


def _silence() -> Check:
    """Whether the telemetry of libraries is off."""
    loud = [name for name, value in SILENT.items() if os.environ.get(name) != value]
    off = "off: " + ", ".join(f"{name}={value}" for name, value in SILENT.items())
    return Check("libraries' telemetry", not loud, f"on: set {', '.join(loud)} again" if loud else off)


def _place(store: Store) -> list[Check]:
    """Whether the store and each of its folders can be written and locked, tested by doing so."""
    try:
        check_root(store.root)
        there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
        _try(there)
    except (SmallAlignError, OSError, RuntimeError, StopIteration) as error:
        told = error if isinstance(error, SmallAlignError) else of_system(error)
        return [Check("store", False, f"not writable: {told or error}")]
    checks = [Check("store", True, f"{store.root} is writable and supports locks")]
    for folder in (folder for name in PLACES for folder in (store.root / name,) if os.path.lexists(folder)):
        try:
            _try(folder)
        except (OSError, RuntimeError) as error:
            checks.append(Check(f"store {folder.name}", False, f"not writable: {of_system(error) or error}"))
    return checks


def _try(folder: Path) -> None:
    """Write, lock, rename and remove a file."""
    first = folder / f".tried-{os.getpid()}"
    try:
        first.write_bytes(bytes(4096))
        with FileLock(first, timeout=5):
            pass
        second = first.with_name(first.name + "-renamed")
        first.rename(second)
        second.unlink()
    finally:
        with contextlib.suppress(OSError):
            first.unlink(missing_ok=True)


def _room(store: Store) -> Check:
    there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1024**3
    return Check("disk", free > 1, f"{free:.1f} GB free at {there}")


def _sandbox() -> Check:
    """The isolation of users' model files, tested from inside the sandbox."""
    try:
        can = sandbox.abilities()
    except WorkFailed as error:
        return Check("sandbox", False, str(error))
    walls = [name for name in ("namespace", "seccomp") if can[name]]
    open_ = [what for what, name in (("the network", "network"), ("other programs", "programs")) if can[name]]
    held = f"isolated by {' and '.join(walls)}" if walls else "resource limits only"
    return Check("sandbox", True, f"{held}; reachable from inside: {' and '.join(open_) or 'nothing'}")


def _limits() -> list[Check]:
    """Limits for users' model files."""
    most, mb = sandbox.LIMITS, 1024**2
    found = (
        f"{most.file / mb:,.0f} MB a file, {most.memory / mb:,.0f} MB of memory, {most.seconds} s of CPU time, "
        f"{most.wall:.0f} s in total"
    )
    return [Check("limits of model files", True, found)]


# --- the store --------------------------------------------------------------------------------------------------------


def _bank(store: Store) -> Check:
    from smallalign_core.training.teacher import CacheIndex

    try:
        index = CacheIndex(store.teacher_cache)
    except SmallAlignError as error:
        return Check("teacher cache", False, str(error))
    count, size, limit = len(index.kept()), index.size / 1024**2, index.limit / 1024**2
    held = f"{count} entr{'y' if count == 1 else 'ies'}, {size:,.1f} of {limit:,.0f} MB (SMALLALIGN_CACHE_GB)"
    found = f"{held}; to free the space delete {index.root}"
    return Check("teacher cache", True, found)


def _users() -> Check:
    """Limits for users of the dashboard, and the folders they may read."""
    try:
        most, folders = limits.current(), limits.roots()
    except SmallAlignError as error:
        return Check("users", False, str(error))
    said = [f"{name}={value} ({what})" for name, value, what in most.said()]
    where = "unset (any folder, if login is off)"
    if folders is not None:
        where = os.pathsep.join(map(str, folders)) or "uploads only"
    return Check("users", True, "; ".join([*said, f"{limits.ROOTS}: {where}"]))


def _runs(store: Store) -> list[Check]:
    """Whether every run is readable, with intact weights or checkpoints."""
    checks, states = [], Counter[str]()
    for run in [*store.zoo(), *store.runs()]:
        name = f"run {run.name}"
        try:
            state = run.state
            states[state] += 1
            if wrong := integrity.of_run(run):
                checks.append(Check(name, False, wrong))
            elif state is State.INTERRUPTED:
                checks.append(Check(name, True, "interrupted: `runs resume` continues from its last checkpoint"))
        except (SmallAlignError, LookupError, TypeError, ValueError, OSError) as error:
            told = str(error) if isinstance(error, SmallAlignError) else f"cannot be read ({type(error).__name__})"
            checks.append(Check(name, False, told))
    count = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    found = f"{sum(states.values())} checked{f': {count}' if count else ''}"
    return [Check("runs", all(check.ok for check in checks), found), *checks]


def _files(store: Store) -> list[Check]:
    """Every data file not covered by the check of a run."""
    count, found = integrity.of_files(store)
    checks = [Check(str(one.path), False, one.found, one.remove) for one in found]
    return [Check("files", not checks, f"{count} read, {len(checks)} damaged or missing"), *checks]


# --- stale files ------------------------------------------------------------------------------------------------------


def _trash(store: Store) -> Check:
    """Deleted runs: unlike stale files, they can be restored as long as they are there."""
    found = tuple(one.run.folder for one in store.trash())
    if not found:
        return Check("trash", True, "empty")
    text = f"{len(found)} deleted run{'s' if len(found) > 1 else ''}, {_megabytes(found):.1f} MB"
    return Check("trash", True, f"{text}: `runs restore` takes one back, `doctor --fix` empties the trash", found)


def _megabytes(paths: Iterable[Path]) -> float:
    files = (file for path in paths for file in (path, *path.rglob("*")) if file.is_file())
    return sum(file.stat().st_size for file in files) / 1e6


def _orphans(store: Store) -> Check:
    found = tuple(path for path in _left(store) if _is_old(path))
    if not found:
        return Check("stale files", True, "none")
    names = ", ".join(str(path.relative_to(store.root)) for path in found[:TOLD]) + (", …" if len(found) > TOLD else "")
    return Check(
        "stale files", True, f"{len(found)}, {_megabytes(found):.1f} MB, `doctor --fix` removes them: {names}", found
    )


def _left(store: Store) -> Iterator[Path]:
    """Incomplete folders and files, and files derived from deleted runs."""
    yield from store.root.glob("runs/.*-*")
    yield from store.root.glob("zoo/.keeping-*")
    yield from store.root.glob("cache/teacher/.gone-*")
    yield from (part for part in store.root.glob("cache/data/*.part") if not is_held(data.lock_of(part)))
    yield from (lock for lock in store.root.glob("cache/data/*.lock") if integrity.lock_of_nothing(lock))
    for part in store.root.rglob(".*.part"):
        if not is_held(part.parent / "lock"):
            yield part
    known = {run.name for run in store.runs()}
    for run in store.zoo():
        with contextlib.suppress(SmallAlignError):
            known.add(run.id)
    for folder in store.root.glob("runs/[0-9a-f]*"):
        nothing = (
            {child.name for child in folder.iterdir()} <= {"lock", "queued", "request"} if folder.is_dir() else False
        )
        if nothing and not is_held(folder / "lock"):  # its writer was killed before it wrote the spec
            yield folder
    for folder in store.root.glob("exports/[0-9a-f]*"):
        if folder.name not in known:
            yield folder
    for file in store.root.glob("cache/compare/[0-9a-f]*"):
        if not set(re.findall(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])", file.name)) <= known:
            yield file


def _is_old(path: Path) -> bool:
    """Whether no process can be writing it: the pid in its name has exited, and it has not changed for a while."""
    maker = re.search(r"-(\d+)$", path.name)
    if maker and path.name.startswith(".") and psutil.pid_exists(int(maker[1])):
        return False
    newest = max((one.stat().st_mtime for one in (path, *path.rglob("*"))), default=0.0)
    return time.time() - newest > YOUNG_SECONDS
