"""A batch during augmentation: geometric transforms are composed and applied in one resampling, when pixels are
needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.system.device import to_device

Rows = NDArray[np.int64]
Numbers = NDArray[np.float64]


class Canvas:
    """Images that parts of a policy draw on.

    What happens to an image depends on that image alone, never on its neighbours in the batch.

    Args:
        pixels: uint8 [N, C, H, W]; left as it is.

    Attributes:
        pixels: uint8, or float32 in 0..255 once a part has computed with them. Moves may still be outstanding.
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self._own = False  # whether `pixels` may be written to
        self._moves: Numbers = np.tile(np.eye(3), (len(pixels), 1, 1))
        self._moved = np.zeros(len(pixels), bool)
        self._rim = np.zeros(len(pixels), bool)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    def move(self, rows: Rows, matrices: Numbers, *, rim: bool = False) -> None:
        """Move the pixels of `rows` by homographies [len(rows), 3, 3]: pixels about the centre, x right, y down.

        Args:
            rim: the outermost half pixel shows the rim's colour instead of fading to black: what an enlargement needs.
        """
        self._moves[rows] = matrices @ self._moves[rows]
        self._moved[rows] = True
        self._rim[rows] |= rim

    def pick(self, rows: Rows, down: Rows, right: Rows) -> None:
        """Let pixel (y, x) of image i show what is now at (down[i, y], right[i, x])."""
        self._settle(rows)
        self._put(rows, _picked(self._take(rows), down, right))

    def paint(self, rows: Rows, kernel: Callable[[Tensor], Tensor]) -> None:
        """Replace `rows` by what `kernel` makes of them: float32 [len(rows), C, H, W] in 0..255 to the same."""
        self._settle(rows)
        self._as_float()
        self._put(rows, kernel(self._take(rows)))

    def to_uint8(self) -> Tensor:
        """The images: uint8 [N, C, H, W]."""
        self._settle(np.arange(len(self)))
        if self.pixels.dtype == torch.uint8:
            return self.pixels
        return self.pixels.round().clamp_(0, 255).to(torch.uint8)

    def unrounded(self) -> Tensor:
        """The images: float32 [N, C, H, W] in 0..255."""
        self._settle(np.arange(len(self)))
        return self.pixels.float()

    def part(self, rows: Rows) -> Canvas:
        """A canvas of its own with the present state of `rows`."""
        self._settle(rows)
        self._as_float()
        return Canvas(self.pixels[self._index(rows)])

    def _as_float(self) -> None:
        if self.pixels.dtype == torch.uint8:
            self.pixels, self._own = self.pixels.float(), True

    def _index(self, rows: Rows) -> Tensor:
        return to_device(rows, self.pixels.device)

    def _take(self, rows: Rows) -> Tensor:
        return self.pixels if len(rows) == len(self) else self.pixels[self._index(rows)]

    def _put(self, rows: Rows, pixels: Tensor) -> None:
        if len(rows) == len(self):
            self._own |= pixels is not self.pixels  # a kernel that changes nothing may give back what it got
            self.pixels = pixels
            return
        if not self._own:
            self.pixels, self._own = self.pixels.clone(), True
        self.pixels[self._index(rows)] = pixels

    def _settle(self, rows: Rows) -> None:
        """Do the outstanding moves of `rows`; whole-pixel moves and mirrorings are copied, the rest resampled."""
        rows = rows[self._moved[rows]]
        if not len(rows):
            return
        moves, rim = self._moves[rows], self._rim[rows]
        self._moves[rows], self._moved[rows], self._rim[rows] = np.eye(3), False, False
        affine = (moves[:, 2] == (0, 0, 1)).all(1) & ~rim
        exact = affine & _is_copying(moves)
        if exact.any():
            self._put(rows[exact], _copied(self._take(rows[exact]), moves[exact]))
        if exact.all():
            return
        self._as_float()
        bent = ~affine
        affine &= ~exact
        if affine.any():
            self._put(rows[affine], _warp(self._take(rows[affine]), moves[affine]))
        if bent.any():
            self._put(rows[bent], _bend(self._take(rows[bent]), moves[bent], rim[bent]))


