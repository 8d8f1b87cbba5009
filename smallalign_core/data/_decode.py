"""From image files to arrays: unreadable files, resizing to one size, and the arrays on disk."""

from __future__ import annotations

import errno
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _guarded, _pixels, _progress
from smallalign_core.data._files import Entry
from smallalign_core.data._pixels import EXTRAS, Range, source_id
from smallalign_core.errors import BadData, SmallAlignError, WorkFailed
from smallalign_core.spec import DataSpec

MAX_UNREADABLE = 0.01
MAX_SIDE = 224  # photographs are scaled to this unless `data.size` is set
MAPPED = 64 * 1024**2  # bytes of decoded images that are mapped while they are written
DISK_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}

Entries = dict[str, list[tuple[Entry, int]]]
"""Image files and their labels, by split."""


@dataclass(frozen=True)
class Decoded:
    """What a reader hands over.

    Attributes:
        parts: images, labels and source ids of the splits that the source itself brings; `train` always.
        unreadable: files that were left out, and why.
        sizes: (height, width) of each image of a split before it was scaled, int32 [N, 2], where they may differ.
        paths: the file of each image of a split, below the source, in UTF-8.
        changed: whether it was read in a way that was unknown before 2026-12.
        reader: what understood the source: `arrays`, `folders`, `table` or `parquet`.
        columns: those of the table or Parquet file that hold paths, labels and splits.
        names: the classes as they are shown, in the order of their labels; empty where that is `classes`.
        order: the position in `names` of each of `classes`.
    """

    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    paths: dict[str, NDArray[np.bytes_]] = field(default_factory=dict)
    changed: bool = False
    reader: str = "arrays"
    columns: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()


