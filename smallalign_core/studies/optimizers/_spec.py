"""The spec of an optimizer study: a student, optimizers, and the numbers of trials, seeds and budgets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    AdamW,
    Cosine,
    Lookahead,
    Muon,
    OfLayers,
    Optimizer,
    Prodigy,
    RunSpec,
    Sam,
    Sgd,
    Soap,
    incompatibility,
    is_gradient_free,
    members,
    nest,
    parse,
    title,
    usual_schedule,
)
from smallalign_core.spec.optimizer import Menu, kind_of
from smallalign_core.studies import base
from smallalign_core.studies.optimizers._parts import Track

if TYPE_CHECKING:
    from smallalign_core.runs.store import Store

TUNING_SEED = 1_000_003
"""Offset of the tuning seed from the first seed of the final runs; limits the number of seeds."""


class OptimizerStudySpec(base.StudySpec):
    """The spec of an optimizer study."""

    KIND: ClassVar[str] = "optimizers"

    student: Annotated[
        RunSpec, Field(description="Student; its `seed` is the first seed of the final runs, `epochs` the budget 1x.")
    ]
    reference: Annotated[Optimizer, Field(description="Reference optimizer, tuned; always included.")] = AdamW()
    optimizers: Annotated[
        tuple[Optimizer, ...],
        base.SEVERAL,
        Field(max_length=24, description="Optimizers with tuned learning rates."),
    ] = (AdamW(), Muon(), Soap(), Sgd(), Lookahead(), Sam())
    hands_off: Annotated[
        tuple[Optimizer, ...], base.SEVERAL, Field(max_length=24, description="Untuned optimizers, used as given.")
    ] = ()
    trials: Annotated[int, Field(ge=1, le=32, description="LR trials: full-length runs per tuned optimizer.")] = 4
    seeds: Annotated[int, Field(ge=1, le=100, description="Final runs per optimizer.")] = 5
    budgets: Annotated[
        tuple[Annotated[int, Field(ge=1, le=64)], ...],
        base.SEVERAL,
        Field(min_length=1, max_length=6, description="Budgets, as multiples of the student's epochs."),
    ] = (1, 2, 4)
    margin: Annotated[float, Field(gt=0, le=0.5, description="Equivalence margin in accuracy, 0 to 1.")] = 0.01
    target: Annotated[
        float | None,
        Field(gt=0, le=1, description="Target validation accuracy; empty: the median of the reference."),
    ] = None

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if not tunable(self.reference):
            raise ValueError("the reference must be tunable, and this optimizer has no learning rate: choose another")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"`budgets` must be in ascending order (given: {list(self.budgets)})")
        for one in (self.reference, *self.optimizers):
            if tunable(one) and nest(one)[-1].lr != type(nest(one)[-1]).model_fields["lr"].default:
                raise ValueError(
                    f"the learning rate of `{name_of(one)}` is tuned: leave `lr` out, or list the optimizer "
                    "under `hands_off`"
                )
        names = [entry.name for entry in entries(self)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"`{twice}` is listed twice: remove one")
        if self.student.seed + max(self.seeds, TUNING_SEED) >= 2**31:
            raise ValueError(f"`seed` must leave room for more seeds (given: {self.student.seed})")
        return self


@dataclass(frozen=True)
class Entry:
    """One optimizer of a study. Its name is unique and contains non-default settings; its label is for display."""

    optimizer: Optimizer
    track: Track

    @property
    def name(self) -> str:
        """Name in the grammar of specs."""
        return name_of(self.optimizer) + (" hands-off" if self.track == "hands-off" and tunable(self.optimizer) else "")

    @property
    def label(self) -> str:
        """Display name."""
        return label_of(self.optimizer, rate=self.track == "hands-off")

    @property
    def default_rate(self) -> float | None:
        """The library's default rate; None if there is none."""
        rate: float | None = nest(self.optimizer)[-1].library_rate
        return rate


def tunable(optimizer: Optimizer) -> bool:
    """Whether it has a learning rate that needs tuning."""
    return nest(optimizer)[-1].library_rate is not None


def gradients_a_step(optimizer: Optimizer) -> int:
    """Cost of one step in gradients: SAM needs two, and a forward-only evaluation costs a third of one."""
    return max(part.gradients for part in nest(optimizer))


def offered(menu: Menu, *, taught: bool = True, layers: bool = False) -> tuple[Optimizer, ...]:
    """The optimizers in a menu, in the order of their union, as far as they work with such a student; those to use as
    they are with the learning rate of their library.

    Args:
        taught, layers: as for `incompatibility`.
    """
    fresh: list[Any] = [one() for one in members(Optimizer) if menu in getattr(one, "menus", ())]
    return tuple(
        with_rate(one, one.library_rate) if menu == "hands-off" and tunable(one) else one
        for one in fresh
        if incompatibility(one, usual_schedule(one) or Cosine(), taught=taught, layers=layers) is None
    )


def _unusual(part: Any, rate: bool) -> list[str]:
    """The settings of one part that differ from its defaults, as text."""
    own = type(part).model_fields
    found = [
        f"{name} {getattr(part, name):g}"
        for name, field in own.items()
        if name not in ("kind", "inner", "lr") and getattr(part, name) != field.default
    ]
    return ([f"lr {part.lr:g}"] if rate and hasattr(part, "lr") and not isinstance(part, Prodigy) else []) + found


