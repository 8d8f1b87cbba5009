"""What is damaged in a store: every file that holds data is read, and checked against its seal, digest or name.

Not checked, for nothing says what they should hold: logs, locks and markers, saved policies and card and spec of zoo
models kept before there were digests of them (texts that people edit: only whether a policy can be read), and the kept
fits of a scaling study (made again where they cannot be read).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.logits import FILE as LOGITS
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import checkpoints
from smallalign_core.spec import digest, read_policy
from smallalign_core.system.files import is_exact, is_held, read_array, read_json, read_lines, read_sealed

FOLDERS = ("runs", "zoo", "policies", "decisions", "studies", "cache", "exports", "uploads")
MADE_AGAIN = ("cache", "exports")
"""Folders of the store whose files are made again when they are missing."""
SEALED = (".answers", ".images", ".logits")
MARKERS = frozenset(["lock", "queued", "request", "active", "needs", "trouble", "log.txt"])
DAMAGED = (SmallAlignError, OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        remove: what can go, for it is made again.
    """

    path: Path
    found: str
    remove: tuple[Path, ...] = ()


def of_run(run: Run) -> str:
    """What is wrong with the files of a run; empty if nothing is.

    Raises:
        SmallAlignError: its record or result cannot be read.
    """
    state, result = run.state, run.result
    _ = run.data
    if state is State.FINISHED:
        if wrong := _of_finished(run, result or {}):
            return wrong
    elif result is not None and not run.weights.exists():
        return f"its {run.weights.name} is missing: delete it and make it again"
    elif (run.folder / "weights.safetensors").exists() and not is_held(run.folder / "lock"):
        return "its result is missing: `runs resume` makes it again"
    if run.imported is None and not run.in_zoo and len(run.folder.name) == 16 and digest(run.spec) != run.folder.name:
        return "its spec is not the one that it is named after: delete it and train it again"
    if state in (State.FINISHED, State.RUNNING):  # the checkpoints of a running one come and go
        return ""
    kept = checkpoints(run)
    bad = [one["file"] for one in kept if not sha256(run.folder / one["file"]).startswith(one["sha256"])]
    last = "the one before is used" if len(bad) < len(kept) else "delete it and submit its spec again"
    if bad:
        return f"{', '.join(bad)} is damaged or missing: {last}"
    if kept and not (run.folder / "checkpoints.json").is_file():
        return "checkpoints.json is missing: `runs resume` goes on from the newest that is whole"
    decisions = run.data.decisions
    return f"the decisions that it learns from are missing: {decisions}" if lacks(decisions) else ""


def _of_finished(run: Run, result: dict[str, Any]) -> str:
    if sha256(run.weights) != result.get("weights_sha256"):
        return "its weights are damaged or missing: delete it and train it again"
    logits = run.folder / LOGITS
    if logits.exists() and result.get("logits_sha256") not in (None, sha256(logits)):
        return f"{LOGITS} is damaged: remove it, and comparisons by image do without"
    beside = [name for name, kept in result.get("files", {}).items() if sha256(run.folder / name) != kept]
    if beside:
        return f"{', '.join(beside)} is damaged or missing: keep the model again"
    if run.imported is None and not run.in_zoo:
        lost = [name for name in ("events.jsonl", "state.json") if not (run.folder / name).is_file()]
        if lost:
            return f"{', '.join(lost)} is missing: how it was trained is lost"
    return ""


def lacks(decisions: str | None) -> bool:
    """Whether a file of decisions that a run needs is gone."""
    return decisions is not None and not Path(decisions).expanduser().is_file()


def of_files(store: Store) -> tuple[int, list[Damage]]:
    """(files read, damage) of everything that a run's own check does not read."""
    found, count = list(_missing(store)), 0
    known = {run.folder.name for run in store.runs()}
    for run in store.zoo():
        with contextlib.suppress(SmallAlignError):
            known.add(run.id)
    for file in _walk(store.root):
        part = file.relative_to(store.root)
        if part.parts[0] == "exports" and part.parts[1] not in known:  # of a run that is deleted: a leftover
            continue
        try:
            count += _is_whole(file, part)
        except Refused as error:  # a newer version wrote it: not ours to remove
            found.append(Damage(part, str(error)))
        except DAMAGED as error:
            again = part.parts[0] in MADE_AGAIN
            why = str(error) if type(error) is ValueError else "it is damaged"
            told = f"{why}: {'`doctor --mend` removes it, and it is made again' if again else 'see its run'}"
            found.append(Damage(part, told, _removed(file) if again else ()))
    return count, found


def _walk(root: Path) -> Iterator[Path]:
    """Every file of a store that holds data; what else lies in its folder is not looked at."""
    yield from (file for file in root.glob("*.jsonl") if file.is_file() or file.is_dir())
    for name in FOLDERS:
        for folder, _, names in os.walk(root / name):
            inside = Path(folder).relative_to(root).parts
            if not any(part.startswith(".") or part.endswith(".part") for part in inside):
                yield from (Path(folder) / one for one in names if not one.startswith(".") and _holds_data(one))


def _holds_data(name: str) -> bool:
    return name not in MARKERS and not name.endswith((".lock", ".log", ".part"))


