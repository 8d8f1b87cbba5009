"""Datasets: from a name, a folder, a zip or IDX files to train, validation and test images.

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
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from smallalign_core.data._decisions import (
    Decision as Decision,
    Decisions as Decisions,
    decided as decided,
    read_decisions as read_decisions,
)
from smallalign_core.data._decode import DISK_FULL, Decoded, decode_one as decode_one, walk
from smallalign_core.data._readers import NAMED as NAMED, path_of as path_of, reader
from smallalign_core.data._sets import ImageSet as ImageSet, MappedRows, Splits as Splits, statistics as statistics
from smallalign_core.data._zips import check_upload as check_upload
from smallalign_core.errors import BadData, BadModel, Refused
from smallalign_core.files import read_json, write_json
from smallalign_core.spec import DataSpec

RAM_BUDGET = 2 * 1024**3
"""Image arrays above this many bytes are memory-mapped instead of read into RAM."""

FORMAT = 3
"""Part of every cache key; raised when decoding changes."""

DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, BadModel)
"""What reading a damaged cache raises: NumPy's and JSON's own errors are ValueErrors."""


def load(spec: DataSpec, cache: Path, *, ram_budget: int = RAM_BUDGET) -> Splits:
    """The train, validation and test images that `spec` names, decoded once below `cache`.

    Args:
        ram_budget: arrays of more bytes than this stay on the disk, and only the rows that are asked for are read.

    Raises:
        BadData: the source is unknown, unreadable, has no classes or only one, or does not match its fingerprint.
    """
    facts, stored = _stored(spec, cache, ram_budget)
    splits = _divide(stored, spec, facts["notes"], facts["unreadable"])
    if spec.fingerprint and splits.fingerprint != spec.fingerprint:
        raise BadData(
            "the images are not those that this run was made for",
            given=f"{spec.source}: fingerprint {splits.fingerprint}, expected {spec.fingerprint}",
            do="restore the images, or submit the spec again as a new run",
        )
    return splits


def fingerprints(specs: Sequence[DataSpec], cache: Path) -> list[str]:
    """Of the splits that each of `specs` names, which differ in draws only: their files are opened and checked once.

    Raises:
        BadData: as `load`.
    """
    if not specs:
        return []
    facts, stored = _stored(specs[0], cache, RAM_BUDGET)
    return [_divide(stored, spec, facts["notes"], facts["unreadable"]).fingerprint for spec in specs]


def is_prepared(spec: DataSpec, cache: Path) -> bool:
    """Whether `load` would decode nothing."""
    return (cache / _cache_key(spec) / "facts.json").is_file()


# --- the cache of decoded images --------------------------------------------------------------------------------------


def _prepared(spec: DataSpec, cache: Path) -> Path:
    """The folder with the decoded images of `spec.source`; made now if it is not there."""
    folder = cache / _cache_key(spec)
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
            decoded = reader(spec.source)(spec, part)
            _check(decoded, spec.source)
            for name, (images, labels, ids) in decoded.parts.items():
                np.save(part / f"{name}.labels.npy", labels)
                np.save(part / f"{name}.source_ids.npy", ids)
                if not (part / f"{name}.images.npy").exists():
                    np.save(part / f"{name}.images.npy", images)
                if name in decoded.sizes:
                    np.save(part / f"{name}.sizes.npy", decoded.sizes[name])
            facts = {
                "files": {file.name: [_digest(file), file.stat().st_mtime_ns] for file in part.glob("*.npy")},
                "classes": decoded.classes,
                "parts": list(decoded.parts),
                "notes": decoded.notes,
                "unreadable": decoded.unreadable,
            }
            write_json(part / "facts.json", facts)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            if error.errno in DISK_FULL or "requested and" in str(error):  # numpy's words for it
                raise Refused("the disk is full", given=cache, do="make room, then resume") from None
            raise BadData(
                f"the dataset could not be read or kept ({error.strerror or type(error).__name__})",
                given=f"{spec.source}, {error.filename or cache}",
                do="check the path, its rights and the room on the disk",
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
    facts = {name: tuple(facts[name]) for name in ("classes", "parts", "notes", "unreadable")}
    classes = facts["classes"]
    return facts, {name: _open_part(folder, name, classes, ram_budget) for name in facts["parts"]}


def _stored(spec: DataSpec, cache: Path, ram_budget: int) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """What `_open` gives, decoded before and repaired if need be."""
    folder = _prepared(spec, cache)
    try:
        return _open(folder, ram_budget)
    except DAMAGED:
        return _repaired(spec, cache, ram_budget)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open_part(folder: Path, name: str, classes: tuple[str, ...], ram_budget: int) -> ImageSet:
    file, labels = folder / f"{name}.images.npy", np.load(folder / f"{name}.labels.npy")
    ids, count = np.load(folder / f"{name}.source_ids.npy"), len(labels)
    sizes = np.load(folder / f"{name}.sizes.npy") if (folder / f"{name}.sizes.npy").exists() else None
    mapped = file.stat().st_size > ram_budget
    images = np.load(file, mmap_mode="r" if mapped else None)
    if len(images) < count or len(ids) != count or images.ndim != 4 or (sizes is not None and len(sizes) != count):
        raise ValueError
    # there may be rows to spare at the end: of files that turned out to be unreadable
    rows = MappedRows(images, np.arange(count)) if mapped else images[:count]
    return ImageSet(rows, labels, ids, classes, sizes)


def _repaired(spec: DataSpec, cache: Path, ram_budget: int) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """What `_open` gives after the damaged cache was removed and the source decoded again, once."""
    folder = cache / _cache_key(spec)
    with FileLock(lock_of(folder)):
        try:
            return _open(folder, ram_budget)  # another process was first
        except DAMAGED:
            shutil.rmtree(folder, ignore_errors=True)
    folder = _prepared(spec, cache)
    try:
        return _open(folder, ram_budget)
    except DAMAGED as error:
        raise BadData(
            f"the decoded images cannot be read back ({type(error).__name__})", given=folder, do="check the disk"
        ) from None


def _cache_key(spec: DataSpec) -> str:
    """Changes whenever the source's files do (by path, size and modification time), or how they are decoded."""
    text = hashlib.sha256(json.dumps([FORMAT, spec.source, spec.size]).encode())
    if spec.source not in NAMED:
        path = path_of(spec.source)
        text.update(str(path.resolve()).encode(errors="surrogateescape"))
        with contextlib.suppress(OSError):  # gone since it was listed, or not ours to read: the reader will say so
            for file in [path] if path.is_file() else walk(path):
                stat = file.stat()
                text.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return text.hexdigest()[:16]


