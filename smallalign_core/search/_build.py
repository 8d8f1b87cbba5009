"""The report of a search, read from its record and its runs: nothing is trained, no torch."""

from __future__ import annotations

import math
from pathlib import Path

from smallalign_core.runs.store import Store
from smallalign_core.search import _plan
from smallalign_core.search._evidence import images_needed
from smallalign_core.search._journal import Look, Record, Trial, read
from smallalign_core.search._outlook import outlook
from smallalign_core.search._report import BudgetSearch, Row
from smallalign_core.search._spec import SearchSpec, limits_in_words, study_id, title_of
from smallalign_core.spec import digest
from smallalign_core.studies.run_status import Tally


def report(
    spec: SearchSpec, store: Store, folder: Path, *, active: bool = False, trouble: str | None = None
) -> BudgetSearch:
    """The current report of a resolved search.

    Args:
        active: whether workers take its runs.
        trouble: why it could not continue automatically.

    Raises:
        BadModel: its record is damaged.
    """
    record = read(folder, spec.budget)
    return build(spec, store, folder, record, active=active, trouble=trouble)


def build(
    spec: SearchSpec,
    store: Store,
    folder: Path,  # noqa: ARG001  # as of `report`
    record: Record,
    *,
    active: bool = False,
    trouble: str | None = None,
) -> BudgetSearch:
    """The report of a record."""
    best = _plan.best_look(spec, record.looks)
    near = best or _plan.nearest_look(spec, record.looks)
    rows = tuple(_row(spec, store, record, trial, near) for trial in record.trials)
    tally = _tally(spec, store, record)
    delivered = record.delivered or {}
    winner = record.winner or {}
    ended = record.complete and not trouble
    return BudgetSearch(
        id=study_id(spec),
        title=title_of(spec),
        spec=spec,
        limits=limits_in_words(spec),
        met=True if best else False if ended else None,
        row=rows[near.trial - 1] if near else None,
        rows=rows,
        teacher=_teacher(record),
        teacher_run=record.taught.teacher if record.taught else None,
        teacher_accuracy=record.ready["accuracy"] if record.ready else None,
        file=delivered.get("file"),
        bytes=delivered.get("bytes"),
        test=delivered.get("test"),
        verified=delivered.get("verified"),
        latency_ms=near.ms if near else None,
        repeated=tuple(winner.get("repeated") or delivered.get("repeated") or ()),
        images=near.counts.images if near else None,
        needed=_needed(spec, near, _plan.compared(record.looks)),
        looks=_plan.compared(record.looks),
        spent=record.spent,
        budget=str(record.budget),
        stopped=record.stopped,
        outlook=outlook(spec, record),
        test_looks=None if spec.data.fingerprint is None else store.test_looks(spec.data.fingerprint),
        limits_accuracy=spec.limits_accuracy,
        missing=tally.missing,
        running=tally.running,
        done=tally.done,
        failed=tuple(([trouble] if trouble else []) + tally.failed),
        active=active,
        ended=ended,
    )


def _tally(spec: SearchSpec, store: Store, record: Record) -> Tally:
    found = Tally()
    for run, what in _plan.listed(spec, store, record):
        found.add(_plan.status(store, run), what)
    return found


def _teacher(record: Record) -> str:
    if record.teacher is None:
        return "not chosen yet"
    if record.ready is None:
        return f"in training: {record.teacher['why']}"
    if record.taught is None:
        return str(record.ready.get("problem") or record.teacher["why"])
    return (
        f"{record.ready['teacher']} ({record.teacher['why']}; {record.ready['accuracy']:.1%} on all validation images)"
    )


def _needed(spec: SearchSpec, look: Look | None, looks: int) -> int | None:
    """Validation images that would decide a file that is above its absolute limit; None where that is not known."""
    if look is None or spec.min_accuracy is None:
        return None
    needed = images_needed(look.counts.accuracy, spec.min_accuracy, looks)
    return None if needed is None else math.ceil(needed)


def _row(spec: SearchSpec, store: Store, record: Record, trial: Trial, chosen: Look | None) -> Row:
    looks = [look for look in record.looks if look.trial == trial.number]
    look = chosen if chosen in looks else min(looks, key=lambda one: -one.counts.accuracy, default=None)
    interval = _plan.interval(spec, look, _plan.compared(record.looks)) if look else None
    limit = 0.0
    if look is not None:
        limit = spec.min_accuracy or (spec.min_share or 0.0) * look.counts.teacher_accuracy
    accuracy, epochs, run, state = None, 0, None, "ruled out"
    if trial.ruled_out is None:
        accuracy, epochs, run = _progress(spec, store, record, trial)
        state = _state(record, trial, look)
    precision = look.precision if look else trial.precisions[0] if trial.precisions else None
    measured = trial.measured
    return Row(
        number=trial.number,
        label=trial.candidate.label,
        candidate=trial.candidate.as_dict(),
        why=trial.why,
        round=trial.round,
        state=state,
        reason=trial.ruled_out or trial.failed,
        bytes=look.bytes if look else (measured and precision and measured.bytes[precision]) or trial.least,
        params=measured.params if measured else None,
        latency_ms=look.ms if look else measured.ms.get(precision) if measured and precision else None,
        precision=precision,
        epochs=epochs,
        accuracy=look.counts.accuracy if look else accuracy,
        low=min(1.0, max(0.0, limit + interval.low)) if interval else None,
        high=min(1.0, max(0.0, limit + interval.high)) if interval else None,
        verdict=interval.verdict if interval else None,
        run=run,
    )


def _state(record: Record, trial: Trial, look: Look | None) -> str:
    if trial.failed is not None:
        return "failed"
    if look is not None:
        return "evaluated"
    rungs = record.rungs[trial.round]
    ended = trial.number not in rungs[-1] or trial.round in record.closed
    return "stopped early" if ended else "training"


def _progress(spec: SearchSpec, store: Store, record: Record, trial: Trial) -> tuple[float | None, int, str | None]:
    """Validation accuracy, epochs and run of the highest rung that is finished."""
    runs = _plan.runs_of(spec, record, trial)
    for rung in range(trial.rung, -1, -1):
        if (found := _plan.standing(spec, store, record, trial, rung)) is not None:
            return found.accuracy, sum(spec.rungs[: rung + 1]), digest(runs[rung])
    return None, 0, digest(runs[0])
