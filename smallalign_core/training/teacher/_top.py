"""The largest K logits of a teacher, for many classes: the other probability is spread evenly over the other classes.

As in TinyViT (Wu et al., ECCV 2022) and FKD (Shen & Xing, ECCV 2022). Logits are kept and not probabilities, so a
temperature can still be chosen; the spread is that of T = 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.training.teacher._chunk import rounded

MOST_CLASSES = 2**16
"""Indices are kept as 16 bits."""


def used(top: int | None, classes: int) -> int | None:
    """The K of a spec where it leaves something out: None keeps all logits."""
    return top if top is not None and top < classes <= MOST_CLASSES else None


def columns(top: int) -> int:
    """Numbers of 16 bits that a row takes: K logits, K classes, and one logit for all others."""
    return 2 * top + 1


def packed(logits: Tensor, top: int) -> NDArray[np.float16]:
    """Rows of logits [N, C] as float16 [N, 2 K + 1]: the largest K, the bits of their classes, the logit of the rest.

    Args:
        top: K, less than C.
    """
    values, places, rest = _largest(logits, top)
    bits = places.cpu().numpy().astype(np.uint16).view(np.float16)
    return np.concatenate([values.half().cpu().numpy(), bits, rest.half().cpu().numpy()], axis=1)


def unpacked(rows: Tensor, classes: int) -> Tensor:
    """Logits float32 [N, C] of `packed` rows float16, where they are; equal ones for all classes that are not among the
    largest.
    """
    top = rows.shape[1] // 2
    places = rows[:, top : 2 * top].contiguous().view(torch.int16).long() & (MOST_CLASSES - 1)
    return _spread(rows[:, :top].float(), places, rows[:, 2 * top :].float(), classes)


def kept(logits: Tensor, top: int | None) -> Tensor:
    """Logits [N, C] as a cache of the largest `top` gives them; the same twice. None: all of them.

    Nothing leaves the device, so a GPU need not finish its work.
    """
    return logits if top is None else _spread(*_largest(logits, top), logits.shape[1])


def _largest(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded to half precision, as float32: (the largest [N, K], their classes int64 [N, K], the rest [N, 1])."""
    values, places = logits.float().topk(top, dim=1)
    others = logits.float().scatter(1, places, -torch.inf)
    rest = others.logsumexp(1, keepdim=True) - math.log(logits.shape[1] - top)
    return rounded(values), places, rounded(rest)


def _spread(values: Tensor, places: Tensor, rest: Tensor, classes: int) -> Tensor:
    return rest.expand(-1, classes).clone().scatter_(1, places, values)
