"""The smallest model within limits: what is proposed, what is ruled out, what meets a limit, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import signal
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import processes
import pytest
from conftest import Show, command, texts
from numpy.typing import NDArray
from scipy import stats

from smallalign_core import search
from smallalign_core.errors import BadInput, BadModel, BadSpec, MissingExtra
from smallalign_core.runs.store import Run, Store
from smallalign_core.search import _check, _decide, _evidence, _journal, _plan, _sampler, _space, _steps
from smallalign_core.search._evidence import Counts
from smallalign_core.search._journal import Measured
from smallalign_core.search._laboratory import Mixed
from smallalign_core.search._plan import Standing
from smallalign_core.search._sampler import Outcome
from smallalign_core.search._space import SIZES, Candidate, Space
from smallalign_core.search._spec import Budget, SearchSpec
from smallalign_core.service import handlers, requests, worker
from smallalign_core.spec import Pruned, RunSpec, digest
from smallalign_core.spec.parts import OwnNetwork
from smallalign_core.studies import lifecycle
from smallalign_core.system.files import read_lines, write, write_json
from smallalign_core.training import teacher_evidence

EVERY = Space(tuple(SIZES), (1, 2), taught=True)

# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (3, 7), (139, 143), (143, 143), (950, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 23])
def test_the_exact_interval_is_that_of_scipy(hits: int, total: int, alpha: float) -> None:
    theirs = stats.binomtest(hits, total).proportion_ci(1 - alpha, method="exact")

    assert _evidence.exact_interval(hits, total, alpha) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_more_files_compared_need_more_evidence() -> None:
    counts = Counts(0, 97, 0, 3)
    one, many = (_evidence.absolute(counts, 0.91, looks) for looks in (1, 40))

    assert (one.verdict, many.verdict) == ("meets", "undecided")
    assert many.low < one.low < one.margin == pytest.approx(0.06)
    assert _evidence.absolute(Counts(0, 70, 0, 30), 0.91, 40).verdict == "fails"


def test_a_share_of_the_teachers_accuracy_is_paired() -> None:
    counts, share, looks = Counts(9_000, 150, 120, 730), 0.98, 6

    found = _evidence.relative(counts, share, looks)

    def ends(hits: int) -> tuple[float, float]:
        known = stats.binomtest(hits, 10_000).proportion_ci(1 - 0.05 / 6 / 3, method="exact")
        return known.low, known.high

    (both, alone, teacher) = map(ends, (9_000, 150, 120))
    assert found.margin == pytest.approx((9_150 - share * 9_120) / 10_000)
    assert found.low == pytest.approx(0.02 * both[0] + alone[0] - 0.98 * teacher[1], abs=1e-12)
    assert found.high == pytest.approx(0.02 * both[1] + alone[1] - 0.98 * teacher[0], abs=1e-12)
    unpaired = _evidence.absolute(counts, share * counts.teacher_accuracy, looks)
    assert found.high - found.low < unpaired.high - unpaired.low, "on the same images, less is left to chance"
    assert _evidence.relative(counts, 1.0, looks).high < found.high


TRUTHS = [(0.9, 0.03, 0.02, 0.05), (0.97, 0.01, 0.0, 0.02), (0.95, 0.0, 0.01, 0.04), (0.5, 0.2, 0.2, 0.1)]


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("looks", [1, 20])
def test_the_paired_interval_covers_also_where_models_seldom_differ(truth: tuple[float, ...], looks: int) -> None:
    share, rng = 0.98, np.random.default_rng(1)
    real = truth[0] + truth[1] - share * (truth[0] + truth[2])
    drawn, times = np.unique(rng.multinomial(200, truth, size=8_000), axis=0, return_counts=True)
    found = [_evidence.relative(Counts(*map(int, one)), share, looks) for one in drawn]
    covered = np.average([one.low <= real <= one.high for one in found], weights=times)
    assert covered >= 1 - 0.05 / looks


@pytest.mark.parametrize(("accuracy", "limit", "looks"), [(1.0, 0.95, 1), (1.0, 0.95, 10), (0.98, 0.95, 3)])
def test_images_needed_is_the_first_number_that_decides(accuracy: float, limit: float, looks: int) -> None:
    needed = _evidence.images_needed(accuracy, limit, looks)
    assert needed is not None

    def low(images: int) -> float:
        right = math.floor(accuracy * images + 1e-9)
        return float(stats.binomtest(right, images).proportion_ci(1 - 0.05 / looks, method="exact").low)

    assert low(needed) >= limit > low(needed - 1)
    assert _evidence.images_needed(limit, limit, looks) is None


# --- the space --------------------------------------------------------------------------------------------------------


def test_the_space_has_every_network_of_the_catalogue() -> None:
    assert list(SIZES) == [one.model_fields["kind"].default for one in get_args(OwnNetwork)]


def base(**fields: Any) -> RunSpec:
    return RunSpec.model_validate({"data": "digits", "network": "mlp", **fields})


def test_every_candidate_is_a_chain_of_runs_that_start_where_the_last_one_ended() -> None:
    for one in EVERY.networks():
        runs = _space.chain(base(), replace(one, taught=False), (1, 3, 9), 28, None, 5)
        assert [run.epochs for run in runs] == [1, 3, 9]
        assert [run.start for run in runs] == [None, digest(runs[0]), digest(runs[1])]
        assert len({run.seed for run in runs}) == 3
        assert len({run.network for run in runs}) == 1
        assert (runs[0].network.size, runs[0].network.width) == (14 if one.scale == 2 else None, one.width)


def test_a_distilled_candidate_has_the_teacher_and_its_loss() -> None:
    loss = RunSpec.model_validate({"data": "d", "network": "mlp", "teacher": "t"}).loss.model_copy(
        update={"temperature": 3.0, "weight": 0.4}
    )
    one = Candidate("cnn", 8, 3, taught=True, augment="strong")

    (run,) = _space.chain(base(), one, (2,), 28, _space.Taught("0" * 16, loss), 0)

    assert (run.teacher, run.loss) == ("0" * 16, loss)
    assert [part.kind for part in run.augment] == ["shift", "rotate", "affine"]
    (plain,) = _space.chain(base(), replace(one, taught=False), (2,), 28, _space.Taught("0" * 16, loss), 0)
    assert (plain.teacher, plain.loss.kind) == (None, "cross_entropy")


def test_candidates_of_a_rung_train_in_lockstep_where_they_see_the_same_images() -> None:
    one, other = Candidate("cnn", 8, 3), Candidate("resnet", 4, 1, scale=2)
    for first, second in zip(*(_space.chain(base(), each, (1, 3), 28, None, 0) for each in (one, other)), strict=True):
        assert first.can_lockstep_with(second)


def test_a_neighbour_differs_in_one_step_and_belongs_to_the_space() -> None:
    for one in EVERY.networks():
        for smaller in (True, False):
            for other in EVERY.neighbours(one, smaller=smaller):
                assert EVERY.has(other)
                changed = {name for name, value in other.as_dict().items() if value != getattr(one, name)}
                assert len(changed) == 1
                if "width" in changed:
                    assert (other.width < one.width) == smaller


def test_small_images_are_not_made_smaller() -> None:
    assert [_space.scales_for((1, side, side)) for side in (8, 28, 100)] == [(1,), (1, 2), (1, 2, 4)]


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("30m", Budget(seconds=1800)),
        ("90s", Budget(seconds=90)),
        ("1.5h", Budget(seconds=5400)),
        ("12trials", Budget(trials=12)),
        (" 1 trial ", Budget(trials=1)),
    ],
)
def test_a_budget_is_a_time_or_trials(text: str, budget: Budget) -> None:
    assert search.parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "0s", "1.5 trials", "0trials", "1e9h", "thirty minutes"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="Not a budget"):
        search.parse_budget(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.95", {"min_accuracy": 0.95}),
        ("95%", {"min_accuracy": 0.95}),
        (".9", {"min_accuracy": 0.9}),
        ("98 % of teacher", {"min_share": 0.98}),
        ("98% of the teacher", {"min_share": 0.98}),
        ("1.01 of teacher", {"min_share": 1.01}),
    ],
)
def test_an_accuracy_is_a_share_or_one_of_the_teachers(text: str, limit: dict[str, float]) -> None:
    assert search.parse_accuracy(text) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "95", "1", "100%", "-0.5", "0", "98% of student", "high", "200% of teacher"])
def test_what_is_no_accuracy_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="ccuracy"):
        search.parse_accuracy(text)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, "no limit"),
        ({"max_kb": 0}, "max_kb"),
        ({"max_ms": -1}, "max_ms"),
        ({"min_accuracy": 0.9, "min_share": 0.9}, "give one"),
        ({"min_share": 0.9, "teacher": "none"}, "needs a teacher"),
        ({"max_kb": 5, "families": ["vgg"]}, "families"),
        ({"max_kb": 5, "families": []}, "families"),
        ({"max_kb": 5, "precisions": ["fp32", "fp32"]}, "twice"),
        ({"max_kb": 5, "rungs": [9, 3]}, "ascending"),
        ({"max_kb": 5, "budget": {"seconds": 5, "trials": 5}}, "one of both"),
        ({"max_kb": 5, "flavour": "mint"}, "flavour"),
        ({"max_kb": 5, "data": {"source": "digits", "unlabeled": "more"}}, "does not use unlabeled images"),
    ],
)
def test_a_search_that_cannot_be_is_refused(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BadSpec, match=wrong):
        search.parse_study({"data": "digits", **fields})


def test_the_budget_is_no_part_of_what_a_search_is() -> None:
    def of(**fields: Any) -> str:
        return search.study_id(search.parse_study({"data": "digits", "max_kb": 20, **fields}))

    assert of() == of(budget={"seconds": 5}) == of(budget={"trials": 5})
    assert len({of(), of(max_kb=21), of(min_accuracy=0.9), of(seed=1), of(families=["cnn"])}) == 5


def test_a_search_is_read_back_as_it_was_written() -> None:
    spec = simulated(max_kb=20, min_accuracy=0.9)
    assert search.parse_study(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


# --- ranks and proposals ----------------------------------------------------------------------------------------------


def test_without_an_accuracy_limit_the_most_accurate_go_on() -> None:
    seen = [
        Standing(1, 900, 0.7, 1.0),
        Standing(2, 100, 0.9, 0.5),
        Standing(3, 500, 0.9, 0.4),
        Standing(4, 1, 0.1, 2.0),
    ]
    assert _plan.ranked(seen, None) == [3, 2, 1, 4]
    assert _plan.survivors(seen, None) == [3, 2]


def test_with_one_the_pareto_front_goes_on_nearest_to_the_limit_first() -> None:
    rng = np.random.default_rng(3)
    seen = [Standing(at, int(size), float(acc), 1.0) for at, (size, acc) in enumerate(rng.random((40, 2)) * (1000, 1))]
    order = _plan.ranked(seen, 0.8)

    def beaten(one: Standing, among: list[Standing]) -> bool:
        return any(
            (a.bytes <= one.bytes and a.accuracy >= one.accuracy) and (a.bytes, a.accuracy) != (one.bytes, one.accuracy)
            for a in among
        )

    left = list(seen)
    while left:
        front = [one for one in left if not beaten(one, left)]
        first, order = order[: len(front)], order[len(front) :]
        assert set(first) == {one.number for one in front}
        short = [max(0.0, 0.8 - seen[number].accuracy) for number in first]
        assert short == sorted(short)
        left = [one for one in left if one not in front]


def history(count: int) -> list[Outcome]:
    """Candidates of which those with width index 1 and full size are within the limit and small."""
    rng, found = random.Random(0), []
    for _ in range(count):
        family = rng.choice(list(SIZES))
        widths, depths = SIZES[family]
        at = rng.randrange(len(widths))
        one = Candidate(family, widths[at], rng.choice(depths), rng.choice((1, 2)), rng.random() < 0.5, "none")
        good = family == "cnn" and one.scale == 1
        found.append(Outcome(one, float(at), -0.05 if good else 0.3))
    return found


def test_the_same_history_gives_the_same_proposals_and_another_seed_others() -> None:
    def proposed(seed: int) -> list[_sampler.Proposal]:
        return [one for one, _ in zip(_sampler.sampled(EVERY, history(20), seed), range(10), strict=False)]

    assert proposed(1) == proposed(1) != proposed(2)
    assert all(EVERY.has(one.candidate) for one in proposed(1))


def test_the_sampler_learns_what_is_within_the_limits() -> None:
    proposals = [one for one, _ in zip(_sampler.sampled(EVERY, history(60), 0), range(24), strict=False)]
    within = [one.candidate.family == "cnn" and one.candidate.scale == 1 for one in proposals]
    assert np.mean(within) > 0.4, "a random draw has an eighth"
    assert {one.why for one in proposals} == {"sampler: likely better than the trials so far"}


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtra, match=re.escape('pip install "smallalign[search]"')):
        next(_sampler.sampled(EVERY, [], 0))


# --- whole searches, on simulated students ----------------------------------------------------------------------------


def simulated(**fields: Any) -> SearchSpec:
    """A search as it is resolved."""
    resolved = {"data": {"source": "digits", "fingerprint": "0" * 16}, "teacher": "none", "precision": "fp32"}
    shape = {"shape": (1, 28, 28), "rungs": (1, 3, 9), "batch": 32, "budget": {"trials": 20}}
    of_this_machine = {"optimizers": ["adamw"], "backbones": []}  # else it depends on what is installed
    return search.parse_study(resolved | shape | of_this_machine | fields)


VALIDATION = 4_000


class Simulation:
    """A laboratory and a trainer without torch: accuracy, bytes and seconds are functions of the spec, and time passes
    only where something is done."""

    classes = ("a", "b")
    train_images = 3_200
    teacher = 0.96
    measuring = 1.0
    """Seconds of measuring a candidate."""

    def __init__(self, store: Store, spec: SearchSpec) -> None:
        self.store, self.spec, self.time, self.trained = store, spec, 0.0, 0
        self.study = lifecycle.create(store, search.KIND, spec)
        self.fails: set[str] = set()
        self.noise = 1.0

    def now(self) -> float:
        return self.time

    def params(self, run: RunSpec) -> int:
        network: Any = run.network
        per_depth = {"mlp": 12, "cnn": 9, "separable": 3, "resnet": 20}[network.kind]
        params = int(network.width) ** 2 * per_depth * int(network.depth)
        return params if network.pruned is None else network.pruned.widths[0][1]  # the simulation's own meaning

    def least_bytes(self, run: RunSpec, _: Any) -> int:
        return self.params(run)

    def measure(self, run: RunSpec, precisions: Any, __: int | None) -> Measured:
        self.time += self.measuring
        params = self.params(run)
        sizes = {"fp32": 3_000 + 4 * params, "fp16": 3_200 + 2 * params, "int8": 6_000 + params}
        known = {name: size for name, size in sizes.items() if name in precisions}
        return Measured(params, params * 50, known, dict.fromkeys(known, params / 10_000), self.step(run), 4)

    def sizes(self, run: RunSpec, precisions: Any) -> dict[str, int | None]:
        return {**self.measure(run, precisions, None).bytes}

    def pruned(self, run: Run, share: float) -> Any:
        kept = Pruned(widths=(("0", max(1, int(share * self.params(run.spec))), 1),))
        return run.spec.network.model_copy(update={"pruned": kept})

    def step(self, run: RunSpec) -> float:
        return 1e-4 + self.params(run) * 1e-7

    def lesson(self, _: RunSpec) -> float:
        return 0.0

    def accuracy(self, run: RunSpec) -> float:
        epochs, each = 0, run
        while each is not None:
            epochs += each.epochs
            each = self.store.by_id(each.start).spec if each.start else None
        bonus = {"mlp": 0.75, "cnn": 1.5, "separable": 1.2, "resnet": 1.3}[run.network.kind]
        size = 1 if getattr(run.network, "size", None) is None else 0.7
        recipe = {"adamw": 0.0, "muon": -0.005, "sgd": 0.01}[run.optimizer.kind]
        return 1 - 0.6 * (bonus * size * self.params(run)) ** -0.35 - 0.3 * epochs**-1.2 - recipe

    integers = 0.01
    """What int8 loses."""
    mixed_ms = 0.1

    def right(self, run: Run, variant: str) -> NDArray[np.bool_]:
        self.time += 2.0
        accuracy = self.accuracy(run.spec) - (self.integers if variant == "int8" else 0.0)
        return np.arange(VALIDATION) < round(accuracy * VALIDATION)

    def mixed(self, run: Run) -> Mixed:
        self.time += 4.0
        size = int(6_200 + 1.1 * self.params(run.spec))
        return Mixed("int8-drop0.5", size, self.mixed_ms, self.right(run, "int8-drop0.5"), 3)

    def teacher_right(self, _: Run) -> NDArray[np.bool_]:
        return np.arange(VALIDATION) < round(self.teacher * VALIDATION)

    def evidence(self, _: RunSpec) -> teacher_evidence.Evidence:
        labels = np.arange(200) % 2
        wrong = np.arange(200) < 200 * (1 - self.teacher)
        logits = np.where((labels ^ wrong)[:, None] == np.arange(2), 2.0, 0.0).astype(np.float32)
        known = {"teacher": "t", "digest": "d", "data": "f", "validation": "v", "side": 28, "learned": None}
        return teacher_evidence.of_logits(logits, labels, self.classes, **known)

    def deliver(self, run: Run, variant: str) -> dict[str, Any]:
        self.time += 5.0
        params = self.params(run.spec)
        sizes = {"fp32": 3_000 + 4 * params, "fp16": 3_200 + 2 * params, "int8": 6_000 + params}
        size = sizes[variant] if variant in sizes else int(6_200 + 1.1 * params)
        proof = {"accuracy": 0.9, "images": 1000, "ok": True, "top1_agreement": 1.0, "p50_ms": 0.1, "p95_ms": 0.2}
        return {"file": "model.onnx", "bytes": size, "sha256": "0" * 64, "parity": proof}

    def train(self, runs: list[RunSpec]) -> None:
        """Leave what training in lockstep leaves, as far as a search reads it."""
        steps = sum(run.epochs * self.train_images / run.batch * self.step(run) for run in runs)
        seconds = self.noise * (2.0 + steps)
        self.time += seconds
        for run in runs:
            self._leave(run, seconds)

    def _leave(self, run: RunSpec, seconds: float) -> None:
        made = self.store.create(run)
        self.trained += 1
        if digest(run) in self.fails:
            write_json(made.folder / "state.json", {"ended": "failed", "reason": "out of memory"})
            return
        accuracy = self.accuracy(run)
        write(made.weights, b"")
        scores = {"accuracy": accuracy, "nll": 1 - accuracy, "images": VALIDATION}
        write_json(made.folder / "result.json", {"id": made.id, "val": scores, "seconds": seconds})

    def step_once(self) -> bool:
        """One decision, or else one run; returns whether there was any."""
        if _steps.take(self.spec, self.store, self.study.folder, "cpu", self):  # type: ignore[arg-type]
            return True
        record = self.record()
        missing = [
            run
            for run, _ in _plan.listed(self.spec, self.store, record)
            if not _plan.ended(_plan.status(self.store, run))
        ]
        if missing:
            self.train(lifecycle.lockstep_groups(missing))
        return bool(missing)

    def finish(self) -> search.BudgetSearch:
        while self.step_once():
            pass
        return self.report()

    def record(self) -> _journal.Record:
        return _journal.read(self.study.folder, self.spec.budget)

    def report(self) -> search.BudgetSearch:
        found: search.BudgetSearch = self.study.report(self.store)
        return found


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into cards."""
    kept: list[str] = []
    monkeypatch.setattr("smallalign_core.runs.model_card.write_notes", lambda _, text: kept.append(text))
    return kept