def _check(decoded: Decoded, source: str) -> None:
    if len(decoded.classes) < 2:
        raise BadData(
            "a classifier needs at least two classes",
            given=f"{source} has {', '.join(decoded.classes) or 'none'}",
            do="put the images into one sub-folder per class",
        )
    labels = decoded.parts["train"][1] if "train" in decoded.parts else np.empty(0, np.int64)
    lonely = [name for row, name in enumerate(decoded.classes) if (labels == row).sum() < 3]
    if lonely:
        raise BadData(
            f"{len(lonely)} classes have fewer than 3 training images",
            given=", ".join(lonely[:5]),
            do="add images, or remove those classes: one each must go to train, validation and test",
        )


# --- splits -----------------------------------------------------------------------------------------------------------


def _divide(stored: dict[str, ImageSet], spec: DataSpec, notes: tuple[str, ...], unreadable: tuple[str, ...]) -> Splits:
    """Hold out what the source does not bring: test first, then validation; then keep `spec.images` of the rest."""
    train, said = stored["train"], list(notes)
    test, val = stored.get("test"), stored.get("val")
    if test is None:
        train, test = _hold_out(train, spec.test, salt=b"test", leave=2 if val is None else 1)
        said.append(f"The source has no test images: {spec.test:.0%} of each class were held out.")
    if val is None:
        train, val = _hold_out(train, spec.validation, salt=b"validation")
    if spec.images is not None:
        if spec.images > len(train) or spec.images < len(train.classes):
            raise BadData(
                f"`data.images` must lie between {len(train.classes)} (one a class) and {len(train)} (all there are)",
                given=spec.images,
                do="change data.images",
            )
        if spec.images < len(train):
            salt = b"images%d" % spec.draw if spec.draw else b"images"
            _, train = _hold_out(train, spec.images / len(train), salt=salt, count=spec.images)
    if spec.noise:
        train = _mislabelled(train, spec)
        said.append(f"{spec.noise:.0%} of the training labels are wrong on purpose (`noise`).")
    if spec.decisions:
        decisions, before = read_decisions(Path(spec.decisions).expanduser()), len(train) + len(val)
        train, val = decided(train, decisions), decided(val, decisions)
        left_out = before - len(train) - len(val)
        said.append(f"{left_out:,} images are left out, by decisions about {len(decisions.by_image):,} images.")
    return Splits(train, val, test, tuple(said), unreadable)


