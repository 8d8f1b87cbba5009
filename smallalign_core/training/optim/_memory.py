"""What an optimizer will keep in memory, counted before it does."""

from __future__ import annotations

import torch
from torch import nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import Ema, Optimizer, nest
from smallalign_core.spec.optimizer import EVOLUTION
from smallalign_core.system.machine import memory
from smallalign_core.training.optim._evolution import population_bytes, refuse_large

SHARE = 0.5
"""Of all memory that the states of optimizers may take; the rest is for weights, gradients, activations and images."""


def state_bytes(spec: Optimizer, model: nn.Module, *, head: nn.Module | None = None) -> int:
    """Bytes that the optimizer keeps beside the weights of `model` and their gradients; with what SAM and evolution
    strategies keep during their step.

    Args:
        head: as for `build`.

    Raises:
        BadSpec: an evolution strategy cannot work on so many weights.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    last = {id(weight) for weight in head.parameters()} if head else set()
    total = 0
    for part in nest(spec):
        tensors = (*model.parameters(), *model.buffers()) if isinstance(part, Ema) else weights
        total += sum(part.kept(tuple(one.shape), id(one) in last) * one.element_size() for one in tensors)
        if isinstance(part, EVOLUTION):
            refuse_large(part, model)
            total += population_bytes(part, sum(weight.numel() for weight in weights))
    return total


def check(needed: int, device: torch.device, given: str) -> None:
    """Refuse optimizers that would not fit.

    Args:
        needed: bytes, as `state_bytes` counts them, of all that train together.
        given: what they are called.

    Raises:
        BadSpec: they would take more than half of the memory.
    """
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    if needed > SHARE * there:
        raise BadSpec(
            f"what the optimizer keeps would take {needed / 1e9:,.1f} GB, more than half of the memory, which is "
            f"{there / 1e9:,.1f} GB",
            given=given,
            do="choose one that keeps less (sgd, lion, muon), or a smaller network",
        )
