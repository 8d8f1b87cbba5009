"""The runs of an optimizer study as far as known: a pure function of the finished ones.

Each arm is tuned independently: its trials depend only on its own LR range test and trials, so that adding an
optimizer, seeds or a budget does not affect the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.spec import Optimizer, RunSpec
from smallalign_core.studies.optimizers._parts import Finder
from smallalign_core.studies.optimizers._spec import (
    Entry,
    OptimizerStudySpec,
    entries,
    final_seeds,
    run_spec,
    tuning_seed,
    with_rate,
)
from smallalign_core.studies.run_status import RunStatus, id_of, status_of
from smallalign_core.system.files import read_json

FINDERS = "finders.json"
FROM_FINDER = 3
"""Trials proposed by the LR range test: the steepest rate, the lowest loss, and one between."""
BEYOND = 3
"""Additional trials of an arm while its best rate is at the edge; they count as its tuning cost."""
APART = 2.0
"""Min. factor between the first trials, and of a step beyond an edge."""
LARGEST = 100.0
NEEDS = tuple((split, name) for split in ("val", "test") for name in ("accuracy", "nll", "ece", "images"))
"""What the result of every run has."""

Why = Literal["finder", "extension", "refinement"]
Rank = tuple[float, float]
"""(validation accuracy, minus NLL): larger is better."""


# --- run status -------------------------------------------------------------------------------------------------------


def run_status(store: Store, spec: RunSpec) -> RunStatus:
    """The status of the run of a resolved spec."""
    return status_of(store, id_of(spec), NEEDS)


# --- tuning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """State of the search for an arm's learning rate.

    Attributes:
        proposed: (rate, why) in the order in which they were proposed.
        settled: whether no more will be.
        best: the rate of the final runs; None before it is settled, and if all diverged.
        edge: whether the best is the lowest or the highest trial.
    """

    proposed: tuple[tuple[float, Why], ...]
    settled: bool
    best: float | None
    edge: bool


def rounded(rate: float) -> float:
    """Rounded to two digits, so that nearly equal rates on two machines give the same run."""
    return float(f"{rate:.2g}")


def first_rates(finder: Finder, trials: int) -> list[float]:
    """Up to three rates from the LR range test: from the steepest to the lowest loss, at least a factor of two
    apart.
    """
    count = min(FROM_FINDER, trials)
    low, high = sorted((finder.steepest, finder.minimum))
    if count == 1:
        return [rounded(math.sqrt(low * high))]
    least = APART ** (count - 1)
    if high / low < least:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(least), middle * math.sqrt(least)
    high = min(high, LARGEST)
    return [rounded(low * (high / low) ** (index / (count - 1))) for index in range(count)]


def tune(first: Sequence[float], rank_of: Callable[[float], Rank | Literal["unknown"] | None], trials: int) -> Tuning:
    """The trials of one arm.

    After those of the LR range test, the next is twice (or half) the best rate while that is at an edge, else between
    the best and its better neighbour. All arms get the same number; one with its best still at an edge gets up to
    three more, which count as its tuning cost.

    Args:
        rank_of: of a rate's trial; "unknown" before it is settled, None if it diverged.
    """
    proposed: list[tuple[float, Why]] = [(rate, "finder") for rate in dict.fromkeys(first)]
    while True:
        ranks = {rate: rank_of(rate) for rate, _ in proposed}
        if "unknown" in ranks.values():
            return Tuning(tuple(proposed), False, None, False)
        known = {rate: rank for rate, rank in ranks.items() if rank is not None and rank != "unknown"}
        rates = sorted(ranks)
        best = max(known, key=lambda rate: known[rate]) if known else None
        edge = best is None or best in (rates[0], rates[-1])
        if len(proposed) >= trials + (BEYOND if edge else 0):
            break
        found = _next(rates, known, best)
        if found is None:
            break
        proposed.append(found)
    return Tuning(tuple(proposed), True, best, edge)


def _next(rates: list[float], known: dict[float, Rank], best: float | None) -> tuple[float, Why] | None:
    if best is None:  # all diverged
        return rounded(rates[0] / APART**2), "extension"
    if best == rates[-1]:
        return (rounded(best * APART), "extension") if best * APART <= LARGEST else None
    if best == rates[0]:
        return rounded(best / APART), "extension"
    place = rates.index(best)
    worst = (-math.inf, -math.inf)
    beside = sorted((rates[place - 1], rates[place + 1]), key=lambda rate: known.get(rate, worst), reverse=True)
    between = (rounded(math.sqrt(best * other)) for other in beside)
    return next(((rate, "refinement") for rate in between if rate not in rates), None)


# --- required runs ----------------------------------------------------------------------------------------------------


def finder_key(spec: OptimizerStudySpec, optimizer: Optimizer) -> str:
    """The key of an LR range test: the student, the optimizer and the tuning seed."""
    return id_of(run_spec(spec, optimizer, 1, tuning_seed(spec)))


def finders(folder: Path) -> dict[str, Finder]:
    """The curves stored in a study's folder, by key."""
    try:
        kept = read_json(folder / FINDERS, missing={})
        return {
            key: Finder(**one | {"rates": tuple(one["rates"]), "losses": tuple(one["losses"])})
            for key, one in kept.items()
        }
    except (SmallAlignError, KeyError, TypeError, AttributeError):  # damaged: measured again
        return {}


def finders_json(found: dict[str, Finder]) -> str:
    """The content of their file."""
    return json.dumps({key: vars(one) for key, one in found.items()}, allow_nan=False)


def tuning(spec: OptimizerStudySpec, entry: Entry, budget: int, store: Store, finder: Finder | None) -> Tuning:
    """State of the search for an entry's rate at a budget."""
    if finder is None:
        return Tuning((), False, None, False)

    def rank_of(rate: float) -> Rank | Literal["unknown"] | None:
        seen = run_status(store, trial(spec, entry, budget, rate))
        if seen.result is not None:
            return float(seen.result["val"]["accuracy"]), -float(seen.result["val"]["nll"])
        return None if seen.diverged else "unknown"

    return tune(first_rates(finder, spec.trials), rank_of, spec.trials)


def trial(spec: OptimizerStudySpec, entry: Entry, budget: int, rate: float) -> RunSpec:
    """A run that tries a rate."""
    return run_spec(spec, with_rate(entry.optimizer, rate), budget, tuning_seed(spec))


def wanted(spec: OptimizerStudySpec, store: Store, folder: Path) -> list[RunSpec]:
    """All runs known to be needed now, in training order: trials of a budget, then its final runs.

    More follow as these are finished. `spec` is resolved.
    """
    found, curves = [], finders(folder)
    for budget in spec.budgets:
        trials, racing = [], []
        for entry in entries(spec):
            optimizer: Optimizer | None = entry.optimizer
            if entry.track == "tuned":
                state = tuning(spec, entry, budget, store, curves.get(finder_key(spec, entry.optimizer)))
                trials += [trial(spec, entry, budget, rate) for rate, _ in state.proposed]
                optimizer = None if state.best is None else with_rate(entry.optimizer, state.best)
            if optimizer is not None:
                racing.append(optimizer)
        race = [run_spec(spec, optimizer, budget, seed) for seed in final_seeds(spec) for optimizer in racing]
        found += trials + race
    return list(dict.fromkeys(found))
