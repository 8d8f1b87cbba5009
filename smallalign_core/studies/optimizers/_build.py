"""The report of a study, read from the store: nothing is trained, nothing is queued, no torch."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smallalign_core.metrics import with_macro
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Optimizer, nest
from smallalign_core.spec.optimizer import EVALUATIONS
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.base import study_id
from smallalign_core.studies.optimizers._differences import Scored, compare_with, reference_differences
from smallalign_core.studies.optimizers._parts import Curve, FinalRun, Finder, Point, Reached, Trial
from smallalign_core.studies.optimizers._plan import (
    Tuning,
    finder_key,
    finders,
    run_status,
    trial,
    tuning,
)
from smallalign_core.studies.optimizers._report import Arm, OptimizerStudy
from smallalign_core.studies.optimizers._spec import (
    Entry,
    OptimizerStudySpec,
    entries,
    epochs_of,
    final_seeds,
    gradients_a_step,
    run_spec,
    title_of,
    tuning_seed,
    with_rate,
)
from smallalign_core.studies.run_status import RunStatus, Tally, id_of

OCTAVES = 2
"""Range around the best rate for the sensitivity."""


def report(
    spec: OptimizerStudySpec, store: Store, folder: Path, *, active: bool = False, trouble: str | None = None
) -> OptimizerStudy:
    """The current report of a resolved study.

    Args:
        folder: of the study, with its LR range tests.
        active: whether workers take its runs.
        trouble: why it could not continue automatically.
    """
    curves, arms, targets, seen = finders(folder), [], {}, _Counts()
    for budget in spec.budgets:
        found = [_arm(spec, entry, budget, store, curves, seen) for entry in entries(spec)]
        targets[budget] = spec.target or _usual_target(found[0])
        found = [_with_target(arm, targets[budget], store) for arm in found]
        arms += _compared(found, spec.margin, store)
    crossed = [one.method for arm in arms for one in arm.differences.values() if one.method]
    finished = [run.test for arm in arms for run in arm.runs if run.test]
    return OptimizerStudy(
        id=study_id(spec),
        title=title_of(spec),
        spec=spec,
        epochs=spec.student.epochs,
        budgets=spec.budgets,
        seeds=final_seeds(spec),
        tuning_seed=tuning_seed(spec),
        reference=entries(spec)[0].name,
        arms=tuple(arms),
        targets=targets,
        missing=seen.missing,
        running=seen.running,
        done=seen.done,
        failed=tuple(([trouble] if trouble else []) + seen.failed),
        active=active,
        finding=any(arm.track == "tuned" and arm.finder is None for arm in arms),
        test_images=int(finished[0]["images"]) if finished else None,
        crossed=bool(crossed) and set(crossed) == {"crossed"},
        hardware=tuple(dict.fromkeys(seen.hardware)),
    )


class _Counts(Tally):
    """Counts of runs by state, and where they were trained."""

    def __init__(self) -> None:
        super().__init__()
        self.hardware: list[str] = []
        self._known: set[str] = set()

    def add(self, found: RunStatus, what: str) -> None:
        """Count a run once, even if two arms share it."""
        if found.id in self._known:
            return
        self._known.add(found.id)
        super().add(found, what)
        if found.result:
            self.hardware.append(f"{found.result.get('device')}, {found.result.get('processor')}")


def _arm(
    spec: OptimizerStudySpec, entry: Entry, budget: int, store: Store, curves: dict[str, Finder], seen: _Counts
) -> Arm:
    optimizer: Optimizer = entry.optimizer
    finder = curves.get(finder_key(spec, optimizer)) if entry.track == "tuned" else None
    trials: tuple[Trial, ...] = ()
    state = Tuning((), True, getattr(nest(optimizer)[-1], "lr", None) if entry.default_rate else None, False)
    racing = True
    if entry.track == "tuned":
        state = tuning(spec, entry, budget, store, finder)
        trials = tuple(_trial(spec, entry, budget, store, rate, why, state, seen) for rate, why in state.proposed)
        racing = state.best is not None
        if state.best is not None:
            optimizer = with_rate(optimizer, state.best)
        seen.missing += 0 if state.settled else max(0, spec.trials - len(trials))
    runs: tuple[FinalRun, ...] = ()
    if racing:
        looks = [(seed, run_status(store, run_spec(spec, optimizer, budget, seed))) for seed in final_seeds(spec)]
        for seed, one in looks:
            seen.add(one, f"{entry.label}, {budget}x, seed {seed}")
        runs = tuple(_final_run(seed, one) for seed, one in looks)
    elif not state.settled:
        seen.missing += spec.seeds
    return Arm(
        name=entry.name,
        label=entry.label,
        optimizer=optimizer.model_dump(mode="json"),
        track=entry.track,
        budget=budget,
        epochs=epochs_of(spec, entry.optimizer, budget),
        gradients_a_step=gradients_a_step(entry.optimizer),
        default_rate=entry.default_rate,
        rate=state.best,
        trials=tuple(sorted(trials, key=lambda one: one.rate)),
        edge=state.edge,
        finder=finder,
        runs=runs,
        differences={},
        sensitivity=_sensitivity(trials, state.best),
        tuning_seconds=sum(one.seconds or 0.0 for one in trials) + (finder.seconds if finder else 0.0),
    )


def _trial(
    spec: OptimizerStudySpec,
    entry: Entry,
    budget: int,
    store: Store,
    rate: float,
    why: Any,
    state: Tuning,
    seen: _Counts,
) -> Trial:
    found = run_status(store, trial(spec, entry, budget, rate))
    seen.add(found, f"{entry.label}, {budget}x, trial of {rate:g}")
    scores = found.result["val"] if found.result else None
    return Trial(
        id=found.id,
        rate=rate,
        why=why,
        state=found.state,
        diverged=found.diverged,
        accuracy=scores and float(scores["accuracy"]),
        nll=scores and float(scores["nll"]),
        seconds=_alone(found.result),
        chosen=state.best == rate,
    )


def _alone(result: dict[str, Any] | None) -> float | None:
    """Own and shared compute seconds of a finished run; wall-clock seconds for runs of older versions."""
    if result is None:
        return None
    if "own_seconds" not in result:
        return float(result["seconds"])
    return float(result["own_seconds"]) + float(result["shared_seconds"])


def _final_run(seed: int, found: RunStatus) -> FinalRun:
    result = found.result
    if result is None:
        return FinalRun(found.id, seed, found.state, found.reason, found.diverged)

    def scores(split: str) -> dict[str, float] | None:
        kept = result.get(split)
        return kept and {name: float(with_macro(kept)[name]) for name in (*METRICS, "images")}

    return FinalRun(
        id=found.id,
        seed=seed,
        state=found.state,
        test=scores("test"),
        val=scores("val"),
        train=scores("train"),
        own_seconds=result.get("own_seconds"),
        alone_seconds=_alone(result),
        gradients=_gradients(result),
        steps=result.get("steps"),
        state_bytes=result.get("state_bytes"),
        memory_bytes=result.get("memory_bytes"),
        step_ms=result.get("step_ms"),
    )


def _gradients(status: dict[str, Any]) -> int | None:
    """Gradient evaluations of a run, plus forward-only evaluations at their relative cost."""
    gradients, without = status.get("gradients"), status.get("evaluations", 0)
    return None if gradients is None else int(gradients) + round(without / EVALUATIONS)


def _sensitivity(trials: Sequence[Trial], best: float | None) -> float | None:
    """LR sensitivity: mean loss of validation accuracy of the other trials within two octaves."""
    scores = {one.rate: one.accuracy for one in trials if one.accuracy is not None}
    if best is None or best not in scores:
        return None
    near = [rate for rate in scores if rate != best and 1 / 2**OCTAVES <= rate / best <= 2**OCTAVES]
    return statistics.fmean(scores[best] - scores[rate] for rate in near) if near else None


# --- against the reference --------------------------------------------------------------------------------------------


def _compared(arms: Sequence[Arm], margin: float, store: Store) -> list[Arm]:
    reference, *others = arms
    seen = [_seen(arm, store) for arm in arms]
    found = compare_with(seen[0], seen[1:], margin) if others else []
    first = replace(reference, differences=reference_differences(len(seen[0])))
    return [first, *(replace(arm, differences=each) for arm, each in zip(others, found, strict=True))]


def _seen(arm: Arm, store: Store) -> list[Scored]:
    return [
        Scored(run.seed, run.test["accuracy"], run.test["nll"], store.by_id(run.id).folder)
        for run in arm.runs
        if run.test
    ]


# --- curves and targets -----------------------------------------------------------------------------------------------


def curves(spec: OptimizerStudySpec, store: Store, folder: Path, budget: int) -> tuple[Curve, ...]:
    """Learning curves of the final runs of a budget, including running ones."""
    kept, found = finders(folder), []
    for entry in entries(spec):
        optimizer: Optimizer = entry.optimizer
        if entry.track == "tuned":
            best = tuning(spec, entry, budget, store, kept.get(finder_key(spec, optimizer))).best
            if best is None:
                continue
            optimizer = with_rate(optimizer, best)
        for seed in final_seeds(spec):
            run = store.by_id(id_of(run_spec(spec, optimizer, budget, seed)))
            if points := _points(run):
                found.append(Curve(entry.name, budget, seed, run.name, points))
    return tuple(found)


def _points(run: Run) -> tuple[Point, ...]:
    file = run.folder / "events.jsonl"
    try:
        stat = file.stat()
    except OSError:
        return ()
    return _read_points(run.folder, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2048)
def _read_points(folder: Path, _: int, __: int) -> tuple[Point, ...]:
    """A run's epochs, read once for each time that its events were written."""
    return tuple(
        Point(
            epoch=int(event["epoch"]),
            step=int(event["step"]),
            gradients=_gradients(event) or 0,
            own_seconds=float(event["own_seconds"]),
            seconds=float(event["own_seconds"]) + float(event["shared_seconds"]),
            accuracy=float(event["accuracy"]),
            nll=float(event["nll"]),
            agreement=event.get("agreement"),
        )
        for event in Run(folder).events("epoch")
        if "own_seconds" in event  # runs of older versions lack it
    )


def _usual_target(reference: Arm) -> float | None:
    """The default target: the lower median of the reference's best validation accuracies."""
    reached = [run.val["accuracy"] for run in reference.runs if run.val]
    return statistics.median_low(reached) if reached else None


def _with_target(arm: Arm, target: float | None, store: Store) -> Arm:
    if target is None:
        return arm
    runs = []
    for run in arm.runs:
        points = _points(store.by_id(run.id)) if run.test else ()
        hit = next((point for point in points if point.accuracy >= target - 1e-9), None)
        there = None if hit is None else Reached(hit.epoch, hit.step, hit.gradients, hit.seconds)
        runs.append(replace(run, reached=there))
    return replace(arm, runs=tuple(runs))
