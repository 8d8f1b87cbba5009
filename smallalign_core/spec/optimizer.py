"""The optimizer family: who takes the steps, each with its published defaults and their source; and the schedules.

Wrappers hold another optimizer in `inner`. From the outside in they are ema, lookahead, and sam or asam; each is
optional, and the order is fixed, since any other contradicts itself: SAM takes two gradients for one step and Lookahead
counts steps, and an average of the weights is no part of how they move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from smallalign_core.spec._part import Part, shorthand

LearningRate = Annotated[float, Field(gt=0, le=100, description="Peak learning rate.", json_schema_extra={"log": True})]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="Decay of weight matrices; biases and norms have none.")]
Beta1 = Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of gradients.")]
Beta2 = Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of squared gradients.")]


class Sgd(Part):
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="0 turns momentum off.")] = 0.9
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
    """RMSprop (Tieleman & Hinton, 2012): gradients divided by their recent size."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: LearningRate = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1, description="0 turns momentum off.")] = 0.0
    weight_decay: WeightDecay = 0.0
    beta2: Beta2 = 0.9


class Lion(Part):
    """Lion (Chen et al., 2023): steps of equal length, the sign of momentum. Wants a third of AdamW's rate or less."""

    kind: Literal["lion"] = "lion"
    lr: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1, description="Share of momentum in a step.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="Decay of momentum.")] = 0.99


class Muon(Part):
    """Muon (Jordan et al., 2024): momentum made orthogonal, for weight matrices and convolutions. The last layer and
    1-D weights take NAdamW's steps at the same rate, whose length Muon's are matched to (Liu et al., 2025).
    """

    kind: Literal["muon"] = "muon"
    lr: LearningRate = 0.02
    weight_decay: WeightDecay = 0.01
    momentum: Annotated[float, Field(gt=0, lt=1, description="Decay of the mean of gradients.")] = 0.95
    beta1: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="As in AdamW, for the last layer and 1-D weights.")] = 0.95


class Soap(Part):
    """SOAP (Vyas et al., 2024): Adam in the eigenbasis of Shampoo. Keeps two square matrices a side of each weight; a
    side over 10,000 is left as it is.
    """

    kind: Literal["soap"] = "soap"
    lr: LearningRate = 0.003
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.95
    beta2: Beta2 = 0.95
    every: Annotated[int, Field(ge=1, le=1000, description="Steps between two looks at the eigenbasis.")] = 10


class Prodigy(Part):
    """Prodigy (Mishchenko & Defazio, 2023): AdamW that finds its learning rate; `lr` only scales what it finds."""

    kind: Literal["prodigy"] = "prodigy"
    lr: LearningRate = 1.0
    weight_decay: WeightDecay = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999


class ScheduleFree(Part):
    """Schedule-Free AdamW (Defazio et al., 2024): averages its weights instead of letting the learning rate fall, so
    that it can end at any step. The average is what is scored.
    """

    kind: Literal["schedule_free"] = "schedule_free"
    lr: LearningRate = 0.0025
    weight_decay: WeightDecay = 0.0
    beta1: Annotated[
        float, Field(gt=0, lt=1, description="Where gradients are taken: 1 at the average, 0 at the newest weights.")
    ] = 0.9
    beta2: Beta2 = 0.999


class AdEmaMix(Part):
    """AdEMAMix (Pagliardini et al., 2024): AdamW with a second, slow mean of gradients, which grows in over the run.
    For 5,000 steps and more.
    """

    kind: Literal["ademamix"] = "ademamix"
    lr: LearningRate = 0.001
    weight_decay: WeightDecay = 0.01
    beta1: Annotated[float, Field(gt=0, lt=1, description="Decay of the mean of gradients.")] = 0.9
    beta2: Beta2 = 0.999
    beta3: Annotated[float, Field(gt=0, lt=1, description="Decay of the slow mean, at the end of the run.")] = 0.9999
    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of the slow mean, at the end of the run.")] = 5.0


