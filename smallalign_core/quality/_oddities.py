"""Images that stand out by themselves: far from all others, dark, bright, blank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DARK, BRIGHT, BLANK = 0.2, 0.8, 0.01
"""Nearly no pixel is above DARK, or below BRIGHT; brightness varies by less than BLANK (standard deviation)."""
NEARLY = 0.01
FENCE = 3.0
"""Interquartile ranges above the third quartile of log distances: Tukey's outer fence (1977)."""
CHUNK = 1_000


def outliers(distance: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(rows, their distance over the median), the furthest first, by mean distances to nearest neighbours [N]."""
    logs = np.log(np.maximum(distance, 1e-9))
    low, middle, high = np.quantile(logs, [0.25, 0.5, 0.75])
    rows = np.flatnonzero(logs > high + FENCE * max(high - low, 1e-3))
    rows = rows[np.argsort(-logs[rows], kind="stable")]
    return rows, np.exp(logs[rows] - middle)


def pixels(images: NDArray[np.float32]) -> list[tuple[str, int, float]]:
    """(`dark`, `bright` or `blank`, row, value) of images [N, C, h, w], 0..1; see `PixelIssue`."""
    found: list[tuple[str, int, float]] = []
    for start in range(0, len(images), CHUNK):
        grey = images[start : start + CHUNK].mean(1).reshape(len(images[start : start + CHUNK]), -1)
        least, most = np.quantile(grey, [NEARLY, 1 - NEARLY], axis=1)
        spread, mean = grey.std(1), grey.mean(1)
        for place in np.flatnonzero((spread < BLANK) | (most < DARK) | (least > BRIGHT)):
            kind = "blank" if spread[place] < BLANK else "dark" if most[place] < DARK else "bright"
            found.append((kind, start + int(place), float((spread if kind == "blank" else mean)[place])))
    return found
