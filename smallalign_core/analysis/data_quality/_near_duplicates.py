"""Duplicates: equal pixels, or equal up to noise, compression, brightness or a small shift.

Two images are compared where they overlap after the best shift of at most one pixel, by 1 - correlation: 0 for a copy,
whatever its brightness and contrast. Images of one class can be very alike (two of the digits: 0.0058), so a pair is
near only if it is closer than any two digits are (`STRICT`), or if both images are several times closer to each other
than to everything else (`GAP`, as Lowe's ratio test, 2004): so an island of copies stands out of its class.
Candidate pairs are selected by the magnitudes of low frequencies, which are shift-invariant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.analysis.data_quality import _search
from smallalign_core.analysis.data_quality._report import Duplicates, LabelledPlace, Leak, Place
from smallalign_core.data import ImageSet
from smallalign_core.system.resumable import Work

SIDE = 32
"""Max. side in pixels at which images are compared."""
SHIFT = 1
STRICT, LOOSE, GAP = 0.005, 0.03, 4.0
"""Near below STRICT; up to LOOSE if everything else is GAP times further away."""
FREQUENCIES = 6
LEAST_CANDIDATES, MOST_CANDIDATES, CANDIDATES = 16, 200, 400_000
"""Candidates per image: total for small datasets, and min. and max. per image."""
CHUNK = 1_000
MOST_PAIRS = 5_000
"""Max. pairs of near duplicates in a report."""

WORDS = (
    f"near: 1 - correlation after the best shift of up to {SHIFT} pixel, at most {SIDE} pixels per side, is below "
    f"{STRICT}, or below {LOOSE} and {GAP:g} times smaller than to any other image"
)

MORE = f"there are more near duplicates: only the {MOST_PAIRS:,} closest pairs, and leaks among them, are listed"

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""(one, other, distance) of pairs of rows, one < other."""