def source_ids(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """`source_id` of each of the images [N, C, H, W]."""
    plain = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    return np.fromiter((source_id(image) for image in plain), np.uint64, len(images))


@dataclass
class _Looked:
    """What the headers say: no pixel is decoded, but those of deep images for their range."""

    readable: Entries
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    colour: bool = False
    deep: Range | None = None
    deep_count: int = 0


def decode(entries: Entries, classes: tuple[str, ...], spec: DataSpec, into: Path, *, old: bool = False) -> Decoded:
    """Decode image files straight into memory-mapped arrays; unreadable ones are named, and refused above 1%.

    Args:
        old: as before 2026-12, for runs of that time.
    """
    unreadable: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    total = sum(len(files) for files in entries.values())
    looked = _look(entries, unreadable, extras, old, spec)
    if not looked.sizes:  # where some can be read, all are tried first: one round names all that cannot
        _refuse_unreadable(unreadable, total, spec)
        _refuse_lost(entries, {}, classes, unreadable)
    side, notes = _side(looked.sizes, spec.size)
    width, height = (side, side) if side else next(iter(looked.sizes))
    parts, originals, paths, done = {}, {}, {}, len(unreadable)
    for part, files in looked.readable.items():
        if not files:
            continue
        file = into / f"{part}.images.npy"
        array = _reserved(file, (len(files), 3 if looked.colour else 1, height, width))
        afresh = max(1, MAPPED // array[0].nbytes)
        labels: list[int] = []
        ids: list[int] = []
        before: list[tuple[int, int]] = []
        names: list[bytes] = []
        deep = looked.deep and (looked.deep.low, looked.deep.high, looked.deep.whole)
        arguments = ([entry.file, looked.colour, (width, height), deep, old] for entry, _ in files)
        for (entry, label), made in zip(files, _guarded.each(_pixels.outcome_of, arguments), strict=True):
            done += 1
            _progress.advanced(done, total)
            if (found := _found(made, entry, unreadable, total, spec)) is None:
                continue
            array[len(ids)], image, original, special = found
            if len(ids) % afresh == afresh - 1:  # a new mapping: the pages of the old one leave this process
                array = np.lib.format.open_memmap(file, mode="r+")
            _add(extras, special, entry)
            labels.append(label)
            ids.append(image)
            before.append(original)
            names.append(entry.name.encode(errors="replace"))
        parts[part] = (array[: len(ids)], np.array(labels, np.int64), np.array(ids, np.uint64))
        originals[part], paths[part] = np.array(before, np.int32).reshape(-1, 2), np.array(names, np.bytes_)
    _refuse_unreadable(unreadable, total, spec)
    _refuse_lost(entries, parts, classes, unreadable)
    if looked.deep is not None:
        notes.append(f"{_images(looked.deep_count)} grey of more than 8 bits and {looked.deep.words}.")
    for what, named in extras.items():
        notes.append(f"{_images(len(named))} {EXTRAS[what]} ({_some(named)}).")
    if unreadable:
        told = [f"{name} ({reason})" for name, reason in unreadable.items()]
        notes.append(f"{len(unreadable)} of {total} files could not be read and were left out: {_some(told)}.")
    held = {part: found for part, found in parts.items() if len(found[1])}
    changed = bool(extras or looked.deep)
    return Decoded(held, classes, tuple(notes), unreadable, originals, paths, changed)


def _look(
    entries: Entries, unreadable: dict[str, str], extras: dict[str, list[str]], old: bool, spec: DataSpec
) -> _Looked:
    looked, total = _Looked({part: [] for part in entries}), sum(len(files) for files in entries.values())
    for part, files in entries.items():
        seen = _guarded.each(_pixels.outcome_of_header, ([entry.file, entry.ending, old] for entry, _ in files))
        for (entry, label), made in zip(files, seen, strict=True):
            if (found := _found(made, entry, unreadable, total, spec)) is None:
                continue
            size, grey, special, *deep = found
            if deep:
                looked.deep = Range(*deep).joined(looked.deep)
                looked.deep_count += 1
            _add(extras, special, entry)
            looked.sizes[size] += 1
            looked.colour = looked.colour or not grey
            looked.readable[part].append((entry, label))
    return looked


def _found(
    made: _guarded.Outcome[Any], entry: Entry, unreadable: dict[str, str], total: int, spec: DataSpec
) -> tuple[Any, ...] | None:
    """What was read of one file; None where the reason why it was not is in `unreadable` now."""
    try:
        reason, *found = made.get()
    except _guarded.OverLimit as error:
        unreadable[entry.name] = f"{error.wrong} ({error.given})"
        _refuse_unreadable(unreadable, total, spec)  # each takes seconds: not all of them before it is refused
        return None
    except SmallAlignError as error:
        reason, found = error.wrong, []
    except (OSError, RuntimeError) as error:  # it is not there, or its links lead in a circle
        reason, found = _pixels.why(error, entry.file), []
    if reason:
        unreadable[entry.name] = reason
        return None
    return tuple(found)


def _add(extras: dict[str, list[str]], found: Sequence[str], entry: Entry) -> None:
    for what in found:
        named = extras.setdefault(what, [])
        if not named or named[-1] != entry.name:  # header and pixels may say the same
            named.append(entry.name)


def _images(count: int) -> str:
    return f"{count:,} image{' has' if count == 1 else 's have'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _side(sizes: Counter[tuple[int, int]], wanted: int | None) -> tuple[int | None, list[str]]:
    """(the side of the squares that all images become, what to say about it); None keeps the one size there is."""
    shorts = sorted(min(size) for size in sizes.elements())
    if not wanted and len(sizes) == 1 and shorts[0] <= MAX_SIDE:
        return None, []
    side = wanted or max(8, min(MAX_SIDE, shorts[len(shorts) // 2]))
    cut = _cut(sizes)
    if wanted:
        return side, [f"Each image was cut to a square about its centre: {cut}."] if cut else []
    width, height = next(iter(sizes))
    what = f"come in {len(sizes)} sizes" if len(sizes) > 1 else f"have {width} x {height} pixels"
    return side, [
        f"The images {what}: each was scaled to {side} pixels on its shorter side and cut to a square about its centre "
        f"(`data.size` sets another){f': {cut}' if cut else ''}."
    ]


def _cut(sizes: Counter[tuple[int, int]]) -> str:
    """How much of the images a square about their centre leaves out, in words; empty where nothing is."""
    lost = sorted(1 - min(size) / max(size) for size in sizes.elements())
    if not lost or lost[-1] == 0:
        return ""
    return f"the median image loses {statistics.median(lost):.0%} of its area, the longest {lost[-1]:.0%}"


def _refuse_unreadable(unreadable: dict[str, str], total: int, spec: DataSpec) -> None:
    if unreadable and len(unreadable) > MAX_UNREADABLE * total and not spec.skip_unreadable:
        raise BadData(
            f"{len(unreadable)} of {total} images cannot be read (more than {MAX_UNREADABLE:.0%})",
            given=_some([f"{name}: {reason}" for name, reason in unreadable.items()]),
            do="repair or remove them, or leave them out with `data.skip_unreadable` (--set skip_unreadable=true); "
            "--json lists all",
            details={"unreadable": [{"path": name, "reason": reason} for name, reason in unreadable.items()]},
        )


def _refuse_lost(
    entries: Entries,
    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]],
    classes: tuple[str, ...],
    unreadable: dict[str, str],
) -> None:
    lost = [
        f"{classes[label]} in {part}/"
        for part, files in entries.items()
        for label in sorted({label for _, label in files} - set(parts[part][1].tolist() if part in parts else ()))
    ]
    if lost:
        raise BadData(
            "a class would be lost: none of its images can be read",
            given=f"{', '.join(lost[:5])}; {_some([f'{name}: {reason}' for name, reason in unreadable.items()])}",
            do="repair them, or take the class out",
            details={"unreadable": [{"path": name, "reason": reason} for name, reason in unreadable.items()]},
        )


def _reserved(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A new memory-mapped array with all blocks of its file allocated.

    A sparse file would find the disk full only when a page is written back, and then the process is killed (SIGBUS).

    Raises:
        OSError: the disk has no room for it.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        if not _allocated(stream.fileno(), stream.tell(), math.prod(shape)):
            for start in range(0, math.prod(shape), 1 << 20):
                stream.write(bytes(min(1 << 20, math.prod(shape) - start)))
    return np.lib.format.open_memmap(file, mode="r+")


def _allocated(descriptor: int, start: int, size: int) -> bool:
    """Whether the system could reserve these bytes; False where it or the file system cannot do so."""
    try:
        os.posix_fallocate(descriptor, start, size)
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False
    return True


def decode_one(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One image file's content as uint8 of `shape` [C, H, W], scaled and cut as the images of a folder are.

    Raises:
        BadData: it is no image, or has too many pixels. Its header is looked at before anything is decoded.
    """
    channels, height, width = shape
    try:
        return _guarded.call(_pixels.of_content, content, channels == 3, (width, height))
    except (BadData, WorkFailed):
        raise
    except Exception:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
        raise BadData(
            "the file is not an image that can be read",
            given=f"{len(content):,} bytes",
            do="use PNG, JPEG, WebP, TIFF or HEIC",
        ) from None
