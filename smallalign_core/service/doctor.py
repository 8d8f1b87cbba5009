"""Is everything here that SmallAlign needs, and is everything in the store whole?

One walk over the store reads every file as what its name promises and checks its seal or digest; a second looks for
what nobody owns any more. What `mend` removes is made again when it is needed, or belongs to nobody.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from smallalign_core import data
from smallalign_core.errors import SmallAlignError, WorkFailed, of_system
from smallalign_core.runs.store import State, Store, check_root
from smallalign_core.service import integrity
from smallalign_core.system import extras, limits, sandbox
from smallalign_core.system.files import SCHEMA, is_held
from smallalign_core.system.telemetry import SILENT

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "pydantic", "safetensors")
YOUNG_SECONDS = 60
"""What is younger may be somebody's, writing now."""
TOLD = 12
PLACES = (*integrity.FOLDERS, "cache/data", "cache/teacher", "cache/compare")
"""Folders of a store that may lie on another disk, or belong to somebody else."""


@dataclass(frozen=True)
class Check:
    """One finding of the doctor.

    Attributes:
        mend: files and folders that are safe to remove, and with them the finding.
    """

    name: str
    ok: bool
    found: str
    mend: tuple[Path, ...] = ()


def examine(store: Store) -> list[Check]:
    """All checks, in the order in which a person would mend them."""
    machine = [_python(), *_packages(), *_devices(), _silence(), _jail(), *_limits(), _visitors()]
    place = _place(store)
    if not place[0].ok and not os.path.isdir(store.root):  # noqa: PTH112  # pathlib raises for names that are too long
        return [*machine, *place]
    try:
        return [*machine, *place, _room(store), _bank(store), *_runs(store), *_files(store), _orphans(store)]
    except (OSError, RuntimeError) as error:
        if (told := of_system(error)) is None:
            raise
        return [*machine, *place, Check("store", False, f"it could not be looked through: {told}")]


def fix(checks: list[Check]) -> list[Path]:
    """Remove what checks have found safe to remove. Returns what is gone."""
    gone = []
    for path in (path for check in checks for path in check.mend):
        with contextlib.suppress(OSError):  # not ours to remove, or gone: the next look says so
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
    """What keeps libraries from reporting to their makers."""
    loud = [name for name, value in SILENT.items() if os.environ.get(name) != value]
    told = "off: " + ", ".join(f"{name}={value}" for name, value in SILENT.items())
    return Check("libraries' telemetry", not loud, f"on: set {', '.join(loud)} again" if loud else told)


def _place(store: Store) -> list[Check]:
    """Whether the store's folder, and each of its folders, can be written and locked: tried, not assumed."""
    try:
        check_root(store.root)
        there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
        _try(there)
    except (SmallAlignError, OSError, RuntimeError, StopIteration) as error:
        told = error if isinstance(error, SmallAlignError) else of_system(error)
        return [Check("store", False, f"it cannot be written: {told or error}")]
    checks = [Check("store", True, f"{store.root} can be written and locked")]
    for folder in (folder for name in PLACES for folder in (store.root / name,) if os.path.lexists(folder)):
        try:
            _try(folder)
        except (OSError, RuntimeError) as error:
            checks.append(Check(f"store {folder.name}", False, f"it cannot be written: {of_system(error) or error}"))
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


def _jail() -> Check:
    """What keeps users' model files in: tried, not assumed."""
    try:
        can = sandbox.abilities()
    except WorkFailed as error:
        return Check("jail", False, str(error))
    walls = [name for name in ("namespace", "seccomp") if can[name]]
    open_ = [what for what, name in (("the network", "network"), ("other programs", "programs")) if can[name]]
    held = f"cut off by {' and '.join(walls)}" if walls else "bounds only"
    return Check("jail", True, f"{held}; tried from inside: {' and '.join(open_) or 'nothing'} could be reached")


def _limits() -> list[Check]:
    """What one person may ask for; exceeding it is refused in words."""
    most, mb = sandbox.LIMITS, 1024**2
    found = (
        f"{most.file / mb:,.0f} MB a file, {most.memory / mb:,.0f} MB of memory, {most.seconds} s of processor, "
        f"{most.wall:.0f} s in all"
    )
    return [Check("limits of model files", True, found)]


