"""MixUp and CutMix: finished images of a batch mixed with each other, and their labels with them."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smallalign_core.augment._canvas import Numbers, Rows
from smallalign_core.spec.augment import CutMix, Mixing, MixUp
from smallalign_core.system.device import to_device

COLUMNS = 5  # uniform draws per position: whether, partner, amount, and the place of a rectangle


def mixed(part: Mixing, images: Tensor, labels: Tensor, classes: int, draws: Numbers) -> tuple[Tensor, Tensor]:
    """Mix each image with a partner, never itself.

    Args:
        images: uint8 [B, C, H, W].
        labels: int64 [B]; -1 for an unlabelled image.
        draws: uniform [B, 5], keyed by step and position.

    Returns:
        images uint8 [B, C, H, W] and labels float32 [B, classes]. Each row sums to one, or to what of it is labelled.
    """
    count = len(images)
    chosen = draws[:, 0] < part.probability if count > 1 else np.zeros(count, bool)
    partner = partners(draws)
    share = np.where(chosen, _beta(part.alpha, draws[:, 2]), 1.0)
    other = images[to_device(partner, images.device)]
    match part:
        case MixUp():
            weight = to_device(share.astype(np.float32), images.device)
            blended = torch.lerp(other.float(), images.float(), weight.view(-1, 1, 1, 1)).round_().to(torch.uint8)
        case CutMix():
            blended, share = _cut(images, other, share, draws[:, 3:5])
            weight = to_device(share.astype(np.float32), images.device)
        case _:
            assert_never(part)
    known = as_probabilities(labels, classes)
    weight = weight[:, None]
    return blended, weight * known + (1 - weight) * known[to_device(partner, labels.device)]


def as_probabilities(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 [B] as float32 [B, classes]: 1 at the class; a row of zeros where there is no label (-1)."""
    return F.one_hot(labels.clamp_min(0), max(1, classes))[:, :classes].float() * (labels >= 0)[:, None]


def partners(draws: Numbers) -> Rows:
    """The position of each image's partner in the batch, from uniform draws [B, 5]."""
    count = len(draws)
    return np.asarray((np.arange(count) + 1 + np.floor(draws[:, 1] * (count - 1)).astype(np.int64)) % count)


def _beta(alpha: float, uniform: Numbers) -> Numbers:
    """Draws of Beta(α, α) by inversion: one uniform number each, so that they can be keyed."""
    if alpha == 1:
        return uniform
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, uniform))


def _cut(images: Tensor, other: Tensor, share: Numbers, centres: Numbers) -> tuple[Tensor, Numbers]:
    """Paste rectangles of `other`; returns the images and the share that each kept of itself.

    As in the paper, a rectangle has the image's proportions and 1 - share of its area, its centre lies anywhere, what
    sticks out is lost, and the label counts what is there.
    """
    height, width = images.shape[-2:]
    inside, area = [], np.ones(len(images))
    for side, centre in ((height, centres[:, 0]), (width, centres[:, 1])):
        half = np.floor(0.5 * np.sqrt(1 - share) * side)
        middle = np.floor(centre * side)
        begin, end = np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)
        place: Rows = np.arange(side)
        inside.append((place >= begin[:, None]) & (place < end[:, None]))
        area = area * (end - begin) / side
    mask = to_device(inside[0][:, None, :, None] & inside[1][:, None, None, :], images.device)
    return torch.where(mask, other, images), 1 - area
