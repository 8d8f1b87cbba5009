"""The images of a split in the order of the Data page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import ImageSet


def rows(images: ImageSet, only: int | None = None, named: str = "") -> NDArray[np.int64]:
    """Rows of `images`: those of one class as they are stored, all with the classes in turn.

    The first image of each class comes first, then the second of each, and so on: a page shows all classes.

    Args:
        only: the class, as its position; None for all.
        named: part of the file's path; upper and lower case are equal in ASCII letters.
    """
    found = np.arange(len(images)) if only is None else np.flatnonzero(images.labels == only)
    if named and images.paths is not None:
        wanted = named.strip().encode().lower()
        found = found[np.char.find(np.char.lower(images.paths[found]), wanted) >= 0]
    if only is not None or not len(found):
        return found
    labels = images.labels[found]
    by_class = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.empty(len(found), np.int64)
    turn[by_class] = np.arange(len(found)) - firsts
    return found[np.lexsort((labels, turn))]
