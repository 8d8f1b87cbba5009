"""The memory of an optimizer, computed in advance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    AdEmaMix,
    Ema,
    Lion,
    Lookahead,
    Muon,
    Optimizer,
    Pgpe,
    Prodigy,
    RmsProp,
    Sam,
    Sgd,
    Snes,
    Soap,
    nest,
)
from smallalign_core.spec.optimizer import Asam
from smallalign_core.system.machine import memory
from smallalign_core.training.optim._evolution import population_bytes, refuse_large

SHARE = 0.5
"""Max. share of memory for optimizer states; the rest is for weights, gradients, activations and images."""
WIDEST = 10_000
"""SOAP keeps no matrices for a side that is wider."""


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
    *wrappers, base = nest(spec)
    total = sum(_kept(base, weight, id(weight) in last) for weight in weights)
    if isinstance(base, Snes | Pgpe):
        refuse_large(base, model)
        total += population_bytes(base, sum(weight.numel() for weight in weights))
    for wrapper in wrappers:
        if isinstance(wrapper, Lookahead | Sam | Asam):
            total += sum(map(_bytes, weights))
        elif isinstance(wrapper, Ema):
            total += sum(map(_bytes, (*model.parameters(), *model.buffers())))
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


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept(spec: Any, weight: Tensor, last: bool) -> int:
    """Bytes that are kept for one weight."""
    match spec:
        case Sgd():
            copies = int(spec.momentum > 0)
        case RmsProp():
            copies = 1 + int(spec.momentum > 0)
        case Lion() | Snes():
            copies = 1
        case AdEmaMix():
            copies = 3
        case Prodigy():
            copies = 4
        case Muon():
            copies = 1 if not last and _orthogonal(weight) else 2
        case _:
            copies = 2
    sides = [side for side in weight.shape if side <= WIDEST] if isinstance(spec, Soap) and weight.ndim > 1 else []
    return copies * _bytes(weight) + sum(2 * side * side for side in sides) * weight.element_size()


def _orthogonal(weight: Tensor) -> bool:
    """Whether timm's Muon makes steps of this shape orthogonal; others, as of depthwise convolutions, are NAdamW's."""
    if weight.ndim < 2 or min(weight.shape[:2]) < 2:
        return False
    low, high = sorted((weight.shape[0], weight.numel() // weight.shape[0]))
    return low >= 4 and high <= 128 * low
