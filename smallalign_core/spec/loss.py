"""The loss family: training objectives, each with its published defaults and their source.

A loss with a `weight` splits 1 between distillation and label loss; the others keep the sum of their papers. At
`weight` 1, or `labels_weight` 0, labels are not used: distillation without ground truth.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, assert_never, get_args

from pydantic import BeforeValidator, Field, model_validator

from smallalign_core.spec._part import Part, shorthand
from smallalign_core.spec.python import IDENTIFIER, Code

TeacherWeight = Annotated[
    float, Field(gt=0, le=1, description="Weight of the distillation loss; the label loss gets the rest. 1: no labels.")
]
LabelsWeight = Annotated[
    float, Field(ge=0, le=1000, description="Weight of the cross entropy with the labels; 0: labels are not used.")
]
Temperature = Annotated[
    float, Field(ge=0.5, le=50, description="Higher temperatures soften the targets; 2 to 4 suits small students.")
]
BY_PREFLIGHT = {"empty": "auto"}
_OR_AUTO = BeforeValidator(lambda given: None if given == "auto" else given)
AutoTemperature = Annotated[
    float | None,
    Field(
        ge=0.5,
        le=50,
        description="Higher temperatures soften the targets; 2 to 4 suits small students. auto: chosen from teacher "
        "logits on validation images, and written into the spec.",
        json_schema_extra=BY_PREFLIGHT,
    ),
    _OR_AUTO,
]
AutoWeight = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Weight of the distillation loss; the label loss gets the rest. 1: no labels. auto: chosen from "
        "teacher accuracy on validation images, since an inaccurate teacher can hurt.",
        json_schema_extra=BY_PREFLIGHT,
    ),
    _OR_AUTO,
]
KdWeight = Annotated[
    float, Field(ge=0, le=1000, description="Weight of an additional soft-target loss, as in `kd`; 0: none.")
]


def _listed(given: object) -> object:
    """Paths as strings: a layer named 6 is a number in YAML, and several may be given as a list."""
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
        """(temperature, weight); one that is `auto` and not chosen yet has its value from the literature."""
        own = type(self).model_fields
        temperature = own["temperature"].default if self.temperature is None else self.temperature
        return float(temperature), float(own["weight"].default if self.weight is None else self.weight)


class LogitMse(_Loss):
    """Half the mean squared error between centred logits (Ba & Caruana, 2014): the limit of soft targets for T → ∞."""

    kind: Literal["logit_mse"] = "logit_mse"
    weight: TeacherWeight = 0.9


class ScaledMse(_Loss):
    """Scaled logit MSE: the mean squared error of logits divided by the temperature, as in many tutorials. Beware: its
    gradient falls with T², so a higher T only weakens the teacher (400 times from T = 1 to 20), and it penalizes
    offsets that do not affect softmax. `logit_mse` is the correct form.
    """

    kind: Literal["scaled_mse"] = "scaled_mse"
    temperature: Temperature = 4.0
    weight: TeacherWeight = 0.9


class Dkd(_Loss):
    """Decoupled knowledge distillation (DKD; Zhao et al., CVPR 2022): cross entropy, plus soft targets in two weighted
    parts: target class against all others, and the non-target classes among themselves. Needs labels.
    """

    kind: Literal["dkd"] = "dkd"
    temperature: Temperature = 4.0
    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of target-class distillation.")] = 1.0
    beta: Annotated[
        float,
        Field(
            gt=0, le=100, description="Weight of non-target-class distillation; 2 to 8 in the paper, for 100 classes."
        ),
    ] = 8.0
    warmup_epochs: Annotated[
        float,
        Field(ge=0, le=10_000, description="Warm-up of the distillation loss in epochs; use few in short runs."),
    ] = 20.0


class Dist(_Loss):
    """DIST (Huang et al., NeurIPS 2022): cross entropy, plus one minus the Pearson correlation with the teacher, over
    the classes of an image (inter-class) and over the images of a batch (intra-class). For much stronger teachers.
    T > 1 leaves short runs uncalibrated until a temperature is fitted.
    """

    kind: Literal["dist"] = "dist"
    temperature: Temperature = 1.0
    beta: Annotated[float, Field(gt=0, le=100, description="Weight of the inter-class relation.")] = 2.0
    gamma: Annotated[float, Field(ge=0, le=100, description="Weight of the intra-class relation.")] = 2.0
    labels_weight: LabelsWeight = 1.0


class StandardizedKd(_Loss):
    """Logit standardization (Sun et al., CVPR 2024): soft targets of logits scaled to mean 0 and deviation 1. The scale
    of the student's logits is nearly unconstrained: fit a temperature before using its confidence.
    """

    kind: Literal["standardized_kd"] = "standardized_kd"
    temperature: Temperature = 2.0
    teacher_weight: Annotated[float, Field(gt=0, le=1000, description="Weight of the distillation loss.")] = 9.0
    labels_weight: LabelsWeight = 0.1


class FunctionMatching(_Loss):
    """Function matching (Beyer et al., CVPR 2022): soft targets on mixed images, no labels. MixUp with α = 1 joins the
    augmentation unless a mixing transform is present. Needs long training; worse at short budgets.
    """

    kind: Literal["function_matching"] = "function_matching"
    temperature: Temperature = 1.0


class _OfLayers(_Loss):
    @model_validator(mode="after")
    def _last_layer_is_taught(self) -> Self:
        if not getattr(self, "labels_weight", 1) and not getattr(self, "kd_weight", 1):
            raise ValueError("the last layer would get no gradient: raise `labels_weight` or `kd_weight` above 0")
        return self


class FitNets(_OfLayers):
    """Hints (FitNets; Romero et al., ICLR 2015, in one stage as in later benchmarks): cross entropy, plus the mean
    squared error between a teacher layer and a student layer projected by a 1×1 convolution (a linear layer, for
    vectors). The projector is trained with the student and not exported.
    """

    kind: Literal["fitnets"] = "fitnets"
    hint_weight: Annotated[float, Field(gt=0, le=100_000, description="Weight of the hint loss.")] = 100.0
    labels_weight: LabelsWeight = 1.0
    kd_weight: KdWeight = 0.0
    temperature: Temperature = 4.0
    student_layer: Annotated[
        Layers, Field(description="Module path; empty: the last feature map (the vector before the logits).")
    ] = ""
    teacher_layer: Annotated[
        Layers, Field(description="Module path; empty: the last feature map (the vector before the logits).")
    ] = ""


class AttentionTransfer(_OfLayers):
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017): cross entropy, plus the mean squared difference of
    attention maps (channel mean of squares, L2-normalized). For large feature maps and networks of the same family.
    """

    kind: Literal["attention"] = "attention"
    attention_weight: Annotated[
        float,
        Field(
            gt=0,
            le=1_000_000,
            description="Weight of the attention loss; the paper's value suits maps of 8×8 and larger.",
        ),
    ] = 1000.0
    labels_weight: LabelsWeight = 1.0
    kd_weight: KdWeight = 0.0
    temperature: Temperature = 4.0
    student_layer: Annotated[
        Layers, Field(description="Comma-separated module paths; empty: the last map of each size from 7×7.")
    ] = ""
    teacher_layer: Annotated[
        Layers, Field(description="As many paths as for the student, in the same order; empty: as for the student.")
    ] = ""