# --- the store --------------------------------------------------------------------------------------------------------


def _bank(store: Store) -> Check:
    from smallalign_core.training.teacher import CacheIndex

    try:
        shelf = CacheIndex(store.teacher_cache)
    except SmallAlignError as error:
        return Check("teachers' answers", False, str(error))
    count, size, limit = len(shelf.kept()), shelf.size / 1024**2, shelf.limit / 1024**2
    found = f"{count} kept, {size:,.1f} of {limit:,.0f} MB (SMALLALIGN_CACHE_GB); to free them delete {shelf.root}"
    return Check("teachers' answers", True, found)


def _visitors() -> Check:
    """What visitors of the dashboard may ask for, and from which folders."""
    try:
        most, folders = limits.current(), limits.roots()
    except SmallAlignError as error:
        return Check("visitors", False, str(error))
    said = [f"{name}={value} ({what})" for name, value, what in most.said()]
    where = "unset (any folder, where nobody has to log in)"
    if folders is not None:
        where = os.pathsep.join(map(str, folders)) or "none but uploads"
    return Check("visitors", True, "; ".join([*said, f"{limits.ROOTS}: {where}"]))


def _runs(store: Store) -> list[Check]:
    """Every run readable, and every finished one's weights and every other one's checkpoints as they were."""
    checks, states = [], Counter[str]()
    for run in [*store.zoo(), *store.runs()]:
        name = f"run {run.name}"
        try:
            state = run.state
            states[state] += 1
            if wrong := integrity.of_run(run):
                checks.append(Check(name, False, wrong))
            elif state is State.INTERRUPTED:
                checks.append(Check(name, True, "interrupted: `runs resume` goes on from its last checkpoint"))
        except (SmallAlignError, LookupError, TypeError, ValueError, OSError) as error:
            told = str(error) if isinstance(error, SmallAlignError) else f"it cannot be read ({type(error).__name__})"
            checks.append(Check(name, False, told))
    count = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    found = f"{sum(states.values())} looked at{f': {count}' if count else ''}"
    return [Check("runs", all(check.ok for check in checks), found), *checks]


def _files(store: Store) -> list[Check]:
    """Every file that holds data, and that a run's own check does not read."""
    count, found = integrity.of_files(store)
    checks = [Check(str(one.path), False, one.found, one.remove) for one in found]
    return [Check("files", not checks, f"{count} read, {len(checks)} damaged or missing"), *checks]


# --- what nobody owns -------------------------------------------------------------------------------------------------


def _orphans(store: Store) -> Check:
    found = tuple(path for path in _left(store) if _is_old(path))
    size = sum(file.stat().st_size for path in found for file in (path, *path.rglob("*")) if file.is_file())
    if not found:
        return Check("leftovers", True, "none")
    names = ", ".join(str(path.relative_to(store.root)) for path in found[:TOLD]) + (", …" if len(found) > TOLD else "")
    return Check("leftovers", True, f"{len(found)}, {size / 1e6:.1f} MB, `doctor --mend` removes them: {names}", found)


def _left(store: Store) -> Iterator[Path]:
    """Half-made folders, files that were never finished, and what was made of runs that are deleted."""
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
        if nothing and not is_held(folder / "lock"):  # its maker was killed before it wrote what it is
            yield folder
    for folder in store.root.glob("exports/[0-9a-f]*"):
        if folder.name not in known:
            yield folder
    for file in store.root.glob("cache/compare/[0-9a-f]*"):
        if not set(re.findall(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])", file.name)) <= known:
            yield file


def _is_old(path: Path) -> bool:
    """Whether nobody can be writing it: its maker, if its name tells, is gone, and it has not changed for a while."""
    maker = re.search(r"-(\d+)$", path.name)
    if maker and path.name.startswith(".") and psutil.pid_exists(int(maker[1])):
        return False
    newest = max((one.stat().st_mtime for one in (path, *path.rglob("*"))), default=0.0)
    return time.time() - newest > YOUNG_SECONDS
