"""The loss of one run as a function of its weights, on a fixed set of training images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core.data import ImageSet
from smallalign_core.errors import Refused
from smallalign_core.networks import Classifier
from smallalign_core.spec import OfLayers, RunSpec
from smallalign_core.system import _compat
from smallalign_core.training import losses
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.teacher import Teacher

Norms = Literal["eval", "train", "reestimate"]
"""Batch-norm statistics: running; per batch; or running ones that are re-estimated on these images at every point.
"""


@dataclass(frozen=True)
class Part:
    """A batch: uint8 images [B, C, H, W], labels int64 [B], and the teacher's output."""

    images: Tensor
    labels: Tensor
    wanted: NetworkOutput | None


class Surface:
    """The loss of a run over its weights: its own loss, with its teacher, without augmentation and dropout.

    Args:
        spec: the run's spec.
        classifier: its weights; only a copy is modified.
        parts: the images in batches of equal size.
        norms: batch-norm statistics.
        counts: labeled training images per class, for a run with a `balance`; None: its label loss is not balanced.
    """

    def __init__(
        self,
        spec: RunSpec,
        classifier: Classifier,
        parts: Sequence[Part],
        norms: Norms,
        counts: Sequence[int] | None = None,
    ) -> None:
        self._balance = losses.NEUTRAL if counts is None else losses.class_balance(spec.balance, counts)
        self.parts, self.norms, self._loss, self._epoch = list(parts), norms, spec.loss, float(spec.epochs)
        self.network = copy.deepcopy(classifier).requires_grad_(True).eval()
        self.weights = list(self.network.parameters())
        self.start = flat(self.weights).detach()
        self._norms = [one for one in self.network.modules() if isinstance(one, _compat.BATCH_NORMS)]
        if norms == "train":
            for norm in self._norms:  # a batch's statistics, without keeping them
                norm.train()
                norm.track_running_stats = False
        elif norms == "reestimate":
            self.settle()

    @property
    def size(self) -> int:
        """The number of weights."""
        return len(self.start)

    def put(self, vector: Tensor) -> None:
        """Move to these weights, float32 [size]; re-estimates batch-norm statistics if configured."""
        with torch.no_grad():
            pieces = vector.split([weight.numel() for weight in self.weights])
            for weight, piece in zip(self.weights, pieces, strict=True):
                weight.copy_(piece.view(weight.shape))
        if self.norms == "reestimate":
            self.settle()

    def settle(self) -> None:
        """Estimate the statistics of batch norms on the images."""
        usual = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        if self._norms:
            with torch.no_grad():
                for part in self.parts:
                    self.network(part.images)
        for norm, momentum in zip(self._norms, usual, strict=True):
            norm.momentum = momentum
            norm.eval()

    def loss(self, part: Part) -> Tensor:
        """The loss of one batch at the current weights, a scalar."""
        said = NetworkOutput(self.network(part.images))
        how: dict[str, Any] = {"epoch": self._epoch, "balance": self._balance}
        terms = losses.terms(self._loss, said, part.wanted, part.labels, **how)
        return sum(terms.values(), start=torch.zeros(()))

    def value(self) -> Iterator[float]:
        """The loss at the current weights, batch by batch; the last value is the mean of all."""
        total = 0.0
        for count, part in enumerate(self.parts, 1):
            with torch.no_grad():
                total += float(self.loss(part))
            yield total / count

    def gradient(self, part: Part, *, graph: bool = False) -> tuple[Tensor, Tensor]:
        """(loss, its gradient [size]) of one batch; with `graph`, the gradient can be differentiated again."""
        loss = self.loss(part)
        slopes = torch.autograd.grad(loss, self.weights, create_graph=graph, materialize_grads=True)
        return loss.detach(), flat(slopes)

    def curved(self, part: Part, vector: Tensor) -> Tensor:
        """The Hessian of one batch's loss times `vector`, both [size] (Pearlmutter, 1994)."""
        _, slope = self.gradient(part, graph=True)
        return flat(torch.autograd.grad(slope @ vector, self.weights, materialize_grads=True)).detach()

    def directions(self, count: int, seed: int) -> list[Tensor]:
        """Filter-normalised random directions [size] (Li et al., 2018): each filter is as long as that of the weights.

        Biases and what batch norms scale and shift with do not move. The k-th direction of a seed is the same Gaussian
        for every network of these shapes.
        """
        found = []
        for place in range(count):
            draws = np.random.Generator(np.random.Philox(key=[seed, place]))
            moved = []
            for weight in self.weights:
                drawn = torch.from_numpy(draws.standard_normal(tuple(weight.shape), np.float32))
                moved.append(_as_long_as(drawn, weight.detach()) if weight.ndim > 1 else torch.zeros_like(weight))
            found.append(flat(moved))
        return found


def _as_long_as(drawn: Tensor, weight: Tensor) -> Tensor:
    """`drawn` with the length of each output's weights."""
    tiny = torch.finfo(drawn.dtype).tiny
    scale = weight.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1).clamp(min=tiny)
    return drawn * scale.view(-1, *[1] * (drawn.ndim - 1))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).clone()


def refuse(spec: RunSpec, name: str) -> None:
    """Check that a run's loss is a function of its stored weights.

    Raises:
        Refused: the loss compares layers, or its teacher was shuffled.
    """
    if isinstance(spec.loss, OfLayers):
        wrong = "the loss compares layers, some through a projector that is not stored with the weights"
    elif spec.shuffled:
        wrong = "teacher logits were reshuffled at each step, so the loss is not a fixed function"
    else:
        return
    raise Refused(wrong, given=name, do="choose a run with a logit loss")


def rows(count: int, images: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Rows of the sampled training images [batches, batch]; a larger sample extends a smaller one."""
    batch = min(batch, count)
    order = np.random.Generator(np.random.Philox(key=[seed, 0xF00D])).permutation(count)
    whole = max(1, min(images, count) // batch)
    return order[: whole * batch].reshape(whole, batch)


def parts_of(train: ImageSet, chosen: NDArray[np.int64], teacher: Teacher | None) -> Iterator[Part]:
    """These rows of the training images as batches, with the teacher's outputs."""
    for one in chosen:
        images = torch.from_numpy(np.asarray(train.images[one]))
        yield Part(images, torch.from_numpy(train.labels[one]), teacher.output(images) if teacher else None)


def shapes(network: nn.Module) -> str:
    """A digest of the shapes of all weights: where it is equal, so are the directions."""
    return hashlib.sha256(repr([tuple(one.shape) for one in network.parameters()]).encode()).hexdigest()[:8]
