"""What a run is: every choice that decides the weights, and nothing else, checked and with a digest.

Families (networks, losses, optimizers, schedules, augmentations) are discriminated unions by `kind`. The union is the
registry: forms, command line, YAML, JSON Schema, validation and digest all read these fields, so nothing is written
twice. This module imports neither torch nor numpy: the dashboard draws its forms from it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from smallalign_core.errors import BadSpec

LOOP = 1
"""Raised when training starts to mean something else; then an old run no longer answers for a new spec."""


class Part(BaseModel):
    """A frozen group of knobs. A field's annotation holds its range and its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def _shorthand(key: str) -> BeforeValidator:
    """Let `digits` stand for `{source: digits}`, `cnn` for `{kind: cnn}`, `torchvision:NAME` for a network of that name."""

    def expand(value: object) -> object:
        if not isinstance(value, str):
            return value
        kind, colon, name = value.partition(":")
        return {"kind": kind, "name": name} if key == "kind" and colon else {key: value}

    return BeforeValidator(expand)


# --- data -------------------------------------------------------------------------------------------------------------


class DataSpec(Part):
    """Which images, and how they are divided. Validation is always held out of the training images."""

    source: Annotated[str, Field(min_length=1, max_length=1000, description="A dataset's name, or a path.")]
    size: Annotated[int | None, Field(ge=4, le=512, description="Resize to this many pixels a side; empty keeps the size.")] = None
    images: Annotated[int | None, Field(ge=2, description="Use only so many training images (balanced); empty uses all.")] = None
    validation: Annotated[float, Field(gt=0, le=0.5, description="Share of the training images held out to choose by.")] = 0.1
    test: Annotated[float, Field(gt=0, le=0.5, description="Share held out for the test, where the source has no test images.")] = 0.2
    fingerprint: Annotated[str | None, Field(pattern="^[0-9a-f]{16}$", description="Digest of the images; filled in.")] = None


# --- networks ---------------------------------------------------------------------------------------------------------

Width = Annotated[int, Field(ge=2, le=2048, description="Channels of the first stage (units of a layer, for an MLP).")]
Depth = Annotated[int, Field(ge=1, le=8, description="Number of stages (hidden layers, for an MLP).")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Share of the last features dropped in training.")]


class Mlp(Part):
    """Multilayer perceptron: flattened pixels through equal hidden layers."""

    kind: Literal["mlp"] = "mlp"
    width: Width = 64
    depth: Depth = 2
    dropout: Dropout = 0.0


class Cnn(Part):
    """Compact CNN: a 3x3 convolution, batch norm and pooling a stage; channels double."""

    kind: Literal["cnn"] = "cnn"
    width: Width = 16
    depth: Depth = 3
    dropout: Dropout = 0.0


class Separable(Part):
    """Depthwise-separable CNN (MobileNet, 2017): fewest parameters per channel."""

    kind: Literal["separable"] = "separable"
    width: Width = 24
    depth: Depth = 3
    dropout: Dropout = 0.0


class Resnet(Part):
    """ResNet (2015) with the small-image stem: three stages of `depth` basic blocks."""

    kind: Literal["resnet"] = "resnet"
    width: Width = 16
    depth: Depth = 1
    dropout: Dropout = 0.0


class Torchvision(Part):
    """Any classification model of torchvision, its head replaced by one for your classes."""

    kind: Literal["torchvision"] = "torchvision"
    name: Annotated[str, Field(pattern="^[a-z0-9_]+$", max_length=64, description="As in torchvision.models.list_models().")]
    size: Annotated[int, Field(ge=32, le=512, description="Side to which the network itself resizes its input.")] = 64
    pretrained: Annotated[bool, Field(description="Start from ImageNet weights (downloaded once; needs a network).")] = False


Network = Annotated[Mlp | Cnn | Separable | Resnet | Torchvision, Field(discriminator="kind"), _shorthand("kind")]

# --- augmentation -----------------------------------------------------------------------------------------------------

Probability = Annotated[float, Field(ge=0, le=1, description="Share of the images that it is applied to.")]


class Flip(Part):
    """Mirror the image."""

    kind: Literal["flip"] = "flip"
    axis: Annotated[Literal["horizontal", "vertical"], Field(description="Left-right or top-bottom.")] = "horizontal"
    probability: Probability = 0.5


class Shift(Part):
    """Move the image by whole pixels, each direction alike; what enters is black."""

    kind: Literal["shift"] = "shift"
    pixels: Annotated[int, Field(ge=1, le=64, description="Largest shift in pixels.")] = 2
    probability: Probability = 1.0


class Rotate(Part):
    """Turn the image about its centre (bilinear); what enters is black."""

    kind: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(gt=0, le=180, description="Largest angle, either way.")] = 10.0
    probability: Probability = 1.0


