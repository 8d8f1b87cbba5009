"""The types that hold images: one split, and the three of a dataset."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.spec import DataSpec


class MappedRows:
    """Some rows of a memory-mapped array, read from the disk when they are indexed and not before."""

    def __init__(self, array: NDArray[np.uint8] | Any, rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows
        self.shape = (len(rows), *array.shape[1:])

    def __getitem__(self, key: slice | NDArray[np.int64] | int) -> NDArray[np.uint8]:
        return np.asarray(self._array[self._rows[key]])

    def take(self, rows: NDArray[np.int64]) -> MappedRows:
        """Rows of these rows; still nothing is read."""
        return MappedRows(self._array, self._rows[rows])


class _Joined:
    """Arrays of images one after the other, without a copy."""

    def __init__(self, parts: Sequence[NDArray[np.uint8] | MappedRows]) -> None:
        self._parts, self._ends = parts, np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        whole = np.atleast_1d(rows)
        found = np.empty((len(whole), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self._ends, whole, side="right")
        for place, part in enumerate(self._parts):
            here = np.flatnonzero(which == place)
            if len(here):
                found[here] = part[whole[here] - (self._ends[place] - part.shape[0])]
        return found.reshape(*np.shape(rows), *self.shape[1:])


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size.

    Attributes:
        images: uint8 [N, C, H, W], C is 1 (grey) or 3 (RGB); in RAM, or memory-mapped behind the same indexing.
        labels: int64 [N], positions in `classes`.
        ids: uint64 [N], a hash of each image's source pixels, upright and before any resizing: equal pixels have equal
            ids in any dataset, at any `data.size`.
        classes: the class names.
        sizes: int32 [N, 2], the (height, width) of each image's file; None where all came in one array.
        paths: bytes [N], the file of each image below the source, in UTF-8; None where all came in one array.
    """

    images: NDArray[np.uint8] | MappedRows
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    classes: tuple[str, ...]
    sizes: NDArray[np.int32] | None = None
    paths: NDArray[np.bytes_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def take(self, rows: NDArray[np.int64]) -> ImageSet:
        """The images at `rows`, in that order."""
        images = self.images.take(rows) if isinstance(self.images, MappedRows) else self.images[rows]
        sizes = None if self.sizes is None else self.sizes[rows]
        paths = None if self.paths is None else self.paths[rows]
        return replace(self, images=images, labels=self.labels[rows], ids=self.ids[rows], sizes=sizes, paths=paths)

    def path(self, row: int) -> str | None:
        """The file of one image below the source; None where it has none."""
        return None if self.paths is None else bytes(self.paths[row]).decode(errors="replace")

    def relabelled(self, labels: NDArray[np.int64]) -> ImageSet:
        """The same images with other labels [N]."""
        return replace(self, labels=labels)

    def counts(self) -> dict[str, int]:
        """Images per class, in the order of `classes`; those without a label (-1) count in none."""
        tally = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, tally, strict=True)}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal characters: others for another source pixel, label, class name, order of images or size."""
        text = hashlib.sha256(json.dumps([list(self.classes), list(self.shape)]).encode())
        text.update(np.ascontiguousarray(self.ids).tobytes())
        text.update(np.ascontiguousarray(self.labels).tobytes())
        return text.hexdigest()[:16]


@dataclass(frozen=True)
class Splits:
    """Train, validation and test images of one dataset, and what was done to get them.

    Validation is always held out of train; nothing is ever chosen on test.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """Why each of `unreadable` is."""
    reader: str = "arrays"
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of a table of labels, by what they are for."""
    unlabeled: ImageSet | None = None
    """Images with the label -1, of the shape of the others."""

    def filled(self, spec: DataSpec) -> DataSpec:
        """`spec` with the fingerprints of these images."""
        more = {"unlabeled_fingerprint": self.unlabeled.fingerprint} if self.unlabeled is not None else {}
        return spec.model_copy(update={"fingerprint": self.fingerprint, **more})

    @cached_property
    def learned(self) -> ImageSet:
        """What training steps draw from: the training images, and after them the unlabelled ones. Nothing is copied."""
        if self.unlabeled is None:
            return self.train
        parts = (self.train, self.unlabeled)
        labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "ids"))
        rows = MappedRows(_Joined([part.images for part in parts]), np.arange(len(labels)))
        return ImageSet(rows, labels, ids, self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.shape

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all three splits: what a run's spec remembers of its data."""
        parts = "".join(split.fingerprint for split in (self.train, self.val, self.test))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def statistics(images: ImageSet, sample: int = 10_000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1, over at most `sample` evenly spread images."""
    rows = np.arange(0, len(images), max(1, -(-len(images) // sample)))
    count, (total, squares) = 0, np.zeros((2, images.shape[0]), np.int64)  # whole numbers: exact, whatever the chunks
    chunk = max(1, 2**24 // math.prod(images.shape))  # 16 MB of pixels, whose squares take four times as much
    for start in range(0, len(rows), chunk):
        pixels = np.asarray(images.images[rows[start : start + chunk]])
        count += pixels[:, 0].size
        total += pixels.sum((0, 2, 3), dtype=np.int64)
        squares += np.square(pixels, dtype=np.int32).sum((0, 2, 3), dtype=np.int64)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    return [float(m) for m in mean / 255], [float(max(s, 1e-3)) for s in std]


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al., 2014): a bijection that scatters neighbouring values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
