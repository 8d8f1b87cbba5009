"""The implementation of each transform: uniform samples become parameters, parameters are applied to a canvas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.augment import _paint, _python, _several
from smallalign_core.augment._canvas import Canvas, Numbers, Rows
from smallalign_core.errors import BadSpec
from smallalign_core.spec.augment import (
    Affine,
    Augment,
    Blur,
    Colour,
    Crop,
    Equalize,
    Erase,
    Flip,
    Geometric,
    Mixing,
    Noise,
    Perspective,
    Photometric,
    Posterize,
    PythonAugment,
    ResizedCrop,
    Rotate,
    Several,
    Shift,
    Solarize,
    misplaced,
)
from smallalign_core.system.device import to_device

SMALLEST_ERASED = 0.02
LONGEST_ERASED = 3.3  # ratio of the sides, as in the paper
SHARPEST_BLUR = 0.1

Pixels = Callable[[Rows], NDArray[np.float32]]
"""Standard normal numbers [len(rows), C, H, W] for some rows of a canvas, keyed like everything else."""


def columns(part: Augment) -> int:
    """Uniform draws an image that `part` needs for one view."""
    return 1 + _several.columns(part) if isinstance(part, Several) else part.draws


def check(policy: tuple[Augment, ...], shape: tuple[int, int, int]) -> None:
    """Check that a policy is applicable to images of `shape` (channels, height, width).

    Raises:
        BadSpec: naming the part, what it was given, and what to do.
        BadInput, BadModel, Refused: a user's own part, which is tried on images of noise.
    """
    channels, height, width = shape
    side = min(height, width)
    if wrong := misplaced(policy):
        raise BadSpec(wrong)
    for index, part in enumerate(policy):
        where = f"augment.{index}"
        match part:
            case Colour() if channels != 3 and (part.saturation or part.hue):
                field = "hue" if part.hue else "saturation"
                raise BadSpec(
                    f"`{where}.{field}` needs colour images, these have {_counted(channels)}",
                    given=getattr(part, field),
                    do=f"set {field} to 0",
                )
            case Crop() if part.padding >= side:
                raise BadSpec(
                    f"`{where}` crops beyond the image: padding must be less than its side, {side} pixels",
                    given=part.padding,
                    do=f"set padding to at most {side - 1}",
                )
            case Equalize() if height * width < 256:
                raise BadSpec(
                    f"`{where}` needs images of at least 256 pixels for a meaningful histogram",
                    given=f"{height} x {width}",
                    do="remove equalize, or set data.size",
                )
            case Blur() if blur_radius(part) >= side:
                raise BadSpec(
                    f"`{where}` blurs over {2 * blur_radius(part) + 1} pixels, too many for a side of {side}",
                    given=part.sigma,
                    do=f"set sigma to at most {(side - 1) // 3}" if side > 3 else "remove the blur",
                )
            case PythonAugment():
                _python.check(part, shape)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def blur_radius(part: Blur) -> int:
    """Pixels on each side that count: three standard deviations of the widest blur."""
    return math.ceil(3 * part.sigma)


def applied(part: Augment, draws: Numbers) -> NDArray[np.bool_]:
    """[N]: to which images `part` is applied, by uniform draws [N, columns(part)]."""
    chance = _python.chance(part) if isinstance(part, PythonAugment) else part.probability
    return np.asarray(draws[:, 0] < chance)


def apply(part: Augment, canvas: Canvas, draws: Numbers, pixels: Pixels) -> None:
    """Draw `part` on a canvas, with uniform draws [N, columns(part)]."""
    if isinstance(part, Mixing):
        return  # it needs the whole batch: see _mix
    rows = np.flatnonzero(applied(part, draws))
    if not len(rows):
        return
    draws = draws[rows, 1:]
    if isinstance(part, Geometric):
        _move(part, canvas, rows, draws)
    elif isinstance(part, Photometric):
        _paint_on(part, canvas, rows, draws, pixels)
    elif isinstance(part, PythonAugment):
        canvas.paint(rows, lambda images: _python.transformed(part, images, draws[:, 0]))
    else:
        _several.apply(part, canvas, rows, draws)


def _around(draws: Numbers, most: float) -> Numbers:
    """Uniform draws in 0..1 -> -most..most."""
    return (2 * draws - 1) * most


def _move(part: Geometric, canvas: Canvas, rows: Rows, draws: Numbers) -> None:
    height, width = canvas.size
    matrices = np.tile(np.eye(3), (len(rows), 1, 1))
    match part:
        case Flip():
            axis = 0 if part.axis == "horizontal" else 1
            matrices[:, axis, axis] = -1
        case Shift():
            matrices[:, :2, 2] = np.floor(draws * (2 * part.pixels + 1)) - part.pixels
        case Rotate():
            angle = np.deg2rad(_around(draws[:, 0], part.degrees))
            matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
            matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
        case Affine():
            slope_x, slope_y = np.tan(np.deg2rad(_around(draws[:, 3:5], part.shear))).T
            scale = 1 + _around(draws[:, 2], part.scale)
            matrices[:, 0, 0], matrices[:, 0, 1] = scale, -slope_x * scale
            matrices[:, 1, 0], matrices[:, 1, 1] = -slope_y * scale, (1 + slope_x * slope_y) * scale
            matrices[:, :2, 2] = _around(draws[:, :2], part.translate) * (width, height)
        case Crop():
            moves = np.floor(draws * (2 * part.padding + 1)) - part.padding
            if part.fill != "black":
                canvas.pick(rows, *(_padded(moves[:, 1 - i], canvas.size[i], part.fill) for i in (0, 1)))
                return
            matrices[:, :2, 2] = moves
        case ResizedCrop():
            canvas.move(rows, _window(part, draws, height, width), rim=True)
            return
        case Perspective():
            matrices = _tilted(part, draws, height, width)
        case _:
            assert_never(part)
    canvas.move(rows, matrices)


def _padded(moves: Numbers, side: int, fill: str) -> Rows:
    """[N, side]: which pixel each one shows after a whole-pixel move, where the padding continues the image."""
    index = np.arange(side) - moves[:, None].astype(np.int64)
    if fill == "mirror":
        index = np.abs(index)
        index = np.where(index >= side, 2 * (side - 1) - index, index)
    return np.clip(index, 0, side - 1)


def _window(part: ResizedCrop, draws: Numbers, height: int, width: int) -> Numbers:
    """[N, 3, 3]: stretch a window of random area, aspect and place over the whole image."""
    area = part.smallest + draws[:, 0] * (1 - part.smallest)
    aspect = np.exp(_around(draws[:, 1], math.log(part.aspect)))
    shares = np.minimum(1, np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], 1))  # of width and height
    centres = _around(draws[:, 2:4], 0.5) * (1 - shares) * (width, height)
    matrices = np.tile(np.eye(3), (len(draws), 1, 1))
    matrices[:, (0, 1), (0, 1)] = 1 / shares
    matrices[:, :2, 2] = -centres / shares
    return matrices


def _tilted(part: Perspective, draws: Numbers, height: int, width: int) -> Numbers:
    """[N, 3, 3]: the homography that takes the four corners to where they are drawn, inside the image."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    moved = corners * (1 - part.distortion * draws.reshape(-1, 4, 2))
    return homography(corners, moved)


