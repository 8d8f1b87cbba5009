"""Seeded views: which images a step sees, and how each is augmented, as a pure function.

`views(step)` depends on the dataset, the policy, the batch size and the seed, and on nothing that happened before. So
any view can be replayed: resume is exact, comparisons are paired, and teacher answers can be cached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.data import ImageSet
from smallalign_core.spec import Augment, Flip, Rotate, RunSpec, Shift

ORDER = 0xFFFF  # the stream of random numbers that shuffles an epoch; parts of the policy use streams 0, 1, 2, ...


@dataclass(frozen=True)
class Batch:
    """One step's worth of images.

    Attributes:
        rows: int64 [B], positions in the dataset.
        images: uint8 [B, C, H, W], augmented.
        labels: int64 [B].
    """

    rows: Tensor
    images: Tensor
    labels: Tensor


class Views:
    """The views of a dataset under a policy.

    Images are met in one endless stream: epoch after epoch, each in an order of its own, cut into batches of equal
    size. So every image is seen exactly once an epoch and no batch is ragged, which batch norm would feel.

    Args:
        images: the training images.
        policy: parts, applied in order.
        batch: images per step.
        seed: fixes order and augmentation.
        fixed: 0 draws fresh augmentation every epoch; K cycles through the same K views of each image.
        device: where batches are made.
    """

    def __init__(
        self,
        images: ImageSet,
        policy: tuple[Augment, ...],
        *,
        batch: int,
        seed: int,
        fixed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.count, self.batch, self.seed, self.fixed, self.policy = len(images), batch, seed, fixed, policy
        self.device = torch.device(device)
        # A memory-mapped array stays on disk: only the rows of a batch are read.
        self._images = images.images
        self._labels = torch.from_numpy(np.ascontiguousarray(images.labels))
        self._held: Tensor | None = None
        if isinstance(images.images, np.ndarray):
            self._held = torch.from_numpy(np.ascontiguousarray(images.images)).to(self.device)
        self._drawn: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._order: dict[int, NDArray[np.int64]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        first = step * self.batch
        positions = np.arange(first, first + self.batch)
        epochs = positions // self.count
        rows = np.empty(self.batch, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._shuffled(int(epoch))[positions[here] % self.count]
        view = epochs % self.fixed if self.fixed else epochs
        return Batch(torch.from_numpy(rows), self.augmented(rows, view), self._labels[rows].to(self.device))

    def augmented(self, rows: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
        """View number `view[i]` of image `rows[i]`: uint8 [len(rows), C, H, W]."""
        images = self._fetch(rows)
        if not self.policy:
            return images
        matrices = np.tile(np.eye(3), (len(rows), 1, 1))
        for number in np.unique(view):  # a batch may end one epoch and begin the next
            here = view == number
            for stream, part in enumerate(self.policy):
                matrices[here] = _matrices(part, self._uniform(int(number), stream)[rows[here]]) @ matrices[here]
        return _warp(images, matrices)

    def _fetch(self, rows: NDArray[np.int64]) -> Tensor:
        if self._held is None:
            return torch.from_numpy(self._images[rows]).to(self.device)
        return self._held[torch.from_numpy(rows).to(self.device)]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._order:
            self._order = {key: kept for key, kept in self._order.items() if key == epoch - 1}
            self._order[epoch] = self._generator(epoch, ORDER).permutation(self.count)
        return self._order[epoch]

    def _uniform(self, view: int, stream: int) -> NDArray[np.float64]:
        """[images, 3] uniform numbers in [0, 1): those of every image for one view and one part of the policy."""
        if (view, stream) not in self._drawn:
            while len(self._drawn) >= 2 * len(self.policy):  # a batch needs two views' worth at most
                del self._drawn[next(iter(self._drawn))]
            self._drawn[view, stream] = self._generator(view, stream).random((self.count, 3))
        return self._drawn[view, stream]

    def _generator(self, view: int, stream: int) -> np.random.Generator:
        """Philox (Salmon et al., 2011) is keyed, not advanced: nothing has to be saved to resume."""
        return np.random.Generator(np.random.Philox(key=[self.seed, (view << 16) | stream]))


def of_run(spec: RunSpec, images: ImageSet, device: torch.device | str = "cpu") -> Views:
    """The views that `spec` trains on."""
    return Views(images, spec.augment, batch=spec.batch, seed=spec.seed, fixed=spec.views, device=device)


def _matrices(part: Augment, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3, 3]: where each pixel goes, in pixels about the centre (x right, y down)."""
    chosen = draws[:, 0] < part.probability
    matrices = np.tile(np.eye(3), (len(draws), 1, 1))
    match part:
        case Flip():
            axis = 0 if part.axis == "horizontal" else 1
            matrices[chosen, axis, axis] = -1
        case Shift():
            moves = np.floor(draws[:, 1:] * (2 * part.pixels + 1)) - part.pixels
            matrices[chosen, :2, 2] = moves[chosen]
        case Rotate():
            angle = np.deg2rad((2 * draws[chosen, 1] - 1) * part.degrees)
            matrices[chosen, 0, 0] = matrices[chosen, 1, 1] = np.cos(angle)
            matrices[chosen, 0, 1], matrices[chosen, 1, 0] = -np.sin(angle), np.sin(angle)
        case _:
            assert_never(part)
    return matrices


def _warp(images: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """Move pixels by `matrices`, all parts of a policy in one bilinear resampling: blurred once, not once a part."""
    height, width = images.shape[-2:]
    half = np.diag([2 / width, 2 / height, 1.0])  # pixels about the centre -> grid_sample's -1..1
    theta = half @ np.linalg.inv(matrices) @ np.linalg.inv(half)
    grid = F.affine_grid(
        torch.from_numpy(theta[:, :2].astype(np.float32)).to(images.device), list(images.shape), align_corners=False
    )
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def steps_of(spec: RunSpec, images: int) -> int:
    """Optimizer steps of a run over `images` training images."""
    return math.ceil(spec.epochs * images / spec.batch)
