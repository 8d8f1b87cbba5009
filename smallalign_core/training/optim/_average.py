"""Weight averages, which are evaluated instead of the trained weights, with their own batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from smallalign_core.spec import Ema, Optimizer, ScheduleFree
from smallalign_core.system import _compat

Network = TypeVar("Network", bound=nn.Module)


class Average(AveragedModel):
    """An exponential average of weights whose decay grows from 0.1 as (1 + step) / (10 + step) (TensorFlow's
    `num_updates`), so that initial weights do not dominate the average of a short run.

    torch's own way sends the count of steps to the device and back, for which a GPU has to stop.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        """Follow `model` by one step; buffers are copied."""
        count = int(self.n_averaged)  # on the CPU
        share = min(self._decay, (1 + count) / (10 + count)) if count else 0.0
        averaged, current = (list(one.parameters()) for one in (self.module, model))
        with torch.no_grad():
            if count:
                _compat.foreach_lerp_(averaged, current, 1 - share)
            else:
                _compat.foreach_copy_(averaged, current)
            for kept, new in zip(self.module.buffers(), model.buffers(), strict=True):
                kept.copy_(new)
            self.n_averaged += 1


def average(spec: Optimizer, model: nn.Module) -> Average | None:
    """The average of an `ema`: call its `update_parameters(model)` after each step. None without an `ema`."""
    return Average(model, spec.decay) if isinstance(spec, Ema) else None


def scored(
    spec: Optimizer,
    optimizer: torch.optim.Optimizer,
    model: Network,
    averaged: AveragedModel | None,
    views: Callable[[], Iterable[Tensor]],
) -> Network:
    """The network to evaluate: `model` itself, or another one with averaged weights.

    Its batch-norm statistics are re-estimated from `views` (uint8 [N, C, H, W] each), since those of the trained
    weights do not fit the average. `model` and the optimizer are not modified: swapping weights forth and back would
    change the last bits, and so the evaluation frequency would affect the run.
    """
    if averaged is not None:
        found = cast(Network, averaged.module)  # its buffers are overwritten at the next step
    elif isinstance(spec, ScheduleFree):
        found = _at_average(optimizer, model)
    else:
        return model
    found.train()  # a frozen body stays in evaluation mode: its statistics are those that it came with
    if any(isinstance(part, _compat.BATCH_NORMS) and part.training for part in found.modules()):
        with torch.no_grad():
            update_bn(views(), found)
    return found.eval()


def _at_average(optimizer: Any, model: Network) -> Network:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    learning = [weight.detach().clone() for weight in weights]
    optimizer.eval()
    found = copy.deepcopy(model)
    with torch.no_grad():
        _compat.foreach_copy_(weights, learning)
    for group in optimizer.param_groups:
        group["train_mode"] = True
    return found
