"""Seeded views: the images of a step and their augmentation, as a pure function.

`views(step)` depends only on the dataset, the policy, the batch size and the seed. So any view can be replayed:
resume is exact, comparisons are paired, and teacher logits can be cached. An augmented image depends only on (seed,
view, image), so the preview shows exactly the pixels of training; only MixUp and CutMix, which
mix the images of one step, depend on (seed, step, position).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.augment import _mix, _parts
from smallalign_core.augment._balanced import Balanced
from smallalign_core.augment._canvas import Canvas
from smallalign_core.augment._code import as_code as as_code
from smallalign_core.augment._mix import as_probabilities as as_probabilities
from smallalign_core.augment._parts import check as check
from smallalign_core.augment._sheet import sheet as sheet
from smallalign_core.augment._strength import scaled as scaled
from smallalign_core.data import ImageSet, Splits
from smallalign_core.spec import Augment, Mixing, RunSpec
from smallalign_core.spec.augment import PythonAugment, drops_labels
from smallalign_core.system.device import held, to_device

# Streams of random numbers: parts of the policy use 0, 1, 2, ...; these are for what no part of a policy draws.
ORDER = 0xFFFF  # shuffles an epoch
MIX = 0xFFFE  # partners and shares of a step
SHUFFLE = 0xFFFD  # classmates of a step
SAMPLE = 0xFFFC  # orders of a class, where classes are sampled


TOGETHER = 2**20
"""Steps that follow each other are augmented at once up to so many values: images are cheap, calls are not."""


@dataclass(frozen=True)
class Batch:
    """One step's worth of images.

    Attributes:
        rows: int64 [B], positions in the dataset.
        images: uint8 [B, C, H, W], augmented.
        labels: int64 [B]; float32 [B, classes] where the policy mixes images.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor


