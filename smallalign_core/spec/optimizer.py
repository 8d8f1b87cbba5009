"""The optimizer family, each with its published defaults and their source.

Wrappers hold another optimizer in `inner`. From the outside in they are ema, lookahead, and sam or asam; each is
optional. The order is fixed because no other is consistent: SAM computes two gradients per step, Lookahead counts
steps, and a weight average does not affect the steps. All facts of an optimizer are on its class: see `_facts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from smallalign_core.spec._facts import (
    EVALUATIONS as EVALUATIONS,
    Closure as Closure,
    Menu as Menu,
    OptimizerFacts as OptimizerFacts,
)
from smallalign_core.spec._part import shorthand
from smallalign_core.spec.schedule import Constant as Constant, Cosine as Cosine, Schedule as Schedule

WIDEST = 10_000
"""SOAP keeps no matrices for a side that is wider."""

LearningRate = Annotated[float, Field(gt=0, le=100, description="Peak learning rate.", json_schema_extra={"log": True})]
WeightDecay = Annotated[
    float, Field(ge=0, le=10, description="Weight decay of matrices and kernels; biases and norms are excluded.")
]
Beta1 = Annotated[float, Field(ge=0, lt=1, description="Decay rate of the first moment.")]
Beta2 = Annotated[float, Field(ge=0, lt=1, description="Decay rate of the second moment.")]


class _Wrapper(OptimizerFacts):
    """Tuned as what it holds."""

    library_rate = None
    untuned = "the optimizer that it holds has the learning rate"
    not_inside = "{outer} cannot wrap `{kind}`: wrappers nest, from the outside in, as ema, lookahead, sam or asam"


class Sgd(OptimizerFacts):
    """Stochastic gradient descent with Nesterov momentum."""

    label = "SGD"
    menus = ("tuned",)
    copies = 1
    library_rate = 1e-3
    kind: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum; 0: none.")] = 0.9
    weight_decay: WeightDecay = 5e-4


class AdamW(OptimizerFacts):
    """AdamW (Loshchilov & Hutter, 2019)."""

    label = "AdamW"
    menus = ("hands-off",)  # tuned, it is the reference of a study
    copies = 2
    library_rate = 1e-3
    kind: Literal["adamw"] = "adamw"
    lr: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class NAdamW(OptimizerFacts):
    """NAdamW (Dozat, 2016; with decoupled decay, Choi et al., 2019): Adam with Nesterov momentum."""

    label = "NAdamW"
    menus = ("tuned",)
    copies = 2
    library_rate = 1e-3
    package = "timm"
    kind: Literal["nadamw"] = "nadamw"
    lr: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class RmsProp(OptimizerFacts):
    """RMSprop (Tieleman & Hinton, 2012): gradients divided by their running RMS."""

    label = "RMSprop"
    menus = ("more",)
    copies = 2
    library_rate = 1e-2
    kind: Literal["rmsprop"] = "rmsprop"
    lr: LearningRate = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum; 0: none.")] = 0.0
    weight_decay: WeightDecay = 0.0
    beta2: Beta2 = 0.9


class Lion(OptimizerFacts):
    """Lion (Chen et al., 2023): sign-of-momentum updates. Needs a third of AdamW's learning rate or less."""

    label = "Lion"
    menus = ("tuned",)
    copies = 1
    library_rate = 1e-4
    package = "pytorch_optimizer"
    kind: Literal["lion"] = "lion"
    lr: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.1
    beta1: Annotated[
        float, Field(ge=0, lt=1, description="Interpolation between momentum and gradient in the update.")
    ] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="Decay rate of the momentum.")] = 0.99


