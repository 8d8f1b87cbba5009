"""The families that a spec chooses from: data, networks, augmentation, losses, optimizers, schedules.

Each is a discriminated union by `kind`, and the union is the registry. A field's annotation holds its range and help.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from smallalign_core.spec._part import Part as Part, shorthand as shorthand
from smallalign_core.spec.augment import Augment as Augment, Flip as Flip, Rotate as Rotate, Shift as Shift
from smallalign_core.spec.loss import Loss as Loss
from smallalign_core.spec.optimizer import Optimizer as Optimizer, Schedule as Schedule

FILLED_IN: dict[str, Any] = {"filled_in": True}  # of a field that no form asks for

# --- data -------------------------------------------------------------------------------------------------------------


class DataSpec(Part):
    """Which images, and how they are divided. Validation is always held out of the training images."""

    source: Annotated[str, Field(min_length=1, max_length=1000, description="A dataset's name, or a path.")]
    size: Annotated[
        int | None, Field(ge=4, le=512, description="Resize to this many pixels a side; empty keeps the size.")
    ] = None
    images: Annotated[
        int | None,
        Field(
            ge=2,
            description="Use only so many training images, in proportion to the classes (at least one of each); empty "
            "uses all.",
        ),
    ] = None
    validation: Annotated[
        float, Field(gt=0, le=0.5, description="Share of the training images held out to choose by.")
    ] = 0.1
    test: Annotated[
        float, Field(gt=0, le=0.5, description="Share held out for the test, where the source has no test images.")
    ] = 0.2
    draw: Annotated[
        int, Field(ge=0, le=2**31 - 1, description="Which of many draws of `images` it is, and of labels by `noise`.")
    ] = 0
    noise: Annotated[
        float,
        Field(ge=0, le=0.9, description="A control: so large a share of training images gets a wrong label by chance."),
    ] = 0.0
    decisions: Annotated[
        str | None,
        Field(max_length=1000, description="A file of decisions about single images: which to drop or relabel."),
    ] = None
    groups: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Keep images of one person, patient or original on one side of the split: a regular expression "
            "for the part of a path that names it, or a CSV file with the columns filename and group.",
        ),
    ] = None
    skip_unreadable: Annotated[
        bool, Field(description="Leave out images that cannot be read, however many they are; each is named.")
    ] = False
    fingerprint: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{16}$", description="Digest of the images; filled in.", json_schema_extra=FILLED_IN),
    ] = None


# --- networks ---------------------------------------------------------------------------------------------------------

Width = Annotated[int, Field(ge=2, le=2048, description="Channels of the first stage (units of a layer, for an MLP).")]
Depth = Annotated[int, Field(ge=1, le=8, description="Number of stages (hidden layers, for an MLP).")]
Inside = Annotated[
    int | None,
    Field(
        ge=4,
        le=512,
        description="Side to which the network itself resizes its input; empty keeps that of the images. A student of "
        "16 pixels then learns from a teacher of 64: `data.size` is 64, its own size 16.",
        json_schema_extra={"empty": "as is"},
    ),
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Share of the last features dropped in training.")]


class Mlp(Part):
    """Multilayer perceptron: flattened pixels through equal hidden layers."""

    kind: Literal["mlp"] = "mlp"
    width: Width = 64
    depth: Depth = 2
    dropout: Dropout = 0.0
    size: Inside = None


class Cnn(Part):
    """Compact CNN: a 3x3 convolution, batch norm and pooling a stage; channels double."""

    kind: Literal["cnn"] = "cnn"
    width: Width = 16
    depth: Depth = 3
    dropout: Dropout = 0.0
    size: Inside = None


class Separable(Part):
    """Depthwise-separable CNN (MobileNet, 2017): fewest parameters per channel."""

    kind: Literal["separable"] = "separable"
    width: Width = 24
    depth: Depth = 3
    dropout: Dropout = 0.0
    size: Inside = None


class Resnet(Part):
    """ResNet (2015) with the small-image stem: three stages of `depth` basic blocks."""

    kind: Literal["resnet"] = "resnet"
    width: Width = 16
    depth: Depth = 1
    dropout: Dropout = 0.0
    size: Inside = None


class LibraryNetwork(Part):
    """What torchvision's and timm's networks have in common: a name, and weights to start from."""

    kind: Literal["torchvision", "timm"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=96, description="As its library lists it.")]
    size: Annotated[int, Field(ge=32, le=512, description="Side to which the network itself resizes its input.")] = 64
    pretrained: Annotated[
        bool, Field(description="Start from ImageNet weights (downloaded once; needs a network).")
    ] = False
    frozen: Annotated[
        bool,
        Field(
            description="Train only the new head (a linear probe), on features that are computed once where the policy "
            "has few views; needs weights to start from."
        ),
    ] = False
    head_rate: Annotated[
        float,
        Field(
            gt=0,
            le=1000,
            description="Learning rate of the new head, in multiples of the optimizer's; needs weights to start from. "
            "A new head starts at zero.",
            json_schema_extra={"log": True},
        ),
    ] = 1.0
    weights: Annotated[
        str | None, Field(max_length=1000, description="Start from this safetensors file of the same network.")
    ] = None
    weights_sha256: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{64}$", description="Digest of that file; filled in.", json_schema_extra=FILLED_IN),
    ] = None

    @property
    def begins(self) -> bool:
        """Whether it starts from weights that were trained before, with a new head where the classes are others."""
        return self.pretrained or self.weights is not None

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError("`pretrained` and `weights` are two places to start from: give one")
        if self.frozen and not self.begins:
            raise ValueError("a frozen network never learns: set `pretrained` to true or give `weights`")
        if self.head_rate != 1 and (self.frozen or not self.begins):
            reason = "the head alone learns" if self.frozen else "without weights to start from, every layer is new"
            raise ValueError(f"{reason}, at the optimizer's own rate: leave `head_rate` out")
        return self


class Torchvision(LibraryNetwork):
    """torchvision: any of its classification models, its head replaced by one for your classes."""

    kind: Literal["torchvision"] = "torchvision"
    name: Annotated[
        str, Field(pattern="^[a-z0-9_]+$", max_length=64, description="As in torchvision.models.list_models().")
    ]


class Timm(LibraryNetwork):
    """timm: any of its classification models, its head replaced by one for your classes."""

    kind: Literal["timm"] = "timm"
    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$", max_length=96, description="As in timm.list_models(), tag allowed."
        ),
    ]


OwnNetwork = Mlp | Cnn | Separable | Resnet
"""Those that we build ourselves, of any width and depth."""
Network = Annotated[OwnNetwork | Torchvision | Timm, Field(discriminator="kind"), shorthand("kind")]

Bits = Annotated[
    Literal[2, 3, 4, 8] | None,
    Field(
        description="Round every weight matrix to so few bits, on a scale of its own for each output, in training and "
        "in the export; empty keeps full precision. Gradients pass straight through (Bengio et al., 2013)."
    ),
]
Start = Annotated[
    str | None,
    Field(
        min_length=1, max_length=1000, description="Begin with the weights of this finished run of the same network."
    ),
]

# --- imports ----------------------------------------------------------------------------------------------------------

Triple = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Import(Part):
    """An ONNX classifier that was made elsewhere: no run of ours trained it, so this is all that is known.

    Images reach it as uint8, or as floats: (pixel / 255 * white - mean) / std.
    """

    file: Annotated[str, Field(max_length=255, description="What the file was called.")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Digest of the file.")]
    classes: Annotated[tuple[str, ...], Field(min_length=2, description="Its classes, in the order of its answers.")]
    data: Annotated[DataSpec, Field(description="The images that it was scored on when it was imported.")]
    input: str
    dtype: Literal["uint8", "float32", "float16"]
    layout: Literal["nchw", "nhwc"]
    channels: Literal[1, 3]
    size: Annotated[tuple[int, int] | None, Field(description="(height, width) that it takes; empty takes any.")] = None
    batch: Annotated[int | None, Field(ge=1, description="Images that it takes at once; empty takes any number.")] = (
        None
    )
    output: str
    answers: Annotated[
        Literal["logits", "probabilities", "sigmoid", "one_logit", "one_probability"],
        Field(description="Of probabilities the logarithm is taken, of sigmoids the log-odds; one_: for two classes."),
    ] = "logits"
    stored: Annotated[Literal["float", "uint8", "int8"], Field(description="Type of the answers.")] = "float"
    floor: Annotated[float, Field(gt=0, lt=0.5, description="Smallest probability that the answers tell from 0.")] = (
        1e-8
    )
    white: Annotated[float, Field(gt=0, description="What a white pixel is before mean and std: 1 or 255.")] = 1.0
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    order: Annotated[Literal["rgb", "bgr"], Field(description="Of the channels; mean and std are in it too.")] = "rgb"


# --- teachers ---------------------------------------------------------------------------------------------------------

Teacher = Annotated[str, Field(min_length=1, max_length=1000)]


def _one_or_several(given: object) -> object:
    """A list of one is one. What is no name at all is refused here, in a sentence: a union would complain twice."""
    names = list(given) if isinstance(given, list | tuple) else [given]
    if given is not None and not (0 < len(names) < 9 and all(isinstance(one, str) and one for one in names)):
        raise ValueError(f"`teacher` is the name of a run, or a list of up to 8 of them (given: {given!r:.80})")
    return names[0] if len(names) == 1 else given


Teachers = Annotated[
    Teacher | Annotated[tuple[Teacher, ...], Field(min_length=2, max_length=8)], BeforeValidator(_one_or_several)
]

# --- what a family offers ---


def members(union: Any) -> tuple[type[Part], ...]:
    """The parts of a family, in the order of its union: what a menu offers."""
    first = get_args(union)[0]  # Annotated[A | B, ...] -> A | B
    return get_args(first) or (first,)


def choices(family: Any) -> list[str]:
    """The kinds that a family offers."""
    return [str(member.model_fields["kind"].default) for member in members(family)]


FAMILIES: tuple[Any, ...] = (Network, Augment, Loss, Optimizer, Schedule)
