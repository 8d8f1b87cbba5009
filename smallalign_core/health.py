"""Is everything here that SmallAlign needs, and is everything in the store whole?

One walk over the store reads every file as what its name promises and checks its seal or digest; a second looks for
what nobody owns any more. What `mend` removes is made again when it is needed, or belongs to nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from typing import Any

import psutil

from smallalign_core import extras, jail, limits
from smallalign_core.errors import BadModel, Refused, SmallAlignError, WorkFailed
from smallalign_core.files import SCHEMA, is_held, read_json, read_lines
from smallalign_core.recording import checkpoints
from smallalign_core.store import Run, State, Store

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "pydantic", "safetensors")
YOUNG_SECONDS = 60
"""What is younger may be somebody's, writing now."""
MADE_AGAIN = ("cache", "exports")
"""Folders of the store whose files are made again when they are missing."""
SEALED = (".answers", ".images", ".logits")
TOLD = 12


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
    machine = [_python(), *_packages(), *_devices(), _room(store), _jail(), *_limits(), _visitors()]
    return [*machine, _bank(store), *_runs(store), *_files(store), _orphans(store)]


def mend(checks: list[Check]) -> list[Path]:
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

    from smallalign_core.machine import memory, processor, set_threads
    from smallalign_core.train import pick_device

    device = pick_device()
    checks = [Check("device", True, f"{device}, {set_threads()} of {os.cpu_count()} threads")]
    for number in range(torch.cuda.device_count()):
        room = torch.cuda.get_device_properties(number).total_memory / 1024**3
        checks.append(Check(f"cuda:{number}", True, f"{torch.cuda.get_device_name(number)}, {room:.0f} GB"))
    return [*checks, Check("processor", True, f"{processor()}; {memory() / 1024**3:.1f} GB of memory")]


def _room(store: Store) -> Check:
    there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1024**3
    return Check("disk", free > 1, f"{free:.1f} GB free at {there}")


def _jail() -> Check:
    """What keeps users' model files in: tried, not assumed."""
    try:
        can = jail.abilities()
    except WorkFailed as error:
        return Check("jail", False, str(error))
    walls = [name for name in ("namespace", "seccomp") if can[name]]
    open_ = [what for what, name in (("the network", "network"), ("other programs", "programs")) if can[name]]
    held = f"cut off by {' and '.join(walls)}" if walls else "bounds only"
    return Check("jail", True, f"{held}; tried from inside: {' and '.join(open_) or 'nothing'} could be reached")


def _limits() -> list[Check]:
    """What one person may ask for; exceeding it is refused in words."""
    most, mb = jail.LIMITS, 1024**2
    found = (
        f"{most.file / mb:,.0f} MB a file, {most.memory / mb:,.0f} MB of memory, {most.seconds} s of processor, "
        f"{most.wall:.0f} s in all"
    )
    return [Check("limits of model files", True, found)]


# --- the store --------------------------------------------------------------------------------------------------------


def _bank(store: Store) -> Check:
    from smallalign_core.teacher import Shelf

    try:
        shelf = Shelf(store.teacher_cache)
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
            _ = run.data, run.result
            if wrong := _wrong(run, state):
                checks.append(Check(name, False, wrong))
            elif state is State.INTERRUPTED:
                checks.append(Check(name, True, "interrupted: `runs resume` goes on from its last checkpoint"))
        except (SmallAlignError, LookupError, TypeError, ValueError) as error:
            told = str(error) if isinstance(error, SmallAlignError) else f"it cannot be read ({type(error).__name__})"
            checks.append(Check(name, False, told))
    count = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    found = f"{sum(states.values())} looked at{f': {count}' if count else ''}"
    return [Check("runs", all(check.ok for check in checks), found), *checks]


def _wrong(run: Run, state: State) -> str:
    """What is wrong with the large files of a run; empty if nothing is."""
    if state is State.FINISHED:
        if _sha256(run.weights) != (run.result or {}).get("weights_sha256"):
            return "its weights are damaged or missing: delete it and train it again"
        return ""
    if state is State.RUNNING:  # its checkpoints come and go
        return ""
    kept = checkpoints(run)
    bad = [one["file"] for one in kept if not _sha256(run.folder / one["file"]).startswith(one["sha256"])]
    last = "the one before is used" if len(bad) < len(kept) else "delete it and submit its spec again"
    return f"{', '.join(bad)} is damaged or missing: {last}" if bad else ""


def _files(store: Store) -> list[Check]:
    """Every file whose name promises something, and that a run's own check does not read."""
    checks, count = [], 0
    for file in _walk(store.root):
        try:
            count += _is_whole(file)
        except Refused as error:  # a newer version wrote it: not ours to remove
            checks.append(Check(str(file.relative_to(store.root)), False, str(error)))
        except (SmallAlignError, OSError, ValueError, LookupError, TypeError) as error:
            again = file.relative_to(store.root).parts[0] in MADE_AGAIN
            why = str(error) if isinstance(error, ValueError) else "it is damaged"
            told = f"{why}: {'`doctor --mend` removes it, and it is made again' if again else 'see its run'}"
            checks.append(Check(str(file.relative_to(store.root)), False, told, _removed(file) if again else ()))
    return [Check("files", not checks, f"{count} read, {len(checks)} damaged"), *checks]


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        if not any(part.startswith(".") or part.endswith(".part") for part in Path(folder).relative_to(root).parts):
            yield from (Path(folder) / name for name in names if not name.startswith("."))


def _is_whole(file: Path) -> bool:
    """Whether there is something to check in a file; raises if that is not what was written."""
    if file.suffix == ".json":
        told = read_json(file)
        for name, digest in _files_named(file, told).items():
            if _sha256(file.parent / name) != digest:
                raise ValueError(f"{name} is damaged or missing")
    elif file.suffix == ".jsonl":
        if damaged := read_lines(file)[1]:
            raise ValueError(f"{damaged} of its lines are damaged and left out")
    elif file.suffix in SEALED:
        from smallalign_core.teacher import intact

        if not intact(file):
            raise BadModel("it is damaged", given=file)
    else:
        return False
    return True


def _files_named(file: Path, told: Any) -> dict[str, str]:
    """The files beside a JSON file whose digests it holds: those of a bundle, of decoded images, a teacher's graph."""
    graph = file.with_suffix(".onnx")
    if file.parent.name == "answers" and graph.exists():
        return {graph.name: told["sha256"]}
    files = told.get("files") if isinstance(told, dict) and file.name in ("parity.json", "facts.json") else None
    return {file: kept[0] if isinstance(kept, list) else kept for file, kept in (files or {}).items()}


def _removed(file: Path) -> tuple[Path, ...]:
    """What goes with a damaged file: a bundle or decoded images are one thing."""
    return (file.parent if file.name in ("parity.json", "facts.json") else file,)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


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
    yield from (part for part in store.root.glob("cache/data/*.part") if not is_held(part.with_suffix(".lock")))
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
