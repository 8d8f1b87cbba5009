"""What a spec refers to outside of the store, taken into it: the run can then always be repeated."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from smallalign_core import data
from smallalign_core.errors import BadModel, UnknownRun
from smallalign_core.system import sandbox
from smallalign_core.system.files import write_folder, write_json

if TYPE_CHECKING:
    from smallalign_core.runs.store import Run, Store

log = logging.getLogger("smallalign")


def checkpoint(file: Path, root: Path) -> Path:
    """The weights of a PyTorch checkpoint as a safetensors file of the store; what was taken of it is logged."""
    content, facts = sandbox.convert(file)
    kept = root.resolve() / "weights" / f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    if not kept.is_file():
        write_folder(kept.parent, {kept.name: content})
    log.warning("%s: %s", file.name, ", ".join(sandbox.taken(facts)) or "its state_dict is taken")
    return kept


def decisions(file: str, root: Path) -> Path:
    """An immutable copy of a decisions file, named by the digest of its content."""
    found = data.read_decisions(Path(file).expanduser())
    text = json.dumps(found.as_dict(), sort_keys=True).encode()
    kept = root.resolve() / "decisions" / "kept" / f"{hashlib.sha256(text).hexdigest()[:16]}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.write(kept)
    return kept


def run(found: Run, store: Store) -> None:
    """Copy a finished run from elsewhere into the store, unless it is there already.

    Raises:
        Refused: read-only user.
        BadModel: its weights are damaged.
    """
    with contextlib.suppress(UnknownRun):
        store.run(found.id)
        return
    store.user.require("take runs into the store")
    if hashlib.sha256(found.weights.read_bytes()).hexdigest() != (found.result or {}).get("weights_sha256"):
        raise BadModel("the teacher's weights do not match the digest in its result", given=found.folder)
    target = store.runs_folder / found.id
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".adopting-{found.id}-{os.getpid()}")
    shutil.copytree(found.folder, part, ignore=shutil.ignore_patterns("lock", "queued", "request", "spec.yaml"))
    if found.imported is None:
        write_json(part / "spec.json", {"spec": found.spec.model_dump(mode="json")})
    with contextlib.suppress(OSError):
        part.rename(target)
    shutil.rmtree(part, ignore_errors=True)
