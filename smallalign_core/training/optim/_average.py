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


def average(spec: Optimizer, model: nn.Module) -> AveragedModel | None:
    """The average of an `ema`: call its `update_parameters(model)` after each step. None without an `ema`.

    The decay grows from 0.1 as (1 + step) / (10 + step) (TensorFlow's `num_updates`), so that initial weights do not
    dominate the average of a short run.
    """
    if not isinstance(spec, Ema):
        return None

    def follow(averaged: Any, current: Any, count: Any) -> None:
        share = min(spec.decay, (1 + int(count)) / (10 + int(count)))
        _compat.foreach_lerp_(averaged, current, 1 - share)

    return AveragedModel(model, multi_avg_fn=follow)


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
