"""RandAugment, TrivialAugment and AugMix: operations drawn from a list, batched by operation.

Spaces and magnitudes are torchvision's, with three differences: a shear turns about the centre and not about a corner,
magnitudes are continuous and not in bins, and TrivialAugment moves an image by at most 150/331 of its side (its 32
pixels would move a small image out of sight).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from smallalign_core.augment import _paint
from smallalign_core.augment._canvas import Canvas, Numbers, Rows
from smallalign_core.spec.augment import AugMix, RandAugment, TrivialAugment
from smallalign_core.system.device import to_device

MOVING = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
WITHOUT_OVERLAP = (*MOVING, "posterize", "solarize", "autocontrast", "equalize")
FOURTEEN = ("identity", *WITHOUT_OVERLAP, "brightness", "colour", "contrast", "sharpness")
CHAINS, LONGEST = 3, 3


@dataclass(frozen=True)
class Space:
    """What operations mean at full magnitude.

    Attributes:
        operations: their names.
        shear: as a slope. translate: as a share of the side, and at most `pixels`. rotate: degrees.
        enhance: largest change of a factor. bits: kept by posterize at magnitude 0, and at 1.
    """

    operations: tuple[str, ...]
    shear: float
    translate: float
    pixels: float
    rotate: float
    enhance: float
    bits: tuple[int, int]


SPACES = {
    RandAugment: Space(FOURTEEN, 0.3, 150 / 331, np.inf, 30, 0.9, (8, 4)),
    TrivialAugment: Space(FOURTEEN, 0.99, 150 / 331, 32, 135, 0.99, (8, 2)),
    AugMix: Space(WITHOUT_OVERLAP, 0.3, 1 / 3, np.inf, 30, 0.9, (4, 1)),
}


def columns(part: RandAugment | TrivialAugment | AugMix) -> int:
    """Random numbers an image, besides the one that decides whether it is augmented."""
    match part:
        case RandAugment():
            return 2 * part.operations
        case TrivialAugment():
            return 3
        case AugMix():
            return 1 + CHAINS + CHAINS * (1 + 3 * LONGEST)
        case _:
            assert_never(part)


def apply(part: RandAugment | TrivialAugment | AugMix, canvas: Canvas, rows: Rows, draws: Numbers) -> None:
    """Augment `rows` of a canvas with uniform draws [len(rows), columns(part)]."""
    space = SPACES[type(part)]
    match part:
        case RandAugment():
            for layer in range(part.operations):
                which, sign = draws[:, 2 * layer], draws[:, 2 * layer + 1]
                operate(canvas, rows, space, which, np.full(len(rows), part.magnitude / 30), sign)
        case TrivialAugment():
            operate(canvas, rows, space, draws[:, 0], draws[:, 1] * part.magnitude / 30, draws[:, 2])
        case AugMix():
            _augmix(part, canvas, rows, draws)
        case _:
            assert_never(part)


def _augmix(part: AugMix, canvas: Canvas, rows: Rows, draws: Numbers) -> None:
    """M x + (1 - m) Σ wᵢ chainᵢ(x): m uniform and w flat Dirichlet, the paper's Beta and Dirichlet with α = 1."""
    weights = -np.log1p(-draws[:, 1 : 1 + CHAINS])  # exponential variates, normalised, are flat Dirichlet
    weights = (1 - draws[:, :1]) * weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    kept = draws[:, 0] + np.maximum(0, 1 - draws[:, 0] - weights.sum(1))
    device = canvas.pixels.device
    original = canvas.part(rows).pixels
    mixed = original * _numbers(kept, device).view(-1, 1, 1, 1)
    for chain in range(CHAINS):
        begin = 1 + CHAINS + chain * (1 + 3 * LONGEST)
        length = 1 + np.floor(draws[:, begin] * LONGEST)
        branch = Canvas(original)
        for link in range(LONGEST):
            on = np.flatnonzero(link < length)
            which, strength, sign = draws[on, begin + 1 + 3 * link : begin + 4 + 3 * link].T
            operate(branch, on, SPACES[AugMix], which, strength * part.severity / 10, sign)
        mixed = mixed + branch.unrounded() * _numbers(weights[:, chain], device).view(-1, 1, 1, 1)
    canvas.paint(rows, lambda _: mixed)


def operate(canvas: Canvas, rows: Rows, space: Space, which: Numbers, strength: Numbers, sign: Numbers) -> None:
    """One operation an image: `which` and `sign` are uniform draws, `strength` is a share of full magnitude."""
    operation = np.floor(which * len(space.operations)).astype(int)
    signed = np.where(sign < 0.5, -strength, strength)
    for index in np.unique(operation):
        here = operation == index
        name = space.operations[index]
        if name in MOVING:
            canvas.move(rows[here], _moves(name, space, signed[here], canvas.size))
        elif name != "identity":
            _paint_one(canvas, rows[here], name, space, strength[here], signed[here])


def _moves(name: str, space: Space, signed: Numbers, size: tuple[int, int]) -> Numbers:
    """[N, 3, 3]: one geometric operation about the centre."""
    matrices = np.tile(np.eye(3), (len(signed), 1, 1))
    match name:
        case "shear_x":
            matrices[:, 0, 1] = signed * space.shear
        case "shear_y":
            matrices[:, 1, 0] = signed * space.shear
        case "translate_x":
            matrices[:, 0, 2] = np.trunc(signed * min(space.translate * size[1], space.pixels))
        case "translate_y":
            matrices[:, 1, 2] = np.trunc(signed * min(space.translate * size[0], space.pixels))
        case "rotate":
            angle = np.deg2rad(signed * space.rotate)
            matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
            matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
        case _:
            raise ValueError(name)
    return matrices


def _paint_one(canvas: Canvas, rows: Rows, name: str, space: Space, strength: Numbers, signed: Numbers) -> None:
    device = canvas.pixels.device
    most, least = space.bits
    factor = _numbers(1 + signed * space.enhance, device)
    match name:
        case "brightness":
            canvas.paint(rows, lambda images: _paint.brightness(images, factor))
        case "colour":
            canvas.paint(rows, lambda images: _paint.saturation(images, factor))
        case "contrast":
            canvas.paint(rows, lambda images: _paint.contrast(images, factor))
        case "sharpness":
            canvas.paint(rows, lambda images: _paint.sharpness(images, factor))
        case "posterize":
            bits = _numbers(most - np.rint(strength * (most - least)), device)
            canvas.paint(rows, lambda images: _paint.posterize(images, bits))
        case "solarize":
            threshold = _numbers(_paint.WHITE * (1 - strength), device)
            canvas.paint(rows, lambda images: _paint.solarize(images, threshold))
        case "autocontrast":
            canvas.paint(rows, _paint.autocontrast)
        case "equalize":
            canvas.paint(rows, _paint.equalize)
        case _:
            raise ValueError(name)


def _numbers(values: Numbers, device: torch.device) -> Tensor:
    return to_device(np.ascontiguousarray(values, dtype=np.float32), device)
