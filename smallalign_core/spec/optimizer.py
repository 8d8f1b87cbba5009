"""The optimizer family, each with its published defaults and their source; and the learning-rate schedules.

Wrappers hold another optimizer in `inner`. From the outside in they are ema, lookahead, and sam or asam; each is
optional. The order is fixed because no other is consistent: SAM computes two gradients per step, Lookahead counts
steps, and a weight average does not affect the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from smallalign_core.spec._part import Part, shorthand

LearningRate = Annotated[float, Field(gt=0, le=100, description="Peak learning rate.", json_schema_extra={"log": True})]
WeightDecay = Annotated[
    float, Field(ge=0, le=10, description="Weight decay of matrices and kernels; biases and norms are excluded.")
]
Beta1 = Annotated[float, Field(ge=0, lt=1, description="Decay rate of the first moment.")]
Beta2 = Annotated[float, Field(ge=0, lt=1, description="Decay rate of the second moment.")]


class Sgd(Part):
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum; 0: none.")] = 0.9
    weight_decay: WeightDecay = 5e-4


class AdamW(Part):
    """AdamW (Loshchilov & Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class NAdamW(Part):
    """NAdamW (Dozat, 2016; with decoupled decay, Choi et al., 2019): Adam with Nesterov momentum."""

    kind: Literal["nadamw"] = "nadamw"
    lr: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class RmsProp(Part):
    """RMSprop (Tieleman & Hinton, 2012): gradients divided by their running RMS."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: LearningRate = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum; 0: none.")] = 0.0
    weight_decay: WeightDecay = 0.0
    beta2: Beta2 = 0.9


class Lion(Part):
    """Lion (Chen et al., 2023): sign-of-momentum updates. Needs a third of AdamW's learning rate or less."""

    kind: Literal["lion"] = "lion"
    lr: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.1
    beta1: Annotated[
        float, Field(ge=0, lt=1, description="Interpolation between momentum and gradient in the update.")
    ] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="Decay rate of the momentum.")] = 0.99


class Muon(Part):
    """Muon (Jordan et al., 2024): orthogonalized momentum, for weight matrices and convolutions. The last layer and 1-D
    weights use NAdamW at the same learning rate; Muon's update RMS is matched to it (Liu et al., 2025).
    """

    kind: Literal["muon"] = "muon"
    lr: LearningRate = 0.02
    weight_decay: WeightDecay = 0.01
    momentum: Annotated[float, Field(gt=0, lt=1, description="Momentum.")] = 0.95
    beta1: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.95


class Soap(Part):
    """SOAP (Vyas et al., 2024): Adam in the eigenbasis of Shampoo. Keeps two square matrices per side of each weight;
    sides over 10,000 are not rotated.
    """

    kind: Literal["soap"] = "soap"
    lr: LearningRate = 0.003
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.95
    beta2: Beta2 = 0.95
    every: Annotated[int, Field(ge=1, le=1000, description="Steps between updates of the eigenbasis.")] = 10


class Prodigy(Part):
    """Prodigy (Mishchenko & Defazio, 2023): AdamW that estimates its learning rate; `lr` scales the estimate."""

    kind: Literal["prodigy"] = "prodigy"
    lr: LearningRate = 1.0
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class ScheduleFree(Part):
    """Schedule-Free AdamW (Defazio et al., 2024): weight averaging instead of learning-rate decay, so that training
    can end at any step. The average is evaluated.
    """

    kind: Literal["schedule_free"] = "schedule_free"
    lr: LearningRate = 0.0025
    weight_decay: WeightDecay = 0.0
    beta1: Annotated[
        float, Field(gt=0, lt=1, description="Point where gradients are computed: 1 the average, 0 the latest weights.")
    ] = 0.9
    beta2: Beta2 = 0.999


