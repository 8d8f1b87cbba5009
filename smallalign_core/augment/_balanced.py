"""Class-balanced sampling: which images an epoch meets, as a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Balanced:
    """Epochs of as many images as the dataset has, of which each class of n has a share in proportion to n^q (Kang et
    al., ICLR 2020): 0 gives all classes the same, 1 what they have.

    Each class is met in one endless stream of its own: all of its images in a random order, then all in another one. So
    every image of a class is met as often as any other of it, up to one, and a repeated image has another view. Images
    without a label (-1) are one more class, that keeps its share.

    Args:
        labels: int64 [N].
        q: from 0 to below 1.
        draw: a generator for the `pass_`-th order of the class at `place`.
    """

    def __init__(self, labels: Rows, q: float, draw: Callable[[int, int], np.random.Generator]) -> None:
        self._rows = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self._quotas = quotas([len(rows) for rows in self._rows], q)
        unlabeled = np.flatnonzero(labels < 0)
        if len(unlabeled):
            self._rows.append(unlabeled)
            self._quotas.append(len(unlabeled))
        self._draw = draw

    def epoch(self, number: int) -> tuple[Rows, Rows]:
        """The rows that epoch `number` meets, class by class, and how often each was met before: int64 [N] each."""
        rows, passes = [], []
        for place, (own, quota) in enumerate(zip(self._rows, self._quotas, strict=True)):
            pass_, at = np.divmod(np.arange(number * quota, (number + 1) * quota), len(own))
            orders = {one: self._draw(one, place).permutation(len(own)) for one in np.unique(pass_).tolist()}
            rows += [own[order[at[pass_ == one]]] for one, order in orders.items()]
            passes.append(pass_)
        return np.concatenate(rows), np.concatenate(passes)

    def epoch_of(self, row: int, pass_: int) -> int:
        """The epoch that meets `row` for the `pass_`-th time, from 0."""
        place = next(at for at, own in enumerate(self._rows) if row in own)
        own = self._rows[place]
        met = int(np.flatnonzero(own[self._draw(pass_, place).permutation(len(own))] == row)[0])
        return (pass_ * len(own) + met) // self._quotas[place]


def quotas(counts: list[int], q: float) -> list[int]:
    """How many images of each class an epoch has: in proportion to n^q, whole numbers with the sum of `counts` (largest
    remainders). At least one each, since no class has less than its own share of 1/N."""
    shares = np.asarray(counts, np.float64) ** q
    exact = shares / shares.sum() * sum(counts)
    found = np.floor(exact + 1e-9).astype(np.int64)
    short = sum(counts) - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:short]] += 1
    return [int(one) for one in found]
