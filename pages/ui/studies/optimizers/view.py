"""What is particular to the view of an optimizer study: its size, extension and progress."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.studies import study_view
from pages.ui.studies.optimizers import optimizer_picker, results, setup_form
from pages.ui.widgets import formatting
from smallalign_core.runs.store import State, Store
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.optimizers import FAR, Arm, OptimizerStudy

MOST_SEEDS = 100


def _size(_: Study, report: OptimizerStudy) -> str:
    return (
        f"{len(report.at(report.budgets[0]))} optimizers, {len(report.seeds)} seed{'s' * (len(report.seeds) > 1)}, "
        f"training budgets {', '.join(report.budget_words(one) for one in report.budgets)} · study `{report.id}`"
        + "".join(f" · {one}" for one in report.hardware)
    )


def _rounds(report: OptimizerStudy) -> int:
    """Tuned learning rates, and seeds finished by all arms of a budget: results are redrawn when this grows, not at
    each run.
    """
    found = sum((arm.finder is not None) + (arm.rate is not None) for arm in report.arms if arm.track == "tuned")
    for budget in report.budgets:
        settled = [
            sum(bool(run.test) or run.diverged for run in arm.runs) for arm in report.at(budget) if not _lost(arm)
        ]
        found += min(settled, default=0)
    return found


def _lost(arm: Arm) -> bool:
    """Whether it diverged at every LR trial, so that it has no final runs."""
    return bool(arm.trials) and all(trial.diverged for trial in arm.trials)


def _extend(study: Study, _: OptimizerStudy) -> dict[str, Any]:
    """More seeds, budgets and optimizers."""
    spec = study.spec
    seeds = st.number_input("Seeds", spec.seeds, MOST_SEEDS, spec.seeds, key="extend-seeds")
    known = sorted({*map(int, setup_form.BUDGETS), *spec.budgets})
    budgets = st.pills(
        "Training budgets",
        known,
        selection_mode="multi",
        default=list(spec.budgets),
        format_func=lambda one: setup_form.BUDGETS.get(str(one), f"{one}x epochs"),
        key="extend-budgets",
    )
    more = optimizer_picker.others(spec, key="extend-optimizers")
    return {
        "seeds": seeds,
        "budgets": tuple(sorted({*spec.budgets, *budgets})),
        "optimizers": (*spec.optimizers, *more),
    }


ENOUGH, MANY = 3, 20
"""Seeds below which nothing is evidence; seeds beyond which an optimizer does not decide how many are added."""


def _needed(study: Study, report: OptimizerStudy) -> study_view.Needed | None:
    """Seeds for the undecided optimizers: for all that need at most `MANY`, else for the one that needs fewest."""
    open_ones = [found for arm in report.arms if (found := arm.differences.get("accuracy"))]
    counts = sorted(found.more_seeds for found in open_ones if found.verdict == "undecided" and found.more_seeds)
    counts += [ENOUGH - 1] if any(found.verdict == "not evidence" for found in open_ones) else []
    some = [count for count in counts if count <= MANY] or counts[:1]
    if not some or (more := min(max(some), MOST_SEEDS - study.spec.seeds)) < 1 or some[0] > FAR:
        return None
    return study_view.Needed(
        {"seeds": study.spec.seeds + more}, f"{more} seed{'s' * (more > 1)}", more * len(report.arms)
    )


def _warnings(report: OptimizerStudy) -> None:
    """Messages for diverged runs."""
    wrong = [
        f"{arm.label} on {arm.diverged} of {len(arm.runs)} seeds ({report.budget_words(arm.budget)})"
        for arm in report.arms
        if arm.diverged
    ]
    if wrong:
        st.warning(
            f"Diverged runs are excluded, which biases results in favor of: {'; '.join(wrong)}.",
            icon=":material/trending_down:",
        )
    for arm in filter(_lost, report.arms):
        tried = ", ".join(f"{trial.rate:g}" for trial in arm.trials)
        st.warning(f"{arm.label} diverged at every tested learning rate ({tried}) and has no final runs.")


def _progress(report: OptimizerStudy) -> None:
    for column, (name, done, of) in zip(st.columns(3), _stages(report), strict=True):
        column.progress(min(1.0, done / of) if of else 0.0, text=f"{name}: {done} of {of}")


def _stages(report: OptimizerStudy) -> list[tuple[str, int, int]]:
    """(stage, done, of) of the three stages, over all budgets."""
    tuned = [arm for arm in report.arms if arm.track == "tuned"]
    first = [arm for arm in tuned if arm.budget == report.budgets[0]]
    planned = report.spec.trials
    done = sum(trial.accuracy is not None or trial.diverged for arm in tuned for trial in arm.trials)
    of = sum(max(planned, len(arm.trials)) if not arm.runs else len(arm.trials) for arm in tuned)
    final = sum(bool(run.test) or run.diverged for arm in report.arms for run in arm.runs)
    return [
        ("LR range tests", sum(arm.finder is not None for arm in first), len(first)),
        ("LR trials", done, of),
        ("Final runs", final, sum(not _lost(arm) for arm in report.arms) * len(report.seeds)),
    ]


def _doing(_: Study, report: OptimizerStudy, store: Store) -> str:
    now = [(arm, what, id) for arm in report.arms for what, id in _running(arm)]
    if not now:
        if report.running:
            return "Queued."
        return "LR range tests: about 100 steps per optimizer." if report.finding else "Preparing the next runs."
    arm, what, first = now[0]
    events = store.by_id(first).events("progress")
    text = f"Training in lockstep: {len(now)} run{'s' * (len(now) > 1)}, {what}, {report.budget_words(arm.budget)}"
    if events:
        last = events[-1]
        text += f" · step {last['step']:,} of {last['steps']:,} · {formatting.duration(last['eta'])} left"
    return text + "."


def _running(arm: Arm) -> list[tuple[str, str]]:
    trials = [("LR trials", one.id) for one in arm.trials if one.state == State.RUNNING]
    return trials + [(f"final runs, seed {one.seed}", one.id) for one in arm.runs if one.state == State.RUNNING]


VIEW = study_view.View[OptimizerStudy](
    kind=setup_form.KIND,
    size=_size,
    address=setup_form.address,
    extend=_extend,
    warnings=_warnings,
    rounds=_rounds,
    progress=_progress,
    doing=_doing,
    results=results.draw,
    needed=_needed,
)
"""The view of an optimizer study."""
