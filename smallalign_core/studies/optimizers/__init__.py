"""Optimizer comparison on the user's own student: equal tuning budgets, paired seeds, confidence intervals.

Runs of a study are ordinary runs, found by their digests, so an extended study reuses all finished runs. Reading a
study does not import torch: the dashboard reads through this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallalign_core.studies.base import study_id as study_id
from smallalign_core.studies.optimizers._build import curves as curves, report as report
from smallalign_core.studies.optimizers._parts import (
    FAR as FAR,
    Curve as Curve,
    Difference as Difference,
    FinalRun as FinalRun,
    Finder as Finder,
    Point as Point,
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
    resolved as resolved,
    run_spec as run_spec,
    title_of as title_of,
)

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from smallalign_core.runs.store import Store


def prepare(spec: OptimizerStudySpec, store: Store, folder: Path, device: str, stop: threading.Event) -> bool:
    """Run LR range tests, which `wanted` needs besides finished runs, of a few optimizers; returns whether others are
    left.

    Imports torch, unless all are done.
    """
    from smallalign_core.studies.optimizers import _finder

    return _finder.prepare(spec, store, folder, device, stop)


def expected(spec: OptimizerStudySpec, store: Store, folder: Path, device: str = "auto") -> float:
    """Estimated seconds for the missing runs, see `_expected.expected`. Imports torch, unless nothing is missing."""
    from smallalign_core.studies.optimizers import _expected

    return _expected.expected(spec, store, folder, device)