def _mislabelled(images: ImageSet, spec: DataSpec) -> ImageSet:
    """The same with a share of wrong labels, each other class as likely. By what an image shows and by `draw`, so that
    an image that is mislabelled in a small draw is so in a larger one, and equal images are so alike.
    """
    key = np.frombuffer(hashlib.blake2b(b"noise%d" % spec.draw, digest_size=8).digest(), "<u8")[0]
    chance = _mix(images.ids ^ key)
    wrong = chance / np.float64(2**64) < spec.noise
    others = np.uint64(len(images.classes) - 1)
    shifted = (images.labels + 1 + (_mix(chance) % others).astype(np.int64)) % len(images.classes)
    return images.relabelled(np.where(wrong, shifted, images.labels))


def _hold_out(
    images: ImageSet, share: float, *, salt: bytes, count: int | None = None, leave: int = 1
) -> tuple[ImageSet, ImageSet]:
    """(the rest, the held-out part): stratified, and by what each image shows instead of where it stands.

    Within a class, images are ordered by a hash of their source pixels and the first `share` is held out. So the
    division does not depend on file order or on `data.size`, and a larger share only adds to what a smaller one holds.
    Equal images stay together whatever their labels (no leak through exact duplicates). Where a class would keep fewer
    than `leave` different images, its last are kept. A folder that grows is another dataset, with other splits and
    another fingerprint.

    With `count`, exactly so many are held instead, in proportion to the classes: more are a superset of fewer.

    Raises:
        BadData: a class has too few different images to stand on both sides.
    """
    key = np.frombuffer(hashlib.blake2b(salt, digest_size=8).digest(), "<u8")[0]
    order = _mix(images.ids ^ key)  # a bijection: equal only where the ids are
    if count is not None:
        held = _first(order, images.labels, count)
    else:
        held = np.zeros(len(images), bool)
        classes = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
        for rows in classes:  # equal images go together, whatever their labels
            first = np.sort(order[rows])[: max(1, round(share * len(rows)))]
            held |= np.isin(order, first)
        for rows in classes:
            different = np.unique(order[rows])
            if len(np.unique(order[rows][~held[rows]])) < leave:
                held &= ~np.isin(order, different[-leave:])
        short = [
            name for name, rows in zip(images.classes, classes, strict=True) if held[rows].all() or not held[rows].any()
        ]
        if short:
            raise BadData(
                f"{len(short)} classes have too few different images to hold some out",
                given=", ".join(short[:5]),
                do="add images, or remove equal ones (in other classes too)",
            )
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def _first(order: NDArray[np.uint64], labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which `count` rows come first: one of each class, then by turns in proportion to the classes (Sainte-Laguë)."""
    turn = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(order[rows], kind="stable")]
        turn[rows[1:]] = (np.arange(1, len(rows)) + 0.5) / len(rows)
    chosen = np.zeros(len(labels), bool)
    chosen[np.lexsort((labels, turn))[:count]] = True
    return chosen


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al., 2014): a bijection that scatters neighbouring values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
