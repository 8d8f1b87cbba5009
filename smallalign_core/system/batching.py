"""How many images are answered at once: as many as a budget of memory holds, by what an image was measured to need.

Every place that asks a network about many images does so through `answered`. Where all of them fit they are one batch,
as ever; a network on photographs gets fewer at a time. Answers do not depend on it beyond the last bits of a sum.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smallalign_core.system._compat import OperationMode

BUDGET = 192 * 1024**2
"""Bytes that the tensors of one call may take together. A constant, so that equal runs use equal batches anywhere."""
FEW = 4
"""So many images are answered at once unmeasured."""
PIXELS = 32 * 224 * 224
"""Pixels that an ONNX file gets at once: ONNX Runtime keeps its tensors to itself, and 224 is what photographs have."""

_needs: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()


def in_batches(model: nn.Module, images: Tensor) -> Tensor:
    """What `model`, in evaluation mode, answers to images [N, ...]: its outputs [N, ...], without gradients.

    They go through it in equal batches that fit `BUDGET`, the last one smaller.
    """
    with torch.no_grad():
        step = batch_that_fits(model, images)
        if step >= len(images):
            return model(images)
        return torch.cat([model(part) for part in images.split(step)])


def batch_that_fits(model: nn.Module, images: Tensor) -> int:
    """How many of `images` [N, ...] a forward pass without gradients may get at once: N, or a power of two below it."""
    if len(images) <= FEW:
        return len(images)
    known = _needs.setdefault(model, {})
    key = tuple(images.shape[1:]), images.device.type, torch.is_autocast_enabled(images.device.type)
    if key not in known:
        with torch.no_grad():  # the second image's share: weights that a pass copies or rounds are not in it
            known[key] = max(1, bytes_needed(lambda: model(images[:2])) - bytes_needed(lambda: model(images[:1])))
    most = max(1, BUDGET // known[key])
    return len(images) if most >= len(images) else 1 << (most.bit_length() - 1)


def by_pixels(sides: Sequence[int], most: int) -> int:
    """How many images of this (height, width) an ONNX file gets at once, at most `most`."""
    return max(1, min(most, PIXELS // max(1, math.prod(sides))))


def bytes_needed(work: Callable[[], object]) -> int:
    """The most bytes that tensors made by `work` take at any one time, counted and so the same on any machine.

    What single operations use inside, and libraries' own buffers, are not in it.
    """
    with Counting() as counting:
        work()
    return counting.most


class Counting(OperationMode):  # type: ignore[misc]  # a class of torch or ours
    """Counts the storages that are alive of those that operations under it make; `most`: the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage.data_ptr() not in given and storage not in self._alive:
                self._alive.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.now)
        return found

    def _freed(self, count: int) -> None:
        self.now -= count


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Of all tensors in nested `values` but those that oneDNN packed, which have none to look at."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided:
            yield values.untyped_storage()
    elif isinstance(values, dict | list | tuple):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _storages(one)