class Muon(OptimizerFacts):
    """Muon (Jordan et al., 2024): orthogonalized momentum, for weight matrices and convolutions. The last layer and 1-D
    weights use NAdamW at the same learning rate; Muon's update RMS is matched to it (Liu et al., 2025).
    """

    label = "Muon"
    menus = ("tuned",)
    copies = 2
    library_rate = 0.02
    package = "timm"
    kind: Literal["muon"] = "muon"
    lr: LearningRate = 0.02
    weight_decay: WeightDecay = 0.01
    momentum: Annotated[float, Field(gt=0, lt=1, description="Momentum.")] = 0.95
    beta1: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.95

    def kept(self, shape: tuple[int, ...], last: bool) -> int:
        return (1 if not last and self.is_orthogonal(shape) else self.copies) * math.prod(shape)

    @staticmethod
    def is_orthogonal(shape: tuple[int, ...]) -> bool:
        """Whether timm's Muon makes such steps orthogonal; others, as of depthwise convolutions, are NAdamW's."""
        if len(shape) < 2 or min(shape[:2]) < 2:
            return False
        low, high = sorted((shape[0], math.prod(shape[1:])))
        return low >= 4 and high <= 128 * low


class Soap(OptimizerFacts):
    """SOAP (Vyas et al., 2024): Adam in the eigenbasis of Shampoo. Keeps two square matrices per side of each weight;
    sides over 10,000 are not rotated.
    """

    label = "SOAP"
    menus = ("tuned",)
    copies = 2
    library_rate = 3e-3
    package = "pytorch_optimizer"
    kind: Literal["soap"] = "soap"
    lr: LearningRate = 0.003
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.95
    beta2: Beta2 = 0.95
    every: Annotated[int, Field(ge=1, le=1000, description="Steps between updates of the eigenbasis.")] = 10

    def kept(self, shape: tuple[int, ...], last: bool) -> int:
        sides = [side for side in shape if side <= WIDEST] if len(shape) > 1 else []
        return super().kept(shape, last) + sum(2 * side * side for side in sides)


class Prodigy(OptimizerFacts):
    """Prodigy (Mishchenko & Defazio, 2023): AdamW that estimates its learning rate; `lr` scales the estimate."""

    label = "Prodigy"
    menus = ("hands-off",)
    copies = 4
    library_rate = None
    untuned = "it finds its learning rate"
    package = "pytorch_optimizer"
    kind: Literal["prodigy"] = "prodigy"
    lr: LearningRate = 1.0
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class ScheduleFree(OptimizerFacts):
    """Schedule-Free AdamW (Defazio et al., 2024): weight averaging instead of learning-rate decay, so that training
    can end at any step. The average is evaluated.
    """

    label = "Schedule-Free"
    menus = ("more", "hands-off")
    copies = 2
    library_rate = 2.5e-3
    package = "pytorch_optimizer"
    distributed = False
    not_inside = "`schedule_free` averages its weights itself and cannot be wrapped: remove the wrapper"
    schedule = Constant()
    wrong_schedule = "`schedule_free` replaces learning-rate decay by averaging: set `schedule` to constant"
    kind: Literal["schedule_free"] = "schedule_free"
    lr: LearningRate = 0.0025
    weight_decay: WeightDecay = 0.0
    beta1: Annotated[
        float, Field(gt=0, lt=1, description="Point where gradients are computed: 1 the average, 0 the latest weights.")
    ] = 0.9
    beta2: Beta2 = 0.999


class AdEmaMix(OptimizerFacts):
    """AdEMAMix (Pagliardini et al., 2024): AdamW with a second, slow EMA of gradients that is warmed up over the run.
    For 5,000 steps and more.
    """

    label = "AdEMAMix"
    menus = ("more",)
    copies = 3
    library_rate = 1e-3
    package = "pytorch_optimizer"
    kind: Literal["ademamix"] = "ademamix"
    lr: LearningRate = 0.001
    weight_decay: WeightDecay = 0.01
    beta1: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the first moment.")] = 0.9
    beta2: Beta2 = 0.999
    beta3: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the slow EMA, at the end of the run.")] = (
        0.9999
    )
    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of the slow EMA, at the end of the run.")] = 5.0


