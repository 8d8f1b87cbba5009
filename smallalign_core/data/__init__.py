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
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from smallalign_core.data._readers import NAMED as NAMED
from smallalign_core.data._readers import Decoded, reader, walk
from smallalign_core.data._sets import ImageSet as ImageSet
from smallalign_core.data._sets import MappedRows
from smallalign_core.data._sets import Splits as Splits
from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec

RAM_BUDGET = 2 * 1024**3
"""Image arrays above this many bytes are memory-mapped instead of read into RAM."""

FORMAT = 1
"""Part of every cache key; raised when decoding changes."""


def load(spec: DataSpec, cache: Path, *, ram_budget: int = RAM_BUDGET) -> Splits:
    """The train, validation and test images that `spec` names, decoded once below `cache`.

    Args:
        ram_budget: arrays of more bytes than this stay on the disk, and only the rows that are asked for are read.

    Raises:
        BadData: the source is unknown, unreadable, has no classes or only one, or does not match its fingerprint.
    """
    folder = _prepared(spec, cache)
    facts = json.loads((folder / "facts.json").read_text())
    classes = tuple(facts["classes"])
    stored = {name: _open_part(folder, name, classes, ram_budget) for name in facts["parts"]}
    splits = _divide(stored, spec, tuple(facts["notes"]), tuple(facts["unreadable"]))
    if spec.fingerprint and splits.fingerprint != spec.fingerprint:
        raise BadData(
            "the images are not those that this run was made for",
            given=f"{spec.source}: fingerprint {splits.fingerprint}, expected {spec.fingerprint}",
            do="restore the images, or submit the spec again as a new run",
        )
    return splits


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
    with FileLock(str(folder) + ".lock"):
        if (folder / "facts.json").is_file():
            return folder
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            decoded = reader(spec.source)(spec, part)
            _check(decoded, spec.source)
            for name, (images, labels) in decoded.parts.items():
                np.save(part / f"{name}.labels.npy", labels)
                np.save(part / f"{name}.ids.npy", _hashes(images))
                if not (part / f"{name}.images.npy").exists():
                    np.save(part / f"{name}.images.npy", images)
            facts = {
                "classes": decoded.classes,
                "parts": list(decoded.parts),
                "notes": decoded.notes,
                "unreadable": decoded.unreadable,
            }
            (part / "facts.json").write_text(json.dumps(facts))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as error:
            raise BadData(
                f"the dataset could not be read or kept ({error.strerror or type(error).__name__})",
                given=f"{spec.source}, {error.filename or cache}",
                do="check the path, its rights and the room on the disk",
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _open_part(folder: Path, name: str, classes: tuple[str, ...], ram_budget: int) -> ImageSet:
    images, labels = folder / f"{name}.images.npy", np.load(folder / f"{name}.labels.npy")
    mapped = images.stat().st_size > ram_budget
    return ImageSet(
        MappedRows(np.load(images, mmap_mode="r"), np.arange(len(labels))) if mapped else np.load(images),
        labels,
        np.load(folder / f"{name}.ids.npy"),
        classes,
    )


def _cache_key(spec: DataSpec) -> str:
    """Changes whenever the source's files do (by path, size and modification time), or how they are decoded."""
    text = hashlib.sha256(json.dumps([FORMAT, spec.source, spec.size]).encode())
    if spec.source not in NAMED:
        path = Path(spec.source).expanduser()
        text.update(str(path.resolve()).encode())
        for file in [path] if path.is_file() else walk(path):
            with contextlib.suppress(OSError):  # gone since it was listed: the reader will say so if it matters
                stat = file.stat()
                text.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return text.hexdigest()[:16]


def _hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), np.uint64)


def _check(decoded: Decoded, source: str) -> None:
    if len(decoded.classes) < 2:
        raise BadData(
            "a classifier needs at least two classes",
            given=f"{source} has {', '.join(decoded.classes) or 'none'}",
            do="put the images into one sub-folder per class",
        )
    labels = decoded.parts["train"][1]
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
        train, test = _hold_out(train, spec.test, salt=b"test")
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
            _, train = _hold_out(train, spec.images / len(train), salt=b"images", count=spec.images)
    return Splits(train, val, test, tuple(said), unreadable)


def _hold_out(images: ImageSet, share: float, *, salt: bytes, count: int | None = None) -> tuple[ImageSet, ImageSet]:
    """(the rest, the held-out part): stratified, and by content instead of by position.

    Within a class, images are ordered by a hash of their pixels and the first `share` is held out. So the division
    does not depend on file order, and equal images stay on the same side (no leak through exact duplicates).
    """
    key = np.frombuffer(hashlib.blake2b(salt, digest_size=8).digest(), np.uint64)[0]
    order_by = _mix(images.ids ^ key)
    held = np.zeros(len(images), bool)
    wanted = _apportion(np.bincount(images.labels, minlength=len(images.classes)), share, count)
    for label, take in enumerate(wanted):
        rows = np.flatnonzero(images.labels == label)
        rows = rows[np.argsort(order_by[rows], kind="stable")]
        if count is None:  # do not cut through a group of equal images
            while 0 < take < len(rows) - 1 and images.ids[rows[take]] == images.ids[rows[take - 1]]:
                take += 1
        held[rows[:take]] = True
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def _apportion(sizes: NDArray[np.int64], share: float, count: int | None) -> list[int]:
    """How many of each class to hold out: at least one, never all; exactly `count` in total if that is given."""
    exact = sizes * share
    take = np.clip(np.round(exact), 1, np.maximum(sizes - (count is None), 1)).astype(int)
    while count is not None and take.sum() != count:  # the largest rounding error gives way
        step = 1 if take.sum() < count else -1
        room = (take < sizes) if step > 0 else (take > 1)
        take[np.argmax(np.where(room, step * (exact - take), -np.inf))] += step
    return [int(number) for number in take]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al., 2014): a bijection that scatters neighbouring values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
