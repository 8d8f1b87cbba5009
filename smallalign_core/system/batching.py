"""Batch sizes for inference: as many images as fit into a memory budget, by the measured need of one image.

All inference on many images goes through `answered`. If all fit they are one batch; on photographs a batch has fewer.
Outputs do not depend on it beyond the last bits of a sum.
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
"""Max. bytes of all tensors of one call. A constant, so that equal runs use equal batches on every machine."""
FEW = 4
"""Up to this number of images, memory is not measured."""
PIXELS = 32 * 224 * 224
"""Max. pixels per call of an ONNX file, whose memory cannot be measured; chosen for photographs of 224 pixels."""

_needs: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()


def in_batches(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs [N, ...] of `model`, in evaluation mode, for images [N, ...], without gradients.

    Computed in equal batches that fit `BUDGET`, the last one smaller.
    """
    with torch.no_grad():
        step = batch_that_fits(model, images)
        if step >= len(images):
            return model(images)
        return torch.cat([model(part) for part in images.split(step)])


def batch_that_fits(model: nn.Module, images: Tensor) -> int:
    """Batch size for a forward pass without gradients over `images` [N, ...]: N, or a power of two below it."""
    if len(images) <= FEW:
        return len(images)
    known = _needs.setdefault(model, {})
    kind = images.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    key = tuple(images.shape[1:]), kind, casts
    if key not in known:
        with torch.no_grad():  # the increment of a second image: copies of the weights do not count
            known[key] = max(1, bytes_needed(lambda: model(images[:2])) - bytes_needed(lambda: model(images[:1])))
    most = max(1, BUDGET // known[key])
    return len(images) if most >= len(images) else 1 << (most.bit_length() - 1)


def by_pixels(sides: Sequence[int], most: int) -> int:
    """Batch size of an ONNX file for images of this (height, width), at most `most`."""
    return max(1, min(most, PIXELS // max(1, math.prod(sides))))


def bytes_needed(work: Callable[[], object]) -> int:
    """Peak bytes of the tensors created by `work`, counted and therefore the same on every machine.

    Temporaries inside single operations and libraries' own buffers are not included.
    """
    with Counting() as counting:
        work()
    return counting.most


class Counting(OperationMode):  # type: ignore[misc]  # a class of torch or ours
    """Counts the bytes of live storages created by operations in the context; `most`: the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch's default imports its compiler, over a second, to exclude this class
        return False

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
    """The storages of all tensors in nested `values`, except those packed by oneDNN, which have none."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided:
            yield values.untyped_storage()
    elif isinstance(values, dict | list | tuple):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _storages(one)