@pytest.fixture(autouse=True)
def no_time_passed() -> None:
    _journal.SEEN.clear()


@pytest.mark.slow
def test_a_search_finds_a_small_file_that_meets_the_limit(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(max_kb=40, min_accuracy=0.93, budget={"trials": 32}))
    report = lab.finish()

    assert report.met
    assert report.complete
    assert report.row is not None
    assert report.row.verdict == "meets"
    assert report.row.bytes <= 40_000
    assert report.row.low is not None
    assert report.row.low >= 0.93
    smaller = [row for row in report.rows if row.verdict == "meets" and row.bytes < report.row.bytes]
    assert not smaller, "the smallest that meets it wins"
    best = min(
        size
        for one in Space(lab.spec.families, (1, 2), taught=False).networks()
        if (chain := _space.chain(base(), one, (1, 3, 9), 28, None, 0))
        and (params := lab.params(chain[-1]))
        and 1 - 0.6 * (_bonus(one) * params) ** -0.35 - 0.3 * 13**-1.2 - 0.01 > 0.945
        for size in (6_000 + params,)
    )
    assert report.row.bytes < 2.5 * best, "of about 150 networks, 32 were tried"
    assert len(report.repeated) == 2
    assert len({one["run"] for one in report.repeated} | {report.row.run}) == 3
    assert report.test == {
        "images": 1000,
        "accuracy": 0.9,
        "accuracy_low": pytest.approx(0.8797, abs=1e-3),
        "accuracy_high": pytest.approx(0.9171, abs=1e-3),
    }
    assert "## The search" in cards[-1]
    assert report.counts() in cards[-1]


