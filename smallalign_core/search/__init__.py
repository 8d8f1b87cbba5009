"""The smallest model within limits: one budget in, one verified file out.

A search is a kind of study: its runs are ordinary runs, and `studies.lifecycle` trains them, here or in workers. What
it decides besides is kept in its folder, one line a decision, so that a search that was killed or got more budget goes
on where it was. Reading a search does not import torch.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

from smallalign_core import data
from smallalign_core.search._build import report as report
from smallalign_core.search._journal import FILE, begin as begin, extend as extend, read as read
from smallalign_core.search._plan import wanted as wanted
from smallalign_core.search._report import BudgetSearch as BudgetSearch, Row as Row
from smallalign_core.search._spec import (
    Budget as Budget,
    SearchSpec as SearchSpec,
    limits_in_words as limits_in_words,
    parse_accuracy as parse_accuracy,
    parse_budget as parse_budget,
    parse_study as parse_study,
    probes as probes,
    study_id as study_id,
    title_of as title_of,
    usual_batch,
    usual_rungs,
)
from smallalign_core.studies import kinds

if TYPE_CHECKING:
    from smallalign_core.runs.store import Store
    from smallalign_core.spec import RunSpec

KIND = SearchSpec.KIND


def resolved(spec: SearchSpec, run: RunSpec, store: Store) -> SearchSpec:
    """The search with the fields filled in for its probe: fingerprint, teacher's id, precision, epochs and batch.

    What is installed or downloaded is no part of it, nor of its id: the first decision records that.

    Raises:
        BadInput: no candidate can meet the limits, too few validation images to decide, or too small a budget.
        MissingExtra: the sampler is not installed.
    """
    from smallalign_core.search import _pretrained

    splits = data.load(run.data, store.data_cache)
    images = len(splits.train)
    filled = spec.model_copy(
        update={
            "data": run.data,
            "teacher": run.teacher or spec.teacher,
            "precision": run.precision,
            "shape": tuple(splits.shape),
            "rungs": spec.rungs or usual_rungs(images),
            "batch": spec.batch or usual_batch(images),
            "backbones": _pretrained.named(spec, run, store),
        }
    )
    if not (store.root / "studies" / study_id(filled) / FILE).exists():  # one that goes on has passed
        from smallalign_core.search import _check

        _check.check(filled, store, "auto")
    return filled


def prepare(spec: SearchSpec, store: Store, folder: Path, device: str, stop: threading.Event) -> bool:
    """Take the next decision, if it does not have to wait for a run; returns whether there was one.

    Imports torch, unless there is none.
    """
    from smallalign_core.search import _steps

    return not stop.is_set() and _steps.take(spec, store, folder, device)


def expected(spec: SearchSpec, store: Store, folder: Path, device: str = "auto") -> float:  # noqa: ARG001
    """Seconds that are left of the budget; of one in trials, by the mean of those so far."""
    record = read(folder, spec.budget)
    if record.budget.seconds is not None:
        return max(0.0, record.budget.seconds - record.spent)
    tried = len(record.tried)
    return record.spent / tried * max(0, (record.budget.trials or 0) - tried) if tried else 0.0


kinds.KINDS[KIND] = cast(kinds.StudyKind, sys.modules[__name__])