def _is_copying(moves: Numbers) -> NDArray[np.bool_]:
    """[N]: whether affine moves are mirrorings and shifts by whole pixels."""
    diagonal, off, shift = moves[:, (0, 1), (0, 1)], moves[:, (0, 1), (1, 0)], moves[:, :2, 2]
    return np.asarray(((np.abs(diagonal) == 1) & (off == 0) & (shift == np.rint(shift))).all(1))


def _copied(images: Tensor, moves: Numbers) -> Tensor:
    """Whole-pixel moves and mirrorings, exactly; what enters is black."""
    source, inside = [], []
    for axis, side in ((1, images.shape[-2]), (0, images.shape[-1])):
        middle = (side - 1) / 2
        there = moves[:, axis, axis, None] * (np.arange(side) - middle - moves[:, axis, 2, None]) + middle
        index = np.rint(there).astype(np.int64)
        inside.append((index >= 0) & (index < side))
        source.append(np.clip(index, 0, side - 1))
    picked = _picked(images, *source)
    if not all(whole.all() for whole in inside):
        seen = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        picked *= to_device(seen, images.device)
    return picked


def _picked(images: Tensor, down: Rows, right: Rows) -> Tensor:
    """out[i, c, y, x] = images[i, c, down[i, y], right[i, x]]."""
    count, channels, _, width = images.shape
    flat = to_device(down[:, :, None] * width + right[:, None, :], images.device).view(count, 1, -1)
    return images.reshape(count, channels, -1).gather(2, flat.expand(-1, channels, -1)).view(images.shape)


def _theta(moves: Numbers, height: int, width: int) -> Numbers:
    """Where each pixel comes from, in grid_sample's -1..1."""
    half = np.diag([2 / width, 2 / height, 1.0])  # pixels about the centre -> grid_sample's -1..1
    return np.asarray(half @ np.linalg.inv(moves) @ np.linalg.inv(half))


def _middles(side: int, device: torch.device) -> Tensor:
    """Where the pixels of a row stand in grid_sample's -1..1."""
    return (torch.arange(side, device=device) * 2 + 1) / side - 1


def _warp(images: Tensor, moves: Numbers) -> Tensor:
    """Move pixels by affine maps, all of a policy in one bilinear resampling: blurred once, not once a part."""
    height, width = images.shape[-2:]
    theta = _theta(moves, height, width)[:, :2].transpose(0, 2, 1).astype(np.float32, order="C")
    # What x adds, plus what y adds, as one complex sum: 14 times faster than F.affine_grid, which multiplies matrices.
    x, y, shift = torch.view_as_complex(to_device(theta, images.device)).unbind(1)
    across = x[:, None] * _middles(width, images.device) + shift[:, None]
    down = y[:, None] * _middles(height, images.device)
    grid = torch.view_as_real(across[:, None, :] + down[:, :, None])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _bend(images: Tensor, moves: Numbers, rim: NDArray[np.bool_]) -> Tensor:
    """As `_warp`, for homographies, and for images with a kept rim."""
    height, width = images.shape[-2:]
    t = to_device(_theta(moves, height, width).astype(np.float32), images.device)[:, :, :, None, None]
    y = _middles(height, images.device).view(1, height, 1)
    x = _middles(width, images.device).view(1, 1, width)
    below = t[:, 2, 0] * x + t[:, 2, 1] * y + t[:, 2, 2]
    ahead = below > 1e-6  # the rest of the plane lies behind the camera: black
    places = []
    for axis in (0, 1):
        place = (t[:, axis, 0] * x + t[:, axis, 1] * y + t[:, axis, 2]) / torch.where(ahead, below, 1)
        places.append(torch.where(ahead, place, 3))
    inside = (places[0].abs() <= 1 + 1e-5) & (places[1].abs() <= 1 + 1e-5)
    inside &= to_device(rim, images.device)[:, None, None]
    for axis, side in ((0, width), (1, height)):
        places[axis] = torch.where(inside, places[axis].clamp(1 / side - 1, 1 - 1 / side), places[axis])
    grid = torch.stack(places, dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