def _bonus(one: Candidate) -> float:
    return {"mlp": 0.75, "cnn": 1.5, "separable": 1.2, "resnet": 1.3}[one.family] * (0.7 if one.scale > 1 else 1)


@pytest.mark.slow
def test_what_is_too_large_is_never_trained(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(max_kb=12, budget={"trials": 12}))
    report = lab.finish()

    for run in store.runs():
        assert min(lab.measure(run.spec, ("fp32", "fp16", "int8"), None).bytes.values()) <= 12_000  # type: ignore[type-var]
    out = [row for row in report.rows if row.reason == "size"]
    assert out
    assert all(row.bytes > 12_000 and row.run is None for row in out)
    assert f"{len(out)} ruled out by size" in report.words()
    assert len([row for row in report.rows if row.state != "ruled out"]) == 12
    assert report.row is not None
    best = max(look.counts.accuracy for look in lab.record().looks)
    assert report.row.accuracy == best, "without an accuracy limit, the most accurate within the limits"


def test_latency_rules_out_too(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(max_ms=0.2, min_accuracy=0.8, budget={"trials": 8}))
    report = lab.finish()
    assert all((row.latency_ms or 0) <= 0.2 for row in report.rows if row.state != "ruled out")
    assert any(row.reason == "latency" for row in report.rows)


