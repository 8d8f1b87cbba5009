"""Optimizers compared fairly on the user's own student: tuned alike, raced on the same seeds, judged with intervals.

Runs of a study are ordinary runs, found by their digests, so whatever is extended never repeats what is done. Reading a
study imports no torch: the dashboard reads through this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallalign_core.studies.optimizers._build import curves as curves, report as report
from smallalign_core.studies.optimizers._parts import (
    FAR as FAR,
    Curve as Curve,
    Difference as Difference,
    Finder as Finder,
    Point as Point,
    RaceRun as RaceRun,
    Reached as Reached,
    Trial as Trial,
)
from smallalign_core.studies.optimizers._plan import wanted as wanted
from smallalign_core.studies.optimizers._report import Arm as Arm, OptimizerStudy as OptimizerStudy
from smallalign_core.studies.optimizers._spec import (
    Entry as Entry,
    OptimizerStudySpec as OptimizerStudySpec,
    entries as entries,
    label_of as label_of,
    name_of as name_of,
    offered as offered,
    parse_study as parse_study,
    probes as probes,
    read_study as read_study,
    resolved as resolved,
    run_spec as run_spec,
    study_id as study_id,
    title_of as title_of,
)

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from smallalign_core.runs.store import Store


def prepare(spec: OptimizerStudySpec, store: Store, folder: Path, device: str, stop: threading.Event) -> bool:
    """Find learning rates, what `wanted` needs besides finished runs, of a few optimizers; whether others are left.

    Imports torch, unless all are there.
    """
    from smallalign_core.studies.optimizers import _finder

    return _finder.prepare(spec, store, folder, device, stop)


def expected(spec: OptimizerStudySpec, store: Store, folder: Path, device: str = "auto") -> float:
    """Seconds that what is missing takes here: see `_expected.expected`. Imports torch, unless nothing is missing."""
    from smallalign_core.studies.optimizers import _expected

    return _expected.expected(spec, store, folder, device)