class Polyak(Part):
    """Teacher-informed Polyak step (IAM; Gower et al., 2025, arXiv 2504.01898): no learning rate. Each step is as long
    as the student's loss lies above the teacher's on the same images; needs a teacher, and a constant schedule.
    """

    kind: Literal["polyak"] = "polyak"
    averaging: Annotated[
        float, Field(ge=0, le=1000, description="λ: weights follow the steps with a share of 1 / (1 + λ).")
    ] = 9.0
    beta2: Beta2 = 0.999


class _Evolution(Part):
    kind: Literal["snes", "pgpe"]
    population: Annotated[
        int, Field(ge=4, le=4096, multiple_of=2, description="Candidates a step, each tried on the step's images.")
    ] = 64
    sigma: Annotated[
        float, Field(gt=0, le=10, description="How far candidates are drawn from the weights at first, as a deviation.")
    ] = 0.05


class Snes(_Evolution):
    """SNES (Schaul et al., 2011): an evolution strategy. It needs no gradient, only losses of candidates drawn around
    the weights, and learns for each weight how far to look. For very small networks, and for few bits.
    """

    kind: Literal["snes"] = "snes"
    lr: Annotated[float, Field(gt=0, le=10, description="Peak share of the step that the candidates ask for.")] = 1.0


class Pgpe(_Evolution):
    """PGPE (Sehnke et al., 2010) with ClipUp (Toklu et al., 2020): an evolution strategy. It needs no gradient, only
    losses of mirrored pairs of candidates; its steps have one length. For very small networks, and for few bits.
    """

    kind: Literal["pgpe"] = "pgpe"
    lr: Annotated[
        float, Field(gt=0, le=10, description="Peak length of a step, in all weights.", json_schema_extra={"log": True})
    ] = 0.1
    sigma_lr: Annotated[float, Field(ge=0, le=1, description="How fast the deviation is learned.")] = 0.1


EVOLUTION = Snes | Pgpe
PLAIN = Sgd | AdamW | NAdamW | RmsProp | Lion | Muon | Soap | Prodigy | AdEmaMix


def _fits(outer: str, *held: str) -> BeforeValidator:
    """Refuse in words what `outer` cannot hold; besides plain optimizers it can hold these."""

    def check(given: object) -> object:
        kind = kind_of(given)
        if kind == "schedule_free":
            raise ValueError("`schedule_free` averages its weights itself: nothing goes around it")
        if kind in ("snes", "pgpe") and kind not in held:
            raise ValueError(f"{outer} works on steps of a gradient, and `{kind}` takes none: only ema goes around it")
        if kind == "polyak" and kind not in held:
            raise ValueError(
                f"`polyak` measures its step at its own weights, which {outer} moves: only ema goes around it"
            )
        if kind in ("ema", "lookahead", "sam", "asam") and kind not in held:
            raise ValueError(
                f"{outer} cannot hold `{kind}`: wrappers nest, from the outside in, as ema, lookahead, sam or asam"
            )
        return given

    return BeforeValidator(check)


class _Sharpness(Part):
    kind: Literal["sam", "asam"]
    inner: Annotated[
        PLAIN,
        Field(discriminator="kind", description="The optimizer that takes the step."),
        shorthand("kind"),
        _fits("`sam` or `asam`"),
    ] = AdamW()


class Sam(_Sharpness):
    """SAM (Foret et al., 2021) around another optimizer: the gradient is taken where the loss is worst nearby. Two
    gradients a step.
    """

    kind: Literal["sam"] = "sam"
    rho: Annotated[float, Field(gt=0, le=10, description="How far away to look, as a length in weights.")] = 0.05


class Asam(_Sharpness):
    """ASAM (Kwon et al., 2021) around another optimizer: SAM, with distances relative to each weight. Two gradients a
    step.
    """

    kind: Literal["asam"] = "asam"
    rho: Annotated[float, Field(gt=0, le=10, description="How far away to look, relative to the weights.")] = 0.5


