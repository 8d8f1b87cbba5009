"""What all kinds of study share: reading a spec from plain values, its id, and the state of its runs in a report.

It imports no torch: the dashboard reads through it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BeforeValidator, ValidationError

from smallalign_core.errors import BadSpec
from smallalign_core.spec import LOOP, RunSpec, canonical, message_of
from smallalign_core.spec.parts import Part

SEVERAL = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given])
"""For a field of several values: one stands for a list of one."""


class StudySpec(Part):
    """Base of the specs of studies. In a file, the student's fields are at the top level.

    A field that a run has too belongs to the study.
    """

    KIND: ClassVar[str]
    """The kind of study, as in `study.json` and in the digest."""
    SHORTHANDS: ClassVar[tuple[str, ...]] = ()
    """Names in a file that stand for several fields."""

    student: RunSpec

    @classmethod
    def own_fields(cls) -> set[str]:
        """The names in a file that are not the student's."""
        return {*cls.model_fields, *cls.SHORTHANDS} - {"student"}


Spec = TypeVar("Spec", bound=StudySpec)


def split(model: type[StudySpec], written: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the study's fields, the student's) of plain values, not validated yet. Those that are None are left out.

    Args:
        written: the student's fields are at the top level, or below `student`.

    Raises:
        BadSpec: a field is neither the study's nor a run's.
    """
    names = model.own_fields()
    own = {name: value for name, value in written.items() if name in names and value is not None}
    rest = {name: value for name, value in written.items() if name not in names}
    below = rest.pop("student", None)
    if below is not None and rest:
        raise BadSpec(f"unknown field `{next(iter(rest))}`", do="put fields of the student below `student`")
    if below is not None and not isinstance(below, Mapping | RunSpec):
        raise BadSpec("`student` is not a mapping of spec fields", given=below, do="write them below it, one per line")
    known = {*names, "student", *RunSpec.model_fields}
    if (unknown := next((name for name in rest if name not in known), None)) is not None:
        near = difflib.get_close_matches(str(unknown), known, n=1)
        raise BadSpec(f"unknown field `{unknown}`" + (f", did you mean `{near[0]}`?" if near else ""))
    return own, below.model_dump() if isinstance(below, RunSpec) else dict(below or rest)


def validated(model: type[Spec], student: RunSpec, own: Mapping[str, Any]) -> Spec:
    """The spec of a study.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    try:
        return model.model_validate({"student": student, **own})
    except ValidationError as error:
        raise BadSpec(message_of(model, error)) from None


def study_id(spec: StudySpec) -> str:
    """The id of a resolved study: 16 hexadecimal characters."""
    text = json.dumps({"loop": LOOP, spec.KIND: canonical(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StudyReport(ABC):
    """The current state of a study; each kind adds its results.

    Attributes:
        id, title, spec: of the study.
        done, running, missing: numbers of runs: finished or diverged; queued or in training; still to train, as far as
            known.
        failed: a line for each run that failed otherwise than by divergence.
        active: whether workers take its runs automatically.
    """

    id: str
    title: str
    spec: Part
    done: int
    running: int
    missing: int
    failed: tuple[str, ...]
    active: bool

    @property
    @abstractmethod
    def unprepared(self) -> bool:
        """Whether something must be measured before all runs are known."""

    @property
    def runs(self) -> int:
        """Number of its runs, as far as known."""
        return self.done + self.running + self.missing + len(self.failed)

    @property
    def complete(self) -> bool:
        """Whether every run of it is finished or diverged."""
        return not (self.missing or self.running or self.failed or self.unprepared)

    @abstractmethod
    def states(self) -> str:
        """How far it is."""

    @abstractmethod
    def words(self) -> str:
        """The whole report as lines of text."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
