"""The kinds of study, and what the module of each must have. It imports no torch: the dashboard reads through it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, fields_in
from smallalign_core.studies import optimizers, scaling
from smallalign_core.studies.base import StudyReport


class StudyKind(Protocol):
    """What the module of a kind of study must have, see also `studies.base`.

    `spec` is a resolved `StudySpec`; `folder` is the study's own.
    """

    def parse_study(self, written: Mapping[str, Any], /) -> Any:
        """A frozen pydantic model, or BadSpec."""

    def study_id(self, spec: Any, /) -> str:
        """Its digest: 16 hexadecimal characters."""

    def title_of(self, spec: Any, /) -> str:
        """What is studied, in a few words."""

    def probes(self, spec: Any, /) -> list[RunSpec]:
        """One run of each sort: an error in one of them is an error of the study."""

    def resolved(self, spec: Any, run: RunSpec, store: Store, /) -> Any:
        """The spec with the fields filled in for its first probe, so that ids do not change."""

    def wanted(self, spec: Any, store: Store, folder: Path, /) -> list[RunSpec]:
        """All runs needed as far as known now, in training order: a pure function of the finished ones."""

    def prepare(self, spec: Any, store: Store, folder: Path, device: str, stop: threading.Event, /) -> bool:
        """Measure for some seconds what `wanted` needs besides runs, and store it; returns whether more is left."""

    def report(self, spec: Any, store: Store, folder: Path, /, *, active: bool, trouble: str | None) -> StudyReport:
        """Its current state."""

    def expected(self, spec: Any, store: Store, folder: Path, device: str = "auto", /) -> float:
        """Estimated seconds for the missing runs on this machine, from a few training steps."""


KINDS: dict[str, StudyKind] = {"optimizers": optimizers, "scaling": scaling}
"""The kinds of study, by the name that `study.json` has. Each has a page, and a verb of the command line."""
AnyStudySpec: TypeAlias = optimizers.OptimizerStudySpec | scaling.ScalingStudySpec
"""The spec of a study of any kind."""


def read(kind: str, path: Path, overrides: Sequence[str] = ()) -> Any:
    """The study of a kind in a YAML or JSON file, with `--set` overrides applied.

    Raises:
        BadSpec: as its `parse_study`; the file is missing or not YAML.
    """
    return KINDS[kind].parse_study(fields_in(path, "study", overrides))