def homography(corners: Numbers, moved: Numbers) -> Numbers:
    """[N, 3, 3]: takes four points [4, 2] to [N, 4, 2], with 1 in its last place."""
    equations, sides = np.zeros((len(moved), 8, 8)), np.zeros((len(moved), 8, 1))
    for corner, (x, y) in enumerate(corners):
        for axis in (0, 1):
            row, to = 2 * corner + axis, moved[:, corner, axis]
            equations[:, row, 3 * axis : 3 * axis + 3] = x, y, 1
            equations[:, row, 6], equations[:, row, 7] = -x * to, -y * to
            sides[:, row, 0] = to
    solved = np.linalg.solve(equations, sides)[:, :, 0]
    return np.concatenate([solved, np.ones((len(moved), 1))], 1).reshape(-1, 3, 3)


def _paint_on(part: Photometric, canvas: Canvas, rows: Rows, draws: Numbers, pixels: Pixels) -> None:
    device = canvas.pixels.device

    def numbers(values: Numbers | float) -> Tensor:
        return to_device(np.broadcast_to(values, len(rows)).astype(np.float32), device)

    match part:
        case Colour():
            kernels = (_paint.brightness, _paint.contrast, _paint.saturation)
            for place, most in enumerate((part.brightness, part.contrast, part.saturation)):
                if most:
                    factor = numbers(1 + _around(draws[:, place], most))
                    canvas.paint(rows, partial(kernels[place], factor=factor))
            if part.hue:
                canvas.paint(rows, lambda images: _paint.hue(images, numbers(_around(draws[:, 3], part.hue))))
        case Blur():
            sigma = numbers(SHARPEST_BLUR + draws[:, 0] * (part.sigma - SHARPEST_BLUR))
            canvas.paint(rows, lambda images: _paint.blur(images, sigma, blur_radius(part)))
        case Noise():
            grain = to_device(pixels(rows), device) * (_paint.WHITE * part.amount)
            canvas.paint(rows, lambda images: (images + grain).clamp_(0, _paint.WHITE))
        case Erase():
            places = [to_device(place, device) for place in _rectangle(part, draws, *canvas.size)]
            canvas.paint(rows, lambda images: _paint.erase(images, *places))
        case Posterize():
            canvas.paint(rows, lambda images: _paint.posterize(images, numbers(part.bits)))
        case Solarize():
            canvas.paint(rows, lambda images: _paint.solarize(images, numbers(part.threshold * _paint.WHITE)))
        case Equalize():
            canvas.paint(rows, _paint.equalize)
        case _:
            assert_never(part)


def _rectangle(part: Erase, draws: Numbers, height: int, width: int) -> tuple[Rows, Rows, Rows, Rows]:
    """(top, left, height, width), int64 [N]: a rectangle of random area, aspect and place, wholly inside."""
    area = (SMALLEST_ERASED + draws[:, 0] * (part.largest - SMALLEST_ERASED)) * height * width
    aspect = np.exp(_around(draws[:, 1], math.log(LONGEST_ERASED)))
    tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
    top, left = np.floor(draws[:, 2] * (height - tall + 1)), np.floor(draws[:, 3] * (width - wide + 1))
    return top.astype(np.int64), left.astype(np.int64), tall.astype(np.int64), wide.astype(np.int64)
