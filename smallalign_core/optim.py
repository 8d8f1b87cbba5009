"""Optimizers from libraries, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import nn

from smallalign_core.spec import AdamW, Constant, Cosine, Lookahead, Optimizer, Schedule, Sgd


def build(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `spec` describes, over the trainable parameters of `model`.

    Weight decay is left off biases and norms (1-D parameters), where it does not regularise. Build it after the
    weights are loaded: Lookahead copies its slow weights now.
    """
    if isinstance(spec, Lookahead):
        import pytorch_optimizer  # imported only here: it costs over a second

        # pullback_momentum must be "none": the others do nothing for Adam and double its memory.
        return pytorch_optimizer.Lookahead(
            build(spec.inner, model), k=spec.k, alpha=spec.alpha, pullback_momentum="none"
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match spec:
        case Sgd():
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True)
        case AdamW():
            return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), fused=True)
        case _:
            assert_never(spec)


def peak_rate(spec: Optimizer) -> float:
    """The learning rate that the schedule scales."""
    return spec.inner.lr if isinstance(spec, Lookahead) else spec.lr


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied with at `step` of `steps` (counted from 0).

    Warm-up is linear and starts above zero; cosine ends at zero one step after the last.
    """
    warm = round(schedule.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    match schedule:
        case Constant():
            return 1.0
        case Cosine():
            return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
        case _:
            assert_never(schedule)