@pytest.mark.slow
def test_once_a_file_meets_the_limit_larger_ones_are_not_trained(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.8, budget={"trials": 20}))
    report = lab.finish()
    met: int | None = None
    record = lab.record()
    for number in sorted(record.rungs):
        for trial in (trial for trial in record.tried if trial.round == number):
            assert trial.measured is not None
            assert met is None or (trial.measured.bytes[trial.precisions[0]] or 0) < met
        done = [one for one in record.looks if record.trial(one.trial).round <= number]
        best = _plan.best_look(lab.spec, done, len(done) + _decide.AHEAD)
        met = best.bytes if best else None
    assert any(row.reason == "larger" for row in report.rows)


@pytest.mark.slow
def test_a_limit_that_nothing_meets_gives_the_nearest_and_what_would_decide_it(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(max_kb=20, min_accuracy=0.9655, budget={"trials": 16}))
    report = lab.finish()

    assert report.met is False
    assert report.complete
    assert report.row is not None
    assert report.row.bytes <= 20_000
    assert report.file is None
    assert not cards
    assert report.words().startswith("No student here is shown to meet the limits (at most 20 kB, at least 96.55%")
    assert lab.record().winner == {**(lab.record().winner or {}), "trial": None, "repetitions": []}


def test_survivors_go_on_from_their_own_weights_and_one_in_three_does(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"trials": 8}))
    lab.finish()
    rungs = lab.record().rungs[1]
    assert [len(rung) for rung in rungs] == [8, 3, 1]
    assert set(rungs[2]) < set(rungs[1]) < set(rungs[0])
    for run in store.runs():
        if run.spec.start:
            assert store.by_id(run.spec.start).spec.network == run.spec.network


