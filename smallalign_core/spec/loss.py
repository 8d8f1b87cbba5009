"""The loss family: what a student is asked to match, each with its published defaults and their source.

A loss with a `weight` shares one between teacher and labels; the others keep the sum of their papers. At `weight` 1, or
`labels_weight` 0, the labels are never looked at: soft labels without ground truth.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, assert_never, get_args

from pydantic import BeforeValidator, Field, model_validator

from smallalign_core.spec._part import Part, shorthand

TeacherWeight = Annotated[
    float, Field(gt=0, le=1, description="Share of the teacher's term; the rest goes to the labels. 1: no labels.")
]
LabelsWeight = Annotated[
    float, Field(ge=0, le=1000, description="Weight of the cross entropy with the labels; 0 never looks at them.")
]
Temperature = Annotated[
    float, Field(ge=0.5, le=50, description="Higher shows more of the teacher's doubts; small students like 2 to 4.")
]
BY_PREFLIGHT = {"empty": "auto"}
_OR_AUTO = BeforeValidator(lambda given: None if given == "auto" else given)
AutoTemperature = Annotated[
    float | None,
    Field(
        ge=0.5,
        le=50,
        description="Higher shows more of the teacher's doubts; small students like 2 to 4. auto: from its answers to "
        "validation images, and written into the spec.",
        json_schema_extra=BY_PREFLIGHT,
    ),
    _OR_AUTO,
]
AutoWeight = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Share of the teacher's term; the rest goes to the labels. 1: no labels. auto: from its accuracy "
        "on validation images, since a teacher that is often wrong costs more than it gives.",
        json_schema_extra=BY_PREFLIGHT,
    ),
    _OR_AUTO,
]
KdWeight = Annotated[
    float, Field(ge=0, le=1000, description="Weight of soft targets beside it, as in `kd`; 0 leaves them out.")
]


def _listed(given: object) -> object:
    """Paths as text: a layer called 6 is a number in YAML, and several may be written as a list."""
    if isinstance(given, list | tuple):
        return ", ".join(str(one) for one in given)
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


Layers = Annotated[str, Field(max_length=1000), BeforeValidator(_listed)]


class _Loss(Part):
    uses_teacher: ClassVar[bool] = True


class CrossEntropy(_Loss):
    """Cross entropy with the labels; no teacher."""

    uses_teacher: ClassVar[bool] = False
    kind: Literal["cross_entropy"] = "cross_entropy"
    smoothing: Annotated[float, Field(ge=0, lt=1, description="Label smoothing.")] = 0.0


class HintonKd(_Loss):
    """Soft targets: T² KL(teacher || student) of softened logits (Hinton et al., 2015)."""

    kind: Literal["kd"] = "kd"
    temperature: AutoTemperature = 4.0
    weight: AutoWeight = 0.9

    @property
    def numbers(self) -> tuple[float, float]:
        """(temperature, weight); where one is `auto` and no teacher was looked at yet, the number of the literature."""
        own = type(self).model_fields
        temperature = own["temperature"].default if self.temperature is None else self.temperature
        return float(temperature), float(own["weight"].default if self.weight is None else self.weight)


class LogitMse(_Loss):
    """Half the mean squared error between centred logits (Ba & Caruana, 2014): soft targets with a boundless T."""

    kind: Literal["logit_mse"] = "logit_mse"
    weight: TeacherWeight = 0.9


class ScaledMse(_Loss):
    """Mean squared error of logits divided by the temperature: the snippet of many tutorials, word for word. Beware:
    its gradient falls with T², so T only turns the teacher down (400 times from T = 1 to 20), and offsets that softmax
    cannot see are paid for. `logit_mse` is the right form.
    """

    kind: Literal["scaled_mse"] = "scaled_mse"
    temperature: Temperature = 4.0
    weight: TeacherWeight = 0.9


class Dkd(_Loss):
    """Decoupled distillation (DKD; Zhao et al., CVPR 2022): cross entropy, plus soft targets in two parts, each with a
    weight: the class of the label against all others, and the others among themselves. Needs labels.
    """

    kind: Literal["dkd"] = "dkd"
    temperature: Temperature = 4.0
    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of the label's class against the others.")] = 1.0
    beta: Annotated[
        float,
        Field(gt=0, le=100, description="Weight of the others; the paper takes 2 to 8, tuned for 100 classes."),
    ] = 8.0
    warmup_epochs: Annotated[
        float,
        Field(
            ge=0, le=10_000, description="Epochs in which the teacher's part grows to its weight: few in short runs."
        ),
    ] = 20.0


class Dist(_Loss):
    """Correlation instead of equality (DIST; Huang et al., NeurIPS 2022): cross entropy, plus one minus Pearson's
    correlation with the teacher, between the classes of an image and between the images of a batch. For teachers that
    are far stronger. T > 1 leaves short runs uncalibrated until a temperature is fitted.
    """

    kind: Literal["dist"] = "dist"
    temperature: Temperature = 1.0
    beta: Annotated[float, Field(gt=0, le=100, description="Weight of the relation between classes.")] = 2.0
    gamma: Annotated[float, Field(ge=0, le=100, description="Weight of the relation between images.")] = 2.0
    labels_weight: LabelsWeight = 1.0


class StandardizedKd(_Loss):
    """Standardized logits (Sun et al., CVPR 2024): soft targets of logits with mean 0 and deviation 1, so that only
    their shape is taught. Hardly anything sets the student's scale: fit a temperature before believing its confidence.
    """

    kind: Literal["standardized_kd"] = "standardized_kd"
    temperature: Temperature = 2.0
    teacher_weight: Annotated[float, Field(gt=0, le=1000, description="Weight of the teacher's term.")] = 9.0
    labels_weight: LabelsWeight = 0.1


class FunctionMatching(_Loss):
    """Function matching (Beyer et al., CVPR 2022): soft targets on mixed images, no labels. MixUp with α = 1 joins the
    augmentation unless something mixes already. It wants patience: at short budgets it loses.
    """

    kind: Literal["function_matching"] = "function_matching"
    temperature: Temperature = 1.0


class _OfLayers(_Loss):
    @model_validator(mode="after")
    def _last_layer_is_taught(self) -> Self:
        if not getattr(self, "labels_weight", 1) and not getattr(self, "kd_weight", 1):
            raise ValueError("nothing would teach the last layer: raise `labels_weight` or `kd_weight` above 0")
        return self


class FitNets(_OfLayers):
    """Hints (FitNets; Romero et al., ICLR 2015, in one stage as in later benchmarks): cross entropy, plus the mean
    squared error between a layer of the teacher and what a 1×1 convolution (a linear layer, for vectors) makes of one
    of the student. That regressor is trained beside the student and is no part of the export.
    """

    kind: Literal["fitnets"] = "fitnets"
    hint_weight: Annotated[float, Field(gt=0, le=100_000, description="Weight of the hint.")] = 100.0
    labels_weight: LabelsWeight = 1.0
    kd_weight: KdWeight = 0.0
    temperature: Temperature = 4.0
    student_layer: Annotated[
        Layers, Field(description="Path of a module; empty: its last feature map (the vector before the logits).")
    ] = ""
    teacher_layer: Annotated[
        Layers, Field(description="Path of a module; empty: its last feature map (the vector before the logits).")
    ] = ""


class AttentionTransfer(_OfLayers):
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017): cross entropy, plus the mean squared difference of where
    feature maps are active (channel mean of squares, length 1). For large maps, and networks of one family.
    """

    kind: Literal["attention"] = "attention"
    attention_weight: Annotated[
        float, Field(gt=0, le=1_000_000, description="Weight of the maps; the paper's suits 8×8 pixels and more.")
    ] = 1000.0
    labels_weight: LabelsWeight = 1.0
    kd_weight: KdWeight = 0.0
    temperature: Temperature = 4.0
    student_layer: Annotated[
        Layers, Field(description="Paths of modules, by commas; empty: the last map of each size from 7×7 pixels.")
    ] = ""
    teacher_layer: Annotated[
        Layers, Field(description="As many paths as for the student, in the same order; empty: likewise.")
    ] = ""