class Polyak(OptimizerFacts):
    """Teacher-informed Polyak step (IAM; Gower et al., 2025, arXiv 2504.01898): no learning rate. The step size follows
    from the gap between student and teacher loss on the same images; needs a teacher and a constant schedule.
    """

    label = "Polyak"
    menus = ("hands-off",)
    copies = 2
    library_rate = None
    untuned = "it has no learning rate"
    closure = "excess"
    distributed = False
    head_rate = False
    not_inside = "`polyak` computes its step size at its own weights, which {outer} moves: only ema can wrap it"
    schedule, warms_up = Constant(warmup=0), False
    wrong_schedule = "`polyak` has no learning rate to schedule: set `schedule` to constant with `warmup` 0"
    without_teacher = "`polyak` computes its step size from the teacher's loss: set `teacher`, or use another optimizer"
    with_layers = "`polyak` needs the teacher's own loss, which is undefined for losses of layers: use loss kd"
    kind: Literal["polyak"] = "polyak"
    averaging: Annotated[
        float, Field(ge=0, le=1000, description="Momentum λ: the weights move by 1 / (1 + λ) of each step.")
    ] = 9.0
    beta2: Beta2 = 0.999


class _Evolution(OptimizerFacts):
    menus = ()
    library_rate = None
    untuned = "an evolution strategy has a deviation to choose, too"
    package = "evotorch"
    closure = "losses"
    distributed = False
    head_rate = False
    not_inside = "{outer} needs gradients, and `{kind}` is gradient-free: only ema can wrap it"
    with_layers = "an evolution strategy evaluates candidates by their logits, not by layers: use loss kd"
    when_fast = (
        "an evolution strategy ranks candidates by small differences between losses, in fp32 and without a "
        "compiler: leave `{fast}` out"
    )
    kind: Literal["snes", "pgpe"]
    population: Annotated[
        int,
        Field(
            ge=4,
            le=4096,
            multiple_of=2,
            description="Population size: candidates per step, each evaluated on the batch.",
        ),
    ] = 64
    sigma: Annotated[
        float, Field(gt=0, le=10, description="Initial standard deviation of the candidates around the weights.")
    ] = 0.05

    @property
    def gradients(self) -> int:
        return max(1, round((self.population + 1) / EVALUATIONS))  # the loss at the weights themselves is one more


class Snes(_Evolution):
    """SNES (Schaul et al., 2011): an evolution strategy. Gradient-free: it uses the losses of candidates sampled around
    the weights, and adapts a standard deviation per weight. For very small networks and low-bit weights.
    """

    label = "SNES"
    copies = 1
    kind: Literal["snes"] = "snes"
    lr: Annotated[float, Field(gt=0, le=10, description="Peak learning rate of the mean.")] = 1.0


class Pgpe(_Evolution):
    """PGPE (Sehnke et al., 2010) with ClipUp (Toklu et al., 2020): an evolution strategy. Gradient-free: it uses the
    losses of antithetic pairs of candidates; steps have a fixed norm. For very small networks and low-bit weights.
    """

    label = "PGPE"
    copies = 2
    kind: Literal["pgpe"] = "pgpe"
    lr: Annotated[
        float, Field(gt=0, le=10, description="Peak norm of a step, over all weights.", json_schema_extra={"log": True})
    ] = 0.1
    sigma_lr: Annotated[float, Field(ge=0, le=1, description="Learning rate of the standard deviation.")] = 0.1


EVOLUTION = Snes | Pgpe
PLAIN = Sgd | AdamW | NAdamW | RmsProp | Lion | Muon | Soap | Prodigy | AdEmaMix


def _fits(outer: str, held: Any) -> BeforeValidator:
    """Reject an inner optimizer that `outer` cannot wrap: one that is not in the union `held`."""

    def check(given: object) -> object:
        kind = kind_of(given)
        known = {str(one.model_fields["kind"].default): one for one in get_args(get_args(Optimizer)[0])}
        if kind in known and known[str(kind)] not in get_args(held):
            raise ValueError(known[str(kind)].not_inside.format(outer=outer, kind=kind))
        return given

    return BeforeValidator(check)


class _Sharpness(_Wrapper):
    copies = 1
    package = "pytorch_optimizer"
    closure = "gradient"
    distributed = False
    kind: Literal["sam", "asam"]
    inner: Annotated[
        PLAIN,
        Field(discriminator="kind", description="The wrapped optimizer."),
        shorthand("kind"),
        _fits("`sam` or `asam`", PLAIN),
    ] = AdamW()

    @property
    def gradients(self) -> int:
        return 2


