"""What a device needs from the host: copies that do not stop it, and how much of its memory data may take.

A copy from ordinary memory to a GPU waits until the GPU has done all its work. A copy from page-locked memory is queued
behind that work instead, and the host goes on to prepare the next step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.25
"""Share of a device's free memory that decoded images may take, and again cached views with their logits."""
ROWS_BYTES = 64 * 1024**2
"""Bytes that are copied at once while images move to the device."""
WAITING = ("mps", "xpu")
"""Devices for which nothing would keep the host's memory until a copy is done."""
DETERMINISTIC = "SMALLALIGN_DETERMINISTIC"


def to_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """`values` of the host on `device`, on CUDA without waiting for it; on the CPU the same memory."""
    found = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cpu":
        return found
    if device.type == "cuda":  # the allocator keeps page-locked memory until the copy is done
        found = found.pin_memory()
    return found.to(device, non_blocking=device.type not in WAITING)


def room(device: torch.device) -> int | None:
    """Bytes of `device` that images may take, and cached views again; None where it works in the host's memory."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    if device.type == "xpu":
        return int(SHARE * torch.xpu.get_device_properties(device).total_memory)
    return None


def upload(parts: Iterable[NDArray[Any]], count: int, device: torch.device) -> Tensor:
    """`count` rows on `device`, of arrays that follow each other; no more than one of them is in memory twice."""
    found: Tensor | None = None
    at = 0
    for part in parts:
        here = to_device(np.array(part), device)  # of a mapped file too
        found = here.new_empty((count, *here.shape[1:])) if found is None else found
        found[at : at + len(here)] = here
        at += len(here)
    if found is None or at != count:
        raise ValueError(f"{at} rows instead of {count}")
    return found


def held(images: Any, device: torch.device) -> Tensor | None:
    """All of `images` uint8 [N, C, H, W] on `device`, if they may take so much of its memory; None otherwise.

    On a device that works in the host's memory: those that are in memory, not those that are mapped from the disk.
    """
    limit = room(device)
    if limit is None:
        return to_device(np.ascontiguousarray(images), device) if isinstance(images, np.ndarray) else None
    count, *shape = images.shape
    each = int(np.prod(shape))
    if count * each > limit:
        return None
    rows = max(1, ROWS_BYTES // each)
    parts = (images[np.arange(start, min(start + rows, count))] for start in range(0, count, rows))
    return upload(parts, count, device)


def compiled(network: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """`network` by torch.compile; on CUDA as graphs, whose output lives until the next call."""
    if device.type != "cuda":
        return torch.compile(network)
    fast = torch.compile(network, mode="reduce-overhead")

    def replay(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return fast(images)

    return replay


def deterministic() -> bool:
    """Whether GPUs compute every sum in one order: yes, unless SMALLALIGN_DETERMINISTIC is 0."""
    return os.environ.get(DETERMINISTIC, "1") != "0"


def begin(device: torch.device) -> None:
    """Make `device` the current one, and let it compute as `deterministic` says; nothing happens on a CPU.

    Operations that have no deterministic kernel on a GPU are run all the same, with a warning of torch.
    """
    if device.type not in ("cuda", "xpu"):
        return
    if device.index is not None:  # events, memory statistics and new tensors are those of the current device
        getattr(torch, device.type).set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is loaded
    torch.use_deterministic_algorithms(deterministic(), warn_only=True)
    torch.backends.cudnn.deterministic = deterministic()
    checks: Any = torch.utils.deterministic
    checks.fill_uninitialized_memory = False  # finds faults of programs, and costs time