class Views:
    """The views of a dataset under a policy.

    Images are met in one endless stream: epoch after epoch, each in an order of its own, cut into batches of equal
    size. So every image is seen exactly once an epoch (without `sampling`) and no batch is ragged, which batch norm
    would feel.

    Args:
        images: the training images.
        policy: parts, applied in order.
        batch: images per step.
        seed: fixes order and augmentation.
        fixed: 0 draws fresh augmentation every epoch; K cycles through the same K views of each image.
        device: where batches are made.
        share: which positions of each batch to make; all without it.
        sampling: the exponent of class-balanced sampling (`_balanced.Balanced`); None: each image once an epoch.

    Raises:
        BadSpec: a part of the policy cannot work on these images.
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
        share: slice = slice(None),
        sampling: float | None = None,
    ) -> None:
        self.count, self.batch, self.seed, self.fixed, self.policy = len(images), batch, seed, fixed, policy
        self.device, self._share = torch.device(device), share
        _parts.check(policy, images.shape)
        self._classes = len(images.classes)
        # A memory-mapped array stays on disk, and what is too large for a GPU in memory: the rows of a batch are read.
        self._images = images.images
        self._labels = torch.from_numpy(np.ascontiguousarray(images.labels))
        self._held = held(images.images, self.device)
        self._drawn: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._order: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._ready: dict[int, Tensor] = {}
        self._next = -1
        self._natural: Views | None = None
        self._balanced: Balanced | None = None
        if sampling is not None:
            self._natural = copy.copy(self)
            self._natural._order, self._natural._ready = {}, {}
            self._balanced = Balanced(images.labels, sampling, lambda pass_, of: self._generator(pass_, SAMPLE, of + 1))

    @property
    def natural(self) -> Views:
        """The views of the same images without sampling: itself where there is none."""
        return self if self._natural is None else self._natural

    def __call__(self, step: int, made: Tensor | None = None) -> Batch:
        """The batch of `step`, counted from 0.

        Args:
            made: its images before any mixing, where they were kept; without them they are made now.
        """
        rows, view = self.sample_indices(step)
        mine = self._share
        if self.policy and isinstance(last := self.policy[-1], Mixing):
            images = self._made(step) if made is None else made
            labels = to_device(self._labels_of(rows, view), self.device)
            draws = self._generator(step, MIX).random((self.batch, _mix.COLUMNS))
            images, labels = (whole[mine] for whole in _mix.mixed(last, images, labels, self._classes, draws))
        else:
            images = self._made(step, mine) if made is None else made[mine]
            labels = to_device(self._labels_of(rows[mine], view[mine]), self.device)
        return Batch(torch.from_numpy(rows[mine]), images, labels)

    def _made(self, step: int, mine: slice = slice(None)) -> Tensor:
        """The augmented images of `step`; several steps are computed at once if requested in order."""
        if step not in self._ready:
            values = self.batch * math.prod(self._images.shape[1:])
            steps = min(TOGETHER // values, self.count // self.batch) if step == self._next and self.policy else 1
            rows, view = (whole.reshape(-1, self.batch)[:, mine] for whole in self.sample_indices(step, max(1, steps)))
            made = self.augmented(rows.reshape(-1), view.reshape(-1)).split(rows.shape[1])
            self._ready = dict(enumerate(made, step))
        self._next = step + 1
        return self._ready.pop(step)

    def sample_indices(self, step: int, steps: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whose turn it is in `steps` from `step` on: the rows int64 [steps x B] and the number of the view of each."""
        rows, view = np.empty((2, steps * self.batch), np.int64)
        done = 0
        while done < len(rows):
            epoch, place = divmod(step * self.batch + done, self.count)
            piece, met = (whole[place : place + len(rows) - done] for whole in self._turns(epoch))
            rows[done : done + len(piece)] = piece
            view[done : done + len(piece)] = met % self.fixed if self.fixed else met
            done += len(piece)
        return rows, view

    def augmented(self, rows: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
        """View number `view[i]` of image `rows[i]`, before any mixing: uint8 [len(rows), C, H, W]."""
        images = self._fetch(rows)
        if not self.policy:
            return images
        canvas = Canvas(images)
        for stream, part in enumerate(self.policy):
            draws = self._draws(stream, rows, view)
            _parts.apply(part, canvas, draws, partial(self._normal, rows, view, stream))
        return canvas.to_uint8()

    def image_of(self, row: int, view: int) -> Tensor:
        """Image `row` exactly as training sees it the `view`-th time (from 0), mixed too: uint8 [C, H, W]."""
        return self.view_of(row, view)[0]

    def view_of(self, row: int, view: int) -> tuple[Tensor, Tensor]:
        """As `seen`, with its label: int64 [], or float32 [classes] where the policy mixes images."""
        number = view % self.fixed if self.fixed else view
        if not (self.policy and isinstance(last := self.policy[-1], Mixing)):
            only = np.array([row]), np.array([number])
            return self.augmented(*only)[0], self._labels_of(*only)[0]
        epoch = view if self._balanced is None else self._balanced.epoch_of(row, view)
        found, met = self._turns(epoch)
        step, place = divmod(epoch * self.count + int(np.flatnonzero((found == row) & (met == view))[0]), self.batch)
        rows, views = self.sample_indices(step)
        draws = self._generator(step, MIX).random((self.batch, _mix.COLUMNS))
        pair = np.array([place, _mix.partners(draws)[place]])  # of two images each is the other's partner
        made = self.augmented(rows[pair], views[pair])
        labels = to_device(self._labels_of(rows[pair], views[pair]), self.device)
        made, labels = _mix.mixed(last, made, labels, self._classes, draws[pair])
        return made[0], labels[0]

    def same_class_permutation(self, step: int, labels: Tensor) -> Tensor:
        """For each image of the batch of `step` another one of its class, sampled again at each step.

        Images that are alone in their class change places with each other; of a mixed image the larger share counts.

        Returns:
            int64 [B], a permutation of the positions.
        """
        classes, count = (labels.argmax(1) if labels.ndim > 1 else labels), len(labels)
        drawn = to_device(np.argsort(self._generator(step, SHUFFLE).random(count), kind="stable"), labels.device)
        # Nothing here has a size that depends on the labels: a GPU would have to finish its work before it is known.
        order = drawn[classes[drawn].argsort(stable=True)]
        grouped, places = classes[order], torch.arange(count, device=labels.device)
        edge = torch.ones(1, dtype=torch.bool, device=labels.device)
        parted = grouped[1:] != grouped[:-1]
        first, last = torch.cat([edge, parted]), torch.cat([parted, edge])
        lone = first & last
        alone, number = lone.logical_not().long().argsort(stable=True), lone.sum().clamp(min=1)  # theirs come first
        next_alone = alone[(lone.long().cumsum(0) - 2) % number]  # their images change places with each other
        following = torch.where(last, torch.searchsorted(grouped, grouped), places + 1)  # the first follows the last
        following = torch.where(lone, next_alone, following)
        return torch.empty_like(order).scatter_(0, order, order[following])

    def _fetch(self, rows: NDArray[np.int64]) -> Tensor:
        if self._held is None:
            return to_device(self._images[rows], self.device)
        return self._held.index_select(0, to_device(rows, self.device))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows in the order in which `epoch` meets them."""
        return self._turns(epoch)[0]

    def _turns(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows in the order in which `epoch` meets them, and how often each was met before: int64 [N] each."""
        if epoch not in self._order:
            self._order = {key: kept for key, kept in self._order.items() if key == epoch - 1}
            order = self._generator(epoch, ORDER).permutation(self.count)
            if self._balanced is None:
                self._order[epoch] = order, np.full(self.count, epoch)
            else:
                rows, met = self._balanced.epoch(epoch)
                self._order[epoch] = rows[order], met[order]
        return self._order[epoch]

    def _labels_of(self, rows: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
        """The labels of some views: -1 where a part of the user's own was applied that keeps no label."""
        labels = self._labels[rows]
        for stream, part in enumerate(self.policy):
            if isinstance(part, PythonAugment) and not part.label_preserving:
                labels[torch.from_numpy(_parts.applied(part, self._draws(stream, rows, view)))] = -1
        return labels

    def _draws(self, stream: int, rows: NDArray[np.int64], view: NDArray[np.int64]) -> NDArray[np.float64]:
        """Uniform draws [len(rows), columns] of one part of the policy: view number `view[i]` of image `rows[i]`."""
        draws = np.empty((len(rows), _parts.columns(self.policy[stream])))
        for number in np.unique(view).tolist():  # a batch may end one epoch
            here = view == number
            draws[here] = self._uniform(number, stream, rows[here])
        return draws

    def _uniform(self, view: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """[len(rows), columns] uniform numbers in [0, 1) of some images, for one view and one part of the policy.

        They are rows of a table of all images, which is drawn whole where an epoch has one view. Where classes are
        sampled, a batch has many: then each row is drawn alone, from its place in the table's stream.
        """
        columns = _parts.columns(self.policy[stream])
        if self._balanced is not None:
            found = np.empty((len(rows), columns))
            for own, row in zip(found, rows.tolist(), strict=True):
                block, skip = divmod(row * columns, 4)  # Philox makes four numbers at each count
                bits = np.random.Philox(key=[self.seed, (view << 16) | stream], counter=[block, 0, 0, 0])
                own[:] = np.random.Generator(bits).random(skip + columns)[skip:]
            return found
        if (view, stream) not in self._drawn:
            while len(self._drawn) >= 2 * len(self.policy):  # a batch needs two views' worth at most
                del self._drawn[next(iter(self._drawn))]
            self._drawn[view, stream] = self._generator(view, stream).random((self.count, columns))
        return self._drawn[view, stream][rows]

    def _normal(
        self, rows: NDArray[np.int64], view: NDArray[np.int64], stream: int, at: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Standard normal [len(at), C, H, W] for the images at `at`: too many for a table, so each has its own."""
        found = np.empty((len(at), *self._images.shape[1:]), np.float32)
        for place, (row, number) in enumerate(zip(rows[at], view[at], strict=True)):
            bits = np.random.Philox(key=[self.seed, (int(number) << 16) | stream], counter=[0, 0, 0, int(row) + 1])
            np.random.Generator(bits).standard_normal(dtype=np.float32, out=found[place])
        return found

    def _generator(self, view: int, stream: int, of: int = 0) -> np.random.Generator:
        """Philox (Salmon et al., 2011) is keyed, not advanced: nothing has to be saved to resume."""
        return np.random.Generator(np.random.Philox(key=[self.seed, (view << 16) | stream], counter=[0, 0, 0, of]))


def of_run(spec: RunSpec, images: ImageSet, device: torch.device | str = "cpu", share: slice = slice(None)) -> Views:
    """The views that `spec` trains on."""
    how: dict[str, Any] = {"seed": spec.seed, "fixed": spec.views, "sampling": spec.sampling}
    return Views(images, spec.augment, batch=spec.batch, device=device, share=share, **how)


def lacks_labels(spec: RunSpec, splits: Splits) -> bool:
    """Whether some training images have the label -1."""
    return splits.unlabeled is not None or drops_labels(spec.augment)


def steps_of(spec: RunSpec, images: int) -> int:
    """Optimizer steps of a run over `images` training images."""
    return math.ceil(spec.epochs * images / spec.batch)