class Sam(_Sharpness):
    """SAM (Foret et al., 2021) around another optimizer: gradients at the worst point of the loss nearby. Two gradients
    per step.
    """

    label = "SAM"
    menus = ("tuned",)
    kind: Literal["sam"] = "sam"
    rho: Annotated[
        float, Field(gt=0, le=10, description="Radius of the neighbourhood, as an L2 norm over all weights.")
    ] = 0.05


class Asam(_Sharpness):
    """ASAM (Kwon et al., 2021) around another optimizer: SAM with a radius relative to each weight. Two gradients per
    step.
    """

    label = "ASAM"
    menus = ("more",)
    kind: Literal["asam"] = "asam"
    rho: Annotated[float, Field(gt=0, le=10, description="Radius of the neighbourhood, relative to the weights.")] = 0.5


IN_LOOKAHEAD = PLAIN | Sam | Asam


class Lookahead(_Wrapper):
    """Lookahead (Zhang et al., 2019) around another optimizer: k fast steps, then one slow step back towards them."""

    label = "Lookahead"
    menus = ("tuned",)
    copies = 1
    package = "pytorch_optimizer"
    kind: Literal["lookahead"] = "lookahead"
    inner: Annotated[
        IN_LOOKAHEAD,
        Field(discriminator="kind", description="The optimizer of the fast weights."),
        shorthand("kind"),
        _fits("`lookahead`", IN_LOOKAHEAD),
    ] = AdamW()
    k: Annotated[int, Field(ge=2, le=100, description="Fast steps per slow step.")] = 5
    alpha: Annotated[
        float, Field(gt=0, lt=1, description="Interpolation of the slow weights towards the fast ones.")
    ] = 0.5


IN_EMA = PLAIN | Polyak | EVOLUTION | Lookahead | Sam | Asam


class Ema(_Wrapper):
    """Exponential moving average (Polyak & Juditsky, 1992) of the weights of another optimizer, which it does not
    affect; the average is evaluated. With warm-up: the decay at step t is at most 1 - 9 / (10 + t).
    """

    label = "EMA"
    menus = ("more",)
    copies = 1
    distributed = False
    kind: Literal["ema"] = "ema"
    inner: Annotated[
        IN_EMA,
        Field(discriminator="kind", description="The wrapped optimizer."),
        shorthand("kind"),
        _fits("`ema`", IN_EMA),
    ] = AdamW()
    decay: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the average.")] = 0.999


Optimizer = Annotated[
    PLAIN | ScheduleFree | Polyak | EVOLUTION | Lookahead | Sam | Asam | Ema,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def nest(optimizer: Any) -> list[Any]:
    """An optimizer and all that it wraps, from the outside in; the last is the base optimizer."""
    found = [optimizer]
    while (inner := getattr(found[-1], "inner", None)) is not None:
        found.append(inner)
    return found


def kind_of(part: object) -> object:
    """The kind of a part in any of its spellings; None if it has none."""
    return part.get("kind") if isinstance(part, Mapping) else getattr(part, "kind", part)


def usual_schedule(optimizer: object) -> Schedule | None:
    """The schedule that an optimizer, in any spelling, requires; None if any works."""
    while inner := optimizer.get("inner") if isinstance(optimizer, Mapping) else getattr(optimizer, "inner", None):
        optimizer = inner
    kind, union = kind_of(optimizer), get_args(get_args(Optimizer)[0])
    return next((one.schedule for one in union if one.model_fields["kind"].default == kind), None)


def is_gradient_free(optimizer: Optimizer) -> bool:
    """Whether the base optimizer is an evolution strategy, which needs losses but no gradient."""
    return bool(nest(optimizer)[-1].closure == "losses")


def incompatibility(
    optimizer: Optimizer, schedule: Schedule, *, taught: bool, layers: bool, fast: str | None = None
) -> str | None:
    """The reason why an optimizer cannot be used with the rest of a spec, as text; None if it can.

    Args:
        taught: whether there is a teacher.
        layers: whether the loss compares layers.
        fast: the field, if any, that makes gradients fast: `precision` (bf16) or `compile`.
    """
    base: OptimizerFacts = nest(optimizer)[-1]
    return base.unfit(schedule, taught=taught, layers=layers, fast=fast)