def decided(record: _journal.Record) -> Any:
    """What a search decided, without times."""
    trials = [replace(trial, measured=None) for trial in record.trials]
    winner = {name: value for name, value in (record.winner or {}).items() if name != "spent"}
    delivered = {name: (record.delivered or {}).get(name) for name in ("file", "bytes", "test")}
    return trials, record.rungs, [(look.trial, look.precision, look.counts) for look in record.looks], winner, delivered


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_it_takes_the_same_decisions(tmp_path: Path, cards: list[str], seed: int) -> None:
    spec = simulated(max_kb=40, min_accuracy=0.93, budget={"trials": 20}, seed=seed)
    whole = Simulation(Store(tmp_path / "whole"), spec)
    whole.finish()
    killed, rng = Simulation(Store(tmp_path / "killed"), spec), random.Random(seed)
    while killed.step_once():
        if rng.random() < 0.3:  # another process, which has nothing in its memory; another clock
            _journal.SEEN.clear()
            killed = Simulation(killed.store, spec)
            killed.time = rng.random() * 1e6

    assert decided(killed.record()) == decided(whole.record())
    assert killed.report().words().partition("Stopped")[0] == whole.report().words().partition("Stopped")[0]


@pytest.mark.slow
def test_an_undelivered_search_does_not_say_that_it_is_complete(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"trials": 8}))
    while lab.record().stopped is None:
        assert not lab.report().complete
        assert lab.report().met in (None, True)
        assert lab.step_once()
    assert not lab.report().complete
    assert lab.finish().complete


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "noise"), [(120.0, 1.0), (120.0, 2.5), (300.0, 1.5)])
def test_a_budget_of_time_is_kept_within_a_tenth(store: Store, cards: list[str], seconds: float, noise: float) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"seconds": seconds}))
    lab.noise = noise
    report = lab.finish()

    assert lab.time <= 1.1 * seconds
    assert report.spent == pytest.approx(lab.time, abs=0.1 * seconds)
    assert lab.trained > 8
    assert lab.time > 0.4 * seconds or "ruled out" in (report.stopped or "")