def _missing(store: Store) -> Iterator[Damage]:
    """What must be there and is not."""
    root = store.root
    for folder in sorted(root.glob("runs/[0-9a-f]*")):
        with contextlib.suppress(OSError):
            here = {child.name for child in folder.iterdir() if not child.name.startswith(".")} - MARKERS
            if here and not Run(folder).record.is_file():
                yield Damage(folder.relative_to(root), "its spec.json is missing: delete the folder")
    for pattern, name, again in (
        ("studies/[!.]*", "study.json", False),
        ("cache/data/[0-9a-f]*", "facts.json", True),
        ("zoo/[!.]*", "result.json", False),
    ):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir() and not folder.name.endswith(".part") and not (folder / name).is_file():
                told = "`doctor --mend` removes it, and it is made again" if again else "delete the folder"
                yield Damage(folder.relative_to(root), f"{name} is missing: {told}", (folder,) if again else ())
    looks = root / "test-looks.jsonl"
    if not looks.exists() and any((run.folder / "events.jsonl").exists() and run.finished for run in store.runs()):
        yield Damage(looks.relative_to(root), "it is missing: how often test images were looked at is lost")


def _is_whole(file: Path, part: Path) -> bool:
    """Whether there is something to check in a file; raises if that is not what was written."""
    if file.stat().st_size == 0:
        raise ValueError("it is empty")
    check = _check_of(file, part)
    if check is None:
        return False
    if (wrong := check(file)) is not None:
        raise ValueError(wrong or "it is damaged")
    return True


def _check_of(file: Path, part: Path) -> Callable[[Path], str | None] | None:
    """What to hold a file against, by where it is and what it is called. A check answers what is wrong, or None."""
    places: dict[tuple[str, str], Callable[[Path], str | None]] = {
        ("uploads", ".zip"): _named_by_digest,
        ("policies", ".yaml"): _policy,
        ("cache", ".npy"): _in_facts if part.parts[:2] == ("cache", "data") else _array,
    }
    kinds: dict[str, Callable[[Path], str | None]] = {".json": _json, ".jsonl": _lines}
    if part.parts[0] == "exports":
        return _json if file.name.startswith("parity") else _in_a_proof
    if file.suffix in SEALED:
        return _sealed
    if file.name == "about.json":
        return _about
    if part.parts[:2] == ("cache", "exports"):
        return _graph if file.suffix == ".onnx" else lambda file: "" if read_sealed(file) is None else None
    if part.parts[:2] == ("cache", "answers") and file.suffix == ".onnx":
        return lambda file: None if file.with_suffix(".json").is_file() else "nothing says what it is"
    return places.get((part.parts[0], file.suffix)) or kinds.get(file.suffix)


def _json(file: Path) -> str | None:
    told = read_json(file)
    for name, kept in _files_named(file, told).items():
        if sha256(file.parent / name) != kept:
            return f"{name} is damaged or missing"
    return None if is_exact(file) else ""


def _lines(file: Path) -> str | None:
    damaged = read_lines(file)[1]
    return f"{damaged} of its lines are damaged and left out" if damaged else None


def _sealed(file: Path) -> str | None:
    from smallalign_core.training.teacher import intact

    return None if intact(file) else ""


def _graph(file: Path) -> str | None:
    from smallalign_core.export import checksum_matches

    return None if checksum_matches(file.read_bytes()) else ""


def _array(file: Path) -> str | None:
    return "" if read_array(file) is None else None


def _in_facts(_: Path) -> str | None:
    return None  # its digest stands in facts.json, which is read too


def _about(file: Path) -> str | None:
    """What a bank of answers is: its folder is named after it."""
    text = file.read_text()
    told = json.loads(text)
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return None if key == file.parent.name and text == json.dumps(told, indent=1) else ""


def _named_by_digest(file: Path) -> str | None:
    return None if file.stem.endswith(sha256(file)[:16]) else "it is not what was uploaded: upload it again"


def _policy(file: Path) -> str | None:
    read_policy(file)
    return None


def _in_a_proof(file: Path) -> str | None:
    """Whether a proof beside it holds its digest; a demo is a zip of its own."""
    if file.name.startswith("demo"):
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() and "it is damaged"
    proofs = [read_json(proof) for proof in file.parent.glob("parity*.json")]
    if any(file.name in proof.get("files", {}) for proof in proofs):
        return None
    claims = [(proof.get("browser") or {}).get("logits_sha256") for proof in proofs]
    return None if sha256(file) in claims else "no proof is about it"


def _files_named(file: Path, told: Any) -> dict[str, str]:
    """The files beside a JSON file whose digests it holds: those of a bundle, of decoded images, a teacher's graph."""
    if file.parent.name == "answers":
        return {file.with_suffix(".onnx").name: told["sha256"]}
    named = file.name == "facts.json" or file.name.startswith("parity")
    files = told.get("files") if isinstance(told, dict) and named else None
    return {file: kept[0] if isinstance(kept, list) else kept for file, kept in (files or {}).items()}


def _removed(file: Path) -> tuple[Path, ...]:
    """What goes with a damaged file: a bundle, decoded images or a bank are one thing."""
    whole = file.name in ("facts.json", "about.json") or file.parent.parent.name == "exports"
    return (file.parent if whole else file,)


def sha256(file: Path) -> str:
    """The digest of a file as hexadecimal text; empty if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def lock_of_nothing(lock: Path) -> bool:
    """Whether a lock file in the cache of decoded images is one of those that older versions left for each dataset."""
    return bool(re.fullmatch("[0-9a-f]{16}", lock.stem)) and not is_held(lock)
