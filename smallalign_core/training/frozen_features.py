"""Cached features of a frozen body: its head is then trained as a linear layer on them.

Only for few views per image: without augmentation, or with `views: K`. With fresh augmentation the body runs at every
step, and the run reports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core import networks
from smallalign_core.augment import Views
from smallalign_core.data import ImageSet
from smallalign_core.networks import Classifier
from smallalign_core.spec import GivenNetwork, Mixing, OfLayers, RunSpec, canonical, is_gradient_free
from smallalign_core.system import batching
from smallalign_core.system.device import to_device

KEPT = "kept"
MOST_BYTES = 1024**3
"""Max. bytes of cached features per body."""
CHUNK = 256
"""Images computed between two points at which the caller may stop."""


def width(classifier: Classifier) -> int | None:
    """Number of input features of the head, if it is a linear layer that outputs the logits; else None."""
    head = networks.head(classifier)
    if not isinstance(head, nn.Linear):
        return None
    black = torch.zeros((2, *classifier.input_shape), dtype=torch.uint8, device=classifier.mean.device)
    body, was_training = networks.Embedder(classifier), classifier.training
    classifier.eval()
    # A new head is zero and would hide layers after it.
    kept = [parameter.detach().clone() for parameter in head.parameters()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        features = body(black)
        whole = features.ndim == 2 and torch.allclose(head(features), classifier(black), rtol=1e-4, atol=1e-4)
        for parameter, value in zip(head.parameters(), kept, strict=True):
            parameter.copy_(value)
    classifier.train(was_training)
    return features.shape[1] if whole else None


def is_frozen(spec: RunSpec, classifier: Classifier, images: int, *, alone: bool = True) -> str | None:
    """`kept` if the features of a frozen body are computed once; else the reason why not. None if nothing is frozen.

    Args:
        images: number of training and validation images.
        alone: whether a single process trains; with several, each has only a part of each batch.
    """
    if not isinstance(spec.network, GivenNetwork) or not spec.network.frozen:
        return None
    mixes = any(isinstance(part, Mixing) for part in spec.augment)
    if mixes or (spec.augment and not spec.views):
        return "computed at every step: the policy has new views in every epoch" + (
            "" if mixes else "; set `views: K` to cache K per image"
        )
    if isinstance(spec.loss, OfLayers) or is_gradient_free(spec.optimizer) or not alone:
        what = (
            "the loss uses layers of the body" if isinstance(spec.loss, OfLayers) else "more than the head is trained"
        )
        return f"computed at every step: {what}"
    features = width(classifier)
    if features is None:
        return "computed at every step: the head is more than one linear layer"
    if 4 * features * images * max(1, spec.views if spec.augment else 1) > MOST_BYTES:
        return f"computed at every step: together they would take more than {MOST_BYTES / 1e9:.1f} GB"
    return KEPT


def key(spec: RunSpec) -> str:
    """The key of a run's body: runs in lockstep with equal keys share features."""
    return json.dumps([canonical(spec.network), spec.bits, spec.start], sort_keys=True)


class Features:
    """The features of a frozen body, of training images by view and of validation images.

    They are computed in fixed chunks of rows, so that a resumed run gets the same bits.

    Args:
        casting: the autocast context of training.
    """

    def __init__(
        self, classifier: Classifier, views: Views, val: ImageSet, casting: AbstractContextManager[object]
    ) -> None:
        self._body, self._views, self._val, self._casting = networks.Embedder(classifier), views, val, casting
        self._known: dict[int, Tensor] = {}
        self._held: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes cached so far."""
        held = [*self._known.values(), *([] if self._held is None else [self._held])]
        return sum(one.numel() * one.element_size() for one in held)

    def prepare(self, step: int) -> Iterator[float]:
        """Compute what `at(step)` needs and is missing; yields progress, 0..1. The caller may stop."""
        for number in np.unique(self._numbers(step)[1]).tolist():
            if number in self._known:
                continue
            found, count = [], self._views.count
            for start in range(0, count, CHUNK):
                rows = np.arange(start, min(start + CHUNK, count))
                found.append(self._of(self._views.augmented(rows, np.full(len(rows), number))))
                yield (start + len(rows)) / count
            self._known[number] = torch.cat(found)

    def at(self, step: int) -> Tensor:
        """The head's input for the batch of `step`: float32 [B, F]."""
        for _ in self.prepare(step):
            pass
        rows, number = self._numbers(step)
        places = to_device(rows, self._views.device)
        found = self._known[int(number[0])][places]
        for other in np.unique(number[number != number[0]]).tolist():  # a batch may end one epoch and begin the next
            here = to_device(np.flatnonzero(number == other), self._views.device)
            found[here] = self._known[other][places[here]]
        return found

    def answers(self, head: nn.Module) -> NDArray[np.float32]:
        """Logits float32 [N, C] of the validation images, in full precision, with the current head."""
        if self._held is None:
            pixels = (
                to_device(np.ascontiguousarray(self._val.images[at : at + CHUNK]), self._views.device)
                for at in range(0, len(self._val), CHUNK)
            )
            self._body.classifier.eval()
            self._held = torch.cat([batching.in_batches(self._body, some) for some in pixels])
        with torch.no_grad():
            return head(self._held).float().cpu().numpy()

    def _numbers(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows and the number of the view of each image of `step`; all views are one where nothing is augmented."""
        rows, number = self._views.sample_indices(step)
        return rows, number if self._views.policy else np.zeros_like(number)

    def _of(self, images: Tensor) -> Tensor:
        self._body.classifier.eval()
        with self._casting:
            return batching.in_batches(self._body, images)