OfLayers = FitNets | AttentionTransfer

Loss = Annotated[
    CrossEntropy | HintonKd | LogitMse | ScaledMse | Dkd | Dist | StandardizedKd | FunctionMatching | OfLayers,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def loss_kinds(*, taught: bool) -> tuple[type[Part], ...]:
    """The losses that ask a teacher, or those that do not."""
    losses: tuple[type[_Loss], ...] = get_args(get_args(Loss)[0])
    return tuple(loss for loss in losses if loss.uses_teacher == taught)


def labels_share(loss: Loss) -> float:
    """The weight of the cross entropy with the labels; at 0 training never looks at them."""
    match loss:
        case CrossEntropy() | Dkd():
            return 1.0
        case HintonKd():
            return 1 - loss.numbers[1]
        case LogitMse() | ScaledMse():
            return 1 - loss.weight
        case FunctionMatching():
            return 0.0
        case Dist() | StandardizedKd() | FitNets() | AttentionTransfer():
            return loss.labels_weight
        case _:
            assert_never(loss)


def short_name(loss: Loss) -> str:
    """A loss in a few words: `kd T=4`."""
    words = str(loss.kind)
    heat = getattr(loss, "temperature", 0.0)  # 0: it has none
    if isinstance(loss, OfLayers):
        words += f" + kd T={heat:g}" if loss.kd_weight else ""
    elif heat != 0:
        words += " T=auto" if heat is None else f" T={heat:g}"
    return words if labels_share(loss) or isinstance(loss, FunctionMatching) else f"{words}, no labels"