@pytest.mark.slow
@pytest.mark.parametrize(("measuring", "noise"), [(9.0, 1.0), (9.0, 3.0), (1.0, 8.0)])
def test_a_short_budget_on_a_slow_machine_still_gives_an_answer(
    store: Store, cards: list[str], measuring: float, noise: float
) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.6, budget={"seconds": 150}))
    lab.measuring, lab.noise = measuring, noise
    report = lab.finish()
    assert report.complete
    assert report.row is not None, "at least one file is evaluated"
    assert report.met
    assert lab.time <= 1.1 * 150


@pytest.mark.slow
def test_more_budget_goes_on_where_less_of_it_ended(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(max_kb=40, min_accuracy=0.93, budget={"trials": 8}))
    before = lab.finish()
    trained, folder = lab.trained, lab.study.folder

    search.extend(folder, lab.spec.budget, Budget(trials=8))
    assert lab.report().complete, "the same budget changes nothing"
    search.extend(folder, lab.spec.budget, Budget(trials=4))
    assert lab.report().complete
    search.extend(folder, lab.spec.budget, Budget(trials=16))
    assert not lab.report().complete
    after = lab.finish()

    assert [row.candidate for row in after.rows[: len(before.rows)]] == [row.candidate for row in before.rows]
    assert len([row for row in after.rows if row.state != "ruled out"]) == 16
    assert lab.trained > trained
    assert after.complete


def test_a_run_that_fails_ends_its_trial_and_not_the_search(store: Store, cards: list[str]) -> None:
    spec = simulated(min_accuracy=0.93, budget={"trials": 8})
    lab = Simulation(store, spec)
    lab.step_once(), lab.step_once(), lab.step_once()
    first = lab.record().tried[0]
    lab.fails = {digest(_plan.runs_of(spec, lab.record(), first)[0])}
    report = lab.finish()

    assert report.complete
    assert report.rows[first.number - 1].state == "failed"
    assert "out of memory" in (report.rows[first.number - 1].reason or "")
    assert "1 failed" in report.counts()
    assert all(look.trial != first.number for look in lab.record().looks)


def test_a_damaged_record_is_refused_in_words(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"trials": 8}))
    lab.finish()
    file = lab.study.folder / _journal.FILE
    lines = file.read_bytes().split(b"\n")
    at = next(index for index, line in enumerate(lines) if b'"kind": "round"' in line)
    lines[at] = lines[at].replace(b"start", b"stark")
    file.write_bytes(b"\n".join(lines))

    with pytest.raises(BadModel, match="record of the search is damaged"):
        lab.report()
    assert lifecycle.summary(lab.study, store).kind is None


@pytest.mark.slow
def test_every_trial_says_why_it_was_tried(store: Store, cards: list[str]) -> None:
    report = Simulation(store, simulated(max_kb=40, min_accuracy=0.9, budget={"trials": 20})).finish()
    kinds = {re.match(r"\w+", row.why)[0] for row in report.rows}  # type: ignore[index]
    assert {"start", "one"} <= kinds <= {"start", "one", "another", "pruned", "sampler", "random"}
    steps = [row for row in report.rows if row.why.startswith("one step smaller")]
    assert steps
    for row in steps:
        origin = report.rows[int(re.search(r"trial (\d+)", row.why)[1]) - 1]  # type: ignore[index]
        assert len({name for name, value in row.candidate.items() if value != origin.candidate[name]}) == 1


@pytest.mark.slow
def test_a_share_of_the_teachers_accuracy_is_a_limit(store: Store, cards: list[str]) -> None:
    spec = simulated(min_share=0.97, max_kb=60, budget={"trials": 12}, teacher="0" * 16)
    lab = Simulation(store, spec)
    made = store.by_id("0" * 16)
    made.folder.mkdir(parents=True)
    write_json(made.folder / "spec.json", {"spec": base().model_dump(mode="json")})
    write(made.weights, b"")
    write_json(made.folder / "result.json", {"id": made.id})

    report = lab.finish()

    assert report.met
    assert report.row is not None
    assert report.row.low is not None
    assert report.row.accuracy is not None
    assert report.row.low >= 0.97 * 0.96 - 1e-9
    assert report.teacher_accuracy == pytest.approx(0.96)
    assert "at least 97% of the teacher's accuracy" in report.words()
    for look in lab.record().looks:
        assert look.counts.teacher_accuracy == pytest.approx(0.96)
    taught = [run.spec for run in store.runs() if run.id != made.id and run.spec.teacher]
    assert taught
    assert {run.teacher for run in taught} == {made.id}
    temperature, weight = teacher_evidence.trust(lab.evidence(taught[0]))
    assert {(run.loss.temperature, run.loss.weight) for run in taught} == {(temperature, weight)}  # type: ignore[union-attr]


