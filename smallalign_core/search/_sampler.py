"""Proposals: the next candidates to try, each with the reason.

A round begins with one step from the best candidate so far (smaller where it met the limits, else larger or with
another recipe), with another recipe for the smaller one that lacks least, and with finished ones pruned; it goes on
with Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) under constraints (Watanabe & Hutter, 2023). The
first round has the largest network of each family that can fit. All are functions of the earlier trials and of the
seed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smallalign_core.search._space import RATES, SIZES, SOFTNESSES, STRENGTHS, Candidate, Space
from smallalign_core.system import extras

CANDIDATES = 200
"""Most proposals of the sampler in one round, since many may be known already or too large."""
STARTUP = 8
"""Trained candidates before the sampler's model is used."""
USUAL: dict[str, Any] = {"optimizer": "adamw", "rate": 1.0, "softness": 1.0}
"""Of random draws: what is drawn first is the network."""


@dataclass(frozen=True)
class Outcome:
    """How an earlier candidate did.

    Attributes:
        value: what is minimized.
        violation: how far it is beyond the limits; at most 0 within them.
    """

    candidate: Candidate
    value: float
    violation: float


@dataclass(frozen=True)
class Proposal:
    """A candidate, and the reason to try it."""

    candidate: Candidate
    why: str


def steps_from(space: Space, best: Candidate, number: int, *, smaller: bool) -> Iterator[Proposal]:
    """Candidates one step from the best one, which is trial `number`."""
    if smaller:
        for one in space.neighbours(best, smaller=True):
            yield Proposal(one, f"one step smaller than trial {number}, which met the limits: {one.differs(best)}")
    else:
        larger, recipes = space.neighbours(best, smaller=False), space.recipes(best)
        for one in _in_turn(larger, recipes):
            yield Proposal(one, f"one step from trial {number}, the nearest so far: {one.differs(best)}")


def _in_turn(first: Sequence[Candidate], second: Sequence[Candidate]) -> Iterator[Candidate]:
    for pair in itertools.zip_longest(first, second):
        yield from (one for one in pair if one is not None)


def sampled(space: Space, outcomes: Sequence[Outcome], seed: int) -> Iterator[Proposal]:
    """Proposals of the sampler, some of which may be known already."""
    optuna = extras.load("optuna", "the budget search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = sum(outcome.violation <= 1 for outcome in outcomes) < STARTUP
    why = "random draw: too few trials to learn from" if startup else "sampler: likely better than the trials so far"
    with _quiet():
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=CANDIDATES + len(outcomes) if startup else 0, constraints_func=_violation
        )
        study = optuna.create_study(sampler=sampler)
        for outcome in outcomes:
            if not space.has(outcome.candidate):  # a given network has no place in the grid
                continue
            study.enqueue_trial(_parameters(outcome.candidate))
            trial = study.ask()
            _suggest(trial, space)
            trial.set_user_attr("violation", outcome.violation)
            study.tell(trial, outcome.value)
    for _ in range(CANDIDATES):
        with _quiet():
            proposed = _suggest(study.ask(), space)
        yield Proposal(replace(proposed, **USUAL) if startup else proposed, why)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about experimental options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _violation(trial: Any) -> tuple[float]:
    return (float(trial.user_attrs.get("violation", 0.0)),)


def _parameters(one: Candidate) -> dict[str, Any]:
    """A candidate as the sampler's parameters: the place of a width or depth in its family's list."""
    assert one.family != "given", "it belongs to the space"
    widths, depths = SIZES[one.family]
    return {
        "family": one.family,
        f"{one.family} width": widths.index(one.width),
        f"{one.family} depth": depths.index(one.depth),
        "scale": one.scale,
        "taught": one.taught,
        "augment": one.augment,
        "optimizer": one.optimizer,
        "rate": RATES.index(one.rate),
        "softness": SOFTNESSES.index(one.softness),
    }


def _suggest(trial: Any, space: Space) -> Candidate:
    family = trial.suggest_categorical("family", space.families)
    widths, depths = SIZES[family]
    width, depth = (
        values[trial.suggest_int(f"{family} {name}", 0, len(values) - 1)]
        for name, values in (("width", widths), ("depth", depths))
    )
    scale = trial.suggest_categorical("scale", space.scales)
    taught = trial.suggest_categorical("taught", (True, False)) if space.taught else False
    soft = taught and space.softened
    return Candidate(
        family,
        width,
        depth,
        scale,
        taught,
        augment=trial.suggest_categorical("augment", STRENGTHS),
        optimizer=trial.suggest_categorical("optimizer", space.optimizers),
        rate=RATES[trial.suggest_int("rate", 0, len(RATES) - 1)],
        softness=SOFTNESSES[trial.suggest_int("softness", 0, len(SOFTNESSES) - 1)] if soft else 1.0,
    )


def distance(size: int, limit: int | None) -> float:
    """By how many powers of e a file is larger than its limit; 0 within it."""
    return 0.0 if limit is None else max(0.0, math.log(max(1, size) / limit))
