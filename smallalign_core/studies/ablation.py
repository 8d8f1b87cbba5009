"""Ablation of one component of a spec: the same student with and without it, on paired seeds and validation images.

Both arms of a pair are ordinary runs with the same seed, initial weights and data order, so finished runs are reused
when the study is repeated or extended. This module does not import torch: the dashboard reads reports through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.metrics import with_macro
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.spec import DataSpec, RunSpec, Unbalanced, digest, parse, title
from smallalign_core.studies import statistics
from smallalign_core.studies.run_status import DAMAGED as DAMAGED, NOT_STARTED as NOT_STARTED, status_of

What = Literal["augment", "teacher", "shuffled", "balance"]
Verdict = Literal["nothing", "not evidence", "no spread", "noise", "helps", "hurts"]

MOST_SEEDS = 100
FAR = 100
"""Upper limit for suggested seeds: beyond it the effect is too small for this spread."""


@dataclass(frozen=True)
class Control:
    """The control arm of a component.

    Attributes:
        name: the component in a sentence, with its article.
        present: whether a spec has it.
        leave_out: the changed fields of the control arm.
        do: what to add to a spec without the component.
    """

    name: str
    present: Callable[[RunSpec], bool]
    leave_out: Callable[[dict[str, Any]], dict[str, Any]]
    do: str


CONTROLS: dict[What, Control] = {
    "augment": Control(
        "the augmentation",
        lambda spec: bool(spec.augment),
        lambda fields: {**fields, "augment": (), "views": 0},
        "add transforms to `augment`",
    ),
    "teacher": Control(  # a spec without teacher and loss uses cross entropy
        "the teacher",
        lambda spec: spec.teacher is not None,
        lambda fields: {
            **{name: value for name, value in fields.items() if name not in ("teacher", "loss", "shuffled", "top")},
            "data": DataSpec.model_validate(fields["data"]).labeled(),  # unlabelled images have no other targets
        },
        "set `teacher`",
    ),
    "shuffled": Control(  # keeps class-level information of the teacher, removes image-level information
        "image-specific teacher logits",
        lambda spec: spec.teacher is not None and not spec.shuffled,
        lambda fields: {**fields, "shuffled": True},
        "set `teacher`, and leave `shuffled` out",
    ),
    "balance": Control(
        "the class balance",
        lambda spec: spec.balance != Unbalanced(),
        lambda fields: {name: value for name, value in fields.items() if name != "balance"},
        "set `balance`",
    ),
}


@dataclass(frozen=True)
class Metric:
    """A metric: its label, whether lower is better, and its display scale, digits and unit.

    Accuracy and ECE are shares in 0..1 shown in percent, their differences in points; NLL is in nats.
    """

    label: str
    less_is_better: bool
    scale: float
    digits: int
    unit: str
    most: float = math.inf
    """The largest value; the smallest is 0."""

    def differences(self, low: float, high: float) -> tuple[float, float]:
        """An interval of differences, kept within those that two values can have."""
        return max(-self.most, low), min(self.most, high)

    def value(self, value: float) -> str:
        return f"{value * self.scale:.{self.digits}f}{'%' if self.unit else ''}"

    def change(self, value: float) -> str:
        """A signed difference without unit; no sign if it rounds to zero."""
        rounded = round(value * self.scale, self.digits)
        return f"{rounded:+.{self.digits}f}".replace("-", "−") if rounded else f"{0:.{self.digits}f}"


METRICS = {
    "accuracy": Metric("accuracy", False, 100, 2, " points", most=1.0),
    "macro_recall": Metric("macro recall", False, 100, 2, " points", most=1.0),
    "nll": Metric("NLL", True, 1, 4, ""),
    "ece": Metric("ECE", True, 100, 2, " points", most=1.0),
}
NEEDS = tuple(("val", name) for name in ("accuracy", "nll", "ece", "images"))


# --- the arms ---------------------------------------------------------------------------------------------------------


def without(spec: RunSpec, what: What) -> RunSpec:
    """The control arm: `spec` with one component removed and nothing else changed.

    Raises:
        BadSpec, BadInput: the spec does not have the component, or no head; it cannot be removed.
    """
    control = CONTROLS.get(what)
    if control is None:
        raise BadInput("unknown component for an ablation", given=what, do=f"choose {' or '.join(CONTROLS)}")
    if spec.headless:
        raise BadSpec(
            "an ablation compares accuracies, and this network has no head",
            given=f"loss {spec.loss.kind}",
            do="ablate the run that trains a head with `start`",
        )
    if not control.present(spec):
        raise BadSpec(f"nothing to ablate: the spec does not have {control.name}", do=control.do)
    other = parse(control.leave_out(spec.model_dump()))
    if other == spec:
        raise BadSpec(f"{control.name} cannot be ablated: it is part of loss {spec.loss.kind}", do="use another loss")
    return other


def pairs(spec: RunSpec, what: What, seeds: int) -> list[tuple[RunSpec, RunSpec]]:
    """(with, without) for `seeds` seeds from the spec's own upwards.

    Raises:
        BadSpec, BadInput: nothing to ablate; invalid number of seeds.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise BadInput(f"seeds must be 1 to {MOST_SEEDS}", given=seeds, do="use at least 3")
    fields = spec.model_dump()
    arms = [parse(fields | {"seed": spec.seed + more}) for more in range(seeds)]
    return [(arm, without(arm, what)) for arm in arms]