Augment = Annotated[Flip | Shift | Rotate, Field(discriminator="kind"), _shorthand("kind")]

# --- losses -----------------------------------------------------------------------------------------------------------

TeacherWeight = Annotated[float, Field(gt=0, le=1, description="Share of the teacher's term; the rest goes to the labels.")]


class CrossEntropy(Part):
    """Cross entropy with the labels; no teacher."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    smoothing: Annotated[float, Field(ge=0, lt=1, description="Label smoothing.")] = 0.0


class HintonKd(Part):
    """Soft targets: T² KL(teacher || student) of softened logits (Hinton et al., 2015)."""

    kind: Literal["kd"] = "kd"
    temperature: Annotated[float, Field(ge=0.5, le=50, description="Higher shows more of the teacher's doubts; small students like 2 to 4.")] = 4.0
    weight: TeacherWeight = 0.9


class LogitMse(Part):
    """Half the mean squared error between centred logits (Ba & Caruana, 2014): soft targets as T grows without limit."""

    kind: Literal["logit_mse"] = "logit_mse"
    weight: TeacherWeight = 0.9


Loss = Annotated[CrossEntropy | HintonKd | LogitMse, Field(discriminator="kind"), _shorthand("kind")]

# --- optimizers and schedules -----------------------------------------------------------------------------------------

LearningRate = Annotated[float, Field(gt=0, le=100, description="Peak learning rate.", json_schema_extra={"log": True})]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="Decay of weight matrices; biases and norms have none.")]


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
    beta1: Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of gradients.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of squared gradients.")] = 0.999


class Lookahead(Part):
    """Lookahead (Zhang et al., 2019) around another optimizer: k fast steps, then one slow step back towards them."""

    kind: Literal["lookahead"] = "lookahead"
    inner: Annotated[Sgd | AdamW, Field(discriminator="kind", description="The optimizer that takes the fast steps."), _shorthand("kind")] = AdamW()
    k: Annotated[int, Field(ge=2, le=100, description="Fast steps per slow step.")] = 5
    alpha: Annotated[float, Field(gt=0, lt=1, description="How far the slow weights follow.")] = 0.5


Optimizer = Annotated[Sgd | AdamW | Lookahead, Field(discriminator="kind"), _shorthand("kind")]

Warmup = Annotated[float, Field(ge=0, le=0.5, description="Share of the steps in which the learning rate rises from zero.")]


class Cosine(Part):
    """Warm-up, then half a cosine down to zero (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05


class Constant(Part):
    """Warm-up, then the same learning rate to the end."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05


Schedule = Annotated[Cosine | Constant, Field(discriminator="kind"), _shorthand("kind")]

# --- the run ----------------------------------------------------------------------------------------------------------


class RunSpec(Part):
    """All that decides the weights of one run. Device, worker count and display names are no part of it."""

    data: Annotated[DataSpec, _shorthand("source"), Field(description="Images to learn from.")]
    network: Annotated[Network, Field(description="The network that this run trains.")]
    teacher: Annotated[str | None, Field(max_length=1000, description="A finished run to learn from; empty learns from labels only.")] = None
    loss: Annotated[Loss, Field(description="What the student is asked to match.")] = CrossEntropy()
    augment: Annotated[tuple[Augment, ...], Field(max_length=16, description="Applied to every training image; teacher and student see the same view.")] = ()
    views: Annotated[int, Field(ge=0, le=1000, description="0: fresh augmentation every epoch; K: the same K views of an image, in turn.")] = 0
    optimizer: Annotated[Optimizer, Field(description="Who takes the steps.")] = AdamW()
    schedule: Annotated[Schedule, Field(description="How the learning rate moves.")] = Cosine()
    epochs: Annotated[int, Field(ge=1, le=100_000, description="Times that every training image is seen.")] = 20
    batch: Annotated[int, Field(ge=2, le=65_536, description="Images a step.")] = 128
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Fixes initial weights, order and augmentation.")] = 0
    precision: Annotated[Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 on a GPU that has it, else fp32.")] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, given: Any) -> Any:
        """Soft targets with a teacher, cross entropy without: written out, so that the spec says what it does."""
        if isinstance(given, Mapping) and given.get("loss") is None:
            return {**given, "loss": HintonKd() if given.get("teacher") else CrossEntropy()}
        return given

    @model_validator(mode="after")
    def _loss_fits_teacher(self) -> Self:
        uses_teacher = hasattr(self.loss, "weight")
        if uses_teacher and self.teacher is None:
            raise ValueError(f"loss '{self.loss.kind}' needs a teacher: name one, or use loss 'cross_entropy'")
        if not uses_teacher and self.teacher is not None:
            raise ValueError(f"loss '{self.loss.kind}' never asks the teacher: remove the teacher, or use loss 'kd'")
        return self


def canonical(part: Part) -> dict[str, Any]:
    """The fields of a part that differ from their defaults, and its kind: the text that the digest is made of.

    Leaving defaults out is what lets a new field with a default keep the names of old runs. A known fingerprint stands
    in for the place that the images came from: a moved folder is still the same data.
    """
    written: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "kind" or field.is_required() or value != field.get_default(call_default_factory=True):
            written[name] = _plain(value)
    if isinstance(part, DataSpec) and part.fingerprint:
        del written["source"]
    return written


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return canonical(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def digest(spec: RunSpec) -> str:
    """The id of the run that `spec` describes: 16 hexadecimal characters."""
    text = json.dumps({"loop": LOOP, **canonical(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_yaml(spec: RunSpec) -> str:
    """The shortest YAML that gives `spec` back; what was filled in (the fingerprint) is left out."""
    written = canonical(spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": None})}))
    if list(written["data"]) == ["source"]:
        written["data"] = written["data"]["source"]
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120)


def read(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The spec in a YAML or JSON file, with `--set` overrides applied.

    Raises:
        BadSpec: the file is missing or not YAML, or a field is unknown, missing, out of range or of the wrong type.
    """
    try:
        if path.stat().st_size > 1_000_000:
            raise BadSpec("a spec is a short text, this file is over 1 MB", given=path, do="name a YAML or JSON file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "cannot be read").lower()
        raise BadSpec(f"the spec cannot be read: {reason}", given=path, do="name a YAML or JSON file") from None
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else ""
        raise BadSpec(f"the spec is not valid YAML{where}", given=path, do="check its indentation and quotes") from None
    if not isinstance(written, dict):
        raise BadSpec("a spec is a list of `field: value` lines", given=path, do="begin with `data: digits` and `network: cnn`")
    for override in overrides:
        written = set_field(written, override)
    return parse(written)


def parse(written: Mapping[str, Any]) -> RunSpec:
    """A checked spec from plain values.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    try:
        return RunSpec.model_validate(written)
    except ValidationError as error:
        raise BadSpec("; ".join(explain(RunSpec, detail) for detail in error.errors()[:3])) from None


def set_field(written: dict[str, Any], override: str) -> dict[str, Any]:
    """`written` with one `a.b.0.c=value` applied; the value is read as YAML.

    Raises:
        BadSpec: the override has no `=`, or leads through something that has no fields.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise BadSpec("an override reads field=value", given=override, do="write for example --set optimizer.lr=0.01")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    root: dict[str, Any] = json.loads(json.dumps(written, default=str))
    node: Any = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise BadSpec(f"`{'.'.join(keys[:depth])}` is a list of {len(node)}", given=override, do="use a position from 0")
            key = int(key)  # type: ignore[assignment]
        elif not isinstance(node, dict):
            raise BadSpec(f"`{'.'.join(keys[:depth])}` has no fields", given=override, do="set the whole field instead")
        if last:
            node[key] = value
            break
        below = node.get(key) if isinstance(node, dict) else node[key]
        if isinstance(below, str):  # a shorthand: write it out so that its fields can be set
            below = {"source": below} if key == "data" else {"kind": below}
        node[key] = {} if below is None else below
        node = node[key]
    return root


def members(union: object) -> tuple[type[Part], ...]:
    """The parts of a family, in the order of its union: what a menu offers."""
    first = get_args(union)[0]  # Annotated[A | B, ...] -> A | B
    return get_args(first) or (first,)


def choices(family: object) -> list[str]:
    """The kinds that a family offers."""
    return [str(member.model_fields["kind"].default) for member in members(family)]


def explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """One finding of pydantic in words: the field's path, what is wrong, what was given, what is allowed."""
    path = [str(step) for step in detail["loc"]]
    kinds = {kind for family in (Network, Augment, Loss, Optimizer, Schedule) for kind in choices(family)}
    shown = ".".join(step for step in path if step not in kinds) or "spec"
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    rule: dict[str, Callable[[], str]] = {
        "extra_forbidden": lambda: f"unknown field `{shown}`{_suggestion(model, path)}",
        "missing": lambda: f"`{shown}` is missing",
        "union_tag_invalid": lambda: f"`{shown}` has no kind {context.get('tag')!r}: choose one of {context.get('expected_tags')}",
        "union_tag_not_found": lambda: f"`{shown}` needs a `kind`",
        "finite_number": lambda: f"`{shown}` must be a finite number (given: {given})",
        "value_error": lambda: str(context.get("error", detail["msg"])),
    }
    if kind in rule:
        return rule[kind]()
    wanted = detail["msg"].removeprefix("Input should be ").split(",")[0]
    return f"`{shown}` must be {wanted} (given: {given!r:.80})"


def _suggestion(model: type[BaseModel], path: Sequence[str]) -> str:
    """The nearest known field names, searched over every part: an error's path passes through unions."""
    known: set[str] = set(model.model_fields)
    if len(path) > 1:
        parts = [DataSpec, *(m for f in (Network, Augment, Loss, Optimizer, Schedule) for m in members(f))]
        known = {name for part in parts for name in part.model_fields if part is not DataSpec or path[0] == "data"}
        kinds = {str(part.model_fields["kind"].default): part for part in parts if "kind" in part.model_fields}
        owner = next((kinds[step] for step in reversed(path[:-1]) if step in kinds), DataSpec if path[0] == "data" else None)
        if owner is not None:
            known = set(owner.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f", did you mean `{near[0]}`?" if near else f": known are {', '.join(sorted(known))}"


def title(spec: RunSpec) -> str:
    """What a run is, in a few words: network, what it learns from, data."""
    network = spec.network
    name = network.name if isinstance(network, Torchvision) else f"{network.kind} {network.width}x{network.depth}"
    lesson = f" · {spec.loss.kind}" + (f" T={spec.loss.temperature:g}" if isinstance(spec.loss, HintonKd) else "")
    return f"{name}{lesson} · {Path(spec.data.source).name} · {spec.epochs} epochs · seed {spec.seed}"
