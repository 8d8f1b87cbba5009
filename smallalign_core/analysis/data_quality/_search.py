"""Nearest neighbours: by brute force among few images, in an inverted file among many.

The inverted file (Jégou, Douze & Schmid, 2011) divides references into about √N cells around centres of k-means. An
image is compared with the references of the `PROBED` cells nearest to its own: N·√N distances instead of N². What it
finds is not always the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Rows = NDArray[np.int64]

EXACT = 10_000
"""References up to which all are compared."""
PROBED = 32
"""Cells that are searched for an image, its own included."""
LARGEST = 4
"""A cell with so many times the mean number of references is cut: of alike images most may lie in one."""
SAMPLED, ROUNDS = 32, 8
"""Images per centre, and rounds, of k-means."""
CHUNK = 1_000
BLOCK = 8_000_000
"""Distances at once."""


def nearest(
    references: Features, queries: Features, count: int, *, exact: int = EXACT
) -> Iterator[tuple[Rows, NDArray[np.float64], Rows]]:
    """The `count` nearest of `references` [N, F] to each of `queries` [M, F], in pieces, the nearest first.

    Yields:
        rows of queries int64 [m], Euclidean distances float64 [m, count], and rows of references int64 [m, count]. Each
        query is in one piece.
    """
    count = min(count, len(references))
    if len(references) <= exact:
        every = np.arange(len(references))
        for start in range(0, len(queries), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(queries)))
            yield rows, *_closest(references, every, queries[rows], count)
        return
    cells, centres = _cells(references)
    home = _assigned(queries, centres)
    order = np.argsort(home, kind="stable")
    bounds = np.searchsorted(home[order], np.arange(len(cells) + 1))
    squares = (centres.astype(np.float64) ** 2).sum(1)
    for number in range(len(cells)):
        mine = order[bounds[number] : bounds[number + 1]]
        if not len(mine):
            continue
        apart = squares - 2.0 * (centres @ centres[number])
        probed, held = [], 0
        for cell in np.argsort(apart, kind="stable"):
            probed.append(cells[cell])
            held += len(cells[cell])
            if len(probed) >= PROBED and held >= count:
                break
        among = np.sort(np.concatenate(probed))
        seen = references[among]
        step = max(1, BLOCK // len(among))
        for start in range(0, len(mine), step):
            rows = mine[start : start + step]
            yield rows, *_closest(seen, among, queries[rows], count)


def _closest(seen: Features, among: Rows, queries: Features, count: int) -> tuple[NDArray[np.float64], Rows]:
    """(distances, rows of references) of the nearest of `seen`, which are the references in rows `among`."""
    apart = (seen**2).sum(1) - 2 * (queries @ seen.T)
    if count < len(among):
        found = np.argpartition(apart, count - 1, axis=1)[:, :count]
    else:
        found = np.broadcast_to(np.arange(count), (len(queries), count))
    # again in full precision: the difference of squares loses that of near images
    far = np.empty(found.shape)
    for start in range(0, len(queries), CHUNK // 10):
        part = slice(start, start + CHUNK // 10)
        gap = seen[found[part]] - queries[part, None]
        far[part] = np.sqrt(np.einsum("nkf,nkf->nk", gap, gap))
    order = np.argsort(far, axis=1, kind="stable")
    return np.take_along_axis(far, order, 1), among[np.take_along_axis(found, order, 1)]


def _cells(references: Features) -> tuple[list[Rows], Features]:
    """(rows of the references of each cell, centres [cells, F])."""
    rng, wanted = np.random.default_rng(0), int(np.sqrt(len(references)))
    sample = references[rng.permutation(len(references))[: SAMPLED * wanted]]
    centres = sample[:wanted].copy()
    for _ in range(ROUNDS):
        home = _assigned(sample, centres)
        counts = np.bincount(home, minlength=wanted)
        sums = np.zeros_like(centres)
        np.add.at(sums, home, sample)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    home = _assigned(references, centres)
    cells = [np.flatnonzero(home == number) for number in range(wanted)]
    cells = [
        piece for cell in cells if len(cell) for piece in _cut(references, cell, LARGEST * len(references) // wanted)
    ]
    return cells, np.stack([references[cell].mean(0) for cell in cells])


def _cut(references: Features, cell: Rows, most: int) -> list[Rows]:
    """A cell in pieces of at most `most`, along the direction in which it is widest."""
    if len(cell) <= most:
        return [cell]
    inside = references[cell] - references[cell].mean(0)
    along = inside[0] + np.float32(1e-6)
    for _ in range(ROUNDS):  # power iteration
        along = inside.T @ (inside @ along)
        along /= max(float(np.linalg.norm(along)), 1e-12)
    ordered = cell[np.argsort(inside @ along, kind="stable")]
    return [np.sort(piece) for piece in np.array_split(ordered, -(-len(cell) // most))]


def _assigned(features: Features, centres: Features) -> Rows:
    """The nearest centre of each row."""
    squares, found = (centres**2).sum(1), np.empty(len(features), np.int64)
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        found[part] = (squares - 2 * (features[part] @ centres.T)).argmin(1)
    return found
