"""Outliers: images far from all others, dark, bright, blank, or of another size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DARK, BRIGHT, BLANK = 0.2, 0.8, 0.01
"""Thresholds: nearly all pixels below DARK, or above BRIGHT; standard deviation of brightness below BLANK."""
NEARLY = 0.01
ODD = 2.0
"""Max. factor of a side, or an aspect ratio, relative to the median."""
FENCE = 1.5
"""Interquartile ranges above the third quartile of log distances: Tukey's fence (1977)."""
CHUNK = 1_000


def outliers(distance: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(rows, their distance over the median), the furthest first, by mean distances to nearest neighbours [N]."""
    logs = np.log(np.maximum(distance, 1e-9))
    low, middle, high = np.quantile(logs, [0.25, 0.5, 0.75])
    rows = np.flatnonzero(logs > high + FENCE * max(high - low, 1e-3))
    rows = rows[np.argsort(-logs[rows], kind="stable")]
    return rows, np.exp(logs[rows] - middle)


def pixels(images: NDArray[np.uint8]) -> list[tuple[str, int, float]]:
    """(`dark`, `bright` or `blank`, row, value) of images [N, C, h, w]; see `PixelIssue`."""
    found: list[tuple[str, int, float]] = []
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        grey = part.mean(1, dtype=np.float32).reshape(len(part), -1) / 255
        least, most = np.quantile(grey, [NEARLY, 1 - NEARLY], axis=1)
        spread, mean = grey.std(1), grey.mean(1)
        for place in np.flatnonzero((spread < BLANK) | (most < DARK) | (least > BRIGHT)):
            kind = "blank" if spread[place] < BLANK else "dark" if most[place] < DARK else "bright"
            found.append((kind, start + int(place), float((spread if kind == "blank" else mean)[place])))
    return found


def odd_sizes(sizes: NDArray[np.int32]) -> list[tuple[int, float]]:
    """(row, factor) of images whose file has an unusual size or aspect ratio, by (height, width) [N, 2]: resizing and
    cropping may have removed relevant parts.
    """
    sides = sizes.astype(np.float64).clip(1)
    area, shape = np.sqrt(sides.prod(1)), sides[:, 1] / sides[:, 0]
    size, form = area / np.median(area), shape / np.median(shape)
    off = np.where(np.abs(np.log(form)) > np.abs(np.log(size)), form, size)
    return [(int(row), float(off[row])) for row in np.flatnonzero(np.abs(np.log(off)) >= np.log(ODD))]