def name_of(optimizer: Optimizer) -> str:
    """An optimizer in the grammar of specs, with non-default settings: `lookahead (k 10) | adamw`."""
    words = []
    for part in nest(optimizer):
        rate = hasattr(part, "lr") and part.lr != type(part).model_fields["lr"].default
        unusual = _unusual(part, rate)
        words.append(part.kind + (f" ({', '.join(unusual)})" if unusual else ""))
    return " | ".join(words)


def label_of(optimizer: Optimizer, *, rate: bool = False) -> str:
    """An optimizer's display name: `Lookahead(AdamW)`; optionally with its learning rate."""
    *outer, last = nest(optimizer)
    unusual = _unusual(last, rate)
    text = last.label + (f" {', '.join(unusual)}" if unusual else "")
    for part in reversed(outer):
        text = f"{part.label}({', '.join([text, *_unusual(part, False)])})"
    return text


def entries(spec: OptimizerStudySpec) -> tuple[Entry, ...]:
    """All optimizers of a study, the reference first. Those without a learning rate are always hands-off."""
    tuned = [spec.reference, *(one for one in spec.optimizers if one != spec.reference)]
    fixed = [one for one in tuned if not tunable(one)]
    return (
        *(Entry(one, "tuned") for one in tuned if tunable(one)),
        *(Entry(one, "hands-off") for one in (*fixed, *(one for one in spec.hands_off if one not in fixed))),
    )


def with_rate(optimizer: Optimizer, rate: float) -> Optimizer:
    """`optimizer` with another learning rate, set in its base optimizer."""
    if (inner := getattr(optimizer, "inner", None)) is not None:
        return optimizer.model_copy(update={"inner": with_rate(inner, rate)})
    return optimizer.model_copy(update={"lr": rate})


def epochs_of(spec: OptimizerStudySpec, optimizer: Optimizer, budget: int) -> int:
    """Epochs of an optimizer for a budget: budgets are equal in gradients, so SAM gets half."""
    return max(1, round(spec.student.epochs * budget / gradients_a_step(optimizer)))


@functools.lru_cache(maxsize=8192)
def run_spec(spec: OptimizerStudySpec, optimizer: Optimizer, budget: int, seed: int) -> RunSpec:
    """One run of a study.

    Evolution strategies, which rank small differences between losses, run in fp32 regardless of the others' precision.

    Raises:
        BadSpec: this optimizer cannot be used with the rest of the spec.
    """
    fields = spec.student.model_dump() | {
        "optimizer": optimizer.model_dump(),
        "epochs": epochs_of(spec, optimizer, budget),
        "seed": seed,
    }
    if (usual := usual_schedule(optimizer)) is not None:
        fields["schedule"] = usual.model_dump()
    if is_gradient_free(optimizer):
        fields["precision"] = "fp32"
    return parse(fields)


def final_seeds(spec: OptimizerStudySpec) -> tuple[int, ...]:
    """Seeds of the final runs, from the student's own upwards."""
    return tuple(spec.student.seed + more for more in range(spec.seeds))


def tuning_seed(spec: OptimizerStudySpec) -> int:
    """The seed for tuning, different from all seeds of final runs."""
    return spec.student.seed + TUNING_SEED


def parse_study(written: Mapping[str, Any]) -> OptimizerStudySpec:
    """A validated study from plain values; the student's fields are at the top level, or below `student`.

    The default of `hands_off` is AdamW at its default learning rate, Prodigy, Schedule-Free and, with a teacher,
    Polyak.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    own, student = base.split(OptimizerStudySpec, written)
    if "student" not in written and "optimizer" in student:
        raise BadSpec("a study has no field `optimizer`", do="list optimizers under `optimizers`")
    checked = parse({name: value for name, value in student.items() if name != "optimizer"})
    if checked.headless:
        raise BadSpec(
            "an optimizer study compares accuracies, and this network has no head",
            given=f"loss {checked.loss.kind}",
            do="study the run that trains a head with `start`, or use another loss",
        )
    if "hands_off" not in own:
        usual = offered("hands-off", taught=bool(checked.teacher), layers=isinstance(checked.loss, OfLayers))
        given = own.get("optimizers", ())
        named = [kind_of(one) for one in (given if isinstance(given, list | tuple) else [given])]
        own["hands_off"] = [one for one in usual if one.kind not in named or tunable(one)]
    found = base.validated(OptimizerStudySpec, checked, own)
    for entry in entries(found):
        run_spec(found, entry.optimizer, found.budgets[0], found.student.seed)  # raises if it is not compatible
    return found


def probes(spec: OptimizerStudySpec) -> list[RunSpec]:
    """One run of each optimizer, the reference first."""
    return [run_spec(spec, entry.optimizer, spec.budgets[0], spec.student.seed) for entry in entries(spec)]


def resolved(spec: OptimizerStudySpec, run: RunSpec, _: Store | None = None) -> OptimizerStudySpec:
    """The study with the fields filled in for its first probe: fingerprints, the teacher's id, precision, layers."""
    own = {name: getattr(spec.student, name) for name in ("optimizer", "schedule", "epochs", "seed")}
    return spec.model_copy(update={"student": run.model_copy(update=own)})


def title_of(spec: OptimizerStudySpec) -> str:
    """A short title of the study."""
    return title(spec.student).rpartition(" · ")[0]
