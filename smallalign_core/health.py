"""Is everything here that SmallAlign needs, and is everything in the store whole?"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from dataclasses import dataclass

from smallalign_core import limits
from smallalign_core.errors import SmallAlignError
from smallalign_core.store import State, Store

PACKAGES = ("torch", "torchvision", "streamlit", "onnx", "onnxruntime", "pydantic", "safetensors")


@dataclass(frozen=True)
class Check:
    """One finding of the doctor."""

    name: str
    ok: bool
    found: str


def examine(store: Store) -> list[Check]:
    """All checks, in the order in which a person would mend them."""
    return [_python(), *_packages(), _device(), _room(store), _bank(store), _limits(), *_runs(store)]


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), sys.version.split()[0])


def _packages() -> list[Check]:
    checks = []
    for name in PACKAGES:
        try:
            checks.append(Check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, "missing: pip install -r requirements.txt"))
    return checks


def _device() -> Check:
    from smallalign_core.train import pick_device
    from smallalign_core.worker import set_threads

    device = pick_device()
    return Check("device", True, f"{device}, {set_threads()} of {os.cpu_count()} threads")


def _room(store: Store) -> Check:
    there = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1024**3
    return Check("disk", free > 1, f"{free:.1f} GB free at {there}")


def _bank(store: Store) -> Check:
    from smallalign_core.teacher import Shelf

    try:
        shelf = Shelf(store.teacher_cache)
    except SmallAlignError as error:
        return Check("teachers' answers", False, str(error))
    count, size, limit = len(shelf.kept()), shelf.size / 1024**2, shelf.limit / 1024**2
    found = f"{count} kept, {size:,.1f} of {limit:,.0f} MB (SMALLALIGN_CACHE_GB); to free them delete {shelf.root}"
    return Check("teachers' answers", True, found)


def _limits() -> Check:
    """What visitors of the dashboard may ask for, and from which folders."""
    try:
        most, folders = limits.current(), limits.roots()
    except SmallAlignError as error:
        return Check("limits", False, str(error))
    said = [f"{name}={value} ({what})" for name, value, what in most.said()]
    where = "unset (any folder, where nobody has to log in)"
    if folders is not None:
        where = os.pathsep.join(map(str, folders)) or "none but uploads"
    return Check("limits", True, "; ".join([*said, f"{limits.ROOTS}: {where}"]))


def _runs(store: Store) -> list[Check]:
    """Every run readable, and every finished one's weights as they were when it finished."""
    checks, count = [], 0
    for run in [*store.zoo(), *store.runs()]:
        count += 1
        try:
            state, result = run.state, run.result
            _ = run.data
        except (SmallAlignError, json.JSONDecodeError) as error:
            checks.append(Check(f"run {run.name}", False, str(error)))
            continue
        if state is State.FINISHED and result is not None:
            try:
                whole = hashlib.sha256(run.weights.read_bytes()).hexdigest() == result["weights_sha256"]
            except (OSError, KeyError):
                whole = False
            if not whole:
                checks.append(
                    Check(f"run {run.name}", False, "its weights are damaged or missing: delete it and train it again")
                )
        elif state is State.INTERRUPTED:
            checks.append(Check(f"run {run.name}", True, "interrupted: `runs resume` goes on from its last checkpoint"))
    return [Check("runs", all(check.ok for check in checks), f"{count} looked at"), *checks]
