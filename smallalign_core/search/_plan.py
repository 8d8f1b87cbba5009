"""What follows from the record of a search and its finished runs: runs, ranks, outcomes and verdicts. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallalign_core.runs.store import State, Store
from smallalign_core.search._evidence import Interval, absolute, relative
from smallalign_core.search._journal import Look, Record, Trial, read
from smallalign_core.search._sampler import Outcome, distance
from smallalign_core.search._space import Candidate, Space, chain, scales_for
from smallalign_core.search._spec import ETA, SearchSpec, base_of
from smallalign_core.spec import HintonKd, RunSpec, parse
from smallalign_core.studies.run_status import DAMAGED, RunStatus, id_of, status_of

NEEDS = tuple(("val", name) for name in ("accuracy", "nll", "images"))
"""What the result of every run has; a search reads nothing of test."""
SEEDS_APART = 1_000
"""Between the seeds of the finalist's repetitions: each rung has one of its own."""
AHEAD = 8
"""Looks that are still to come, about, when a candidate is left out for being larger than one that met the limit."""


def space_of(spec: SearchSpec, record: Record) -> Space:
    """The space of a resolved search."""
    loss = record.taught.loss if record.taught else None
    softened = isinstance(loss, HintonKd)
    optimizers = record.choices.optimizers if record.choices else spec.optimizers or ("adamw",)
    return Space(spec.families, scales_for(spec.shape), loss is not None, optimizers, softened)


def runs_of(spec: SearchSpec, record: Record, trial: Trial, repetition: int = 0) -> tuple[RunSpec, ...]:
    """The runs of a trial, one for each rung; `repetition` 1 and up are those of the finalist with other seeds."""
    seed = spec.seed + repetition * SEEDS_APART
    return chain(base_of(spec), trial.candidate, spec.rungs, spec.side, record.taught, seed)


def last_run(spec: SearchSpec, record: Record, one: Candidate) -> RunSpec:
    """The run of the last rung of a candidate that is no trial yet."""
    return runs_of(spec, record, Trial(0, one, "", 0))[-1]


def trained(spec: SearchSpec, record: Record, trial: Trial, repetition: int = 0) -> tuple[RunSpec, ...]:
    """The same up to the highest rung that the trial was admitted to."""
    return runs_of(spec, record, trial, repetition)[: trial.rung + 1]


def status(store: Store, run: RunSpec) -> RunStatus:
    """Where a run of the search stands."""
    return status_of(store, id_of(run), NEEDS)


def ended(found: RunStatus) -> bool:
    """Whether nothing more comes of a run by itself: finished, or failed in any way but an interruption."""
    return found.settled or found.state in (State.FAILED, DAMAGED)


def wanted(spec: SearchSpec, store: Store, folder: Path) -> list[RunSpec]:
    """All runs known to be needed now: the teacher, the rungs of each round, the finalist with other seeds."""
    record = read(folder, spec.budget)
    return [run for run, _ in listed(spec, store, record)]


def listed(spec: SearchSpec, store: Store, record: Record) -> list[tuple[RunSpec, str]]:
    """The same, each with what it is."""
    found: list[tuple[RunSpec, str]] = []
    if record.teacher and record.teacher["spec"] and not (record.ready and record.taught is None):
        found.append((parse(record.teacher["spec"]), "teacher"))
    for rungs in record.rungs.values():
        for rung, numbers in enumerate(rungs):
            found += [
                (runs_of(spec, record, trial)[rung], f"trial {trial.number}, rung {rung + 1}")
                for trial in map(record.trial, numbers)
                if trial.failed is None or rung < trial.rung
            ]
    return found + [(run, f"finalist, seed {seed + 1}") for seed, run in repetitions(spec, store, record)]


def repetitions(spec: SearchSpec, store: Store, record: Record) -> list[tuple[int, RunSpec]]:
    """The runs of the finalist with other seeds, as far as the ones before are finished: (repetition, run)."""
    found = []
    if record.winner and record.winner["trial"]:
        for seed in record.winner["repetitions"]:
            if seed in record.seed_failures:
                continue
            for run in trained(spec, record, record.trial(record.winner["trial"]), seed):
                found.append((seed, run))
                if status(store, run).result is None:
                    break
    return found


def pending(spec: SearchSpec, store: Store, record: Record) -> bool:
    """Whether the next decision has to wait for a run: of the rung in work, the teacher, or the finalist's."""
    if record.ready is None:
        waits = [run for run, _ in listed(spec, store, record)]
    elif (number := record.open_round) is not None:
        rungs = record.rungs[number]
        waits = [runs_of(spec, record, trial)[len(rungs) - 1] for trial in map(record.trial, rungs[-1])]
    else:
        waits = [run for _, run in repetitions(spec, store, record)]
    return any(not ended(status(store, run)) for run in waits)


# --- limits -----------------------------------------------------------------------------------------------------------


def target(spec: SearchSpec, record: Record) -> float | None:
    """The accuracy limit as a number; None without one."""
    if spec.min_share is not None:
        return spec.min_share * float((record.ready or {}).get("accuracy") or 1.0)
    return spec.min_accuracy


