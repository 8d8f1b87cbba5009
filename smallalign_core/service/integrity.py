"""Integrity of a store: every data file is read, and checked against its checksum, digest or name.

Not checked, for lack of a reference: logs, locks and markers; saved policies, and card and spec of zoo models published
before their digests were stored (text that users edit: only whether a policy can be read); and the cached fits of a
scaling study (recomputed if unreadable).
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
from smallalign_core.runs import python_files
from smallalign_core.runs.logits import FILE as LOGITS
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import checkpoints
from smallalign_core.spec import digest, read_policy
from smallalign_core.system.files import is_exact, is_held, read_array, read_json, read_lines, read_sealed

FOLDERS = ("runs", "zoo", "policies", "decisions", "studies", "cache", "exports", "uploads", "weights")
MADE_AGAIN = ("cache", "exports")
"""Folders of the store whose files are rebuilt when they are missing."""
SEALED = (".answers", ".images", ".logits")
MARKERS = frozenset(["lock", "queued", "request", "active", "needs", "trouble", "log.txt"])
DAMAGED = (SmallAlignError, OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Damage:
    """A damaged or missing file.

    Attributes:
        remove: paths that can be removed because they are rebuilt.
    """

    path: Path
    found: str
    remove: tuple[Path, ...] = ()


def of_run(run: Run) -> str:
    """What is wrong with the files of a run, as text; empty if nothing is.

    Raises:
        SmallAlignError: its record or result cannot be read.
    """
    state, result = run.state, run.result
    _ = run.data
    if state is State.FINISHED:
        if wrong := _of_finished(run, result or {}):
            return wrong
    elif result is not None and not run.weights.exists():
        return f"its {run.weights.name} is missing: delete the run and create it again"
    elif (run.folder / "weights.safetensors").exists() and not is_held(run.folder / "lock"):
        return "its result is missing: `runs resume` recreates it"
    if run.imported is None and (lost := python_files.lacking(run.spec, run.folder)):
        return f"its copy of {lost} is damaged or missing: restore that file in its folder `code`"
    if run.imported is None and not run.in_zoo and len(run.folder.name) == 16 and digest(run.spec) != run.folder.name:
        return "its spec does not match its id: delete the run and train it again"
    if state in (State.FINISHED, State.RUNNING):  # a running one's checkpoints change
        return ""
    kept = checkpoints(run)
    bad = [one["file"] for one in kept if not sha256(run.folder / one["file"]).startswith(one["sha256"])]
    last = "the previous one is used" if len(bad) < len(kept) else "delete it and submit its spec again"
    if bad:
        return f"{', '.join(bad)} is damaged or missing: {last}"
    if kept and not (run.folder / "checkpoints.json").is_file():
        return "checkpoints.json is missing: `runs resume` continues from the newest intact checkpoint"
    decisions = run.data.decisions
    return f"its cleaning decisions file is missing: {decisions}" if lacks(decisions) else ""


def _of_finished(run: Run, result: dict[str, Any]) -> str:
    if sha256(run.weights) != result.get("weights_sha256"):
        return "its weights are damaged or missing: delete the run and train it again"
    logits = run.folder / LOGITS
    if logits.exists() and result.get("logits_sha256") not in (None, sha256(logits)):
        return f"{LOGITS} is damaged: remove it; comparisons then omit it"
    beside = [name for name, kept in result.get("files", {}).items() if sha256(run.folder / name) != kept]
    if beside:
        return f"{', '.join(beside)} is damaged or missing: publish the model again"
    if run.imported is None and not run.in_zoo:
        lost = [name for name in ("events.jsonl", "state.json") if not (run.folder / name).is_file()]
        if lost:
            return f"{', '.join(lost)} is missing: the record of its training is lost"
        if not run.events("finished"):  # cut between two lines, each is whole
            return "events.jsonl lacks its end: the record of its training is incomplete"
    return ""


def lacks(decisions: str | None) -> bool:
    """Whether a decisions file that a run needs is missing."""
    return decisions is not None and not Path(decisions).expanduser().is_file()


def of_files(store: Store) -> tuple[int, list[Damage]]:
    """(number of files read, damage) of everything not covered by the check of a run."""
    found, count = list(_missing(store)), 0
    known = {run.folder.name for run in store.runs()}
    for run in store.zoo():
        with contextlib.suppress(SmallAlignError):
            known.add(run.id)
    for file in _walk(store.root):
        part = file.relative_to(store.root)
        if part.parts[0] == "exports" and part.parts[1] not in known:  # of a deleted run: a stale file
            continue
        try:
            count += _is_whole(file, part)
        except Refused as error:  # written by a newer version: not to be removed
            found.append(Damage(part, str(error)))
        except DAMAGED as error:
            again = part.parts[0] in MADE_AGAIN
            why = str(error) if type(error) is ValueError else "it is damaged"
            text = f"{why}: {'`doctor --fix` removes it, and it is rebuilt' if again else 'see its run'}"
            found.append(Damage(part, text, _removed(file) if again else ()))
    return count, found


def _walk(root: Path) -> Iterator[Path]:
    """Every data file of a store; other files in its folder are ignored."""
    yield from (file for file in root.glob("*.jsonl") if file.is_file() or file.is_dir())
    for name in FOLDERS:
        for folder, _, names in os.walk(root / name):
            inside = Path(folder).relative_to(root).parts
            if not any(part.startswith(".") or part.endswith(".part") for part in inside):
                yield from (Path(folder) / one for one in names if not one.startswith(".") and _holds_data(one))


def _holds_data(name: str) -> bool:
    return name not in MARKERS and not name.endswith((".lock", ".log", ".part"))


def _missing(store: Store) -> Iterator[Damage]:
    """Required files that are missing."""
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
                text = "`doctor --fix` removes it, and it is rebuilt" if again else "delete the folder"
                yield Damage(folder.relative_to(root), f"{name} is missing: {text}", (folder,) if again else ())
    looks = root / "test-looks.jsonl"
    if not looks.exists() and any((run.folder / "events.jsonl").exists() and run.finished for run in store.runs()):
        yield Damage(looks.relative_to(root), "it is missing: the count of test-set evaluations is lost")


def _is_whole(file: Path, part: Path) -> bool:
    """Whether a file can be checked; raises if it is damaged."""
    if file.stat().st_size == 0:
        raise ValueError("it is empty")
    check = _check_of(file, part)
    if check is None:
        return False
    if (wrong := check(file)) is not None:
        raise ValueError(wrong or "it is damaged")
    return True


def _check_of(file: Path, part: Path) -> Callable[[Path], str | None] | None:
    """The check for a file, by folder and name. A check returns what is wrong, or None."""
    places: dict[tuple[str, str], Callable[[Path], str | None]] = {
        ("uploads", ".zip"): _named_by_digest,
        ("weights", ".safetensors"): _named_by_digest,
        ("policies", ".yaml"): _policy,
        ("studies", ".npy"): _array,
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
        return lambda file: None if file.with_suffix(".json").is_file() else "its description is missing"
    return places.get((part.parts[0], file.suffix)) or kinds.get(file.suffix)


def _json(file: Path) -> str | None:
    told = read_json(file)
    for name, kept in _files_named(file, told).items():
        if sha256(file.parent / name) != kept:
            return f"{name} is damaged or missing"
    return None if is_exact(file) else ""


def _lines(file: Path) -> str | None:
    damaged = read_lines(file)[1]
    return f"{damaged} damaged lines were skipped" if damaged else None


def _sealed(file: Path) -> str | None:
    from smallalign_core.training.teacher import intact

    return None if intact(file) else ""


def _graph(file: Path) -> str | None:
    from smallalign_core.export import checksum_matches

    return None if checksum_matches(file.read_bytes()) else ""


def _array(file: Path) -> str | None:
    return "" if read_array(file) is None else None


def _in_facts(_: Path) -> str | None:
    return None  # its digest is in facts.json, which is read too


def _about(file: Path) -> str | None:
    """The plan of a teacher cache, which its folder is named after."""
    text = file.read_text()
    told = json.loads(text)
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return None if key == file.parent.name and text == json.dumps(told, indent=1) else ""


def _named_by_digest(file: Path) -> str | None:
    return None if file.stem.endswith(sha256(file)[:16]) else "it differs from what was kept: bring it again"


def _policy(file: Path) -> str | None:
    read_policy(file)
    return None


def _in_a_proof(file: Path) -> str | None:
    """Whether a parity report beside it has its digest; a demo is a separate zip."""
    if file.name.startswith("demo"):
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() and "it is damaged"
    proofs = [read_json(proof) for proof in file.parent.glob("parity*.json")]
    if any(file.name in proof.get("files", {}) for proof in proofs):
        return None
    claims = [(proof.get("browser") or {}).get("logits_sha256") for proof in proofs]
    return None if sha256(file) in claims else "no parity report matches it"


def _files_named(file: Path, told: Any) -> dict[str, str]:
    """Files beside a JSON file whose digests it holds: a bundle, decoded images, a teacher's graph."""
    if file.parent.name == "answers":
        return {file.with_suffix(".onnx").name: told["sha256"]}
    named = file.name == "facts.json" or file.name.startswith("parity")
    files = told.get("files") if isinstance(told, dict) and named else None
    return {file: kept[0] if isinstance(kept, list) else kept for file, kept in (files or {}).items()}


def _removed(file: Path) -> tuple[Path, ...]:
    """Files to remove with a damaged one: a bundle, decoded images or a teacher cache are one unit."""
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
    """Whether a lock file in the cache of decoded images is a leftover of older versions."""
    return bool(re.fullmatch("[0-9a-f]{16}", lock.stem)) and not is_held(lock)
