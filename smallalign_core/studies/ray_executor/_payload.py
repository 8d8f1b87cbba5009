"""Data sent to and from cluster machines, as bytes: specs with their dependencies, and folders of runs."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from smallalign_core import errors
from smallalign_core.errors import BadInput, SmallAlignError, WorkFailed
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Code, GivenNetwork, RunSpec, each_code, parse, with_code
from smallalign_core.system import usercode
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.files import write_folder, write_json

RETURNED = ("events.jsonl", "log.txt", "weights.safetensors", "logits.safetensors")


@dataclass(frozen=True)
class Dependency:
    """A finished run that others depend on (teacher, initial weights), as files; spec is None for an import."""

    id: str
    spec: dict[str, Any] | None
    files: dict[str, bytes]


@dataclass(frozen=True)
class Payload:
    """Runs for one lockstep, with all the files that a machine without access to the store needs.

    Attributes:
        home: identifies the store: machines cache decoded images and teacher logits per store.
        torch: the sender's version; another one would give different weights.
        code: digest of the sender's library. The code is sent too, but a checkout at the same path there takes
        precedence. specs: resolved.
        files: by path, the files named in specs except images: decisions, initial weights.
        device: as of `train.pick_device`.
    """

    home: str
    torch: str
    code: str
    specs: list[dict[str, Any]]
    files: dict[str, bytes] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of one run on another machine.

    Attributes:
        host: its name there.
        result: as in result.json; None where it failed.
        error: (class, what is wrong, given, what to do) if it failed.
        said: the status written by the other worker.
        files: those of `RETURNED` that exist.
        unfit: whether the machine could not start it: missing images, or different package versions.
    """

    host: str
    result: dict[str, Any] | None
    error: tuple[str, str, str, str] | None
    said: dict[str, Any]
    files: dict[str, bytes]
    unfit: bool = False


def code() -> str:
    """Digest of this library's modules."""
    package, found = PACKAGE, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def needs(specs: Sequence[RunSpec]) -> list[str]:
    """Ids of the runs that `specs` depend on."""
    return list(dict.fromkeys(name for spec in specs for name in (*spec.teachers, spec.start) if name))


def dependency(run: Run) -> Dependency:
    """A finished run, packed."""
    names = ("import.json", "model.onnx", "weights.safetensors", "result.json")
    files = {name: (run.folder / name).read_bytes() for name in names if (run.folder / name).is_file()}
    files = python_files.copies(run.folder) | files
    return Dependency(run.id, None if run.imported is not None else run.spec.model_dump(mode="json"), files)


def payload(specs: Sequence[RunSpec], home: str, device: str) -> Payload:
    """Runs, packed: all but the runs that they need, and their images.

    Raises:
        BadInput: a file that they name is gone.
    """
    import torch

    files = {path: _content(path) for spec in specs for path in _paths(spec).values()}
    return Payload(home, torch.__version__, code(), [spec.model_dump(mode="json") for spec in specs], files, device)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise BadInput(f"a file that a run needs cannot be read: {reason}", given=path, do="restore it") from None


def _paths(spec: RunSpec) -> dict[str, str]:
    found = {"decisions": spec.data.decisions, "weights": getattr(spec.network, "weights", None)}
    found |= {f"code {one.sha256}": one.file for one in each_code(spec)}
    return {name: path for name, path in found.items() if path}


# --- on the other machine ---------------------------------------------------------------------------------------------


def install(one: Dependency, store: Store) -> None:
    """Put a run that others need into this machine's store, unless it is there with these weights."""
    folder = store.by_id(one.id).folder
    with contextlib.suppress(OSError):
        if (folder / "result.json").read_bytes() == one.files["result.json"]:
            return
    shutil.rmtree(folder, ignore_errors=True)  # trained anew since, elsewhere: the id is the same, the weights are not
    folder.mkdir(parents=True, exist_ok=True)
    if one.spec is not None:
        write_json(folder / "spec.json", {"spec": one.spec})
    for name, content in one.files.items():
        if name.startswith(f"{usercode.FOLDER}/"):  # the sender may run anything on this machine already
            usercode.trust_here(hashlib.sha256(content).hexdigest())
            (folder / usercode.FOLDER).mkdir(exist_ok=True)
    write_folder(folder, one.files)  # the result last: its existence means finished


def unpacked(given: Payload, store: Store) -> list[RunSpec]:
    """The specs, with the files that they name where this machine has them. Their digests stay what they are."""
    specs = []
    for fields in given.specs:
        spec = parse(fields)
        here = {name: str(_placed(given.files[path], store)) for name, path in _paths(spec).items()}
        update: dict[str, Any] = {}
        if "decisions" in here:
            update["data"] = spec.data.model_copy(update={"decisions": here["decisions"]})
        if "weights" in here and isinstance(spec.network, GivenNetwork):
            update["network"] = spec.network.model_copy(update={"weights": here["weights"]})
        specs.append(with_code(spec.model_copy(update=update), partial(_here, places=here)))
    return specs


def _here(one: Code, places: Mapping[str, str]) -> Code:
    """A user's Python file, where this machine has it; the sender may run anything on this machine already."""
    if one.file is None or one.sha256 is None:
        return one
    usercode.trust_here(one.sha256)
    return one.model_copy(update={"file": places[f"code {one.sha256}"]})


def _placed(content: bytes, store: Store) -> Path:
    file = store.root / "files" / hashlib.sha256(content).hexdigest()[:32]
    if not file.is_file():
        write_folder(file.parent, {file.name: content})
    return file.resolve()


def refusal(host: str, error: SmallAlignError, *, unfit: bool = False) -> RunOutcome:
    """What comes back of a run that could not begin."""
    return RunOutcome(host, None, error_fields(error), {}, {}, unfit)


def error_fields(error: SmallAlignError) -> tuple[str, str, str, str]:
    """An error as plain text, in its parts."""
    return type(error).__name__, error.wrong, error.given, error.do


def outcome(run: Run, how: Mapping[str, Any] | SmallAlignError, host: str) -> RunOutcome:
    """How a run ended here, packed."""
    error = error_fields(how) if isinstance(how, SmallAlignError) else None
    files = {name: (run.folder / name).read_bytes() for name in RETURNED if (run.folder / name).is_file()}
    return RunOutcome(host, run.result if error is None else None, error, run.status, files)


# --- and home again ---------------------------------------------------------------------------------------------------


def error_of(given: RunOutcome) -> SmallAlignError | None:
    """Why a run failed elsewhere, as an error of ours; None if it did not."""
    if given.error is None:
        return None
    name, wrong, what, do = given.error
    kind = getattr(errors, name, WorkFailed)
    return kind(wrong, given=what, do=do) if issubclass(kind, SmallAlignError) else WorkFailed(wrong, given=what, do=do)