def compared(looks: Sequence[Look]) -> int:
    """Files that were compared on the validation images."""
    return sum(look.files for look in looks)


def interval(spec: SearchSpec, look: Look, looks: int) -> Interval | None:
    """How a file stands to the accuracy limit, for that many looks; None without a limit."""
    if spec.min_share is not None:
        return relative(look.counts, spec.min_share, looks)
    return None if spec.min_accuracy is None else absolute(look.counts, spec.min_accuracy, looks)


def meets(spec: SearchSpec, look: Look, looks: int) -> bool:
    """Whether a file meets every limit; those of size and latency were checked before it was trained."""
    found = interval(spec, look, looks)
    return found is None or found.verdict == "meets"


def best_look(spec: SearchSpec, looks: Sequence[Look], count: int | None = None) -> Look | None:
    """The winner so far: the smallest file that meets the accuracy limit; without a limit, the most accurate one.

    Args:
        count: number of files to correct for; default: all so far.
    """
    count = compared(looks) if count is None else count
    passing = [look for look in looks if meets(spec, look, count)]
    if spec.limits_accuracy:
        return min(passing, key=lambda look: (look.bytes, -look.counts.accuracy), default=None)
    return min(passing, key=lambda look: (-look.counts.accuracy, look.bytes), default=None)


def nearest_look(spec: SearchSpec, looks: Sequence[Look]) -> Look | None:
    """Of files that are not shown to meet the accuracy limit, the nearest."""

    def shortfall(look: Look) -> float:
        found = interval(spec, look, compared(looks))
        return -found.low if found else 0.0

    return min(looks, key=lambda look: (shortfall(look), look.bytes), default=None)


# --- ranks and outcomes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How a trial did in a rung, by single-precision validation scores."""

    number: int
    bytes: int
    accuracy: float
    nll: float


def standing(spec: SearchSpec, store: Store, record: Record, trial: Trial, rung: int) -> Standing | None:
    """A trial's standing after a rung; None without a result."""
    result = status(store, runs_of(spec, record, trial)[rung]).result
    if result is None or trial.measured is None:
        return None
    size = trial.measured.bytes[trial.precisions[0]] or 0
    return Standing(trial.number, size, float(result["val"]["accuracy"]), float(result["val"]["nll"]))


def ranked(standings: Sequence[Standing], limit: float | None) -> list[int]:
    """Numbers of the trials, the most promising first.

    Without an accuracy limit: the most accurate. With one: layers of the Pareto front of bytes and accuracy (Deb et
    al., 2002; Schmucker et al., 2021, for successive halving), and within a layer those that lack least of the limit.
    """
    if limit is None:
        return [one.number for one in sorted(standings, key=lambda one: (-one.accuracy, one.nll, one.bytes))]
    left, found = list(standings), []
    while left:
        front = [one for one in left if not any(_dominates(other, one) for other in left)]
        front.sort(key=lambda one: (max(0.0, limit - one.accuracy), one.bytes, one.number))
        found += [one.number for one in front]
        left = [one for one in left if one not in front]
    return found


def _dominates(one: Standing, other: Standing) -> bool:
    no_worse = one.bytes <= other.bytes and one.accuracy >= other.accuracy
    return no_worse and (one.bytes < other.bytes or one.accuracy > other.accuracy)


def survivors(standings: Sequence[Standing], limit: float | None) -> list[int]:
    """The trials that go on to the next rung: one in `ETA`, at least one (successive halving: Jamieson & Talwalkar,
    2016)."""
    return ranked(standings, limit)[: math.ceil(len(standings) / ETA)]


def outcomes(spec: SearchSpec, store: Store, record: Record) -> list[Outcome]:
    """How every trial did, for the sampler: bytes under an accuracy limit, or else errors, are minimized."""
    limit = target(spec, record)
    return [_outcome(spec, store, record, trial, limit) for trial in record.trials]


def _outcome(spec: SearchSpec, store: Store, record: Record, trial: Trial, limit: float | None) -> Outcome:
    size = math.log(max(1, trial.least))
    if trial.ruled_out is not None:
        return Outcome(trial.candidate, size if limit else 0.0, 1.5 + distance(trial.least, spec.max_bytes))
    accuracy = 0.0
    looks = [look for look in record.looks if look.trial == trial.number]
    if looks:
        enough = [look for look in looks if limit is None or look.counts.accuracy >= limit]
        chosen = min(enough, key=lambda look: look.bytes, default=max(looks, key=lambda look: look.counts.accuracy))
        accuracy, size = chosen.counts.accuracy, math.log(chosen.bytes)
    else:
        for rung in range(trial.rung, -1, -1):
            if (found := standing(spec, store, record, trial, rung)) is not None:
                accuracy, size = found.accuracy, math.log(max(1, found.bytes))
                break
    return Outcome(trial.candidate, size if limit else -accuracy, limit - accuracy if limit else 0.0)