class AdEmaMix(Part):
    """AdEMAMix (Pagliardini et al., 2024): AdamW with a second, slow EMA of gradients that is warmed up over the run.
    For 5,000 steps and more.
    """

    kind: Literal["ademamix"] = "ademamix"
    lr: LearningRate = 0.001
    weight_decay: WeightDecay = 0.01
    beta1: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the first moment.")] = 0.9
    beta2: Beta2 = 0.999
    beta3: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the slow EMA, at the end of the run.")] = (
        0.9999
    )
    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of the slow EMA, at the end of the run.")] = 5.0


class Polyak(Part):
    """Teacher-informed Polyak step (IAM; Gower et al., 2025, arXiv 2504.01898): no learning rate. The step size follows
    from the gap between student and teacher loss on the same images; needs a teacher and a constant schedule.
    """

    kind: Literal["polyak"] = "polyak"
    averaging: Annotated[
        float, Field(ge=0, le=1000, description="Momentum λ: the weights move by 1 / (1 + λ) of each step.")
    ] = 9.0
    beta2: Beta2 = 0.999


class _Evolution(Part):
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


class Snes(_Evolution):
    """SNES (Schaul et al., 2011): an evolution strategy. Gradient-free: it uses the losses of candidates sampled around
    the weights, and adapts a standard deviation per weight. For very small networks and low-bit weights.
    """

    kind: Literal["snes"] = "snes"
    lr: Annotated[float, Field(gt=0, le=10, description="Peak learning rate of the mean.")] = 1.0


class Pgpe(_Evolution):
    """PGPE (Sehnke et al., 2010) with ClipUp (Toklu et al., 2020): an evolution strategy. Gradient-free: it uses the
    losses of antithetic pairs of candidates; steps have a fixed norm. For very small networks and low-bit weights.
    """

    kind: Literal["pgpe"] = "pgpe"
    lr: Annotated[
        float, Field(gt=0, le=10, description="Peak norm of a step, over all weights.", json_schema_extra={"log": True})
    ] = 0.1
    sigma_lr: Annotated[float, Field(ge=0, le=1, description="Learning rate of the standard deviation.")] = 0.1


EVOLUTION = Snes | Pgpe
PLAIN = Sgd | AdamW | NAdamW | RmsProp | Lion | Muon | Soap | Prodigy | AdEmaMix


def _fits(outer: str, *held: str) -> BeforeValidator:
    """Reject an inner optimizer that `outer` cannot wrap; besides plain optimizers it can wrap these."""

    def check(given: object) -> object:
        kind = kind_of(given)
        if kind == "schedule_free":
            raise ValueError("`schedule_free` averages its weights itself and cannot be wrapped: remove the wrapper")
        if kind in ("snes", "pgpe") and kind not in held:
            raise ValueError(f"{outer} needs gradients, and `{kind}` is gradient-free: only ema can wrap it")
        if kind == "polyak" and kind not in held:
            raise ValueError(
                f"`polyak` computes its step size at its own weights, which {outer} moves: only ema can wrap it"
            )
        if kind in ("ema", "lookahead", "sam", "asam") and kind not in held:
            raise ValueError(
                f"{outer} cannot wrap `{kind}`: wrappers nest, from the outside in, as ema, lookahead, sam or asam"
            )
        return given

    return BeforeValidator(check)


class _Sharpness(Part):
    kind: Literal["sam", "asam"]
    inner: Annotated[
        PLAIN,
        Field(discriminator="kind", description="The wrapped optimizer."),
        shorthand("kind"),
        _fits("`sam` or `asam`"),
    ] = AdamW()


class Sam(_Sharpness):
    """SAM (Foret et al., 2021) around another optimizer: gradients at the worst point of the loss nearby. Two gradients
    per step.
    """

    kind: Literal["sam"] = "sam"
    rho: Annotated[
        float, Field(gt=0, le=10, description="Radius of the neighbourhood, as an L2 norm over all weights.")
    ] = 0.05


