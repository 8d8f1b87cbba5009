"""Proposals: the next candidates to try, each with the reason.

A round begins with one step from the best candidate so far (smaller where it met the limits, else larger or with
another recipe), and goes on with Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) under constraints
(Watanabe & Hutter, 2023). The first round has the largest network of each family that can fit. All are functions of the
earlier trials and of the seed.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smallalign_core.search._space import SIZES, STRENGTHS, Candidate, Space
from smallalign_core.system import extras

ASKED = 200
"""Most proposals of the sampler in one round, since many may be known already or too large."""
STARTUP = 8
"""Trained candidates before the sampler's model is used."""


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
            yield Proposal(one, f"one step smaller than trial {number}, which met the limits")
    else:
        for one in [*space.neighbours(best, smaller=False), *space.recipes(best)]:
            yield Proposal(one, f"one step from trial {number}, the nearest so far")


def sampled(space: Space, outcomes: Sequence[Outcome], seed: int) -> Iterator[Proposal]:
    """Proposals of the sampler, some of which may be known already."""
    optuna = extras.load("optuna", "the budget search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = sum(outcome.violation <= 1 for outcome in outcomes) < STARTUP
    why = "random draw: too few trials to learn from" if startup else "sampler: likely better than the trials so far"
    with _quiet():
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=ASKED + len(outcomes) if startup else 0, constraints_func=_violation
        )
        study = optuna.create_study(sampler=sampler)
        for outcome in outcomes:
            study.enqueue_trial(_parameters(outcome.candidate))
            trial = study.ask()
            _suggest(trial, space)
            trial.set_user_attr("violation", outcome.violation)
            study.tell(trial, outcome.value)
    for _ in range(ASKED):
        with _quiet():
            proposed = _suggest(study.ask(), space)
        yield Proposal(proposed, why)


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
    widths, depths = SIZES[one.family]
    return {
        "family": one.family,
        f"{one.family} width": widths.index(one.width),
        f"{one.family} depth": depths.index(one.depth),
        "scale": one.scale,
        "taught": one.taught,
        "augment": one.augment,
    }


def _suggest(trial: Any, space: Space) -> Candidate:
    family = trial.suggest_categorical("family", space.families)
    widths, depths = SIZES[family]
    return Candidate(
        family=family,
        width=widths[trial.suggest_int(f"{family} width", 0, len(widths) - 1)],
        depth=depths[trial.suggest_int(f"{family} depth", 0, len(depths) - 1)],
        scale=trial.suggest_categorical("scale", space.scales),
        taught=trial.suggest_categorical("taught", (True, False)) if space.taught else False,
        augment=trial.suggest_categorical("augment", STRENGTHS),
    )


def distance(size: int, limit: int | None) -> float:
    """By how many powers of e a file is larger than its limit; 0 within it."""
    return 0.0 if limit is None else max(0.0, math.log(max(1, size) / limit))
