"""Datasets: from a name, a folder, a zip, a table or IDX files to train, validation and test images.

Everything is decoded once into `.npy` files below a cache folder and read from there: into RAM, or memory-mapped above
`RAM_BUDGET`. So runs and dashboard share one copy, and a second start decodes nothing. Nothing here imports torch,
except for the datasets that torchvision downloads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from smallalign_core.data import _moved, _order, _progress, _python, _unlabeled
from smallalign_core.data._decisions import (
    Decision as Decision,
    Decisions as Decisions,
    decided as decided,
    read_decisions as read_decisions,
)
from smallalign_core.data._decode import DISK_FULL, decode_one as decode_one
from smallalign_core.data._division import divide
from smallalign_core.data._files import IMAGE_ENDINGS as IMAGE_ENDINGS
from smallalign_core.data._moved import found_at as found_at
from smallalign_core.data._names import in_order as in_order, natural as natural
from smallalign_core.data._progress import watching as watching
from smallalign_core.data._readers import (
    NAMED as NAMED,
    absolute as absolute,
    files_of,
    path_of as path_of,
    read_as_before,
    reader,
)
from smallalign_core.data._sets import ImageSet as ImageSet, MappedRows, Splits as Splits, statistics as statistics
from smallalign_core.data._zips import check_upload as check_upload
from smallalign_core.errors import BadData, BadModel, Refused
from smallalign_core.spec import Columns, DataSpec
from smallalign_core.spec.parts import REST
from smallalign_core.system.files import read_json, write_json

RAM_BUDGET = 256 * 1024**2
"""Image arrays above this many bytes are memory-mapped: all processes share one copy, and a start reads nothing."""

FORMAT, OLD_FORMAT = 5, 3
"""Part of every cache key; raised when decoding changes. The other one: as it was before 2026-12."""

DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, BadModel)
"""What reading a damaged cache raises: NumPy's and JSON's own errors are ValueErrors."""


def load(spec: DataSpec, cache: Path, *, ram_budget: int = RAM_BUDGET) -> Splits:
    """The train, validation and test images that `spec` names, decoded once below `cache`.

    Args:
        ram_budget: arrays of more bytes than this stay on the disk, and only requested rows are read.

    Raises:
        BadData: the source is unknown, unreadable, has no classes or only one, or does not match its fingerprint.
            Missing images are searched in the place of `found_at`, or where they were found before.
    """
    if spec.fingerprint is None:
        return _with_unlabeled(_load(spec, cache, ram_budget), spec, cache, ram_budget)
    errors: list[BadData] = []
    for place in _moved.places(spec.source, spec.fingerprint, cache):
        try:
            splits = _load(spec.model_copy(update={"source": place}), cache, ram_budget)
        except BadData as error:
            errors.append(error)
            continue
        place = place if place == spec.source else absolute(place)
        splits = _with_unlabeled(splits, spec, cache, ram_budget, place)
        if place == spec.source:
            return splits
        _moved.remember(place, spec.fingerprint, cache)
        return replace(splits, notes=(*splits.notes, _moved.note(place, spec.source)))
    do = f"{errors[0].do}; or name where the images are now with --data"
    raise BadData(errors[0].wrong, given=errors[0].given, do=do, details=errors[0].details)


def _load(spec: DataSpec, cache: Path, ram_budget: int) -> Splits:
    """The images in `spec.source`, of the fingerprint that `spec` has."""
    spec = spec if spec.unlabeled == REST else spec.labeled()
    try:
        facts, stored = _stored(spec, cache, ram_budget)
    except BadData:
        if spec.fingerprint is None or spec.skip_unreadable:
            raise
        with contextlib.suppress(BadData):  # rows without an image were once left out however many
            return _load(spec.model_copy(update={"skip_unreadable": True}), cache, ram_budget)
        raise
    # A run whose table is gone may find its images in folders; whoever writes a new spec expects columns to be read.
    if spec.fingerprint is None and spec.columns != Columns() and not facts["columns"]:
        raise BadData(
            "`data.columns` names columns, and the source is no table of labels",
            given=spec.source,
            do="leave data.columns out, or name the table",
        )
    if spec.fingerprint is None and spec.levels > 1 and facts["reader"] != "folders":
        raise BadData(
            "`data.levels` counts class folders, and the labels of these images come from no folders",
            given=f"{spec.source}, levels {spec.levels}",
            do="leave data.levels out, or name a folder of class folders",
        )
    splits = None
    with contextlib.suppress(BadData) if spec.fingerprint and facts["changed"] else contextlib.nullcontext():
        apart = divide if spec.has_labels else _unlabeled.alone
        splits = apart(_order.shown(stored, facts), spec, facts)
    if spec.fingerprint and (splits is None or splits.fingerprint != spec.fingerprint):
        before = _as_before(spec, cache, ram_budget, facts, stored)
        if before is not None:
            return before
        found = "no such images" if splits is None else f"fingerprint {splits.fingerprint}"
        raise BadData(
            "the images do not match the fingerprint of the run",
            given=f"{spec.source}: {found}, expected {spec.fingerprint}",
            do="restore the images, or submit the spec again as a new run",
        )
    assert splits is not None
    return splits


def _with_unlabeled(splits: Splits, spec: DataSpec, cache: Path, ram_budget: int, place: str | None = None) -> Splits:
    """`splits` with the unlabeled images that `spec` names, of the fingerprint that it has.

    Args:
        place: where the labeled images were found.

    Raises:
        BadData: as `load`.
    """
    if spec.unlabeled is None or not spec.has_labels:
        return splits
    known, errors = spec.unlabeled_fingerprint, list[BadData]()
    folders = _moved.beside(spec.unlabeled, known, spec.source, place, cache) if known and place else [spec.unlabeled]
    for folder in folders:
        try:
            found = _beside(splits, spec.model_copy(update={"unlabeled": folder}), cache, ram_budget)
        except BadData as error:
            errors.append(error)
            continue
        if folder == spec.unlabeled or known is None:
            return found
        _moved.remember(folder, known, cache)
        return replace(found, notes=(*found.notes, _moved.note(folder, spec.unlabeled)))
    raise errors[0]


def _beside(splits: Splits, spec: DataSpec, cache: Path, ram_budget: int) -> Splits:
    """`splits` with the images in `spec.unlabeled`, of the fingerprint that `spec` has."""
    if spec.unlabeled != REST:
        facts, stored = _stored(_unlabeled.question(spec, splits), cache, ram_budget)
        splits = _unlabeled.beside(replace(splits, notes=(*splits.notes, *facts["notes"])), stored["train"], spec)
    assert splits.unlabeled is not None
    if spec.unlabeled_fingerprint not in (None, splits.unlabeled.fingerprint):
        found = splits.unlabeled.fingerprint
        raise BadData(
            "the unlabeled images do not match the fingerprint of the run",
            given=f"{spec.unlabeled}: fingerprint {found}, expected {spec.unlabeled_fingerprint}",
            do="restore the images, or submit the spec again as a new run",
        )
    return splits


def everything(spec: DataSpec, cache: Path) -> tuple[ImageSet, tuple[str, ...]]:
    """(all images that `spec` names as one set, notes), however few of each class there are: nothing is held out.

    Raises:
        BadData: as `load`, but for too few images.
    """
    facts, stored = _stored(spec, cache, RAM_BUDGET)
    parts = list(_order.shown(stored, facts).values())
    whole = parts[0]
    if len(parts) > 1:
        images = np.concatenate([np.asarray(part.images[:]) for part in parts])
        labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "ids"))
        held = [part.paths for part in parts if part.paths is not None]
        paths = np.concatenate(held) if len(held) == len(parts) else None
        whole = ImageSet(images, labels, ids, whole.classes, None, paths)
    return whole, facts["notes"]


def brings_test(spec: DataSpec, cache: Path) -> bool:
    """Whether the source has test images of its own."""
    return "test" in _stored(spec, cache, RAM_BUDGET)[1]


def decoding(spec: DataSpec, cache: Path) -> tuple[int, int] | None:
    """(images done, images in all) while any process decodes what `spec` names; None where none does."""
    return _progress.read(cache / f"{_cache_key(spec)}.progress")


def fingerprints(specs: Sequence[DataSpec], cache: Path) -> list[str]:
    """Of the splits that each of `specs` names, which differ in draws only: their files are opened and checked once.

    Raises:
        BadData: as `load`.
    """
    if not specs:
        return []
    facts, stored = _stored(specs[0], cache, RAM_BUDGET)
    stored = _order.shown(stored, facts)
    return [divide(stored, spec, facts).fingerprint for spec in specs]


def is_prepared(spec: DataSpec, cache: Path) -> bool:
    """Whether `load` would decode nothing."""
    return (cache / _cache_key(spec) / "facts.json").is_file()


# --- the cache of decoded images --------------------------------------------------------------------------------------


def _as_before(
    spec: DataSpec, cache: Path, ram_budget: int, facts: dict[str, Any], stored: dict[str, ImageSet]
) -> Splits | None:
    """The images as an earlier version read them, if those are the ones that `spec` remembers: with classes in the
    order of words, then by the rules before 2026-12."""
    for old in (False, True) if facts["changed"] else (False,):
        with contextlib.suppress(BadData):
            if old:
                facts, stored = _stored(spec, cache, ram_budget, old=True)
            splits = divide(stored, spec, facts)
            if splits.fingerprint == spec.fingerprint:
                return splits
    return None


def _prepared(spec: DataSpec, cache: Path, old: bool = False) -> Path:
    """The folder with the decoded images of `spec.source`; made now if it is not there."""
    folder = cache / _cache_key(spec, old)
    if (folder / "facts.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_of(folder)):
        if (folder / "facts.json").is_file():
            return folder
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            with _progress.noted(cache / f"{folder.name}.progress"):
                alone = spec.unlabeled == spec.source
                read = _unlabeled.without_labels if alone else read_as_before if old else reader(spec)
                decoded = read(spec, part)
            for name, (images, labels, ids) in decoded.parts.items():
                np.save(part / f"{name}.labels.npy", labels)
                np.save(part / f"{name}.source_ids.npy", ids)
                if not (part / f"{name}.images.npy").exists():
                    np.save(part / f"{name}.images.npy", images)
                if name in decoded.sizes:
                    np.save(part / f"{name}.sizes.npy", decoded.sizes[name])
                if name in decoded.paths:
                    np.save(part / f"{name}.paths.npy", decoded.paths[name])
            facts = {
                "files": {file.name: [_digest(file), file.stat().st_mtime_ns] for file in part.glob("*.npy")},
                "classes": decoded.classes,
                "parts": list(decoded.parts),
                "notes": decoded.notes,
                "unreadable": list(decoded.unreadable),
                "reasons": list(decoded.unreadable.values()),
                "changed": decoded.changed,
                "reader": decoded.reader,
                "columns": decoded.columns,
                "names": decoded.names,
                "order": decoded.order,
            }
            write_json(part / "facts.json", facts)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            if error.errno in DISK_FULL or "requested and" in str(error):  # numpy's words for it
                raise Refused("the disk is full", given=cache, do="free some space, then resume") from None
            raise BadData(
                f"the dataset could not be read or kept ({error.strerror or type(error).__name__})",
                given=f"{spec.source}, {error.filename or cache}",
                do="check the path, its permissions and the disk space",
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def lock_of(folder: Path) -> Path:
    """What is held while the images of `folder` are decoded. Several folders share one: refused datasets, which leave
    no folder behind, leave at most 256 of these."""
    return folder.with_name(f"{folder.name[:2]}.lock")


def _open(folder: Path, ram_budget: int) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """(what was noted while decoding, the decoded splits).

    Raises:
        DAMAGED: a file is missing, cut short or no such file.
    """
    facts: dict[str, Any] = read_json(folder / "facts.json")
    for name, (digest, changed) in facts["files"].items():
        file, stat = folder / name, (folder / name).stat()
        # What is too large for memory is read in parts, when they are needed: whole only now, and if it was touched.
        if (stat.st_size <= ram_budget or stat.st_mtime_ns != changed) and _digest(file) != digest:
            raise ValueError
    lists = ("classes", "parts", "notes", "unreadable", "reasons", "names", "order")
    plain = {name: facts[name] for name in ("changed", "reader", "columns")}
    facts = {name: tuple(facts[name]) for name in lists} | plain
    classes = facts["classes"]
    return facts, {name: _open_part(folder, name, classes, ram_budget) for name in facts["parts"]}


def _stored(
    spec: DataSpec, cache: Path, ram_budget: int, old: bool = False
) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """What `_open` gives, decoded before and repaired if need be."""
    folder = _prepared(spec, cache, old)
    try:
        return _open(folder, ram_budget)
    except DAMAGED:
        return _repaired(spec, cache, ram_budget, old)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open_part(folder: Path, name: str, classes: tuple[str, ...], ram_budget: int) -> ImageSet:
    file, labels = folder / f"{name}.images.npy", np.load(folder / f"{name}.labels.npy")
    ids, count = np.load(folder / f"{name}.source_ids.npy"), len(labels)
    sizes, paths = (
        np.load(folder / f"{name}.{what}.npy") if (folder / f"{name}.{what}.npy").exists() else None
        for what in ("sizes", "paths")
    )
    mapped = file.stat().st_size > ram_budget
    images = np.load(file, mmap_mode="r" if mapped else None)
    if len(images) < count or len(ids) != count or images.ndim != 4:
        raise ValueError
    if any(one is not None and len(one) != count for one in (sizes, paths)):
        raise ValueError
    # there may be rows to spare at the end: of files that turned out to be unreadable
    rows = MappedRows(np.asarray(images), np.arange(count)) if mapped else images[:count]
    return ImageSet(rows, labels, ids, classes, sizes, paths)


def _repaired(spec: DataSpec, cache: Path, ram_budget: int, old: bool) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """What `_open` gives after the damaged cache was removed and the source decoded again, once."""
    folder = cache / _cache_key(spec, old)
    with FileLock(lock_of(folder)):
        try:
            return _open(folder, ram_budget)  # another process was first
        except DAMAGED:
            shutil.rmtree(folder, ignore_errors=True)
    folder = _prepared(spec, cache, old)
    try:
        return _open(folder, ram_budget)
    except DAMAGED as error:
        raise BadData(
            f"the decoded images cannot be read back ({type(error).__name__})", given=folder, do="check the disk"
        ) from None


def _cache_key(spec: DataSpec, old: bool = False) -> str:
    """Changes whenever the source's files do (by path, size and modification time), or how they are decoded."""
    facts: list[Any] = [
        OLD_FORMAT if old else FORMAT,
        spec.source,
        spec.size,
        *(["skip"] if spec.skip_unreadable else []),
    ]
    facts += [] if spec.levels == 1 else [f"levels {spec.levels}"]
    facts += [spec.columns.model_dump()] if spec.columns != Columns() else []
    facts += ["unlabeled"] if spec.unlabeled == spec.source else []
    facts += [_python.digest(spec.reader), spec.reader.call, spec.reader.arguments] if spec.reader else []
    text = hashlib.sha256(json.dumps(facts).encode())
    if (place := absolute(spec.source)) != spec.source or Path(place).is_absolute():
        text.update(place.encode(errors="surrogateescape"))
        with contextlib.suppress(OSError):  # gone since it was listed, or not ours to read: the reader will say so
            files, left = files_of(spec.source, old)
            text.update(json.dumps(left).encode() if left else b"")
            for file in files:
                stat = file.stat()
                text.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return text.hexdigest()[:16]
