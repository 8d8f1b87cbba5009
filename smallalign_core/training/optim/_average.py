"""Averages of weights, which are scored instead of those that learn, with batch norm statistics of their own."""

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
    """What an `ema` keeps beside the optimizer: call its `update_parameters(model)` after each step. None without one.

    The decay grows from 0.1 as (1 + step) / (10 + step) (TensorFlow's `num_updates`): a short run is not held back by
    the weights that it began with.
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
    """The network to score: `model` itself, or another one with averaged weights.

    The statistics of its batch norms are estimated anew from `views` (uint8 [N, C, H, W] each): those of the weights
    that learn are not those of their average. Neither `model` nor the optimizer is touched: going to the average and
    back would change the last bits, so that how often a run is scored would change it.
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