def thumbnails(parts: Sequence[ImageSet], side: int = SIDE) -> Work[NDArray[np.uint8]]:
    """The pixels of all images uint8 [N, C, h, w], each block of pixels averaged: no side is above `side`."""
    channels, height, width = parts[0].shape
    by = (-(-height // side), -(-width // side))
    high, wide = height // by[0], width // by[1]
    found, at = np.empty((sum(map(len, parts)), channels, high, wide), np.uint8), 0
    for images in parts:
        for start in range(0, len(images), CHUNK):
            part = np.asarray(images.images[start : start + CHUNK])[:, :, : high * by[0], : wide * by[1]]
            blocks = part.reshape(len(part), channels, high, by[0], wide, by[1])
            found[at : at + len(part)] = blocks.mean((3, 5), dtype=np.float32).round()
            at += len(part)
            yield at / len(found)
    return found


def near_duplicates(pixels: NDArray[np.uint8], ids: NDArray[np.uint64]) -> Work[Pairs]:
    """Pairs of near, not exact, duplicates among images [N, C, h, w]; of equal images the first stands for all."""
    rows = np.sort(np.unique(ids, return_index=True)[1])
    flat = pixels.reshape(len(pixels), -1)
    rows = rows[flat.min(1)[rows] < flat.max(1)[rows]]  # blank images cannot be compared
    nothing = np.empty(0, np.int64)
    if len(rows) < 3:
        return nothing, nothing, np.empty(0)
    candidates = yield from _candidates(pixels, rows)
    one, other = np.divmod(candidates, len(rows))
    sums = np.concatenate([_sums(pixels[rows[at : at + CHUNK]]) for at in range(0, len(rows), CHUNK)])
    distance = np.empty(len(one))
    for start in range(0, len(one), CHUNK):
        part = slice(start, start + CHUNK)
        a, b = one[part], other[part]
        distance[part] = _aligned(pixels[rows[a]], pixels[rows[b]], sums[a], sums[b])
        yield 0.6 + 0.4 * min(1.0, start / len(one))
    accepted = _accepted(one, other, distance, len(rows))
    order = np.flatnonzero(accepted)
    order = order[np.argsort(distance[order], kind="stable")][:MOST_PAIRS]
    return rows[one[order]], rows[other[order]], distance[order]


def _candidates(pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Work[NDArray[np.int64]]:
    """Candidate pairs, as one * len(rows) + other, each once."""
    features = np.concatenate([_spectrum(pixels[rows[at : at + CHUNK]]) for at in range(0, len(rows), CHUNK)])
    wanted = min(len(rows), 1 + min(MOST_CANDIDATES, max(LEAST_CANDIDATES, CANDIDATES // len(rows))))
    found, done = [], 0
    for ones, _, others in _search.nearest(features, features, wanted):
        ones = np.repeat(ones, wanted)
        low, high = np.minimum(ones, others.ravel()), np.maximum(ones, others.ravel())
        found.append((low * len(rows) + high)[low < high])
        done += len(others)
        yield 0.6 * done / len(rows)
    return np.unique(np.concatenate(found))


def _spectrum(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Magnitudes of the low frequencies of images [N, C, h, w] in grey, of length 1: float32 [N, features]."""
    grey = pixels.mean(1, dtype=np.float32)
    grey = grey - grey.mean((1, 2), keepdims=True)
    side = 2 * max(grey.shape[1:])  # padded to twice the size against wrap-around
    found = np.abs(np.fft.rfft2(grey, s=(side, side)))
    cut = min(2 * FREQUENCIES, side // 2)
    low = np.concatenate([found[:, :cut, :cut], found[:, -cut + 1 :, :cut]], axis=1).reshape(len(found), -1)
    return np.asarray(low / np.linalg.norm(low, axis=1, keepdims=True).clip(1e-9), np.float32)


def aligned(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """1 - correlation of pairs of images [N, C, h, w] where they overlap, after the best shift: float64 [N]."""
    return _aligned(left, right, _sums(left), _sums(right))


def _windows(high: int, wide: int) -> list[tuple[slice, slice]]:
    """Where an image overlaps with one that is shifted: those of opposite shifts stand at opposite ends."""
    steps = range(-SHIFT, SHIFT + 1)
    return [
        (slice(max(down, 0), high + min(down, 0)), slice(max(along, 0), wide + min(along, 0)))
        for down in steps
        for along in steps
    ]


def _centred(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images less their means: sums of squares then do not cancel."""
    return pixels - pixels.mean((1, 2, 3), keepdims=True, dtype=np.float32)


def _sums(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Sum, and sum of squares about the mean, in each window of images [N, C, h, w]: float64 [N, 2, windows]."""
    centred = _centred(pixels)
    found = np.empty((len(pixels), 2, (2 * SHIFT + 1) ** 2))
    for place, (down, along) in enumerate(_windows(*pixels.shape[2:])):
        part = centred[:, :, down, along]
        total = part.sum((1, 2, 3), dtype=np.float64)
        found[:, 0, place] = total
        found[:, 1, place] = np.einsum("ncij,ncij->n", part, part) - total**2 / part[0].size
    return found


def _aligned(
    left: NDArray[np.uint8], right: NDArray[np.uint8], of_left: NDArray[np.float64], of_right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As `aligned`, with the sums of both."""
    a, b = _centred(left), _centred(right)
    best, windows = np.ones(len(left)), _windows(*left.shape[2:])
    for place, ((down, along), (up, back)) in enumerate(zip(windows, reversed(windows), strict=True)):
        here, there = a[:, :, down, along], b[:, :, up, back]
        opposite = len(windows) - 1 - place
        both = np.einsum("ncij,ncij->n", here, there)
        both = both - of_left[:, 0, place] * of_right[:, 0, opposite] / here[0].size
        size = np.sqrt(of_left[:, 1, place].clip(0) * of_right[:, 1, opposite].clip(0))
        best = np.minimum(best, 1 - both / np.maximum(size, 1e-9))
    return np.maximum(best, 0.0)


def _accepted(
    one: NDArray[np.int64], other: NDArray[np.int64], distance: NDArray[np.float64], count: int
) -> NDArray[np.bool_]:
    """Which pairs are near: very close, or on both sides within the island that a gap sets apart."""
    ends, values = np.concatenate([one, other]), np.concatenate([distance, distance])
    order = np.lexsort((values, ends))
    ends, values = ends[order], values[order]
    reach = np.zeros(count)  # the largest distance inside each image's island
    inside = (ends[:-1] == ends[1:]) & (values[:-1] <= LOOSE) & (values[1:] >= GAP * values[:-1])
    np.maximum.at(reach, ends[:-1][inside], values[:-1][inside])
    return (distance <= STRICT) | (distance <= np.minimum(reach[one], reach[other]))


class Atlas:
    """Where each row of the joined splits stands.

    Args:
        splits: by name, in the order in which they were joined.
    """

    def __init__(self, splits: dict[str, ImageSet]) -> None:
        self.names = np.repeat(list(splits), [len(part) for part in splits.values()])
        self.rows = np.concatenate([np.arange(len(part)) for part in splits.values()])
        self.ids = np.concatenate([part.ids for part in splits.values()])
        self.labels = np.concatenate([part.labels for part in splits.values()])
        self.classes = next(iter(splits.values())).classes
        self._splits = splits

    def place(self, row: int | np.integer[Any]) -> Place:
        split, at = str(self.names[row]), int(self.rows[row])
        return Place(split, at, f"{int(self.ids[row]):016x}", path=self._splits[split].path(at))

    def path(self, row: int | np.integer[Any]) -> str | None:
        """The file of a row below the source."""
        return self.place(row).path

    def labelled(self, row: int | np.integer[Any]) -> LabelledPlace:
        at = self.place(row)
        return LabelledPlace(at.split, at.row, at.id, self.classes[self.labels[row]], path=at.path)


def exact(ids: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Groups of rows, in order, that have one id."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order][:1] - np.uint64(1)))
    return [np.sort(group) for group in np.split(order, starts[1:]) if len(group) > 1]


def decided(atlas: Atlas, pairs: Pairs) -> tuple[tuple[Duplicates, ...], tuple[Leak, ...]]:
    """(groups of duplicates, leaks into test), exact ones first."""
    same = exact(atlas.ids)
    copies = {int(group[0]): group for group in same}
    groups: list[Duplicates] = [_group(atlas, "exact", 0.0, group) for group in same]
    leaks = [leak for group in same for leak in _leaks(atlas, "exact", 0.0, group, group)]
    for members, distance in _islands(pairs):
        everyone = np.concatenate([copies.get(row, np.array([row])) for row in members])
        groups.append(_group(atlas, "near", distance, np.sort(everyone)))
    for one, other, distance in zip(*pairs, strict=True):
        left, right = (copies.get(int(row), np.array([row])) for row in (one, other))
        leaks += _leaks(atlas, "near", float(distance), left, right)
        leaks += _leaks(atlas, "near", float(distance), right, left)
    return tuple(groups), tuple(leaks)


def _group(atlas: Atlas, kind: str, distance: float, rows: NDArray[np.int64]) -> Duplicates:
    same_label = len(np.unique(atlas.labels[rows])) == 1
    places = tuple(atlas.place(row) for row in rows)
    return Duplicates("exact" if kind == "exact" else "near", distance, same_label, places)


def _leaks(atlas: Atlas, kind: str, distance: float, left: NDArray[np.int64], right: NDArray[np.int64]) -> list[Leak]:
    """Leaks between training or validation images in `left` and test images in `right`."""
    return [
        Leak(
            "exact" if kind == "exact" else "near",
            distance,
            bool(atlas.labels[one] == atlas.labels[other]),
            atlas.labelled(one),
            atlas.labelled(other),
        )
        for other in right
        if atlas.names[other] == "test"
        for one in left
        if atlas.names[one] != "test"
    ]


def _islands(pairs: Pairs) -> list[tuple[list[int], float]]:
    """(rows, largest distance of a pair) of each connected component, closest first."""
    home: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    widest: dict[int, float] = {}
    for one, other, distance in zip(*pairs, strict=True):
        a, b = (home.setdefault(int(row), int(row)) for row in (one, other))
        for name in (a, b):
            members.setdefault(name, [name])
        if a != b:
            for row in members[b]:
                home[row] = a
            members[a] += members.pop(b)
        widest[a] = max(widest.get(a, 0.0), widest.pop(b, 0.0) if a != b else 0.0, float(distance))
    return [(sorted(rows), widest[name]) for name, rows in members.items()]
