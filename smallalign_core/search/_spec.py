"""The spec of a search: images, limits, and what may be tried. The budget is kept beside it, so that it can grow."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.search._space import Family, OptimizerName
from smallalign_core.spec import LOOP, DataSpec, Network, RunSpec, canonical, message_of
from smallalign_core.spec.parts import GivenNetwork, Part, Teacher, shorthand
from smallalign_core.spec.precision import PRECISIONS, Precision
from smallalign_core.spec.python import FILLED_IN
from smallalign_core.studies.base import SEVERAL

NO_TEACHER = "none"
"""The teacher of a search on labels only."""
SEEDS = 3
ETA = 3
"""One in `ETA` candidates of a rung goes on to the next, which is `ETA` times as long."""
SEEN = 400_000
"""Training images that the longest rung sees, about; in 9 to 81 epochs."""
WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class Budget(Part):
    """What a search may cost: seconds, or a number of trials, with which it can be repeated exactly."""

    seconds: Annotated[float | None, Field(gt=0, le=1e7, description="Compute time in seconds.")] = None
    trials: Annotated[int | None, Field(ge=1, le=10_000, description="Number of candidates to train.")] = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.seconds is None) == (self.trials is None):
            raise ValueError("a budget is a time or a number of trials: give one of both")
        return self

    def __str__(self) -> str:
        if self.trials is not None:
            return f"{self.trials} trial{'s' if self.trials > 1 else ''}"
        seconds = self.seconds or 0.0
        return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


class SearchSpec(Part):
    """The smallest model within limits."""

    KIND: ClassVar[str] = "search"
    data: Annotated[DataSpec, shorthand("source"), Field(description="Dataset and splits.")]
    teacher: Annotated[
        Teacher | None,
        Field(description="A finished run to distill from; empty: the best one of the store, or a new one; none."),
    ] = None
    max_kb: Annotated[float | None, Field(gt=0, description="Max. file size in kB of 1,000 bytes.")] = None
    max_ms: Annotated[
        float | None,
        Field(gt=0, description="Max. latency (p50) in milliseconds: one image, one thread, this machine."),
    ] = None
    min_accuracy: Annotated[float | None, Field(gt=0, lt=1, description="Min. accuracy, 0 to 1.")] = None
    min_share: Annotated[
        float | None, Field(gt=0, le=1.5, description="Min. accuracy as a share of the teacher's.")
    ] = None
    families: Annotated[
        tuple[Family, ...], SEVERAL, Field(min_length=1, description="Network families to choose from.")
    ] = get_args(Family)
    optimizers: Annotated[
        tuple[OptimizerName, ...],
        SEVERAL,
        Field(description="Optimizers to choose from, at three learning rates each; empty: those that are installed."),
    ] = ()
    backbones: Annotated[
        Annotated[tuple[Network, ...], Field(max_length=12)] | None,
        BeforeValidator(lambda given: [given] if isinstance(given, str | Mapping) else given),
        Field(
            description="Networks with weights to start from, such as {kind: timm, name: lcnet_050, weights: FILE}; "
            "empty: those of `smallalign networks` with downloaded weights.",
        ),
    ] = None
    precisions: Annotated[
        tuple[Precision, ...], SEVERAL, Field(min_length=1, description="Export precisions to choose from.")
    ] = PRECISIONS
    rungs: Annotated[
        tuple[Annotated[int, Field(ge=1, le=10_000)], ...],
        SEVERAL,
        Field(max_length=6, description="Epochs of each rung; empty: by the number of training images."),
    ] = ()
    batch: Annotated[int | None, Field(ge=2, le=65_536, description="Batch size; empty: by the number of images.")] = (
        None
    )
    budget: Annotated[Budget, Field(description="What it may cost; an existing search goes on with more of it.")] = (
        Budget(seconds=1800)
    )
    seeds: Annotated[int, Field(ge=1, le=20, description="Seeds with which the winner is trained in all.")] = SEEDS
    seed: Annotated[int, Field(ge=0, le=1_000_000, description="Seed of the search and of its first runs.")] = 0
    precision: Annotated[
        str | None, Field(description="Training precision; filled in.", json_schema_extra=FILLED_IN)
    ] = None
    shape: Annotated[
        tuple[int, ...], Field(max_length=3, description="Of the images; filled in.", json_schema_extra=FILLED_IN)
    ] = ()

    @model_validator(mode="after")
    def _learns_from_labels(self) -> Self:
        if self.data.unlabeled is not None:  # half of the candidates have no teacher to give these a target
            raise ValueError("a search does not use unlabeled images: leave `data.unlabeled` out")
        return self

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.max_kb is None and self.max_ms is None and self.min_accuracy is None and self.min_share is None:
            raise ValueError("there is no limit: give `max_kb`, `max_ms`, or `min_accuracy`")
        if self.min_accuracy is not None and self.min_share is not None:
            raise ValueError("`min_accuracy` and `min_share` both limit the accuracy: give one")
        if self.min_share is not None and self.teacher == NO_TEACHER:
            raise ValueError("a share of the teacher's accuracy needs a teacher, and `teacher` is none")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"`rungs` must be in ascending order (given: {list(self.rungs)})")
        for one in self.backbones or ():
            if not isinstance(one, GivenNetwork) or not one.begins:
                raise ValueError(
                    f"`backbones` has the network {one.kind} without weights to start from: set `pretrained` or "
                    "`weights`, or use `families`"
                )
        for name in ("families", "precisions", "optimizers"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"`{name}` names one twice")
        return self

    @property
    def limits_accuracy(self) -> bool:
        """Whether the smallest file of enough accuracy is wanted; otherwise the most accurate one that is small and
        fast enough."""
        return self.min_accuracy is not None or self.min_share is not None

    @property
    def side(self) -> int:
        """Shorter side of the images in pixels; the spec is resolved."""
        return min(self.shape[1:])

    @property
    def max_bytes(self) -> int | None:
        return None if self.max_kb is None else int(self.max_kb * 1000)


def parse_study(written: Mapping[str, Any]) -> SearchSpec:
    """A validated search from plain values.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    try:
        return SearchSpec.model_validate(dict(written))
    except ValidationError as error:
        raise BadSpec(message_of(SearchSpec, error)) from None


