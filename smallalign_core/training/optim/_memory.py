"""The memory of an optimizer, computed in advance."""

from __future__ import annotations

import torch
from torch import nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import Ema, Optimizer, nest
from smallalign_core.spec.optimizer import EVOLUTION
from smallalign_core.system.machine import memory
from smallalign_core.training.optim._evolution import population_bytes, refuse_large

SHARE = 0.5
"""Max. share of memory for optimizer states; the rest is for weights, gradients, activations and images."""


def state_bytes(spec: Optimizer, model: nn.Module, *, head: nn.Module | None = None) -> int:
    """Bytes of the optimizer state for `model`, without weights and gradients; including the temporaries of SAM and
    evolution strategies.

    Args:
        head: as for `build`.

    Raises:
        BadSpec: too many weights for an evolution strategy.
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
    """Check that optimizer states fit into memory.

    Args:
        needed: bytes, as `state_bytes` counts them, of all that train together.
        given: their names.

    Raises:
        BadSpec: they would take more than half of the memory.
    """
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    if needed > SHARE * there:
        raise BadSpec(
            f"the optimizer state would take {needed / 1e9:,.1f} GB, more than half of the memory of "
            f"{there / 1e9:,.1f} GB",
            given=given,
            do="choose an optimizer with less state (sgd, lion, muon), or a smaller network",
        )
