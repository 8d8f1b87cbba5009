"""The spec of a run: every choice that determines the weights, and nothing else, validated and digested.

Forms, command line, YAML, JSON Schema, validation and digest all derive from the same fields.
This package imports neither torch nor numpy: the dashboard builds its forms from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec import _fit
from smallalign_core.spec._canonical import canonical as canonical, shortest as shortest, to_yaml as to_yaml
from smallalign_core.spec._file import loaded as loaded, value_of as value_of
from smallalign_core.spec._import import Import as Import
from smallalign_core.spec._part import expanded
from smallalign_core.spec._policy import (
    Policy as Policy,
    parse_policy as parse_policy,
    policy_yaml as policy_yaml,
    read_policy as read_policy,
)
from smallalign_core.spec._words import message_of as message_of
from smallalign_core.spec.augment import MIXING, CutMix as CutMix, Mixing as Mixing, MixUp as MixUp, misplaced
from smallalign_core.spec.balance import (
    Balance as Balance,
    ClassWeights as ClassWeights,
    EffectiveNumber as EffectiveNumber,
    LogitAdjustment as LogitAdjustment,
    Sampling as Sampling,
    Unbalanced as Unbalanced,
)
from smallalign_core.spec.loss import (
    AttentionTransfer as AttentionTransfer,
    CrossEntropy as CrossEntropy,
    Dist as Dist,
    Dkd as Dkd,
    Embedding as Embedding,
    FitNets as FitNets,
    FunctionMatching as FunctionMatching,
    HintonKd as HintonKd,
    LogitMse as LogitMse,
    Loss as Loss,
    OfLayers as OfLayers,
    PythonLoss as PythonLoss,
    ScaledMse as ScaledMse,
    StandardizedKd as StandardizedKd,
    labels_share as labels_share,
    loss_kinds as loss_kinds,
    short_name,
)
from smallalign_core.spec.optimizer import (
    AdamW as AdamW,
    AdEmaMix as AdEmaMix,
    Asam as Asam,
    Constant as Constant,
    Cosine as Cosine,
    Ema as Ema,
    Lion as Lion,
    Lookahead as Lookahead,
    Muon as Muon,
    NAdamW as NAdamW,
    Optimizer as Optimizer,
    Pgpe as Pgpe,
    Polyak as Polyak,
    Prodigy as Prodigy,
    RmsProp as RmsProp,
    Sam as Sam,
    Schedule as Schedule,
    ScheduleFree as ScheduleFree,
    Sgd as Sgd,
    Snes as Snes,
    Soap as Soap,
    incompatibility as incompatibility,
    is_gradient_free as is_gradient_free,
    kind_of,
    nest as nest,
    usual_schedule as usual_schedule,
)
from smallalign_core.spec.parts import (
    Augment as Augment,
    Bits,
    Cnn as Cnn,
    Columns as Columns,
    DataSpec as DataSpec,
    Flip as Flip,
    GivenNetwork as GivenNetwork,
    LibraryNetwork as LibraryNetwork,
    Mlp as Mlp,
    Network as Network,
    Part as Part,
    Pruned as Pruned,
    PythonAugment as PythonAugment,
    PythonNetwork as PythonNetwork,
    Resnet as Resnet,
    Rotate as Rotate,
    Separable as Separable,
    Shift as Shift,
    Start,
    Teachers,
    Timm as Timm,
    Torchvision as Torchvision,
    choices as choices,
    members as members,
    shorthand as shorthand,
)
from smallalign_core.spec.python import Code as Code, beside, each_code as each_code, with_code as with_code

LOOP = 2
"""Increased when the semantics of training change, so that an old run is not reused for a new spec."""
HEAD = 1
"""The same for networks that start from trained weights: 1 since their new heads start at zero."""


AnyPart = TypeVar("AnyPart", bound=Part)


class RunSpec(Part):
    """Everything that determines the weights of one run. Device, worker count and display names are excluded."""

    data: Annotated[DataSpec, shorthand("source"), Field(description="Dataset and splits.")]
    network: Annotated[Network, Field(description="Network to train.")]
    bits: Bits = None
    start: Start = None
    teacher: Annotated[
        Teachers | None,
        Field(description="A finished run to distill from, or several; empty trains on labels only."),
    ] = None
    shuffled: Annotated[
        bool,
        Field(
            description="Control: each image gets the teacher logits of another image of its class. A gain that "
            "remains does not come from image-specific teacher predictions."
        ),
    ] = False
    loss: Annotated[Loss, Field(description="Distillation objective, or cross entropy on labels.")] = CrossEntropy()
    answers: Annotated[
        Literal["torch", "onnx", "int8"],
        Field(
            description="Teacher inference backend: PyTorch, ONNX Runtime, or ONNX Runtime with int8 quantization "
            "(fastest on CPUs, with a small error that is measured first and reported)."
        ),
    ] = "torch"
    top: Annotated[
        int | None,
        Field(
            ge=1,
            le=65_536,
            description="Number of the teacher's largest logits that are used for each image; the other probability is "
            "spread evenly. Saves space in the teacher cache where there are many classes; empty: all.",
            json_schema_extra={"empty": "all"},
        ),
    ] = None
    balance: Annotated[
        Balance, Field(description="What training does about classes of unequal size; one method at a time.")
    ] = Unbalanced()
    augment: Annotated[
        tuple[Augment, ...],
        Field(max_length=16, description="Augmentation policy; teacher and student get the same augmented image."),
    ] = ()
    views: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Cached augmentations per image, used in turn; 0: a new augmentation every epoch.",
        ),
    ] = 0
    optimizer: Annotated[Optimizer, Field(description="Optimizer, with any wrappers.")] = AdamW()
    schedule: Annotated[Schedule, Field(description="Learning-rate schedule.")] = Cosine()
    select: Annotated[
        Literal["accuracy", "macro"],
        Field(
            description="Validation score that selects the best epoch: accuracy, or macro recall, where all classes "
            "count the same. Equal scores are decided by NLL."
        ),
    ] = "accuracy"
    epochs: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Number of passes over the training set; 0 evaluates initial weights as they are.",
        ),
    ] = 20
    batch: Annotated[int, Field(ge=2, le=65_536, description="Batch size: images per optimizer step.")] = 128
    seed: Annotated[
        int, Field(ge=0, le=2**31 - 1, description="Seed of initialization, data order and augmentation.")
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="auto: bf16 where the hardware supports it and it is faster."),
    ] = "auto"
    compile: Annotated[
        bool,
        Field(description="torch.compile the student (CUDA graphs on GPUs). Usually faster on GPUs, rarely on CPUs."),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, given: Any) -> Any:
        """Soft targets with a teacher, cross entropy without: written out, so that the spec is explicit.

        Temperature and weight are then chosen when the run is prepared, from the teacher's logits on validation images,
        and written into its spec. An explicit `kd` without them keeps the fixed defaults of earlier versions.
        """
        if isinstance(given, Mapping) and given.get("loss") is None:
            return {
                **given,
                "loss": HintonKd(temperature=None, weight=None) if given.get("teacher") else CrossEntropy(),
            }
        return given

    @model_validator(mode="before")
    @classmethod
    def _function_matching_mixes(cls, given: Any) -> Any:
        """MixUp is part of function matching: written out too, where nothing mixes already."""
        if not isinstance(given, Mapping) or kind_of(given.get("loss")) != "function_matching":
            return given
        policy = given.get("augment") or ()
        if not isinstance(policy, list | tuple) or any(kind_of(part) in MIXING for part in policy):
            return given
        return {**given, "augment": (*policy, MixUp(alpha=1.0))}

    @model_validator(mode="before")
    @classmethod
    def _usual_schedule(cls, given: Any) -> Any:
        """Some optimizers need a constant learning rate: written out too."""
        if isinstance(given, Mapping) and given.get("schedule") is None:
            usual = usual_schedule(given.get("optimizer"))
            return given if usual is None else {**given, "schedule": usual}
        return given

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers' references: none, one or several."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    @property
    def sampling(self) -> float | None:
        """The exponent of class-balanced sampling; None where every image is met once an epoch."""
        return self.balance.q if isinstance(self.balance, Sampling) else None

    @property
    def head_rate(self) -> float:
        """Learning rate of the last layer, as a multiple of the optimizer's."""
        return self.network.head_rate if isinstance(self.network, GivenNetwork) else 1.0

    @property
    def of_features(self) -> bool:
        """Whether the teacher gives features, not logits."""
        return isinstance(self.loss, Embedding)

    @property
    def headless(self) -> bool:
        """Whether the network has no head, and so gives features and no class."""
        return self.of_features or (isinstance(self.network, LibraryNetwork) and self.network.num_classes == 0)

    def with_teachers(self, names: Sequence[str]) -> RunSpec:
        """The same spec with these teachers."""
        return self.model_copy(update={"teacher": tuple(names) if len(names) > 1 else next(iter(names), None)})

    def can_lockstep_with(self, other: RunSpec) -> bool:
        """Whether both specs have identical views, so that they can be trained in lockstep."""
        shared = ("data", "augment", "views", "batch", "epochs", "seed", "precision", "answers")
        same = self.sampling == other.sampling and all(getattr(self, name) == getattr(other, name) for name in shared)
        if not same or not self.teacher or not other.teacher:
            return same
        return all(getattr(self, name) == getattr(other, name) for name in ("teacher", "of_features", "top"))

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _fit.check_teacher(self)
        _fit.check_unlabeled(self)
        _fit.check_headless(self)
        _fit.check_no_epochs(self)
        return self

    @model_validator(mode="after")
    def _balance_has_labels(self) -> Self:
        if self.balance.of_labels and not labels_share(self.loss):
            raise ValueError(
                f"balance '{self.balance.kind}' changes the label loss, and loss '{self.loss.kind}' has none here: use "
                "balance 'sampling', or a loss with labels"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Self:
        layers, taught = isinstance(self.loss, OfLayers | Embedding), self.teacher is not None
        fast = "precision" if self.precision == "bf16" else "compile" if self.compile else None
        if wrong := incompatibility(self.optimizer, self.schedule, taught=taught, layers=layers, fast=fast):
            raise ValueError(wrong)
        base = nest(self.optimizer)[-1]
        if self.head_rate != 1 and not base.head_rate:
            raise ValueError(f"`{base.kind}` uses one step size for all weights: leave `head_rate` out")
        return self

    @model_validator(mode="after")
    def _policy_is_in_order(self) -> Self:
        targets = self.teacher is not None and not isinstance(self.loss, Dkd)
        if wrong := misplaced(self.augment, views=self.views, targets=targets):
            raise ValueError(wrong)
        return self


def digest(spec: RunSpec) -> str:
    """The id of the run that `spec` describes: 16 hexadecimal characters."""
    head = {"head": HEAD} if isinstance(spec.network, LibraryNetwork) and spec.network.begins else {}
    text = json.dumps({"loop": LOOP, **head, **canonical(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def id_of(imported: Import) -> str:
    """The id of an import: 16 hexadecimal characters. The same file with the same options is the same import."""
    text = json.dumps({"import": canonical(imported)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The spec in a YAML or JSON file, with `--set` overrides applied.

    Raises:
        BadSpec: the file is missing or not YAML, or a field is unknown, missing, out of range or of the wrong type.
    """
    return parse(fields_in(path, "spec", overrides))


def fields_in(path: Path, what: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields in a YAML or JSON file, with `--set` overrides applied, not validated yet.

    Raises:
        BadSpec: the file is missing or not YAML, or holds no fields.
    """
    written = beside(loaded(path, what), path.parent)
    if not isinstance(written, dict):
        raise BadSpec(
            f"the {what} is not a mapping of fields", given=path, do="start with `data: digits` and `network: cnn`"
        )
    for override in overrides:
        written = set_field(written, override)
    return written


def parse(written: Mapping[str, Any]) -> RunSpec:
    """A validated spec from plain values.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    try:
        return RunSpec.model_validate(written)
    except ValidationError as error:
        raise BadSpec(message_of(RunSpec, error)) from None


def parse_data(written: str | Mapping[str, Any]) -> DataSpec:
    """A validated data spec from a name, a path, or plain values.

    Raises:
        BadSpec: as `parse`.
    """
    try:
        return DataSpec.model_validate({"source": written} if isinstance(written, str) else written)
    except ValidationError as error:
        raise BadSpec(message_of(DataSpec, error)) from None


def part_of(model: type[AnyPart], written: Mapping[str, Any]) -> AnyPart:
    """A validated part of a spec from plain values.

    Raises:
        BadSpec: as `parse`.
    """
    try:
        return model.model_validate(written)
    except ValidationError as error:
        raise BadSpec(message_of(model, error)) from None


def set_field(written: dict[str, Any], override: str) -> dict[str, Any]:
    """`written` with one `a.b.0.c=value` applied; the value is read as YAML.

    Raises:
        BadSpec: the override has no `=`, or its path passes through a value without fields.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise BadSpec("an override must be field=value", given=override, do="write for example --set optimizer.lr=0.01")
    try:
        # An id of digits only is still a string: BaseLoader resolves no types.
        value = _names(text) if keys in (["teacher"], ["start"]) else value_of(text)
    except (yaml.YAMLError, RecursionError):
        value = text
    root: dict[str, Any] = json.loads(json.dumps(written, default=str))
    node: Any = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise BadSpec(
                    f"`{'.'.join(keys[:depth])}` is a list of {len(node)}", given=override, do="use an index from 0"
                )
            key = int(key)  # type: ignore[assignment]
        elif not isinstance(node, dict):
            raise BadSpec(f"`{'.'.join(keys[:depth])}` has no fields", given=override, do="set the whole field instead")
        if last:
            node[key] = value
            break
        below = node.get(key) if isinstance(node, dict) else node[key]
        if isinstance(below, str):  # a shorthand: expand it so that its fields can be set
            below = expanded(below, "source" if key == "data" else "kind")
        node[key] = _unwritten(root, keys[: depth + 1], node) if below is None else below
        node = node[key]
    return root


def _names(text: str) -> object:
    """Teachers as given to `--set`: one, a list in brackets, or null for none."""
    if text.strip() in ("", "null"):
        return None
    return yaml.load(text, yaml.BaseLoader) if text.strip().startswith("[") else text  # strings only


def _unwritten(root: Mapping[str, Any], path: Sequence[str], node: object) -> dict[str, Any]:
    """The default's kind for a part that is absent below `node`, so that its fields can be set."""
    if list(path) == ["loss"]:
        return {"kind": "kd" if root.get("teacher") else "cross_entropy"}
    holders: dict[object, type[Part]] = {one.model_fields["kind"].default: one for one in members(Optimizer)}
    owner = holders.get(node.get("kind"), RunSpec) if isinstance(node, dict) and path[0] == "optimizer" else RunSpec
    field = owner.model_fields.get(path[-1])
    return {"kind": field.default.kind} if field is not None and hasattr(field.default, "kind") else {}


def title(spec: RunSpec) -> str:
    """A one-line title of a run: network, loss, data, epochs, seed."""
    network = spec.network
    name = network.name if isinstance(network, GivenNetwork) else f"{network.kind} {network.width}x{network.depth}"
    name += " pruned" if network.pruned else ""
    return f"{name} · {short_name(spec.loss)} · {Path(spec.data.source).name} · {spec.epochs} epochs · seed {spec.seed}"
