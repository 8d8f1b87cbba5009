"""What a run is: every choice that decides the weights, and nothing else, checked and with a digest.

Forms, command line, YAML, JSON Schema, validation and digest all read the same fields, so nothing is written twice.
This package imports neither torch nor numpy: the dashboard draws its forms from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec._file import loaded as loaded, value_of
from smallalign_core.spec._part import expanded
from smallalign_core.spec._words import told as told
from smallalign_core.spec.augment import MIXING, CutMix as CutMix, Mixing as Mixing, MixUp as MixUp, misplaced
from smallalign_core.spec.loss import (
    AttentionTransfer as AttentionTransfer,
    CrossEntropy as CrossEntropy,
    Dist as Dist,
    Dkd as Dkd,
    FitNets as FitNets,
    FunctionMatching as FunctionMatching,
    HintonKd as HintonKd,
    LogitMse as LogitMse,
    Loss as Loss,
    OfLayers as OfLayers,
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
    DataSpec as DataSpec,
    Flip as Flip,
    Import as Import,
    LibraryNetwork as LibraryNetwork,
    Mlp as Mlp,
    Network as Network,
    Part as Part,
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

LOOP = 2
"""Raised when training starts to mean something else; then an old run no longer answers for a new spec."""
HEAD = 1
"""The same for networks that start from trained weights: 1 since their new heads start at zero."""


class RunSpec(Part):
    """All that decides the weights of one run. Device, worker count and display names are no part of it."""

    data: Annotated[DataSpec, shorthand("source"), Field(description="Images to learn from.")]
    network: Annotated[Network, Field(description="The network that this run trains.")]
    bits: Bits = None
    start: Start = None
    teacher: Annotated[
        Teachers | None,
        Field(description="A finished run to learn from, or several; empty learns from labels only."),
    ] = None
    shuffled: Annotated[
        bool,
        Field(
            description="A control: each image gets the teacher's answer to another image of its class. What is then "
            "still gained owes nothing to what the teacher knows of the image itself."
        ),
    ] = False
    loss: Annotated[Loss, Field(description="What the student is asked to match.")] = CrossEntropy()
    answers: Annotated[
        Literal["torch", "onnx", "int8"],
        Field(
            description="Who computes the teacher's answers: PyTorch, ONNX Runtime, or ONNX Runtime with 8-bit "
            "integers, which is fastest on CPUs and a little off; by how much is measured first and shown."
        ),
    ] = "torch"
    augment: Annotated[
        tuple[Augment, ...],
        Field(max_length=16, description="Applied to every training image; teacher and student see the same view."),
    ] = ()
    views: Annotated[
        int,
        Field(
            ge=0, le=1000, description="0: fresh augmentation every epoch; K: the same K views of an image, in turn."
        ),
    ] = 0
    optimizer: Annotated[Optimizer, Field(description="Who takes the steps.")] = AdamW()
    schedule: Annotated[Schedule, Field(description="How the learning rate moves.")] = Cosine()
    epochs: Annotated[int, Field(ge=1, le=100_000, description="Times that every training image is seen.")] = 20
    batch: Annotated[int, Field(ge=2, le=65_536, description="Images a step.")] = 128
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Fixes initial weights, order and augmentation.")] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="auto: bf16 where the hardware has it and is faster with it."),
    ] = "auto"
    compile: Annotated[
        bool,
        Field(description="torch.compile the student (CUDA graphs on GPUs). Pays on GPUs; on CPUs it rarely does."),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, given: Any) -> Any:
        """Soft targets with a teacher, cross entropy without: written out, so that the spec says what it does.

        Temperature and weight are then chosen when the run is prepared, from the teacher's answers to its validation
        images, and written into its spec. Of `kd` alone they are what they were before there was such a choice.
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
        """Some optimizers know no falling learning rate: written out too."""
        if isinstance(given, Mapping) and given.get("schedule") is None:
            usual = usual_schedule(given.get("optimizer"))
            return given if usual is None else {**given, "schedule": usual}
        return given

    @property
    def teachers(self) -> tuple[str, ...]:
        """The runs to learn from: none, one or several."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    @property
    def head_rate(self) -> float:
        """Learning rate of the last layer, in multiples of the optimizer's."""
        return self.network.head_rate if isinstance(self.network, LibraryNetwork) else 1.0

    def with_teachers(self, names: Sequence[str]) -> RunSpec:
        """The same spec with these teachers."""
        return self.model_copy(update={"teacher": tuple(names) if len(names) > 1 else next(iter(names), None)})

    def can_lockstep_with(self, other: RunSpec) -> bool:
        """Whether the two see the same views, so that they can be trained in lockstep."""
        shared = ("data", "augment", "views", "batch", "epochs", "seed", "precision", "answers")
        same = all(getattr(self, name) == getattr(other, name) for name in shared)
        return same and (not self.teacher or not other.teacher or self.teacher == other.teacher)

    @model_validator(mode="after")
    def _loss_fits_teacher(self) -> Self:
        uses_teacher = self.loss.uses_teacher
        if uses_teacher and self.teacher is None:
            raise ValueError(f"loss '{self.loss.kind}' needs a teacher: name one, or use loss 'cross_entropy'")
        if not uses_teacher and self.teacher is not None:
            raise ValueError(f"loss '{self.loss.kind}' never asks the teacher: remove the teacher, or use loss 'kd'")
        if isinstance(self.loss, OfLayers) and len(self.teachers) > 1:
            raise ValueError(
                f"loss '{self.loss.kind}' compares layers, and those of several teachers have no mean: name one"
            )
        if self.shuffled and self.teacher is None:
            raise ValueError("`shuffled` mixes up a teacher's answers, and there is no teacher: name one")
        if self.answers != "torch" and isinstance(self.loss, OfLayers):
            raise ValueError(
                f"loss '{self.loss.kind}' looks into the teacher, which ONNX Runtime hides: leave `answers` out"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Self:
        layers, taught = isinstance(self.loss, OfLayers), self.teacher is not None
        fast = "precision" if self.precision == "bf16" else "compile" if self.compile else None
        if wrong := incompatibility(self.optimizer, self.schedule, taught=taught, layers=layers, fast=fast):
            raise ValueError(wrong)
        base = nest(self.optimizer)[-1]
        if self.head_rate != 1 and not base.head_rate:
            raise ValueError(f"`{base.kind}` has one step for all weights: leave `head_rate` out")
        return self

    @model_validator(mode="after")
    def _policy_is_in_order(self) -> Self:
        if wrong := misplaced(self.augment):
            raise ValueError(wrong)
        if self.views and any(isinstance(part, Mixing) for part in self.augment):
            raise ValueError("mixed images meet other partners at every step, so none is seen twice: set `views` to 0")
        return self


class Policy(Part):
    """A policy on its own: what a file for `views` holds."""

    augment: Annotated[tuple[Augment, ...], Field(min_length=1, max_length=16, description="Parts, in order.")]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if wrong := misplaced(self.augment):
            raise ValueError(wrong)
        return self


def canonical(part: Part) -> dict[str, Any]:
    """The fields of a part that differ from their defaults, and its kind: the text that the digest is made of.

    Leaving defaults out is what lets a new field with a default keep the names of old runs. A known fingerprint stands
    in for the place that the images, or the weights to start from, came from: a moved folder is still the same data.
    """
    written: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "kind" or field.is_required() or value != field.get_default(call_default_factory=True):
            written[name] = _plain(value)
    if isinstance(part, DataSpec) and part.fingerprint:
        for name in ("source", "decisions", "groups", "skip_unreadable"):  # a fingerprint says what they led to
            written.pop(name, None)
    if isinstance(part, LibraryNetwork) and part.weights_sha256:
        del written["weights"]
    return written


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return canonical(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def digest(spec: RunSpec) -> str:
    """The id of the run that `spec` describes: 16 hexadecimal characters."""
    head = {"head": HEAD} if isinstance(spec.network, LibraryNetwork) and spec.network.begins else {}
    text = json.dumps({"loop": LOOP, **head, **canonical(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def id_of(imported: Import) -> str:
    """The id of an import: 16 hexadecimal characters. An equal file, used in an equal way, is the same import."""
    text = json.dumps({"import": canonical(imported)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_yaml(spec: RunSpec) -> str:
    """The shortest YAML that gives `spec` back; what was filled in (digests of data and weights) is left out."""
    bare: dict[str, Part] = {"data": spec.data.model_copy(update={"fingerprint": None})}
    if isinstance(spec.network, LibraryNetwork):
        bare["network"] = spec.network.model_copy(update={"weights_sha256": None})
    written = canonical(spec.model_copy(update=bare))
    if isinstance(spec.loss, HintonKd):
        if spec.loss.temperature is None and spec.loss.weight is None:
            del written["loss"]
        else:
            written["loss"] = {name: "auto" if value is None else value for name, value in written["loss"].items()}
    if list(written["data"]) == ["source"]:
        written["data"] = written["data"]["source"]
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120)


def read(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The spec in a YAML or JSON file, with `--set` overrides applied.

    Raises:
        BadSpec: the file is missing or not YAML, or a field is unknown, missing, out of range or of the wrong type.
    """
    return parse(fields_in(path, "spec", overrides))


def fields_in(path: Path, what: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields in a YAML or JSON file, with `--set` overrides applied, not checked yet.

    Raises:
        BadSpec: the file is missing or not YAML, or holds no fields.
    """
    written = loaded(path, what)
    if not isinstance(written, dict):
        raise BadSpec(
            f"a {what} is a list of `field: value` lines", given=path, do="begin with `data: digits` and `network: cnn`"
        )
    for override in overrides:
        written = set_field(written, override)
    return written


def read_policy(path: Path) -> tuple[Augment, ...]:
    """The policy in a YAML or JSON file: a list of parts, or a spec whose `augment` is meant.

    Raises:
        BadSpec: the file is missing or not YAML, holds no parts, or a part is unknown, misplaced or out of range.
    """
    return parse_policy(loaded(path, "policy"))


def parse_policy(written: object) -> tuple[Augment, ...]:
    """A checked policy from plain values: a list of parts, one part, or anything that has an `augment`.

    Raises:
        BadSpec: as `read_policy`.
    """
    if isinstance(written, Mapping):
        written = [written] if "kind" in written else written.get("augment")
    if not isinstance(written, Sequence) or isinstance(written, str) or not written:
        raise BadSpec(
            "the policy has no parts",
            given=written or "nothing",
            do="write a list such as `- {kind: shift, pixels: 2}`",
        )
    try:
        return Policy.model_validate({"augment": written}).augment
    except ValidationError as error:
        raise BadSpec(told(Policy, error)) from None


def policy_yaml(policy: Sequence[Augment]) -> str:
    """The shortest YAML list that gives `policy` back."""
    return yaml.safe_dump([canonical(part) for part in policy], sort_keys=False, allow_unicode=True, width=120)


def parse(written: Mapping[str, Any]) -> RunSpec:
    """A checked spec from plain values.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    try:
        return RunSpec.model_validate(written)
    except ValidationError as error:
        raise BadSpec(told(RunSpec, error)) from None


def parse_data(written: str | Mapping[str, Any]) -> DataSpec:
    """Checked data from its name or path, or from plain values.

    Raises:
        BadSpec: as `parse`.
    """
    try:
        return DataSpec.model_validate({"source": written} if isinstance(written, str) else written)
    except ValidationError as error:
        raise BadSpec(told(DataSpec, error)) from None


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
        # An id of digits only is still a text: BaseLoader leaves every word as it is.
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
                    f"`{'.'.join(keys[:depth])}` is a list of {len(node)}", given=override, do="use a position from 0"
                )
            key = int(key)  # type: ignore[assignment]
        elif not isinstance(node, dict):
            raise BadSpec(f"`{'.'.join(keys[:depth])}` has no fields", given=override, do="set the whole field instead")
        if last:
            node[key] = value
            break
        below = node.get(key) if isinstance(node, dict) else node[key]
        if isinstance(below, str):  # a shorthand: write it out so that its fields can be set
            below = expanded(below, "source" if key == "data" else "kind")
        node[key] = _unwritten(root, keys[: depth + 1], node) if below is None else below
        node = node[key]
    return root


def _names(text: str) -> object:
    """Teachers as they are given to `--set`: one, a list in brackets, or null for none."""
    if text.strip() in ("", "null"):
        return None
    return yaml.load(text, yaml.BaseLoader) if text.strip().startswith("[") else text  # makes only texts


def _unwritten(root: Mapping[str, Any], path: Sequence[str], node: object) -> dict[str, Any]:
    """What stands for a part that was not written out below `node`: its default's kind, so that fields can be set."""
    if list(path) == ["loss"]:
        return {"kind": "kd" if root.get("teacher") else "cross_entropy"}
    holders: dict[object, type[Part]] = {one.model_fields["kind"].default: one for one in members(Optimizer)}
    owner = holders.get(node.get("kind"), RunSpec) if isinstance(node, dict) and path[0] == "optimizer" else RunSpec
    field = owner.model_fields.get(path[-1])
    return {"kind": field.default.kind} if field is not None and hasattr(field.default, "kind") else {}


def title(spec: RunSpec) -> str:
    """What a run is, in a few words: network, what it learns from, data."""
    network = spec.network
    name = network.name if isinstance(network, LibraryNetwork) else f"{network.kind} {network.width}x{network.depth}"
    return f"{name} · {short_name(spec.loss)} · {Path(spec.data.source).name} · {spec.epochs} epochs · seed {spec.seed}"