def parse_budget(text: str) -> Budget:
    """A budget from `30m`, `90s`, `1.5h`, or `12 trials`.

    Raises:
        BadInput: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|trials?)\s*", text)
    try:
        if found is None:
            raise ValueError
        number, unit = found.groups()
        if unit.startswith("trial"):
            return Budget(trials=int(number))
        return Budget(seconds=float(number) * UNITS[unit])
    except ValueError:
        raise BadInput("not a budget", given=text, do="write for example 30m, 90s, 1h or 12trials") from None


def parse_accuracy(text: str) -> dict[str, float]:
    """The limit `min_accuracy` or `min_share` from `0.95`, `95%`, or `98% of teacher`.

    Raises:
        BadInput: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*(of (?:the )?teacher)?\s*", text)
    if found is None:
        raise BadInput("not an accuracy", given=text, do='write for example 0.95, 95% or "98% of teacher"')
    number, percent, of_teacher = found.groups()
    value = float(number) / (100 if percent else 1)
    if not 0 < value <= 1.5 or (value >= 1 and not of_teacher):
        raise BadInput(
            "an accuracy limit lies between 0 and 1: no number of images shows that a model makes no error",
            given=text,
            do='write for example 0.95, 95% or "98% of teacher"',
        )
    return {"min_share" if of_teacher else "min_accuracy": value}


def study_id(spec: SearchSpec) -> str:
    """The id of a resolved search: 16 hexadecimal characters. The budget is not part of it: more of it goes on."""
    usual = spec.model_copy(update={"budget": SearchSpec.model_fields["budget"].default})
    text = json.dumps({"loop": LOOP, spec.KIND: canonical(usual)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def limits_in_words(spec: SearchSpec) -> str:
    """The limits, as text."""
    parts = (
        None if spec.max_kb is None else f"at most {spec.max_kb:,g} kB",
        None if spec.max_ms is None else f"at most {spec.max_ms:g} ms",
        None if spec.min_accuracy is None else f"at least {100 * spec.min_accuracy:g}% accuracy",
        None if spec.min_share is None else f"at least {100 * spec.min_share:g}% of the teacher's accuracy",
    )
    return ", ".join(part for part in parts if part)


def title_of(spec: SearchSpec) -> str:
    """A short title of the search."""
    return f"{Path(spec.data.source).name} · {limits_in_words(spec)}"


def probes(spec: SearchSpec) -> list[RunSpec]:
    """One run of the search, with its teacher if one was named: what refuses it refuses the search."""
    fields: dict[str, Any] = {"data": spec.data, "network": "mlp", "seed": spec.seed, "batch": spec.batch or 128}
    if spec.teacher not in (None, NO_TEACHER):
        fields["teacher"] = spec.teacher
    if spec.precision:
        fields["precision"] = spec.precision
    return [RunSpec.model_validate(fields)]


@functools.lru_cache(maxsize=64)
def base_of(spec: SearchSpec) -> RunSpec:
    """What all runs of a resolved search share: images, batch, precision; labels only."""
    shared = {"data": spec.data, "batch": spec.batch, "precision": spec.precision}
    return RunSpec.model_validate(shared | {"network": "mlp", "seed": spec.seed})


def usual_rungs(images: int) -> tuple[int, ...]:
    """Epochs of three rungs for a number of training images: the last sees about `SEEN`."""
    longest = max(ETA**2, min(ETA**4, round(SEEN / images)))
    return (max(1, longest // ETA**2), max(2, longest // ETA), longest)


def usual_batch(images: int) -> int:
    """The batch size for a number of training images: enough steps where there are few."""
    return 32 if images < 5_000 else 64 if images < 20_000 else 128