class Lookahead(Part):
    """Lookahead (Zhang et al., 2019) around another optimizer: k fast steps, then one slow step back towards them."""

    kind: Literal["lookahead"] = "lookahead"
    inner: Annotated[
        PLAIN | Sam | Asam,
        Field(discriminator="kind", description="The optimizer that takes the fast steps."),
        shorthand("kind"),
        _fits("`lookahead`", "sam", "asam"),
    ] = AdamW()
    k: Annotated[int, Field(ge=2, le=100, description="Fast steps per slow step.")] = 5
    alpha: Annotated[float, Field(gt=0, lt=1, description="How far the slow weights follow.")] = 0.5


class Ema(Part):
    """Exponential moving average (Polyak & Juditsky, 1992) of the weights beside another optimizer, which never sees
    it: the average is what is scored. Early on it forgets faster: at step t by 9 / (10 + t).
    """

    kind: Literal["ema"] = "ema"
    inner: Annotated[
        PLAIN | Polyak | EVOLUTION | Lookahead | Sam | Asam,
        Field(discriminator="kind", description="The optimizer that takes the steps."),
        shorthand("kind"),
        _fits("`ema`", "polyak", "snes", "pgpe", "lookahead", "sam", "asam"),
    ] = AdamW()
    decay: Annotated[float, Field(gt=0, lt=1, description="What is kept of the average at each step.")] = 0.999


Optimizer = Annotated[
    PLAIN | ScheduleFree | Polyak | EVOLUTION | Lookahead | Sam | Asam | Ema,
    Field(discriminator="kind"),
    shorthand("kind"),
]

Warmup = Annotated[
    float, Field(ge=0, le=0.5, description="Share of the steps in which the learning rate rises from zero.")
]


class Cosine(Part):
    """Warm-up, then half a cosine down to zero (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05


class Constant(Part):
    """Warm-up, then the same learning rate to the end."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05


Schedule = Annotated[Cosine | Constant, Field(discriminator="kind"), shorthand("kind")]


def nest(optimizer: Any) -> list[Any]:
    """An optimizer and all that it holds, from the outside in; the last takes the steps."""
    found = [optimizer]
    while (inner := getattr(found[-1], "inner", None)) is not None:
        found.append(inner)
    return found


def kind_of(part: object) -> object:
    """The kind of a part in any of its spellings; None if it says none."""
    return part.get("kind") if isinstance(part, Mapping) else getattr(part, "kind", part)


def usual_schedule(optimizer: object) -> Schedule | None:
    """The schedule that an optimizer, in any spelling, cannot do without; None if any will do."""
    while inner := optimizer.get("inner") if isinstance(optimizer, Mapping) else getattr(optimizer, "inner", None):
        optimizer = inner
    return {"schedule_free": Constant(), "polyak": Constant(warmup=0)}.get(str(kind_of(optimizer)))


def is_gradient_free(optimizer: Optimizer) -> bool:
    """Whether steps are taken by an evolution strategy, which asks for losses and for no gradient."""
    return isinstance(nest(optimizer)[-1], EVOLUTION)


def incompatibility(
    optimizer: Optimizer, schedule: Schedule, *, taught: bool, layers: bool, fast: str | None = None
) -> str | None:
    """Why an optimizer cannot be used with the rest of a spec, in words; None if it can.

    Args:
        taught: whether there is a teacher.
        layers: whether the loss compares layers.
        fast: the field, if any, that makes gradients fast: `precision` (bf16) or `compile`.
    """
    match nest(optimizer)[-1]:
        case ScheduleFree() if not isinstance(schedule, Constant):
            return "`schedule_free` averages instead of letting the learning rate fall: set `schedule` to constant"
        case Polyak() if schedule != Constant(warmup=0):
            return "`polyak` has no learning rate to schedule: set `schedule` to constant with `warmup` 0"
        case Polyak() if not taught:
            return "`polyak` takes its step from the teacher's loss: name a teacher, or use another optimizer"
        case Snes() | Pgpe() if layers:
            return "an evolution strategy compares candidates by their logits, not by their layers: use loss kd"
        case Snes() | Pgpe() if fast:
            return (
                "an evolution strategy ranks candidates by small differences between losses, in fp32 and without a "
                f"compiler: leave `{fast}` out"
            )
        case Polyak() if layers:
            return "`polyak` needs the teacher's own loss, and a loss of layers gives it none: use loss kd"
        case _:
            return None
