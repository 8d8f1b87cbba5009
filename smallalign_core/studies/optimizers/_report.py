"""The report of an optimizer study, as plain values: a page shows exactly one `OptimizerStudy`.

Shares (accuracy, ECE) are in 0..1 and NLL is in nats; differences are arm minus reference, so that higher accuracy and
lower NLL are better. Seconds are compute time of the CPU or GPU. None means not known yet, or not applicable. Imports
neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.base import StudyReport
from smallalign_core.studies.optimizers._parts import Difference, FinalRun, Finder, Track, Trial
from smallalign_core.studies.optimizers._spec import OptimizerStudySpec

FAR_OFF = 4.0
"""Factor from the library's default from which a tuned learning rate is mentioned."""
NAMED = 3
"""Max. number of such rates mentioned."""
MORE = 1.2
"""Factor over its gradient budget from which an arm is mentioned."""


@dataclass(frozen=True)
class Arm:
    """One optimizer at one budget.

    Attributes:
        name: in the grammar of specs, unique among the study's optimizers: `lookahead | adamw`.
        label: display name: `Lookahead(AdamW)`.
        optimizer: its fields, with the chosen rate once there is one.
        track: `tuned` by trials, or `hands-off`: one fixed setting, no trials.
        budget: as a multiple of the study's epochs; `epochs`: its epochs for that, half where a step needs two
            gradients: budgets are equal in gradients.
        default_rate: the library's default; None where there is no rate to set.
        rate: the learning rate of the final runs; None before tuning ended.
        trials: sorted by rate; empty on the hands-off track. `edge`: whether the best is still the lowest or the
            highest that was tried.
        finder: None on the hands-off track and before it ran.
        runs: one a seed, in their order.
        differences: by metric, to the reference at this budget.
        sensitivity: mean loss of validation accuracy of the trials within two octaves of the best (after Wortsman et
            al., 2023); None with fewer than two such trials.
        tuning_seconds: compute time of LR range test and trials, as if each had run alone.
    """

    name: str
    label: str
    optimizer: dict[str, Any]
    track: Track
    budget: int
    epochs: int
    gradients_a_step: int
    default_rate: float | None
    rate: float | None
    trials: tuple[Trial, ...]
    edge: bool
    finder: Finder | None
    runs: tuple[FinalRun, ...]
    differences: dict[str, Difference]
    sensitivity: float | None
    tuning_seconds: float

    @property
    def finished(self) -> tuple[FinalRun, ...]:
        """The runs with scores."""
        return tuple(run for run in self.runs if run.test)

    @property
    def diverged(self) -> int:
        """Number of diverged final runs (NaN or infinite loss)."""
        return sum(run.diverged for run in self.runs)

    @property
    def ratio(self) -> float | None:
        """The chosen rate over the library's default."""
        return self.rate / self.default_rate if self.rate and self.default_rate else None

    @property
    def far_from_default(self) -> bool:
        """Whether the chosen rate is at least four times above or below the library's default."""
        return self.ratio is not None and not 1 / FAR_OFF < self.ratio < FAR_OFF

    def from_default(self) -> str:
        """The tuned rate relative to the library's default, as text."""
        ratio = self.ratio or 1.0
        where = f"×{ratio:.3g} above" if ratio > 1 else f"×{1 / ratio:.3g} below"
        return f"{self.label} {self.rate:g}, {where} its default {self.default_rate:g}"

    def mean(self, metric: str, split: Literal["test", "val", "train"] = "test") -> float | None:
        """Mean over finished seeds of `accuracy`, `nll` or `ece`."""
        return _mean([scores[metric] for run in self.runs if (scores := getattr(run, split))])

    def sd(self, metric: str, split: Literal["test", "val", "train"] = "test") -> float | None:
        """Standard deviation (n - 1) over finished seeds; None below two."""
        values = [scores[metric] for run in self.runs if (scores := getattr(run, split))]
        if len(values) < 2:
            return None
        middle = sum(values) / len(values)
        return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))

    def median(self, name: str) -> float | None:
        """Median over finished seeds of a number that `FinalRun` has: `alone_seconds`, `step_ms`, `gap`, ..."""
        return _median([value for run in self.finished if (value := getattr(run, name)) is not None])

    def to_target(self, name: Literal["epoch", "step", "gradients", "seconds"]) -> float | None:
        """Lower median over finished seeds, where a run that did not reach the target counts as infinite; None if
        infinite.
        """
        reached = sorted(getattr(run.reached, name) if run.reached else math.inf for run in self.finished)
        found = reached[(len(reached) - 1) // 2] if reached else math.inf
        return None if math.isinf(found) else found

    @property
    def score(self) -> float | None:
        """Seconds to the target, tuning included; None if it was not reached."""
        seconds = self.to_target("seconds")
        return None if seconds is None else self.tuning_seconds + seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
        medians = ("own_seconds", "alone_seconds", "gradients", "steps", "state_bytes", "memory_bytes", "step_ms")
        return {
            **asdict(self),
            "ratio": self.ratio,
            "diverged": self.diverged,
            "test": {metric: self.mean(metric) for metric in METRICS},
            "sd": {metric: self.sd(metric) for metric in METRICS},
            "val": {metric: self.mean(metric, "val") for metric in METRICS},
            "train": {metric: self.mean(metric, "train") for metric in METRICS},
            "gap": self.median("gap"),
            "median": {name: self.median(name) for name in medians},
            "to_target": {name: self.to_target(name) for name in ("epoch", "step", "gradients", "seconds")},
            "score": self.score,
            "words": {metric: found.words() for metric, found in self.differences.items()},
        }


@dataclass(frozen=True)
class OptimizerStudy(StudyReport):
    """The current state of an optimizer study.

    Attributes:
        budgets: multiples of `epochs`, ascending.
        seeds: those of the final runs; `tuning_seed`: another one.
        reference: name of the arm that the others are compared with, at each budget.
        arms: of each budget in turn, the reference first, then in the order of the spec.
        targets: by budget: validation accuracy to reach: as given, or the (lower) median of the reference's runs.
        finding: whether LR range tests are missing.
        test_images: number of test images; `crossed`: whether all intervals are over test images, too.
        device, processor: where the finished runs were trained; several, if so.
    """

    spec: OptimizerStudySpec
    epochs: int
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    tuning_seed: int
    reference: str
    arms: tuple[Arm, ...]
    targets: dict[int, float | None]
    finding: bool
    test_images: int | None
    crossed: bool
    hardware: tuple[str, ...] = field(default=())

    def at(self, budget: int) -> tuple[Arm, ...]:
        """The arms of one budget, the reference first."""
        return tuple(arm for arm in self.arms if arm.budget == budget)

    def arm(self, name: str, budget: int) -> Arm:
        """One arm."""
        return next(arm for arm in self.at(budget) if arm.name == name)

    @property
    def unprepared(self) -> bool:
        return self.finding

    def budget_words(self, budget: int) -> str:
        """A budget as text, part of every claim."""
        images = f"{budget * self.epochs:,} epochs"
        return images if budget == 1 else f"{images} ({budget} times the budget)"

    def verdict(self, budget: int, metric: str = "accuracy") -> str:
        """The arms that are better or worse than the reference at a budget, in a sentence."""
        label = self.arm(self.reference, budget).label
        found: dict[str, list[str]] = {}
        for arm in self.at(budget):
            if (difference := arm.differences.get(metric)) is not None:
                found.setdefault(difference.verdict, []).append(arm.label)
        parts = [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {how} than tuned {label}"
            for how in ("better", "worse")
            if (names := found.get(how))
        ]
        equal, open_ones = found.get("no difference larger", []), self._undecided(budget, metric)
        if parts:
            parts += [f"inconclusive: {_listed(open_ones)}"] if open_ones else []
        elif equal:
            parts = [f"equivalent to tuned {label} within the margin: {_listed(equal)}"]
            parts += [f"inconclusive: {_listed(open_ones)}"] if open_ones else []
        elif open_ones:
            parts = [f"no conclusive difference to tuned {label}"]
        else:
            parts = [
                "single seed; run more before drawing conclusions"
                if found.get("not evidence")
                else "nothing to compare yet"
            ]
        return f"At {self.budget_words(budget)}: {'; '.join(parts)}."

    def _undecided(self, budget: int, metric: str) -> list[str]:
        """The arms with inconclusive results."""
        verdicts = [(arm, arm.differences.get(metric)) for arm in self.at(budget)]
        return [arm.label for arm, found in verdicts if found and found.verdict in ("undecided", "no spread")]

    def defaults(self, budget: int) -> str:
        """Tuned learning rates that are far from the library defaults, and the gain over AdamW's default if the study
        ran it; empty if none is far.
        """
        far = [arm for arm in self.at(budget) if arm.track == "tuned" and arm.far_from_default]
        if not far:
            return ""
        parts = [arm.from_default() for arm in far[:NAMED]]  # the reference first
        parts += [f"and {len(far) - NAMED} more"] if len(far) > NAMED else []
        text = f"Tuned learning rates far from the library defaults: {'; '.join(parts)}."
        plain = self.default_arm(budget)
        if plain is None or not (figures := plain.differences["accuracy"].figures()):
            return f"{text} The gain was not measured: no optimizer ran at its default."
        return (
            f"{text} Untuned AdamW (defaults) against tuned AdamW at {self.budget_words(budget)}: {figures}, "
            f"{plain.differences['accuracy'].words()}."
        )

    def default_arm(self, budget: int) -> Arm | None:
        """AdamW with the library's defaults, if the study ran it."""
        fixed = [arm for arm in self.at(budget) if arm.track == "hands-off" and arm.optimizer["kind"] == "adamw"]
        return next((arm for arm in fixed if arm.ratio in (None, 1.0)), None)

    def scope(self) -> str:
        """The scope and limits of the figures."""
        seen = f"{self.test_images:,} test images" if self.test_images else "test images"
        over = f"seeds and the {seen} together" if self.crossed else f"seeds, on {seen}"
        return (
            f"Differences are to the tuned reference on the same seeds, with the same initial weights, images and "
            f"augmentation. Intervals are over {over}, 95% each; `better` and `worse` also hold after Holm's "
            f"correction within a budget. Learning rates were tuned on {self._chosen_on()}, on a separate seed. "
            f"Budgets are equal in gradients{self._over()}. Another student, other images or another budget may rank "
            "differently."
        )

    def _over(self) -> str:
        """The arms that exceed their budget."""
        shares = [(arm, arm.epochs * arm.gradients_a_step / (arm.budget * self.epochs)) for arm in self.arms]
        parts = [
            f"{arm.label} takes {share:.3g} times as many at {self.budget_words(arm.budget)}"
            for arm, share in shares
            if share > MORE
        ]
        return f", but {', '.join(parts)}, since epochs are whole and at least one" if parts else ""

    def _chosen_on(self) -> str:
        some = next((int(run.val["images"]) for arm in self.arms for run in arm.finished if run.val), None)
        return "validation images" if some is None else f"{some:,} validation images"

    def states(self) -> str:
        """How far it is."""
        states = [f"{self.done} runs done"]
        states += ["LR range tests missing"] if self.finding else []
        states += [f"{self.running} running or queued"] if self.running else []
        states += [f"about {self.missing} to train"] if self.missing else []
        states += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(states)

    def words(self) -> str:
        """The whole report as lines of text."""
        lines = [f"{self.title}, {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}: {self.states()}"]
        for budget in self.budgets:
            lines += ["", self.verdict(budget)]
            lines += [text] if (text := self.defaults(budget)) else []
            lines += [f"  {line}" for arm in self.at(budget) if (line := _line(arm))]
        lines += [""] + [f"failed: {reason}" for reason in self.failed]
        return "\n".join([*lines, self.scope()])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
        whole = {name: value for name, value in vars(self).items() if name != "arms"}
        return {
            **whole,
            "spec": self.spec.model_dump(mode="json"),
            "arms": [arm.as_dict() for arm in self.arms],
            "complete": self.complete,
            "verdicts": {budget: self.verdict(budget) for budget in self.budgets},
            "defaults": {budget: self.defaults(budget) for budget in self.budgets},
            "scope": self.scope(),
        }


def _line(arm: Arm) -> str:
    """An arm in one line: score, difference, verdict, rate, cost."""
    accuracy, spread = arm.mean("accuracy"), arm.sd("accuracy")
    if accuracy is None:
        return f"{arm.label}: diverged on every seed" if arm.diverged and arm.diverged == len(arm.runs) else ""
    metric, difference = METRICS["accuracy"], arm.differences["accuracy"]
    text = f"{arm.label}: {metric.value(accuracy)}" + (f" ± {spread * 100:.2f}" if spread is not None else "")
    text += f", {figures}" if (figures := difference.figures()) and difference.verdict != "reference" else ""
    text += f", {difference.words()}"
    text += f"; diverged on {arm.diverged} of {len(arm.runs)} seeds" if arm.diverged else ""
    if arm.rate is not None and arm.track == "tuned":
        text += f"; learning rate {arm.rate:g}"
        text += f", {arm.ratio:.3g} times the library's" if arm.ratio else ""
        text += " (at the edge of the tried range)" if arm.edge else ""
    seconds = arm.median("alone_seconds")
    text += f"; {seconds:.2g} s per run" if seconds is not None else ""
    text += f", {arm.tuning_seconds:.3g} s of tuning" if arm.tuning_seconds else ""
    score = arm.score
    return text + (f"; {score:.3g} s to the target including tuning" if score is not None else "; target not reached")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    if not values:
        return None
    ranked, middle = sorted(values), len(values) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