class Asam(_Sharpness):
    """ASAM (Kwon et al., 2021) around another optimizer: SAM with a radius relative to each weight. Two gradients per
    step.
    """

    kind: Literal["asam"] = "asam"
    rho: Annotated[float, Field(gt=0, le=10, description="Radius of the neighbourhood, relative to the weights.")] = 0.5


class Lookahead(Part):
    """Lookahead (Zhang et al., 2019) around another optimizer: k fast steps, then one slow step back towards them."""

    kind: Literal["lookahead"] = "lookahead"
    inner: Annotated[
        PLAIN | Sam | Asam,
        Field(discriminator="kind", description="The optimizer of the fast weights."),
        shorthand("kind"),
        _fits("`lookahead`", "sam", "asam"),
    ] = AdamW()
    k: Annotated[int, Field(ge=2, le=100, description="Fast steps per slow step.")] = 5
    alpha: Annotated[
        float, Field(gt=0, lt=1, description="Interpolation of the slow weights towards the fast ones.")
    ] = 0.5


class Ema(Part):
    """Exponential moving average (Polyak & Juditsky, 1992) of the weights of another optimizer, which it does not
    affect; the average is evaluated. With warm-up: the decay at step t is at most 1 - 9 / (10 + t).
    """

    kind: Literal["ema"] = "ema"
    inner: Annotated[
        PLAIN | Polyak | EVOLUTION | Lookahead | Sam | Asam,
        Field(discriminator="kind", description="The wrapped optimizer."),
        shorthand("kind"),
        _fits("`ema`", "polyak", "snes", "pgpe", "lookahead", "sam", "asam"),
    ] = AdamW()
    decay: Annotated[float, Field(gt=0, lt=1, description="Decay rate of the average.")] = 0.999


Optimizer = Annotated[
    PLAIN | ScheduleFree | Polyak | EVOLUTION | Lookahead | Sam | Asam | Ema,
    Field(discriminator="kind"),
    shorthand("kind"),
]

Warmup = Annotated[float, Field(ge=0, le=0.5, description="Share of the steps with linear warm-up from zero.")]


class Cosine(Part):
    """Warm-up, then cosine decay to zero (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05


class Constant(Part):
    """Warm-up, then a constant learning rate."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05


Schedule = Annotated[Cosine | Constant, Field(discriminator="kind"), shorthand("kind")]


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
    return {"schedule_free": Constant(), "polyak": Constant(warmup=0)}.get(str(kind_of(optimizer)))


def is_gradient_free(optimizer: Optimizer) -> bool:
    """Whether the base optimizer is an evolution strategy, which needs losses but no gradient."""
    return isinstance(nest(optimizer)[-1], EVOLUTION)


def incompatibility(
    optimizer: Optimizer, schedule: Schedule, *, taught: bool, layers: bool, fast: str | None = None
) -> str | None:
    """The reason why an optimizer cannot be used with the rest of a spec, as text; None if it can.

    Args:
        taught: whether there is a teacher.
        layers: whether the loss compares layers.
        fast: the field, if any, that makes gradients fast: `precision` (bf16) or `compile`.
    """
    match nest(optimizer)[-1]:
        case ScheduleFree() if not isinstance(schedule, Constant):
            return "`schedule_free` replaces learning-rate decay by averaging: set `schedule` to constant"
        case Polyak() if schedule != Constant(warmup=0):
            return "`polyak` has no learning rate to schedule: set `schedule` to constant with `warmup` 0"
        case Polyak() if not taught:
            return "`polyak` computes its step size from the teacher's loss: set `teacher`, or use another optimizer"
        case Snes() | Pgpe() if layers:
            return "an evolution strategy evaluates candidates by their logits, not by layers: use loss kd"
        case Snes() | Pgpe() if fast:
            return (
                "an evolution strategy ranks candidates by small differences between losses, in fp32 and without a "
                f"compiler: leave `{fast}` out"
            )
        case Polyak() if layers:
            return "`polyak` needs the teacher's own loss, which is undefined for losses of layers: use loss kd"
        case _:
            return None
