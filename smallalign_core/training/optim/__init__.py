"""Optimizers from libraries, what they cost, and the learning rate as a pure function of the step.

Libraries of optimizers are imported where a spec names one of theirs: each costs over a second.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, assert_never

import torch
from torch import nn

from smallalign_core.spec import (
    AdamW,
    AdEmaMix,
    Asam,
    Constant,
    Cosine,
    Ema,
    Lion,
    Lookahead,
    Muon,
    NAdamW,
    Optimizer,
    Pgpe,
    Polyak,
    Prodigy,
    RmsProp,
    Sam,
    Schedule,
    ScheduleFree,
    Sgd,
    Snes,
    Soap,
    nest,
)
from smallalign_core.spec.optimizer import Closure
from smallalign_core.system import extras
from smallalign_core.training.optim._average import average as average, scored as scored
from smallalign_core.training.optim._evolution import (
    Evolution as Evolution,
    answers as answers,
    population_bytes as population_bytes,
)
from smallalign_core.training.optim._fused import FusedAdamW, FusedSgd
from smallalign_core.training.optim._memory import check as check, state_bytes as state_bytes
from smallalign_core.training.optim._polyak import PolyakStep as PolyakStep


def build(  # noqa: C901  # one case a kind
    spec: Optimizer, model: nn.Module, steps: int = 1, *, head: nn.Module | None = None, head_rate: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer of `spec` over the trainable parameters of `model`.

    Biases and norms (1-D parameters) have no weight decay. Build it after the weights are loaded: Lookahead copies its
    slow weights here. An `ema` is separate from the optimizer: see `average`.

    Args:
        steps: total number of steps, for optimizers that need it.
        head: the last layer, which Muon leaves to NAdamW.
        head_rate: its learning rate, as a multiple of the others'; stored as `rate` in its groups, for `set_rate`.
    """
    groups = partial(_groups, spec, model, head, head_rate)
    match spec:
        case Ema():
            return build(spec.inner, model, steps, head=head, head_rate=head_rate)
        case Lookahead():
            pytorch_optimizer = _library(spec)
            inner = build(spec.inner, model, steps, head=head, head_rate=head_rate)
            # pullback_momentum must be "none": the others have no effect with Adam and double its memory.
            return pytorch_optimizer.Lookahead(inner, k=spec.k, alpha=spec.alpha, pullback_momentum="none")
        case Sam() | Asam():
            pytorch_optimizer = _library(spec)
            inner = build(spec.inner, model, steps, head=head, head_rate=head_rate)
            made: Any = lambda _, **__: inner  # noqa: E731  # the argument is a class, which it calls
            return pytorch_optimizer.SAM(inner.param_groups, made, rho=spec.rho, adaptive=isinstance(spec, Asam))
        case Snes() | Pgpe():
            return Evolution(spec, [weight for weight in model.parameters() if weight.requires_grad])
        case Sgd():
            return FusedSgd(groups(), lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True)
        case AdamW():
            return FusedAdamW(groups(), lr=spec.lr, betas=(spec.beta1, spec.beta2), fused=True)
        case RmsProp():
            return torch.optim.RMSprop(groups(), lr=spec.lr, alpha=spec.beta2, momentum=spec.momentum)
        case Polyak():
            return PolyakStep(groups(), averaging=spec.averaging, beta2=spec.beta2)
        case NAdamW():
            nadamw = _library(spec, ".optim.nadamw").NAdamW
            return nadamw(groups(), lr=spec.lr, betas=(spec.beta1, spec.beta2))
        case Muon():
            muon, betas = _library(spec, ".optim.muon").Muon, (spec.beta1, spec.beta2)
            return muon(groups(), lr=spec.lr, momentum=spec.momentum, nesterov=True, betas=betas)
        case Lion():
            return _library(spec).Lion(groups(), lr=spec.lr, betas=(spec.beta1, spec.beta2))
        case Soap():
            betas = (spec.beta1, spec.beta2)
            return _library(spec).SOAP(groups(), lr=spec.lr, betas=betas, precondition_frequency=spec.every)
        case Prodigy():
            prodigy, betas = _library(spec).Prodigy, (spec.beta1, spec.beta2)
            return prodigy(groups(), lr=spec.lr, betas=betas, bias_correction=True, safeguard_warmup=True)
        case ScheduleFree():
            return _library(spec).ScheduleFreeAdamW(groups(), lr=spec.lr, betas=(spec.beta1, spec.beta2))
        case AdEmaMix():
            return _library(spec).AdEMAMix(
                groups(),
                lr=spec.lr,
                betas=(spec.beta1, spec.beta2, spec.beta3),
                alpha=spec.alpha,
                t_alpha_beta3=steps,
                weight_decouple=True,  # its default is L2
            )
        case _:
            assert_never(spec)


def require(spec: Optimizer) -> None:
    """Check that the packages of all parts of an optimizer are installed. Nothing is imported.

    Raises:
        MissingExtra: one is not; the message has the command that installs it.
    """
    for part in nest(spec):
        if part.package is not None:
            extras.require(part.package, f"the optimizer {part.kind}")


def _library(part: Optimizer, module: str = "") -> Any:
    """The package that a part comes from, or a module of it."""
    return extras.load(f"{part.package}{module}", f"the optimizer {part.kind}")


def _groups(spec: Any, model: nn.Module, head: nn.Module | None, head_rate: float) -> list[dict[str, Any]]:
    """The trainable parameters by how they are treated; no group is empty."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    apart = head is not None and (isinstance(spec, Muon) or head_rate != 1)
    last = {id(parameter) for parameter in head.parameters()} if head and apart else set()
    quick = last if head_rate != 1 else set()
    decay = getattr(spec, "weight_decay", 0.0)
    other: dict[str, Any] = {"use_fallback": True} if isinstance(spec, Muon) else {}
    rate: dict[str, Any] = {"rate": head_rate} if quick else {}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1 and id(p) not in last], "weight_decay": decay},
        {"params": [p for p in trainable if p.ndim > 1 and id(p) in last], "weight_decay": decay, **other, **rate},
        {"params": [p for p in trainable if p.ndim <= 1 and id(p) not in quick], "weight_decay": 0.0},
        {"params": [p for p in trainable if p.ndim <= 1 and id(p) in quick], "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; the head's groups get their multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def closure_kind(spec: Optimizer) -> Closure | None:
    """What a step needs besides the gradient at the weights: see `Closure`."""
    return next((part.closure for part in nest(spec) if part.closure), None)


def not_distributable(spec: Optimizer) -> str | None:
    """The kind of the part that does not support several processes; None if all do."""
    return next((part.kind for part in nest(spec) if not part.distributed), None)


def peak_rate(spec: Optimizer) -> float:
    """The learning rate that the schedule scales; 1 for a step that has none."""
    return getattr(nest(spec)[-1], "lr", 1.0)


def described(spec: Optimizer) -> tuple[str, str]:
    """(a short name of an optimizer, what to lower when it diverges)."""
    parts = nest(spec)
    words = " | ".join(part.kind for part in parts)
    if not hasattr(parts[-1], "lr"):
        return words, "use another optimizer"
    path = ".".join(["optimizer", *["inner"] * (len(parts) - 1), "lr"])
    return f"{words}, learning rate {parts[-1].lr}", f"lower {path}, or lengthen schedule.warmup"


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor of the peak learning rate at `step` of `steps` (counted from 0).

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
