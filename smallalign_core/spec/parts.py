"""The families that a spec chooses from: data, networks, augmentation, losses, optimizers, schedules.

Each is a discriminated union by `kind`, and the union is the registry. A field's annotation holds its range and help.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from smallalign_core.spec._part import Part as Part, shorthand as shorthand
from smallalign_core.spec.augment import (
    Augment as Augment,
    Flip as Flip,
    PythonAugment as PythonAugment,
    Rotate as Rotate,
    Shift as Shift,
)
from smallalign_core.spec.balance import Balance as Balance
from smallalign_core.spec.catalog import PRETRAINED
from smallalign_core.spec.data import (
    REST as REST,
    Columns as Columns,
    DataSpec as DataSpec,
    PythonReader as PythonReader,
)
from smallalign_core.spec.loss import Loss as Loss
from smallalign_core.spec.optimizer import Optimizer as Optimizer, Schedule as Schedule
from smallalign_core.spec.python import FILLED_IN, Code

USUAL_SIZE = 64
"""Input size of library networks without pretrained weights."""

# --- networks ---------------------------------------------------------------------------------------------------------

Width = Annotated[int, Field(ge=2, le=2048, description="Channels of the first stage (units per layer, for an MLP).")]
Depth = Annotated[int, Field(ge=1, le=8, description="Number of stages (hidden layers, for an MLP).")]
WeightsDigest = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{64}$", description="Digest of the weights file; filled in.", json_schema_extra=FILLED_IN),
]
Inside = Annotated[
    int | None,
    Field(
        ge=4,
        le=512,
        description="Side to which the network itself resizes its input; empty: that of the images. For a student of "
        "16 pixels and a teacher of 64, `data.size` is 64 and this size 16.",
        json_schema_extra={"empty": "as is"},
    ),
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Dropout rate before the last layer.")]


class Pruned(Part):
    """Structured pruning: some layers have fewer channels than the other fields of the network give them.

    With `start`, a run of the same network with more channels, those with the largest norm of their group of weights
    are kept: all weights that depend on one another (DepGraph: Fang et al., CVPR 2023). Without, they are initialized.
    """

    widths: Annotated[
        tuple[tuple[Annotated[str, Field(min_length=1, max_length=200)], PositiveInt, PositiveInt], ...],
        Field(
            min_length=1,
            max_length=4096,
            description="Name, output and input channels of each smaller layer, as in the shape of its weights; "
            "1 input for depthwise convolutions and batch norms.",
        ),
    ]
    criterion: Annotated[
        Literal["l2", "l1"],
        Field(description="Norm of a group of weights by which channels are kept: l2 or l1 (Li et al., 2017)."),
    ] = "l2"

    @field_validator("widths")
    @classmethod
    def _in_one_order(cls, given: tuple[tuple[str, int, int], ...]) -> tuple[tuple[str, int, int], ...]:
        if len({name for name, *_ in given}) < len(given):
            raise ValueError("`widths` has a layer twice: give each layer once")
        return tuple(sorted(given))


PrunedField = Annotated[
    Pruned | None,
    Field(description="Structured pruning, as `smallalign prune` writes it.", json_schema_extra=FILLED_IN),
]


class Mlp(Part):
    """Multilayer perceptron: flattened pixels, hidden layers of equal width."""

    kind: Literal["mlp"] = "mlp"
    width: Width = 64
    depth: Depth = 2
    dropout: Dropout = 0.0
    size: Inside = None
    pruned: PrunedField = None


class Cnn(Part):
    """Compact CNN: a 3x3 convolution, batch norm and pooling per stage; channels double per stage."""

    kind: Literal["cnn"] = "cnn"
    width: Width = 16
    depth: Depth = 3
    dropout: Dropout = 0.0
    size: Inside = None
    pruned: PrunedField = None


class Separable(Part):
    """Depthwise-separable CNN (MobileNet, 2017): fewest parameters per channel."""

    kind: Literal["separable"] = "separable"
    width: Width = 24
    depth: Depth = 3
    dropout: Dropout = 0.0
    size: Inside = None
    pruned: PrunedField = None


class Resnet(Part):
    """ResNet (2015) with the small-image stem: three stages of `depth` basic blocks."""

    kind: Literal["resnet"] = "resnet"
    width: Width = 16
    depth: Depth = 1
    dropout: Dropout = 0.0
    size: Inside = None
    pruned: PrunedField = None


PROBE = "Linear probe: train only the new head, on features that are cached where there are few augmentations per image"
Frozen = Annotated[bool, Field(description=f"{PROBE}; needs initial weights.")]
HeadRate = Annotated[
    float,
    Field(
        gt=0,
        le=1000,
        description="Learning rate of the new head, as a multiple of the optimizer's; needs initial weights. "
        "A new head is initialized to zero.",
        json_schema_extra={"log": True},
    ),
]


def _check_head(network: LibraryNetwork | PythonNetwork, weights: str) -> None:
    if network.frozen and not network.begins:
        raise ValueError(f"`frozen` needs initial weights: {weights}")
    if network.head_rate != 1 and (network.frozen or not network.begins):
        reason = "only the head is trained" if network.frozen else "without initial weights every layer is new"
        raise ValueError(f"{reason}, at the optimizer's learning rate: leave `head_rate` out")


class LibraryNetwork(Part):
    """Common fields of torchvision's and timm's networks: a name, and initial weights."""

    kind: Literal["torchvision", "timm"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=96, description="Model name in its library.")]
    size: Annotated[
        int | None,
        Field(
            ge=32,
            le=640,
            description=f"Side to which the network itself resizes its input; empty: the one of its pretrained weights "
            f"or of `weights`, {USUAL_SIZE} without.",
            json_schema_extra={"empty": "auto"},
        ),
    ] = None
    pretrained: Annotated[
        bool, Field(description="Start from ImageNet weights (downloaded once; needs internet access).")
    ] = False
    frozen: Frozen = False
    head_rate: HeadRate = 1.0
    weights: Annotated[
        str | None,
        Field(min_length=1, max_length=1000, description="Initial weights: a safetensors file of the same network."),
    ] = None
    weights_sha256: WeightsDigest = None
    num_classes: Annotated[
        Literal[0] | None,
        Field(
            description="0: no head, as in timm: the output is the pooled features. With `epochs: 0`, initial weights "
            "become a teacher for loss embedding; empty: a head for the classes of the data.",
            json_schema_extra={"empty": "as the data"},
        ),
    ] = None
    pruned: PrunedField = None

    @property
    def begins(self) -> bool:
        """Whether it starts from trained weights, with a new head where the classes differ."""
        return self.pretrained or self.weights is not None

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, given: object) -> object:
        """Random weights have no size of their own; those of pretrained weights are found when the run is resolved."""
        if not isinstance(given, dict) or given.get("size") is not None:
            return given
        begins = given.get("pretrained") or given.get("weights") is not None
        return given if begins else {**given, "size": USUAL_SIZE}

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if self.pruned and self.begins:
            raise ValueError("a pruned network keeps channels of the run in `start`: leave its own initial weights out")
        if self.pretrained and self.weights:
            raise ValueError("`pretrained` and `weights` both set the initial weights: give one")
        _check_head(self, "set `pretrained` to true or give `weights`")
        return self


class Torchvision(LibraryNetwork):
    """torchvision: any of its classification models, with a new head for your classes."""

    kind: Literal["torchvision"] = "torchvision"
    name: Annotated[
        str, Field(pattern="^[a-z0-9_]+$", max_length=64, description="As in torchvision.models.list_models().")
    ]


class Timm(LibraryNetwork):
    """timm: any of its classification models, with a new head for your classes."""

    kind: Literal["timm"] = "timm"
    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$",
            max_length=96,
            description="As in timm.list_models(), tag allowed. `smallalign networks` lists small pretrained ones.",
            examples=[one.name for one in PRETRAINED],
            json_schema_extra={"about": {one.name: one.words for one in PRETRAINED}},
        ),
    ]


class PythonNetwork(Code):
    """Your own network: a Python function or class that returns an nn.Module from normalised images to logits."""

    group: ClassVar[str] = "smallalign.networks"
    kind: Literal["python"] = "python"
    normalize: Annotated[
        Literal["dataset", "imagenet", "unit"],
        Field(
            description="Input normalization: mean and deviation of the training images, those of ImageNet (three "
            "channels, grey images repeated), or none: pixels from 0 to 1."
        ),
    ] = "dataset"
    size: Inside = None
    pruned: PrunedField = None
    weights: Annotated[
        str | None,
        Field(
            max_length=1000,
            description="Initial weights: a safetensors file or a PyTorch checkpoint of this network; a last layer for "
            "other classes is new. With `epochs: 0` they are evaluated as they are.",
        ),
    ] = None
    weights_sha256: WeightsDigest = None
    frozen: Frozen = False
    head_rate: HeadRate = 1.0

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if self.pruned and self.weights:
            raise ValueError("a pruned network keeps channels of the run in `start`: leave `weights` out")
        _check_head(self, "give `weights`")
        return self

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.shown

    @property
    def begins(self) -> bool:
        """Whether it starts from trained weights."""
        return self.weights is not None


OwnNetwork = Mlp | Cnn | Separable | Resnet
"""Those that we build ourselves, of any width and depth."""
GivenNetwork = LibraryNetwork | PythonNetwork
"""Those of others, of one size: they have a `name`, `begins` and initial `weights`."""
Network = Annotated[OwnNetwork | Torchvision | Timm | PythonNetwork, Field(discriminator="kind"), shorthand("kind")]

Bits = Annotated[
    Literal[2, 3, 4, 8] | None,
    Field(
        description="Weight bits: quantization of weight matrices, with one scale per output channel, in training and "
        "export; empty: full precision. Straight-through gradients (Bengio et al., 2013)."
    ),
]
Start = Annotated[
    str | None,
    Field(min_length=1, max_length=1000, description="Initial weights from this finished run of the same network."),
]

# --- teachers ---------------------------------------------------------------------------------------------------------

Teacher = Annotated[str, Field(min_length=1, max_length=1000)]


def _one_or_several(given: object) -> object:
    """Reduce a list of one to its element; reject a value that is no name, since the union would report twice."""
    names = list(given) if isinstance(given, list | tuple) else [given]
    if given is not None and not (0 < len(names) < 9 and all(isinstance(one, str) and one for one in names)):
        raise ValueError(f"`teacher` is the name of a run, or a list of up to 8 of them (given: {given!r:.80})")
    return names[0] if len(names) == 1 else given


Teachers = Annotated[
    Teacher | Annotated[tuple[Teacher, ...], Field(min_length=2, max_length=8)], BeforeValidator(_one_or_several)
]

# --- members of a family ---


def members(union: Any) -> tuple[type[Part], ...]:
    """The members of a family, in the order of its union, as in menus."""
    first = get_args(union)[0]  # Annotated[A | B, ...] -> A | B
    return get_args(first) or (first,)


def choices(family: Any) -> list[str]:
    """The kinds that a family offers."""
    return [str(member.model_fields["kind"].default) for member in members(family)]


FAMILIES: tuple[Any, ...] = (Network, Augment, Loss, Balance, Optimizer, Schedule)