def start(store: Store, spec: RunSpec, what: What, seeds: int) -> list[Run]:
    """Queue the runs that are not finished, pair after pair. Stopped and failed runs continue from their last
    checkpoint.

    They count as one start: a caller on behalf of a user calls `users.check_room` for all of them first.

    Args:
        spec: resolved, as below: with fingerprint, teacher's id and precision filled in.
    """
    return [store.submit(arm, together=True) for pair in pairs(spec, what, seeds) for arm in pair]


# --- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One run of a pair.

    Attributes:
        state: a `State`, `not started`, or `damaged`.
        reason: why it failed or paused, if known.
        scores: accuracy, macro recall, NLL and ECE on validation images; None before it is finished.
        images: number of validation images.
    """

    id: str
    state: str
    reason: str | None = None
    scores: dict[str, float] | None = None
    images: int | None = None


@dataclass(frozen=True)
class Pair:
    """The two arms of one seed."""

    seed: int
    treated: Arm
    control: Arm

    @property
    def arms(self) -> tuple[tuple[str, Arm], ...]:
        return ("with", self.treated), ("without", self.control)

    @property
    def difference(self) -> dict[str, float] | None:
        """With minus without, for each metric; None before both are finished."""
        ours, theirs = self.treated.scores, self.control.scores
        return {name: ours[name] - theirs[name] for name in METRICS} if ours and theirs else None

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, **{name: asdict(arm) for name, arm in self.arms}, "difference": self.difference}


@dataclass(frozen=True)
class Effect:
    """One metric over all finished pairs.

        Attributes:
            pairs: number of pairs.
    treated, control: means of the two arms.
            mean, sd: of the paired differences, with minus without; `sd` is that of a sample (n - 1).
            low, high: the 95% t interval of the mean over seeds (Student, 1908); None below 2 pairs and without a
            spread. verdict: `no spread` if all differences are equal, as scores on few images often are.
            more_seeds: if the verdict is noise, the approximate number of further pairs for 80% power, if mean and
                spread are the true ones (Guenther, 1981).
    """

    metric: str
    pairs: int
    treated: float | None
    control: float | None
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    more_seeds: int | None

    def figures(self) -> str:
        """Both arms, the difference and its interval."""
        metric = METRICS[self.metric]
        if self.mean is None or self.treated is None or self.control is None:
            return f"{metric.label}: no finished pair yet"
        text = f"{metric.label} {metric.value(self.treated)} with, {metric.value(self.control)} without: "
        text += f"{metric.change(self.mean)}{metric.unit}"
        if self.low is None or self.high is None:
            return text
        return f"{text} (95% interval {metric.change(self.low)} to {metric.change(self.high)}, {self.pairs} seeds)"

    def words(self) -> str:
        """The figures and the verdict, in one line."""
        return (
            self.figures()
            + {
                "nothing": "",
                "not evidence": ". Single seed; run more before drawing conclusions",
                "no spread": f" on each of {self.pairs} seeds: "
                + ("identical difference on every seed, add seeds" if self.mean else "no difference"),
                "noise": f": not statistically significant; {self.outlook}",
                "helps": ": helps",
                "hurts": ": hurts",
            }[self.verdict]
        )

    @property
    def outlook(self) -> str:
        """If the verdict is noise: the number of further seeds that it might take; else empty."""
        if self.verdict != "noise":
            return ""
        if self.more_seeds is None or self.more_seeds > FAR:
            return f"a difference this small may not become significant with {FAR} more seeds"
        seeds = "1 more seed" if self.more_seeds == 1 else f"{self.more_seeds} more seeds"
        return f"about {seeds} needed, if the observed mean and spread are the true ones"


def effect(metric: str, treated: Sequence[float], control: Sequence[float]) -> Effect:
    """The paired difference of two equally long lists of a metric, one value per seed."""
    differences = [ours - theirs for ours, theirs in zip(treated, control, strict=True)]
    n = len(differences)
    if not n:
        return Effect(metric, 0, None, None, None, None, None, None, "nothing", None)
    means = sum(treated) / n, sum(control) / n
    mean = sum(differences) / n
    if n == 1:
        return Effect(metric, 1, *means, mean, None, None, None, "not evidence", None)
    found = statistics.paired(differences)
    if not found.se:  # equal counts on the same images, up to rounding
        return Effect(metric, n, *means, mean, 0.0, None, None, "no spread", None)
    shown = found.mean, found.seeds_sd, *METRICS[metric].differences(found.low, found.high)
    if found.low <= 0 <= found.high:
        needed = statistics.pairs_needed(found.mean, found.seeds_sd)
        return Effect(metric, n, *means, *shown, "noise", needed and max(1, needed - n))
    better = (found.mean < 0) == METRICS[metric].less_is_better
    return Effect(metric, n, *means, *shown, "helps" if better else "hurts", None)


@dataclass(frozen=True)
class AblationReport:
    """The current result of an ablation.

    Attributes:
        what: the component that the control arm lacks.
        title: the student.
        pairs: one per seed.
        effects: accuracy, macro recall, NLL and ECE.
    """

    what: What
    title: str
    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]

    @property
    def arms(self) -> list[Arm]:
        """All runs, in the order of the queue."""
        return [arm for pair in self.pairs for _, arm in pair.arms]

    @property
    def finished(self) -> int:
        """Number of pairs with both arms finished."""
        return sum(pair.difference is not None for pair in self.pairs)

    @property
    def running(self) -> int:
        """Number of pairs with an arm queued or in training."""
        return sum(any(arm.state in (State.QUEUED, State.RUNNING) for _, arm in pair.arms) for pair in self.pairs)

    @property
    def failed(self) -> list[str]:
        """Every arm that failed or is damaged, with its reason."""
        return [
            f"seed {pair.seed} {name} {CONTROLS[self.what].name}: {arm.reason or arm.state}"
            for pair in self.pairs
            for name, arm in pair.arms
            if arm.state in (State.FAILED, DAMAGED)
        ]

    @property
    def missing(self) -> int:
        """Number of runs that `start` would queue."""
        return sum(arm.state not in (State.QUEUED, State.RUNNING, State.FINISHED) for arm in self.arms)

    @property
    def images(self) -> int | None:
        """Number of validation images."""
        return next((arm.images for arm in self.arms if arm.images), None)

    @property
    def verdict(self) -> str:
        """The verdict on accuracy, in a few words."""
        name = capital(CONTROLS[self.what].name)
        return {
            "nothing": "No results yet",
            "not evidence": "Single seed; run more before drawing conclusions",
            "no spread": "Identical difference on every seed" if self.effects[0].mean else "No difference",
            "noise": "Not statistically significant",
            "helps": f"{name} helps",
            "hurts": f"{name} hurts",
        }[self.effects[0].verdict]

    def scope(self) -> str:
        """The scope and limits of the figures."""
        seen = f"{self.images:,} validation images" if self.images else "validation images"
        return (
            f"Differences are with minus without, on {seen}, which were also used to select the best epoch of both "
            "arms; test images are not used. Intervals are 95% over seeds, each on its own; they exclude variance "
            "over images and over training budgets."
        )

    def words(self) -> str:
        """The whole report as lines of text."""
        seeds = [pair.seed for pair in self.pairs]
        span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        states = [f"{self.finished} of {len(self.pairs)} pairs finished"]
        states += [f"{self.running} running or queued"] if self.running else []
        states += [f"{self.missing} run{'s' * (self.missing > 1)} to start"] if self.missing else []
        lines = [f"{self.title}, with and without {CONTROLS[self.what].name}, {span}: {', '.join(states)}"]
        lines += [effect.words() for effect in self.effects] if self.finished else []
        lines += [f"failed: {reason}" for reason in self.failed]
        lines += ["Failed seeds are excluded from the figures, which favours the arm that failed."] * bool(self.failed)
        return "\n".join([*lines, self.scope()])

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "title": self.title,
            "split": "val",
            "images": self.images,
            "of": len(self.pairs),
            "finished": self.finished,
            "running": self.running,
            "failed": self.failed,
            "missing": self.missing,
            "verdict": self.verdict,
            "metrics": {effect.metric: asdict(effect) for effect in self.effects},
            "pairs": [pair.as_dict() for pair in self.pairs],
        }


def capital(text: str) -> str:
    """`text` capitalised."""
    return text[:1].upper() + text[1:]


def report(store: Store, spec: RunSpec, what: What, seeds: int) -> AblationReport:
    """The current report for a resolved spec, from the store; trains and queues nothing.

    Raises:
        BadSpec, BadInput: as `pairs`.
    """
    found = tuple(Pair(ours.seed, _arm(store, ours), _arm(store, theirs)) for ours, theirs in pairs(spec, what, seeds))
    whole = [(pair.treated.scores, pair.control.scores) for pair in found]
    both = [(ours, theirs) for ours, theirs in whole if ours and theirs]
    effects = tuple(
        effect(name, [ours[name] for ours, _ in both], [theirs[name] for _, theirs in both]) for name in METRICS
    )
    return AblationReport(what, title(spec).rpartition(" · ")[0], found, effects)


def _arm(store: Store, spec: RunSpec) -> Arm:
    found = status_of(store, digest(spec), NEEDS)
    if found.result is None:
        return Arm(found.id, found.state, found.reason)
    scores = found.result["val"]
    if not scores.get("recall"):
        return Arm(found.id, DAMAGED, "its result has no recall of classes")
    scores = with_macro(scores)
    return Arm(found.id, found.state, None, {name: float(scores[name]) for name in METRICS}, int(scores["images"]))