@pytest.mark.slow
def test_without_a_suitable_teacher_one_is_trained_within_a_share_of_the_budget(
    store: Store, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallalign_core.search._teacher.WIDTHS", (6, 4, 2))
    lab = Simulation(store, simulated(min_accuracy=0.9, teacher=None, budget={"seconds": 100}))
    while lab.trained == 0:
        lab.step_once()
    (first,) = store.runs()
    assert first.spec.network.kind == "resnet"
    assert first.spec.teacher is None
    assert lab.time <= 0.25 * 100 + 5
    entry = lab.record().teacher or {}
    assert re.match(r"a new resnet \d+x2, about \d+ s of the budget", entry["why"])
    report = lab.finish()
    assert report.teacher_run == first.id
    assert "a new resnet" in report.words()
    assert lab.time <= 110


def test_a_teacher_that_fails_to_train_leaves_labels(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.9, teacher=None, budget={"trials": 4}))
    lab.step_once()
    lab.fails = {digest(run) for run, _ in _plan.listed(lab.spec, store, lab.record())}
    report = lab.finish()
    assert report.teacher_run is None
    assert "out of memory" in report.teacher
    assert not any(row.candidate["taught"] for row in report.rows)


def test_too_few_validation_images_are_refused_with_the_number_that_is_needed() -> None:
    spec = simulated(min_accuracy=0.99)
    with pytest.raises(BadInput, match="at least 597 are needed") as refused:
        _check.check_images(spec, 143)
    assert "143" in str(refused.value)
    _check.check_images(spec, 597)
    _check.check_images(simulated(min_share=0.99, teacher="t"), 143, teacher=0.9)


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ["--set", "families=[mlp]", "--set", "precisions=[fp32,int8]", "--set", "rungs=[2,6]", "--set", "seeds=2"]
LIMITS = ["--max-kb", 30, "--min-accuracy", 0.3, "--set", "data.validation=0.3"]


@pytest.mark.slow
def test_one_command_ends_in_a_verified_file_whose_card_carries_the_search(store: Store, tmp_path: Path) -> None:
    to = tmp_path / "small.zip"
    command_line = ["shrink", "digits", *LIMITS, *SMALL, "--json"]

    done = command(*command_line, "--budget", "3trials", "--to", to, store=store)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["met"] is True
    assert found["file"] == str(to)
    assert (found["verified"], found["accuracy_on"]) == (True, "test")
    assert found["teacher_run"] == store.run("digits-teacher").id, "the best suitable one of the store"
    with zipfile.ZipFile(to) as archive:
        archive.extractall(tmp_path)
    file = tmp_path / "model.onnx"
    assert file.stat().st_size == found["bytes"] == found["row"]["bytes"] <= 30_000, "exact before training"
    card = (tmp_path / "card.md").read_text()
    assert "## The search" in card
    assert f"{len(found['trials'])} candidates" in card
    verified = command("verify", file, "--proof", tmp_path / "parity.json", "--json", store=store)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["accuracy"] == pytest.approx(found["accuracy"])
    assert len(found["repeated"]) == 1
    assert len([row for row in found["trials"] if row["state"] != "ruled out"]) == 3
    assert all(row["why"] for row in found["trials"])
    run = store.finished(found["run"])
    assert run.spec.start
    looks, _ = read_lines(store.root / "test-looks.jsonl")
    assert [look["why"] for look in looks if look["run"] == run.id].count(f"export {found['precision']}") <= 1

    again = command(*command_line, "--budget", "3trials", store=store)
    assert json.loads(again.stdout) == found | {"file": None, "test_looks": json.loads(again.stdout)["test_looks"]}
    taken = command(*command_line, "--budget", "3trials", "--to", to, store=store)
    assert taken.returncode == 2
    assert "The file exists already" in taken.stderr
    more = json.loads(command(*command_line, "--budget", "4trials", store=store).stdout)
    assert more["id"] == found["id"]
    assert len([row for row in more["trials"] if row["state"] != "ruled out"]) == 4
    assert [row["candidate"] for row in more["trials"][: len(found["trials"])]] == [
        row["candidate"] for row in found["trials"]
    ]


@pytest.mark.slow
def test_killed_by_the_system_three_times_it_gives_the_same_answer(tmp_path: Path) -> None:
    command_line = ["shrink", "digits", *LIMITS, *SMALL, "--teacher", "none", "--budget", "3trials", "--json"]
    whole, killed, rng = Store(tmp_path / "whole"), Store(tmp_path / "killed"), random.Random(7)
    expected = command(*command_line, store=whole)
    assert expected.returncode == 0, expected.stderr

    def lines() -> int:
        files = killed.root.glob("studies/*/search.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    for _ in range(3):
        before = lines()
        with processes.started(
            processes.python("-m", "smallalign_core", *map(str, command_line), "--store", str(killed.root))
        ) as process:
            until = time.monotonic() + 240
            while lines() == before and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(rng.random() * 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
    found = command(*command_line, store=killed)

    assert found.returncode == 0, found.stderr
    one, other = json.loads(expected.stdout), json.loads(found.stdout)
    kept = ("id", "met", "bytes", "accuracy", "run", "precision", "looks", "repeated", "teacher", "limits")
    assert {name: one[name] for name in kept} == {name: other[name] for name in kept}
    for first, second in zip(one["trials"], other["trials"], strict=True):
        assert first | {"latency_ms": 0} == second | {"latency_ms": 0}
    weights = [hashlib.sha256(place.finished(one["run"]).weights.read_bytes()).hexdigest() for place in (whole, killed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--max-kb", 2], "No network of the space is that small: the smallest file is 3."),
        (["--max-ms", 0.000001], "No network of the space is that fast here"),
        (
            ["--min-accuracy", 0.99],
            "oo few validation images to decide an accuracy limit of 99%: 143, and at least 597",
        ),
        (["--max-kb", 30, "--budget", "2s"], "The budget is shorter than one trial"),
    ],
)
def test_what_cannot_be_met_is_said_before_anything_is_trained(store: Store, options: list[object], wrong: str) -> None:
    done = command("shrink", "digits", *SMALL, "--budget", "5m", *options, store=store)
    assert done.returncode == 2
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr
    assert not store.runs()
    assert not lifecycle.listing(store)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["nowhere", "--max-kb", 20], "nowhere"),
        (["digits"], "There is no limit"),
        (["digits", "--max-kb", 20, "--budget", "soon"], "Not a budget"),
        (["digits", "--min-accuracy", "1"], "An accuracy limit lies between 0 and 1"),
        (["digits", "--max-kb", 20, "--to", "/nowhere/x.onnx"], "--to is not an .onnx or .zip file"),
        (["digits", "--max-kb", 20, "--teacher", "nobody"], "Run not found"),
        (["digits", "--max-kb", 20, "--set", "families=[vgg]"], "families"),
    ],
)
def test_bad_input_is_one_sentence(store: Store, options: list[object], wrong: str) -> None:
    done = command("shrink", *options, store=store)
    assert done.returncode == 2, done.stdout
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr
    assert not store.runs()


