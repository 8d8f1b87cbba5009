"""One run on several processes (DistributedDataParallel): started by `torchrun`; rank 0 records, the others assist.

Every process computes its part of each batch, and gradients are averaged, so a step equals that of one process with the
whole batch, with two exceptions: batch norm (on CPUs; on GPUs statistics are synchronised) and losses that compare the
images of a batch use each part on its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.system.device import begin


@dataclass(frozen=True)
class World:
    """The processes that train one run together; by default only this one.

    Attributes:
        rank: 0 controls and records; the others follow its commands.
        size: number of processes; a process group of one is trained by DDP too.
    """

    rank: int = 0
    size: int = 1
    _talk: Any = field(default=None, repr=False)

    def broadcast(self, message: object) -> None:
        """Send a value to the other processes, which must be in `receive`."""
        if self.size > 1 and self.rank == 0:
            dist.broadcast_object_list([message], src=0, group=self._talk)

    def receive(self) -> Any:
        """The next value from rank 0."""
        heard: list[object] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._talk)
        return heard[0]

    def local_slice(self, batch: int) -> slice:
        """The positions of a batch that belong to this process.

        Raises:
            BadSpec: the batch cannot be divided evenly.
        """
        if batch % self.size:
            raise BadSpec(
                "the batch cannot be divided evenly among the processes",
                given=f"batch {batch}, {self.size} processes",
                do=f"use a multiple of {self.size}",
            )
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap_ddp(self, network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A DDP wrapper of `network` that averages gradients over all processes."""
        if self._talk is None:
            return network
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place below the top
        return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    def average(self, *tensors: Tensor | None) -> None:
        """Replace each tensor by its mean over all processes, which must all call this."""
        if self.size > 1:
            for tensor in tensors:
                if tensor is not None:
                    dist.all_reduce(tensor)
                    tensor /= self.size


def join() -> World:
    """The process group of `torchrun`; a single process without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return World(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, made the current one; `auto` is the first available of cuda, xpu, mps and cpu.

    Raises:
        BadSpec: the device is not available.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind, _, number = name.partition(":")
    if name == "auto":
        kind = name = next(kind for kind, found in there.items() if found)
    cards = getattr(torch, kind).device_count() if there.get(kind) and kind in ("cuda", "xpu") else 1
    if not there.get(kind) or (number and not (number.isdecimal() and (kind == "cpu" or int(number) < cards))):
        raise BadSpec(
            "the device is not available on this machine",
            given=name,
            do=f"choose one of: auto, {', '.join(k for k, v in there.items() if v)}",
        )
    chosen = torch.device(name)
    begin(chosen)
    return chosen