class Embedding(_Loss):
    """Feature distillation without labels: (1 - cosine) and smooth L1 between the student's pooled features, through a
    linear projector, and the teacher's, in the proportion that AM-RADIO has for spatial features (Ranzinger et al.,
    CVPR 2024; 1 and 0 are its loss of summary features). The student has no head: train one on labels afterwards, with
    `start`. The projector is not exported.
    """

    kind: Literal["embedding"] = "embedding"
    cosine_weight: Annotated[float, Field(ge=0, le=1000, description="Weight of one minus the cosine similarity.")] = (
        0.9
    )
    smooth_l1_weight: Annotated[
        float, Field(ge=0, le=1000, description="Weight of the smooth L1 loss (Girshick, 2015; quadratic up to 1).")
    ] = 0.1

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if not self.cosine_weight and not self.smooth_l1_weight:
            raise ValueError("both weights are 0, so nothing is trained: raise `cosine_weight` or `smooth_l1_weight`")
        return self


class PythonLoss(Code, _Loss):
    """Your own loss: a Python function of student logits and, if it has such parameters, teacher logits, labels and
    epoch. It returns a scalar, or several in a dict; labels are what it makes of them, beside `labels_weight`.
    """

    group: ClassVar[str] = "smallalign.losses"
    kind: Literal["python"] = "python"
    call: Annotated[str, Field(pattern=IDENTIFIER, max_length=100, description="Name of the function.")] = "loss"
    labels_weight: LabelsWeight = 0.0


OfLogits = HintonKd | LogitMse | ScaledMse | Dkd | Dist | StandardizedKd | FunctionMatching
"""Those that compare logits of teacher and student."""
OfLayers = FitNets | AttentionTransfer
"""Those that compare layers."""

Loss = Annotated[
    CrossEntropy | OfLogits | OfLayers | Embedding | PythonLoss,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def loss_kinds(*, taught: bool) -> tuple[type[Part], ...]:
    """The losses that use a teacher, or those that do not."""
    losses: tuple[type[_Loss], ...] = get_args(get_args(Loss)[0])
    return tuple(loss for loss in losses if loss.uses_teacher == taught)


def labels_share(loss: Loss) -> float:
    """The weight of the cross entropy with the labels; at 0 training does not use them."""
    match loss:
        case CrossEntropy() | Dkd():
            return 1.0
        case HintonKd():
            return 1 - loss.numbers[1]
        case LogitMse() | ScaledMse():
            return 1 - loss.weight
        case FunctionMatching() | Embedding():
            return 0.0
        case Dist() | StandardizedKd() | FitNets() | AttentionTransfer() | PythonLoss():
            return loss.labels_weight
        case _:
            assert_never(loss)


def short_name(loss: Loss) -> str:
    """A short name of a loss: `kd T=4`."""
    if isinstance(loss, PythonLoss):
        return f"{loss.kind} {loss.shown}"
    words = str(loss.kind)
    heat = getattr(loss, "temperature", 0.0)  # 0: it has none
    if isinstance(loss, OfLayers):
        words += f" + kd T={heat:g}" if loss.kd_weight else ""
    elif heat != 0:
        words += " T=auto" if heat is None else f" T={heat:g}"
    return words if labels_share(loss) or isinstance(loss, FunctionMatching | Embedding) else f"{words}, no labels"