@pytest.mark.slow
def test_a_worker_does_it_too_and_the_list_of_studies_shows_it(store: Store) -> None:
    command_line = ["shrink", "digits", *LIMITS, *SMALL, "--teacher", "none", "--budget", "2trials", "--json"]
    queued = json.loads(command(*command_line, "--queue", store=store).stdout)
    assert (queued["complete"], queued["active"], queued["met"]) == (False, True, None)

    worker.serve(store, device="cpu", once=True)

    (study,) = lifecycle.listing(store, search.KIND)
    line = lifecycle.summary(study, store)
    assert (line.kind, line.active, line.done) == ("search", False, line.known)
    assert line.title == "digits · at most 30 kB, at least 30% accuracy"
    report = search.report(study.spec, store, study.folder)
    assert report.complete
    assert report.met
    assert not study.trouble
    gone = lifecycle.delete(store, study, runs=True)
    assert len(gone) == line.known
    assert not store.runs()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["cli._main", "service.worker", "service.handlers", "service.requests"])
def test_every_process_that_reads_studies_knows_this_kind(module: str) -> None:
    code = f"import smallalign_core.{module}; from smallalign_core.studies import kinds; print([*kinds.KINDS])"
    assert "search" in processes.run(processes.python("-c", code)).stdout


@pytest.mark.slow
def test_pages_know_it_without_torch() -> None:
    code = (
        "import sys, pages.ui.studies.study_list; from smallalign_core.studies import kinds; "
        "print([*kinds.KINDS], {'torch', 'optuna', 'onnx'} & set(sys.modules))"
    )
    said = processes.run(processes.python("-c", code)).stdout
    assert "search" in said
    assert "set()" in said


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_shows_the_answer_every_trial_and_where_to_go_next(
    store: Store, cards: list[str], shown: Show
) -> None:
    lab = Simulation(store, simulated(max_kb=40, min_accuracy=0.93, budget={"trials": 8}))
    report = lab.finish()

    app = shown("shrink", study=report.id)

    assert report.words().split(" (")[0] in texts(app)
    (table,) = app.dataframe
    assert list(table.value["Trial"]) == [row.number for row in report.rows]
    assert list(table.value["Reason to try it"]) == [row.why for row in report.rows]
    assert report.row is not None
    links = {link.label: link.proto.query_string for link in app.get("page_link")}
    assert f"run={report.row.run}" in links["Download and try in the browser"]
    assert f"precision={report.row.precision}" in links["Download and try in the browser"]
    assert "data=digits" in links["Duplicate and edit"]


@pytest.mark.slow
def test_the_form_writes_the_command_and_starts_the_search(
    store: Store, shown: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("pages.ui.studies.study_form.start", lambda kind, spec: started.append((kind.name, spec)))

    app = shown("shrink", data="digits", kb="20", ms="5", accuracy="98", unit="teacher", minutes="10")

    (command_line,) = [one.value for one in app.code]
    assert command_line == (
        'python -m smallalign_core shrink digits --max-kb 20 --max-ms 5 --min-accuracy "98% of teacher" '
        "--budget 10min --to small.onnx"
    )
    assert search.parse_budget("10min") == Budget(seconds=600)
    next(one for one in app.button if one.label == "Find the smallest model").click().run()
    ((kind, spec),) = started
    assert kind == search.KIND
    assert (spec.max_kb, spec.max_ms, spec.min_share, spec.budget) == (20, 5, 0.98, Budget(seconds=600))


@pytest.mark.slow
def test_a_search_started_again_from_the_page_gets_the_larger_budget(
    store: Store, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Simulation(store, simulated(max_kb=40, min_accuracy=0.93, budget={"trials": 4}))
    lab.finish()
    monkeypatch.setattr("smallalign_core.service.handlers.resolve_study", lambda _, __, spec: spec)
    grown = lab.spec.model_copy(update={"budget": Budget(trials=8)})

    started = handlers.start_study(store, requests.StartStudy(grown))

    assert started.id == lab.study.id
    assert lab.record().budget == Budget(trials=8)
    assert lab.study.active
    assert not lab.report().complete
