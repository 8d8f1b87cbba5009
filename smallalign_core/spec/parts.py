"""The families that a spec chooses from: data, networks, augmentation, losses, optimizers, schedules.

Each is a discriminated union by `kind`, and the union is the registry. A field's annotation holds its range and help.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from smallalign_core.spec._part import Part as Part, shorthand as shorthand
from smallalign_core.spec.augment import Augment as Augment, Flip as Flip, Rotate as Rotate, Shift as Shift
from smallalign_core.spec.balance import Balance as Balance
from smallalign_core.spec.catalog import PRETRAINED
from smallalign_core.spec.loss import Loss as Loss
from smallalign_core.spec.optimizer import Optimizer as Optimizer, Schedule as Schedule
from smallalign_core.spec.python import Code

FILLED_IN: dict[str, Any] = {"filled_in": True}  # for fields that forms do not show

USUAL_SIZE = 64
"""Input size of library networks without pretrained weights."""

REST = "rest"
"""`unlabeled` of a dataset itself."""

# --- data -------------------------------------------------------------------------------------------------------------


ColumnName = Annotated[str | None, Field(min_length=1, max_length=200)]


class Columns(Part):
    """Columns of a table of labels, by their names (by their numbers from 1 where the table has no header)."""

    path: Annotated[ColumnName, Field(description="Column with the path of each image, relative to the table.")] = None
    label: Annotated[ColumnName, Field(description="Column with the class.")] = None
    split: Annotated[ColumnName, Field(description="Column with train, validation or test.")] = None


class DataSpec(Part):
    """A dataset and its splits. Validation is split from train where the source brings none."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1000,
            description="Dataset name, path of a folder, zip or table of labels, or hf://owner/name.",
        ),
    ]
    columns: Annotated[
        Columns, Field(description="Columns of a table of labels; empty: guessed from names and content.")
    ] = Columns()
    levels: Annotated[
        int, Field(ge=1, le=8, description="Levels of class folders: with 2, a/x and b/x are two classes.")
    ] = 1
    size: Annotated[
        int | None, Field(ge=4, le=512, description="Input size in pixels per side; empty: original size.")
    ] = None
    images: Annotated[
        int | None,
        Field(
            ge=2,
            description="Number of training images, stratified by class (at least one of each); empty: all.",
        ),
    ] = None
    validation: Annotated[
        float, Field(gt=0, le=0.5, description="Validation fraction, split from the training images.")
    ] = 0.1
    test: Annotated[float, Field(gt=0, le=0.5, description="Test fraction, where the source has no test split.")] = 0.2
    draw: Annotated[
        int,
        Field(ge=0, le=2**31 - 1, description="Seed of the random subset (`images`) and of the label noise (`noise`)."),
    ] = 0
    noise: Annotated[
        float,
        Field(
            ge=0,
            le=0.9,
            description="Label noise (control): fraction of training images that get a random wrong label.",
        ),
    ] = 0.0
    decisions: Annotated[
        str | None,
        Field(max_length=1000, description="Cleaning decisions file: images to drop or relabel."),
    ] = None
    groups: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Group-aware split: images of one person, patient or original stay in one split. A regular "
            "expression for the group in a path, or a CSV file with the columns filename and group.",
        ),
    ] = None
    unlabeled: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Images without labels, for distillation: a folder, a zip of one, or `rest` for the training "
            "images that `images` leaves out. They join the training images, with the teacher's targets only.",
        ),
    ] = None
    skip_unreadable: Annotated[bool, Field(description="Skip unreadable images, however many; each is listed.")] = False
    fingerprint: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{16}$", description="Digest of the images; filled in.", json_schema_extra=FILLED_IN),
    ] = None
    unlabeled_fingerprint: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{16}$",
            description="Digest of the unlabeled images; filled in.",
            json_schema_extra=FILLED_IN,
        ),
    ] = None

    @model_validator(mode="after")
    def _rest_of_something(self) -> Self:
        if self.unlabeled == REST and self.images is None:
            raise ValueError(f"`unlabeled: {REST}` are the training images that `images` leaves out: set `images`")
        return self

    def labeled(self) -> DataSpec:
        """The same without unlabeled images."""
        return self.model_copy(update={"unlabeled": None, "unlabeled_fingerprint": None})


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
        str | None, Field(max_length=1000, description="Initial weights: a safetensors file of the same network.")
    ] = None
    weights_sha256: WeightsDigest = None
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

# --- imports ----------------------------------------------------------------------------------------------------------

Triple = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Import(Part):
    """An imported ONNX classifier: all facts about a model that was not trained by SmallAlign.

    Images reach it as uint8, or as floats: (pixel / 255 * white - mean) / std.
    """

    file: Annotated[str, Field(max_length=255, description="Original file name.")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file.")]
    classes: Annotated[tuple[str, ...], Field(min_length=2, description="Classes in output order.")]
    data: Annotated[DataSpec, Field(description="The dataset it was evaluated on at import.")]
    input: str
    dtype: Literal["uint8", "float32", "float16"]
    layout: Literal["nchw", "nhwc"]
    channels: Literal[1, 3]
    size: Annotated[tuple[int, int] | None, Field(description="Input (height, width); empty: any.")] = None
    batch: Annotated[int | None, Field(ge=1, description="Fixed batch size; empty: any.")] = None
    output: str
    answers: Annotated[
        Literal["logits", "probabilities", "sigmoid", "one_logit", "one_probability"],
        Field(description="Output type: probabilities are converted by log, sigmoids by logit; one_: two classes."),
    ] = "logits"
    stored: Annotated[Literal["float", "uint8", "int8"], Field(description="Data type of the outputs.")] = "float"
    floor: Annotated[float, Field(gt=0, lt=0.5, description="Smallest probability that the outputs can represent.")] = (
        1e-8
    )
    white: Annotated[float, Field(gt=0, description="Value of a white pixel before mean and std: 1 or 255.")] = 1.0
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    order: Annotated[Literal["rgb", "bgr"], Field(description="Channel order, also of mean and std.")] = "rgb"


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
