"""Optimizer studies: fair tuning, equal budgets, honest seconds, verdicts that the figures bear."""

from __future__ import annotations

import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import Train, command, tiny
from hypothesis import given, settings, strategies as st
from scipy.special import log_softmax
from torch import nn

from smallalign_core import data
from smallalign_core.data import Splits
from smallalign_core.errors import BadSpec
from smallalign_core.runs import logits
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.service import handlers
from smallalign_core.service.requests import EstimateStudy, StartStudy
from smallalign_core.spec import AdamW, Lookahead, Optimizer, Sam, digest, members, nest
from smallalign_core.spec.optimizer import EVALUATIONS
from smallalign_core.studies import lifecycle, optimizers, statistics
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.optimizers import (
    Finder,
    OptimizerStudySpec,
    _expected,
    _finder,
    _plan,
    _spec,
    parse_study,
)
from smallalign_core.studies.optimizers._differences import Scored, compare_with
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.training import finishing, loop as training, runner
from smallalign_core.training.resolve import resolve
from smallalign_core.training.student import Student
from smallalign_core.training.timer import Timer

SMALL: dict[str, Any] = {
    "data": {"source": "digits", "images": 100},
    "network": {"kind": "mlp", "width": 12},
    "epochs": 4,
    "batch": 20,
    "precision": "fp32",
    "optimizers": ["sgd", {"kind": "sam", "inner": "adamw"}],
    "hands_off": ["prodigy"],
    "trials": 2,
    "seeds": 2,
    "budgets": [1],
}


def study_spec(**fields: Any) -> OptimizerStudySpec:
    return parse_study(SMALL | fields)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, lifecycle.Study]:
    """(store, study): a small one, trained to its end; for tests that only read."""
    store = Store(tmp_path_factory.mktemp("raced") / "models")
    study = lifecycle.create(store, "optimizers", resolve_study(store, "optimizers", study_spec(), "cpu"))
    assert lifecycle.run_to_end(study, store, device="cpu") == []
    return store, study


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_two_lines_are_enough() -> None:
    spec = parse_study({"data": "digits", "network": "cnn"})

    tuned = [entry.name for entry in optimizers.entries(spec) if entry.track == "tuned"]
    fixed = [entry.name for entry in optimizers.entries(spec) if entry.track == "hands-off"]
    assert tuned == ["adamw", "muon", "soap", "sgd", "lookahead | adamw", "sam | adamw"]
    assert fixed == ["adamw (lr 0.001) hands-off", "prodigy", "schedule_free hands-off"], "polyak needs a teacher"
    assert (spec.seeds, spec.budgets) == (5, (1, 2, 4))
    taught = parse_study({"data": "digits", "network": "cnn", "teacher": "digits-teacher"})
    assert optimizers.entries(taught)[-1].name == "polyak"


def test_plain_values_give_the_same_study_back() -> None:
    spec = study_spec(
        teacher="digits-teacher", optimizers=["muon", {"kind": "lookahead", "inner": "sgd", "k": 9}, "prodigy"]
    )

    again = parse_study(json.loads(json.dumps(spec.model_dump(mode="json"))))

    assert again == spec
    assert optimizers.study_id(again) == optimizers.study_id(spec)
    assert optimizers.study_id(spec) != optimizers.study_id(study_spec(seeds=3))


def test_one_stands_for_a_list_of_one() -> None:
    assert study_spec(optimizers="sgd", budgets=2, hands_off="prodigy") == study_spec(
        optimizers=["sgd"], budgets=[2], hands_off=["prodigy"]
    )


def test_the_reference_is_always_in_and_first() -> None:
    assert optimizers.entries(study_spec(optimizers=["sgd"]))[0].name == "adamw"
    assert [e.name for e in optimizers.entries(study_spec(optimizers=["sgd", "muon"], reference="muon"))][:2] == [
        "muon",
        "sgd",
    ]


def test_names_say_what_is_unusual() -> None:
    spec = study_spec(
        optimizers=["sgd", {"kind": "sgd", "momentum": 0.5}, {"kind": "lookahead", "k": 9, "inner": "muon"}]
    )

    names = {entry.name: entry.label for entry in optimizers.entries(spec)}

    assert names["sgd (momentum 0.5)"] == "SGD momentum 0.5"
    assert names["lookahead (k 9) | muon"] == "Lookahead(Muon, k 9)"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": "sgd"}, "`optimizers`"),
        ({"optimizers": ["sgdd"]}, "no kind 'sgdd'"),
        ({"trails": 3}, "did you mean `trials`"),
        ({"optimizers": [{"kind": "sgd", "lr": 0.3}]}, "is tuned"),
        ({"hands_off": ["polyak"]}, "set `teacher`"),
        ({"budgets": [2, 1]}, "in ascending order"),
        ({"optimizers": ["sgd", "sgd"]}, "listed twice"),
        ({"seeds": 0}, "`seeds`"),
        ({"reference": "prodigy"}, "no learning rate"),
        ({"seed": 2**31 - 5}, "leave room"),
        ({"network": "cnnn"}, "cnnn"),
        ({"student": {"data": "digits", "network": "cnn"}}, "below `student`"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        study_spec(**wrong)


@pytest.mark.parametrize("given", [5, [], "digits"])
def test_a_student_that_is_no_mapping_is_refused_in_words(given: Any) -> None:
    with pytest.raises(BadSpec, match="`student` is not a mapping"):
        parse_study({"student": given})


@pytest.mark.slow
def test_library_rates_are_those_of_the_libraries() -> None:
    import pytorch_optimizer
    from timm.optim import muon, nadamw

    classes = {
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
        "nadamw": nadamw.NAdamW,
        "rmsprop": torch.optim.RMSprop,
        "lion": pytorch_optimizer.Lion,
        "muon": muon.Muon,
        "soap": pytorch_optimizer.SOAP,
        "schedule_free": pytorch_optimizer.ScheduleFreeAdamW,
        "ademamix": pytorch_optimizer.AdEMAMix,
    }
    rates = {one.model_fields["kind"].default: getattr(one, "library_rate", None) for one in members(Optimizer)}
    assert {kind: inspect.signature(one).parameters["lr"].default for kind, one in classes.items()} == {
        kind: rate for kind, rate in rates.items() if rate is not None
    }


def test_budgets_are_equal_in_gradients() -> None:
    spec = study_spec(epochs=10, budgets=[1, 2])
    sam = Lookahead(inner=Sam())

    assert [_spec.epochs_of(spec, AdamW(), budget) for budget in (1, 2)] == [10, 20]
    assert [_spec.epochs_of(spec, sam, budget) for budget in (1, 2)] == [5, 10]


@pytest.mark.slow
def test_an_evolution_strategy_is_budgeted_for_what_it_is_counted_for(digits: Splits) -> None:
    spec = tiny(optimizer={"kind": "snes", "population": 4}, network={"kind": "mlp", "width": 4, "depth": 1})
    loop = training.Training([spec], digits)
    for _ in range(6):
        loop.advance()

    assert _spec.gradients_a_step(spec.optimizer) == round(loop.students[0].evaluations / 6 / EVALUATIONS)


def test_an_evolution_strategy_is_raced_in_fp32_where_auto_means_bf16() -> None:
    spec = study_spec(hands_off=["snes"])
    fast = optimizers.resolved(spec, spec.student.model_copy(update={"precision": "bf16"}))

    assert [run.precision for run in optimizers.probes(fast)] == ["bf16"] * (len(optimizers.entries(spec)) - 1) + [
        "fp32"
    ]


def test_who_takes_more_than_its_budget_is_named(tmp_path: Path) -> None:
    """One epoch is the least, and an evolution strategy's costs that of many."""
    spec = study_spec(epochs=2, budgets=[1, 64], hands_off=["snes"])

    told = optimizers.report(spec, Store(tmp_path), tmp_path).scope()

    assert "SNES lr 1 takes 11 times as many at 2 epochs" in told
    assert "AdamW takes" not in told
    assert "128 epochs" not in told


def test_the_arms_differ_in_the_optimizer_alone() -> None:
    spec = study_spec(
        teacher="digits-teacher", augment=["shift"], optimizers=["muon", "schedule_free"], hands_off=["polyak"]
    )

    runs = [optimizers.run_spec(spec, entry.optimizer, 1, 3).model_dump() for entry in optimizers.entries(spec)]

    for run in runs[1:]:
        assert {name for name in run if run[name] != runs[0][name]} <= {"optimizer", "schedule"}
    assert [run["schedule"]["kind"] for run in runs] == ["cosine", "cosine", "constant", "constant"]


def test_the_tuning_seed_is_none_of_the_race() -> None:
    spec = study_spec(seeds=100, seed=41)

    assert _spec.tuning_seed(spec) not in _spec.final_seeds(spec)
    assert _spec.tuning_seed(spec) == _spec.tuning_seed(study_spec(seeds=3, seed=41)), "more seeds move no trial"


# --- tuning -----------------------------------------------------------------------------------------------------------


def hill(top: float, *, diverges: float = math.inf) -> Callable[[float], Any]:
    """A student whose validation accuracy falls with the distance to the best rate, in octaves."""
    return lambda rate: None if rate > diverges else (0.9 - 0.02 * abs(math.log2(rate / top)), -1.0)


@settings(max_examples=60)
@given(
    top=st.floats(1e-4, 10),
    low=st.floats(1e-5, 1),
    span=st.floats(1, 100),
    trials=st.integers(2, 6),
)
def test_every_arm_gets_its_trials_and_more_only_on_an_edge(top: float, low: float, span: float, trials: int) -> None:
    first = _plan.first_rates(Finder((), (), low, low * span, False, 0.0), trials)

    found = _plan.tune(first, hill(top), trials)

    rates = [rate for rate, _ in found.proposed]
    assert found.settled
    assert len(set(rates)) == len(rates)
    assert len(rates) <= trials + _plan.BEYOND
    if len(rates) < trials:  # nothing is left to try: beyond the largest rate, or between neighbours that are rounded
        assert found.best is not None
        at = sorted(rates).index(found.best)
        beside = sorted(rates)[max(0, at - 1) : at + 2 : 2]
        between = {_plan.rounded(math.sqrt(found.best * rate)) for rate in beside}
        assert found.best * _plan.APART > _plan.LARGEST if at == len(rates) - 1 else between <= set(rates)
    if len(rates) > trials:
        before = sorted(rates[:trials])
        best = max(before, key=lambda rate: hill(top)(rate))
        assert best in (before[0], before[-1]), "no extra trial without an edge"
    assert found.best == max(rates, key=lambda rate: hill(top)(rate))
    assert found.edge == (found.best in (min(rates), max(rates)))


def test_an_edge_is_followed_up_and_down() -> None:
    up = _plan.tune([0.01, 0.02, 0.04], hill(0.3), 3)
    down = _plan.tune([0.01, 0.02, 0.04], hill(0.0013), 3)

    assert [rate for rate, why in up.proposed if why == "extension"] == [0.08, 0.16, 0.32]
    assert (up.best, up.edge) == (0.32, True), "three more, and still at the edge: it says so"
    assert [rate for rate, why in down.proposed if why == "extension"] == [0.005, 0.0025, 0.0013]


def test_between_the_best_and_its_better_neighbour() -> None:
    found = _plan.tune([0.01, 0.04, 0.16], hill(0.06), 4)

    assert found.proposed[3] == (0.08, "refinement")


def test_a_rate_that_diverged_bounds_the_search() -> None:
    found = _plan.tune([0.01, 0.02, 0.04], hill(0.1, diverges=0.03), 3)

    assert (found.best, found.edge) == (0.02, False)
    assert len(found.proposed) == 3


def test_where_all_diverge_smaller_ones_are_tried_and_none_is_chosen() -> None:
    found = _plan.tune([0.01, 0.02, 0.04], lambda _: None, 3)

    assert found.settled
    assert found.best is None
    assert [rate for rate, why in found.proposed if why == "extension"] == [0.0025, 0.00063, 0.00016]


def test_trials_that_diverged_are_settled(store: Store) -> None:
    """As their folders say it: then smaller rates are wanted, and no race."""
    spec = resolve_study(store, "optimizers", study_spec(optimizers=[], hands_off=[]), "cpu")
    folder = lifecycle.create(store, "optimizers", spec).folder
    curve = Finder((0.1, 0.2), (2.0, 1.0), 0.1, 0.2, False, 0.5)
    (folder / _plan.FINDERS).write_text(_plan.finders_json({_plan.finder_key(spec, spec.reference): curve}))
    first = optimizers.wanted(spec, store, folder)
    for trial in first:
        with RunWriter(store.create(trial)) as recording:
            recording.write_status(ended=State.FAILED, reason="The loss became nan.", diverged=True)

    then = optimizers.wanted(spec, store, folder)

    assert [nest(trial.optimizer)[-1].lr for trial in then] == [0.1, 0.2, 0.025]
    arm = optimizers.report(spec, store, folder).arms[0]
    assert [trial.diverged for trial in arm.trials] == [False, True, True]
    assert (arm.rate, arm.runs) == (None, ())


def test_nothing_is_proposed_before_its_reason_is_known() -> None:
    waiting = _plan.tune([0.01, 0.02, 0.04], lambda rate: (0.5, 0.0) if rate < 0.03 else "unknown", 5)

    assert (waiting.settled, waiting.best, len(waiting.proposed)) == (False, None, 3)


def test_the_finder_spans_from_the_steepest_to_the_lowest() -> None:
    assert _plan.first_rates(Finder((), (), 0.01, 0.16, False, 0.0), 4) == [0.01, 0.04, 0.16]
    assert _plan.first_rates(Finder((), (), 0.1, 0.1, False, 0.0), 3) == [0.05, 0.1, 0.2], "at least twice apart"
    assert _plan.first_rates(Finder((), (), 0.04, 0.01, False, 0.0), 2) == [0.01, 0.04]
    assert _plan.first_rates(Finder((), (), 0.01, 0.04, False, 0.0), 1) == [0.02]


# --- the finder -------------------------------------------------------------------------------------------------------


def found_for(store: Store, spec: OptimizerStudySpec) -> tuple[OptimizerStudySpec, list[Finder]]:
    resolved = resolve_study(store, "optimizers", spec, "cpu")
    tuned = [entry for entry in optimizers.entries(resolved) if entry.track == "tuned"]
    return resolved, _finder.measure(resolved, tuned, store, "cpu", threading.Event())


def test_the_finder_is_the_loop_with_a_growing_rate(store: Store, digits: Splits) -> None:
    """Against SGD by hand: the same first weights, the same images, the same loss."""
    spec, (adamw, sgd) = found_for(store, study_spec(optimizers=[{"kind": "sgd", "momentum": 0, "weight_decay": 0}]))
    seeded = optimizers.run_spec(spec, spec.reference, 1, _spec.tuning_seed(spec))
    loop = training.Training([seeded], data.load(seeded.data, store.data_cache))
    model = loop.students[0].classifier.train()
    smooth: list[float] = []
    for step in range(40):
        batch = loop.views(step)
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= _finder.swept(step, 1e-3) * weight.grad
        smooth.append(0.9 * smooth[-1] + 0.1 * loss.item() if smooth else loss.item())

    assert sgd.losses[:40] == pytest.approx(smooth, rel=1e-4)
    assert sgd.rates[:2] == pytest.approx([1e-5, 1e-5 * 10 ** (6 / 99)])
    assert adamw.losses != sgd.losses
    assert adamw.seconds > 0


def test_the_finder_begins_where_the_runs_begin(store: Store, train: Train) -> None:
    """A student that goes on from another run's weights is better at its first step than one that begins at random."""
    student = {name: SMALL[name] for name in ("data", "network", "batch", "precision") if name in SMALL}
    begun = train(**student, epochs=8, optimizer={"kind": "adamw", "lr": 0.01})
    fresh, gone_on = (found_for(store, study_spec(optimizers=[], **more))[1][0] for more in ({}, {"start": begun.id}))

    assert gone_on.losses[0] < 0.8 * fresh.losses[0]


def test_the_finder_ends_where_the_loss_explodes(store: Store) -> None:
    _, (adamw, sgd) = found_for(store, study_spec(optimizers=["sgd"]))

    for curve in (adamw, sgd):
        assert curve.stopped == (curve.losses[-1] > 4 * min(curve.losses))
        assert curve.rates[0] <= curve.steepest <= curve.minimum <= curve.rates[-1]
        assert all(map(math.isfinite, curve.losses))
    assert sgd.stopped or len(sgd.losses) == _finder.STEPS


def test_curves_are_kept_and_taken_over_by_larger_studies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (
        lifecycle.create(store, "optimizers", resolve_study(store, "optimizers", study_spec(**more), "cpu"))
        for more in ({}, {"optimizers": ["sgd", "muon", {"kind": "sam"}], "seeds": 4, "budgets": [1, 2]})
    )
    stop = threading.Event()
    optimizers.prepare(small.spec, store, small.folder, "cpu", stop)
    measured: list[str] = []
    real = _finder.measure

    def counting(spec: Any, some: Any, *rest: Any) -> Any:
        measured.extend(entry.name for entry in some)
        return real(spec, some, *rest)

    monkeypatch.setattr(_finder, "measure", counting)
    optimizers.prepare(large.spec, store, large.folder, "cpu", stop)
    optimizers.prepare(large.spec, store, large.folder, "cpu", stop)

    assert measured == ["muon"]
    few, many = small.wanted(store), large.wanted(store)
    assert set(map(digest, few)) <= set(map(digest, many)), "what the small one wants is a part of the large one"
    (large.folder / _plan.FINDERS).write_text("{}}")
    assert _plan.finders(large.folder) == {}


# --- what a run costs -------------------------------------------------------------------------------------------------


def test_a_clock_counts_laps_and_not_what_is_between_them() -> None:
    clock = Timer(torch.device("cpu"))

    def work(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    for _ in range(3):
        with clock.measure():
            work(0.01)
            with clock.paused():
                work(0.03)
            time.sleep(0.02)  # sleeping is no work
        work(0.02)
    with clock.paused():
        work(0.01)
    other = Timer(torch.device("cpu"))

    def made() -> Iterator[float]:
        for share in (0.0, 0.5, 1.0):
            work(0.01)
            yield share

    for _ in other.over(made()):
        work(0.02)

    assert other.seconds == pytest.approx(0.03, abs=0.008)
    assert clock.seconds == pytest.approx(0.03, abs=0.008)
    assert clock.median == pytest.approx(0.01, abs=0.004)


def test_a_gpu_is_asked_for_its_own_time_and_only_when_somebody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(100))
    waited: list[bool] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1

        def record(self) -> None:
            self.at = next(moments)

        def elapsed_time(self, other: Event) -> float:
            return 1000.0 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    clock = Timer(torch.device("cuda"))
    for _ in range(2):
        with clock.measure(), clock.paused():
            pass

    assert waited == []
    assert (clock.seconds, len(waited)) == (4.0, 1), "two laps of two seconds, the one that it stood left out"


@pytest.mark.slow
def test_evaluation_and_reports_are_off_the_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any, **named: Any) -> Any:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return real(*arguments, **named)

    real = training.logits_of
    monkeypatch.setattr(training, "logits_of", slow)
    shares = Student.measure_shares

    def slow_shares(student: Student, parts: Any) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        shares(student, parts)

    monkeypatch.setattr(Student, "measure_shares", slow_shares)
    run = store.create(resolve(store, tiny(epochs=2)))

    result = runner.execute(run, store, device="cpu")

    assert result["seconds"] > 0.8
    assert result["own_seconds"] + result["shared_seconds"] < result["seconds"] - 0.75
    assert 0 < result["step_ms"] < 1000 * result["own_seconds"]


def test_every_epoch_says_what_it_took(train: Train) -> None:
    run = train(optimizer={"kind": "sam", "inner": "adamw"})

    epochs, result = run.events("epoch"), run.result or {}
    assert [event["gradients"] for event in epochs] == [2 * event["step"] for event in epochs]
    for name in ("own_seconds", "shared_seconds"):
        assert sorted(event[name] for event in epochs) == [event[name] for event in epochs]
        assert 0 < epochs[0][name] <= epochs[-1][name] <= result[name]
    assert result["train"]["images"] <= finishing.TRAIN_SCORED_ON
    assert result["train"]["accuracy"] > 0


def test_seconds_go_on_after_a_resume(store: Store) -> None:
    stop, run = threading.Event(), store.create(resolve(store, tiny(epochs=4)))

    def observe(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 2:
            stop.set()

    runner.execute(run, store, device="cpu", observe=observe, stop=stop)
    half = run.events("epoch")[-1]
    result = runner.execute(run, store, device="cpu")

    third = run.events("epoch")[2]
    assert half["own_seconds"] < third["own_seconds"] < result["own_seconds"]
    assert third["gradients"] * 2 > half["gradients"] * 2
    assert result["memory_bytes"] > result["state_bytes"] > 0


def test_memory_of_a_step_by_hand(store: Store) -> None:
    """An MLP of one hidden layer on 64 pixels, batch 16: what its backward pass has to keep."""
    spec = resolve(store, tiny(network={"kind": "mlp", "width": 32, "depth": 1}, batch=16, precision="fp32"))
    loop = training.Training([spec], data.load(spec.data, store.data_cache))
    student = loop.students[0]
    loop.advance()

    weights = sum(weight.numel() for weight in student.classifier.parameters())
    took = student.cost()
    assert took["state_bytes"] == 2 * 4 * weights
    saved = took["memory_bytes"] - took["state_bytes"] - 2 * 4 * weights
    pixels, hidden, answers = 16 * 64 * 4, 16 * 32 * 4, 16 * 10 * 4
    assert pixels + hidden + answers <= saved <= 3 * (pixels + hidden + answers)
    tripled = spec.model_copy(update={"batch": 48})
    other = training.Training([tripled], data.load(spec.data, store.data_cache))
    other.advance()
    grown = other.students[0].cost()["memory_bytes"] - took["memory_bytes"]
    assert grown == pytest.approx(2 * saved, rel=0.05), "what is kept grows with the batch"


def test_counting_changes_no_weight(store: Store) -> None:
    spec = resolve(store, tiny(epochs=1))
    splits = data.load(spec.data, store.data_cache)
    counted, plain = (training.Training([spec], splits) for _ in range(2))
    plain.students[0].saved_bytes = 0
    for _ in range(3):
        counted.advance()
        plain.advance()

    for one, other in zip(
        counted.students[0].classifier.parameters(), plain.students[0].classifier.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    assert counted.students[0].saved_bytes
    assert plain.students[0].saved_bytes == 0


# --- answers kept -----------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_weights(train: Train, store: Store) -> None:
    run = train()
    splits = data.load(run.spec.data, store.data_cache)

    for split, images in (("val", splits.val), ("test", splits.test)):
        kept = logits.kept(run, split)
        assert kept is not None
        scores = (run.result or {})[split]
        assert kept.right.mean() == pytest.approx(scores["accuracy"], abs=1e-12)
        assert kept.nll.mean() == pytest.approx(scores["nll"], rel=2e-3)
        assert (kept.labels == images.labels).all()
        expected = -log_softmax(kept.logits.astype(np.float64), axis=1)[np.arange(len(images)), images.labels]
        assert kept.nll == pytest.approx(expected)


def test_answers_that_are_missing_or_changed_are_not_there(train: Train) -> None:
    run = train()
    file = run.folder / logits.FILE
    content = file.read_bytes()
    file.unlink()
    assert logits.kept(run) is None

    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert logits.kept(run) is None, "not what the result sealed"
    result = run.result or {}
    (run.folder / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "logits_sha256"}))
    file.write_bytes(content)
    assert logits.kept(run) is None, "a run from before there were any"


def test_huge_logits_fit_into_half_precision(digits: Splits) -> None:
    from safetensors.numpy import load

    wild = np.zeros((len(digits.test), 10), np.float32)
    wild[:, 3] = 1e9
    val = np.zeros((len(digits.val), 10), np.float32)

    kept = load(logits.packed(val, wild, digits))

    assert np.isfinite(kept["test"]).all()
    assert (kept["test"].argmax(1) == 3).all()


# --- verdicts ---------------------------------------------------------------------------------------------------------


def seen(right: np.ndarray, folder: Path) -> list[Scored]:
    """Runs whose test answers are these: [seeds, images] of right or wrong."""
    found = []
    half = SimpleNamespace(labels=np.ones(right.shape[1], np.int64))
    for seed, row in enumerate(right):
        place = folder / f"{seed}"
        place.mkdir(parents=True)
        values = np.where(np.arange(2)[None] == np.where(row, 1, 0)[:, None], 0.0, -2.0).astype(np.float32)
        content = logits.packed(values, values, SimpleNamespace(val=half, test=half))  # type: ignore[arg-type]
        (place / logits.FILE).write_bytes(content)
        (place / "weights.safetensors").touch()
        sealed = {"logits_sha256": logits.hashlib.sha256(content).hexdigest()}
        (place / "result.json").write_text(json.dumps(sealed))
        answers = logits.kept(Run(place))
        assert answers is not None
        found.append(Scored(seed, float(answers.right.mean()), float(answers.nll.mean()), place))
    return found


def drawn(share: float, seeds: int = 5, images: int = 400, draw: int = 0) -> np.ndarray:
    return np.random.default_rng(draw).random((seeds, images)) < share


def test_a_clear_difference_is_better_and_its_interval_is_crossed(tmp_path: Path) -> None:
    reference, ours = drawn(0.8, draw=1), drawn(0.93, draw=2)

    (found,) = compare_with(seen(reference, tmp_path / "a"), [seen(ours, tmp_path / "b")], 0.01)

    accuracy = found["accuracy"]
    (expected,) = statistics.crossed((ours.astype(float) - reference.astype(float))[None])
    assert (accuracy.low, accuracy.high) == pytest.approx((expected.low, expected.high))
    assert (accuracy.verdict, accuracy.method, accuracy.beats) == ("better", "crossed", 1.0)
    assert accuracy.words() == "better"
    assert found["nll"].verdict == "better"
    assert found["nll"].mean is not None
    assert found["nll"].mean < 0, "less NLL is better"


def test_without_answers_it_is_over_seeds_alone(tmp_path: Path) -> None:
    reference, ours = seen(drawn(0.8, draw=1), tmp_path / "a"), seen(drawn(0.82, draw=2), tmp_path / "b")
    for one in ours:
        (one.folder / logits.FILE).unlink()

    (found,) = compare_with(reference, [ours], 0.01)

    differences = [a.accuracy - b.accuracy for a, b in zip(ours, reference, strict=True)]
    assert found["accuracy"].method == "seeds"
    assert found["accuracy"].low == pytest.approx(statistics.paired(differences).low)


def test_one_seed_is_not_evidence(tmp_path: Path) -> None:
    found = compare_with(seen(drawn(0.5, 1), tmp_path / "a"), [seen(drawn(0.99, 1), tmp_path / "b")], 0.01)[0]

    assert found["accuracy"].verdict == "not evidence"
    assert found["accuracy"].words() == "single seed; run more before drawing conclusions"
    assert found["accuracy"].low is None


def test_pairs_are_made_by_seed(tmp_path: Path) -> None:
    reference, ours = seen(drawn(0.8, draw=1), tmp_path / "a"), seen(drawn(0.9, draw=2), tmp_path / "b")

    (found,) = compare_with(reference[1:], [list(reversed(ours[:-1]))], 0.01)

    assert found["accuracy"].seeds == 3
    assert sorted(found["accuracy"].by_seed) == pytest.approx(
        sorted(ours[seed].accuracy - reference[seed].accuracy for seed in (1, 2, 3))
    )


def test_nothing_in_common_is_nothing(tmp_path: Path) -> None:
    reference, ours = seen(drawn(0.8, draw=1), tmp_path / "a"), seen(drawn(0.9, draw=2), tmp_path / "b")

    (found,) = compare_with(reference[:1], [ours[1:]], 0.01)

    assert found["accuracy"].verdict == "nothing"


def test_equal_students_do_not_differ_by_more_than_the_margin(tmp_path: Path) -> None:
    """They differ on two of 4,000 images: far inside one point, and no proof of a difference."""
    reference = drawn(0.9, images=4000, draw=1)
    ours = reference.copy()
    ours[0, :2] = ~ours[0, :2]
    ours[3, 5] = ~ours[3, 5]

    (found,) = compare_with(seen(reference, tmp_path / "a"), [seen(ours, tmp_path / "b")], 0.01)

    assert found["accuracy"].verdict == "no difference larger"
    assert found["accuracy"].words() == "equivalent within 1 point"


def test_a_verdict_says_no_more_than_the_interval_shows(tmp_path: Path) -> None:
    """`no difference larger` than a margin only where all of the interval, as it is drawn, lies inside."""
    reference, ours = seen(drawn(0.9, draw=1), tmp_path / "a"), seen(drawn(0.9, draw=2), tmp_path / "b")
    found = compare_with(reference, [ours], 0.01)[0]["accuracy"]
    assert found.low is not None
    assert found.high is not None
    furthest = max(abs(found.low), abs(found.high))

    told = [compare_with(reference, [ours], furthest * times)[0]["accuracy"].verdict for times in (0.99, 1.01)]

    assert told == ["undecided", "no difference larger"]


def test_many_arms_are_corrected_for(tmp_path: Path) -> None:
    """One arm of eight that alone would just be better is not, since eight had the chance."""
    reference = seen(drawn(0.8, images=300, draw=0), tmp_path / "r")
    for draw in range(1, 60):
        ours = seen(drawn(0.84, images=300, draw=draw), tmp_path / f"{draw}")
        (alone,) = compare_with(reference, [ours], 0.01)
        if alone["accuracy"].verdict == "better" and (alone["accuracy"].p or 0) > 0.01:
            break
    others = [seen(drawn(0.8, images=300, draw=100 + n), tmp_path / f"o{n}") for n in range(7)]

    found = compare_with(reference, [ours, *others], 0.01)

    assert found[0]["accuracy"].p == pytest.approx(alone["accuracy"].p)
    assert found[0]["accuracy"].verdict == "undecided"
    assert "after correction, about" in found[0]["accuracy"].words()
    p = [one["accuracy"].p or 0 for one in found]
    assert [one["accuracy"].holm for one in found] == pytest.approx(statistics.holm(p))


def test_nothing_is_better_whose_interval_covers_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for draw in range(25):
        a, b = rng.uniform(0.7, 0.9, 2)
        found = compare_with(
            seen(drawn(a, 3, 80, draw), tmp_path / f"a{draw}"),
            [seen(drawn(b, 3, 80, 99 + draw), tmp_path / f"b{draw}")],
            0.01,
        )[0]
        for one in found.values():
            covers = one.low is None or one.high is None or one.low <= 0 <= one.high
            assert not (covers and one.verdict in ("better", "worse"))
            if not covers and one.holm is not None and one.holm < 0.05:
                assert one.verdict in ("better", "worse")


# --- the study --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_study_from_end_to_end(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced

    found = study.report(store)

    assert found.complete, found.states()
    assert [arm.name for arm in found.arms] == ["adamw", "sgd", "sam | adamw", "prodigy"]
    for arm in found.arms:
        assert [run.seed for run in arm.runs] == [0, 1]
        assert all(run.test and run.train and run.own_seconds and run.memory_bytes for run in arm.runs)
        if arm.track == "tuned":
            assert 2 <= len(arm.trials) <= 2 + _plan.BEYOND
            assert [trial.rate for trial in arm.trials if trial.chosen] == [arm.rate]
            chosen = max(arm.trials, key=lambda trial: (trial.accuracy, -(trial.nll or 0)))
            assert chosen.rate == arm.rate, "by validation"
            assert arm.finder is not None
            assert arm.tuning_seconds > sum(trial.seconds or 0 for trial in arm.trials)
        else:
            assert (arm.trials, arm.finder, arm.tuning_seconds) == ((), None, 0)
    gradients = {arm.name: arm.median("gradients") for arm in found.arms}
    assert gradients["sam | adamw"] == gradients["adamw"] == 4 * 5, "SAM has half the steps"
    assert found.arm("sam | adamw", 1).epochs == 2
    assert found.arms[0].differences["accuracy"].verdict == "reference"


@pytest.mark.slow
def test_means_are_those_of_the_results(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced

    arm = study.report(store).arm("sgd", 1)

    results = [store.run(run.id).result or {} for run in arm.runs]
    scores = [result["test"]["accuracy"] for result in results]
    assert arm.mean("accuracy") == pytest.approx(np.mean(scores))
    assert arm.sd("accuracy") == pytest.approx(np.std(scores, ddof=1))
    assert arm.median("gap") == pytest.approx(
        np.median([result["train"]["accuracy"] - result["test"]["accuracy"] for result in results])
    )
    assert [run.spec.optimizer.lr for run in (store.run(one.id) for one in arm.runs)] == [arm.rate, arm.rate]


def test_time_to_target_reads_the_epochs(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced

    found = study.report(store)

    target = found.targets[1]
    reached = [run.val["accuracy"] for run in found.arms[0].runs if run.val]
    assert target == pytest.approx(min(reached)), "of two: at least half reach it"
    curves = {(curve.name, curve.seed): curve for curve in optimizers.curves(study.spec, store, study.folder, 1)}
    assert len(curves) == 8
    for arm in found.arms:
        for run in arm.runs:
            events = store.run(run.id).events("epoch")
            first = next((event for event in events if event["accuracy"] >= target), None)
            assert (run.reached is None) == (first is None)
            if run.reached and first:
                assert (run.reached.epoch, run.reached.gradients) == (first["epoch"], first["gradients"])
                assert run.reached.seconds == pytest.approx(first["own_seconds"] + first["shared_seconds"])
            points = curves[arm.name, run.seed].points
            assert [point.accuracy for point in points] == [event["accuracy"] for event in events]
    adamw = found.arms[0]
    assert adamw.to_target("epoch") is not None
    assert adamw.score == pytest.approx(adamw.tuning_seconds + (adamw.to_target("seconds") or 0))


def test_a_target_that_nobody_reaches_takes_for_ever(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced
    spec = study.spec.model_copy(update={"target": 1.0})

    found = optimizers.report(spec, store, study.folder)

    assert all(arm.to_target("step") is None and arm.score is None for arm in found.arms if arm.name == "prodigy")
    assert found.targets == {1: 1.0}


def told_of(report: Any, **verdicts: str) -> Any:
    """The report with other verdicts on accuracy at its first budget."""
    arms = []
    for arm in report.arms:
        if arm.budget == report.budgets[0] and arm.name in verdicts:
            judged = replace(arm.differences["accuracy"], verdict=verdicts[arm.name], mean=0.01, low=-0.02, high=0.04)
            arm = replace(arm, differences=arm.differences | {"accuracy": judged})
        arms.append(arm)
    return replace(report, arms=tuple(arms))


def test_the_verdict_says_not_decided_where_nothing_is(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced
    report = study.report(store)
    others = [arm.name for arm in report.at(report.budgets[0]) if arm.name != report.reference]
    first, second = others[:2]

    said = told_of(report, **dict.fromkeys(others, "undecided")).verdict(report.budgets[0])
    assert "no conclusive difference to tuned AdamW" in said
    assert "Nothing" not in said
    mixed = told_of(report, **dict.fromkeys(others, "nothing") | {first: "better", second: "undecided"})
    label = {arm.name: arm.label for arm in report.arms}
    said = mixed.verdict(report.budgets[0])
    assert f"{label[first]} is better than tuned AdamW; inconclusive: {label[second]}." in said
    equal = told_of(report, **dict.fromkeys(others, "no difference larger")).verdict(report.budgets[0])
    assert "equivalent to tuned AdamW within the margin" in equal


def test_an_interval_of_differences_stays_within_what_the_metric_can_be() -> None:
    two = [Scored(seed, accuracy, 1.0 + seed, Path("none")) for seed, accuracy in ((0, 0.2), (1, 0.9))]
    reference = [Scored(seed, 0.5, 1.0, Path("none")) for seed in (0, 1)]

    (found,) = compare_with(reference, [two], 0.01)

    assert (found["accuracy"].low, found["accuracy"].high) == (-1.0, 1.0)  # Student's t alone: -4.4 to 4.5
    assert found["nll"].high is not None
    assert found["nll"].high > 5, "nothing bounds an NLL"
    assert METRICS["accuracy"].differences(-0.3, 1.2) == (-0.3, 1.0)


def test_every_claim_carries_its_budget(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced

    found = study.report(store)

    assert found.verdict(1).startswith("At 4 epochs: ")
    assert "over seeds and the 359 test images together" in found.scope()
    assert found.words().splitlines()[0].endswith(f", 2 seeds: {len(store.runs())} runs done")
    for arm in found.arms:
        assert arm.label in found.words()
    assert json.loads(json.dumps(found.as_dict()))["arms"][1]["words"]["accuracy"]


@pytest.mark.slow
def test_the_cost_is_known_before_the_first_run(raced: tuple[Store, lifecycle.Study]) -> None:
    store, _ = raced
    changes: list[dict[str, Any]] = [{}, {"seeds": 4}, {"seeds": 40}, {"teacher": "digits-teacher"}]
    costs = [handlers.estimate_study(store, EstimateStudy(parse_study(SMALL | change))) for change in changes]
    done, some, more, taught = (cost.seconds for cost in costs)
    assert done == 0 < some < more
    assert (costs[0].missing, costs[0].runs) == (0, costs[0].done)
    assert taught > 0


def test_a_reference_of_two_gradients_a_step_makes_no_study_dearer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gradients take twice as long as one: whoever is timed, the same runs of the same length cost the same."""
    sam = {"kind": "sam", "inner": "adamw"}
    seconds = []
    for took, reference, other in ((1.0, "adamw", sam), (2.0, sam, "adamw")):
        monkeypatch.setattr(_expected, "fastest", lambda _, took=took: took)
        fields = SMALL | {"optimizers": [other], "reference": reference, "hands_off": []}
        seconds.append(handlers.estimate_study(store, EstimateStudy(parse_study(fields))).seconds)
    assert seconds[0] == pytest.approx(seconds[1])


def test_more_seeds_optimizers_and_budgets_repeat_nothing(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced
    done = {digest(spec) for spec in study.wanted(store)}

    for more in ({"seeds": 4}, {"optimizers": ["sgd", {"kind": "sam"}, "muon"]}, {"budgets": [1, 2]}):
        larger = resolve_study(store, "optimizers", study_spec(**more), "cpu")
        folder = study.folder.with_name("larger")
        folder.mkdir(exist_ok=True)
        optimizers.prepare(larger, store, folder, "cpu", threading.Event())
        wanted = {digest(spec) for spec in optimizers.wanted(larger, store, folder)}
        assert done < wanted, more
        found = optimizers.report(larger, store, folder)
        assert (found.done, found.complete) == (len(done), False)
        assert found.missing >= 2
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_a_damaged_run_is_named_and_hides_no_other(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced
    arm = study.report(store).arm("sgd", 1)
    file = store.root / "runs" / arm.runs[0].id / "result.json"
    content = file.read_text()
    for wrong in ("", "[]", '{"val": {}}'):
        file.write_text(wrong)

        found = study.report(store)

        assert found.failed == (f"{arm.label}, 1x, seed 0: {found.arm('sgd', 1).runs[0].reason}",), wrong
        assert found.arm("sgd", 1).differences["accuracy"].verdict == "not evidence"
        assert not found.complete
    file.write_text(content)
    assert study.report(store).complete


def test_a_diverged_arm_is_said_so_and_the_study_goes_on(store: Store) -> None:
    wild = study_spec(optimizers=[], hands_off=[{"kind": "sgd", "lr": 100, "weight_decay": 10}])
    spec = resolve_study(store, "optimizers", wild, "cpu")
    study = lifecycle.create(store, "optimizers", spec)

    errors = lifecycle.run_to_end(study, store, device="cpu")

    found = study.report(store)
    wild = found.arms[-1]
    assert len(errors) == 2
    assert found.complete, found.states()
    assert (wild.diverged, wild.mean("accuracy"), wild.differences["accuracy"].verdict) == (2, None, "nothing")
    assert "SGD lr 100, weight_decay 10: diverged on every seed" in found.words()


@pytest.mark.slow
def test_reading_a_study_imports_no_torch(raced: tuple[Store, lifecycle.Study]) -> None:
    store, study = raced
    code = f"""
import sys
from smallalign_core.runs.store import Store
from smallalign_core.studies import lifecycle
store = Store({str(store.root)!r})
study = lifecycle.find(store, {study.id!r})
print(study.report(store).complete, len(study.module.curves(study.spec, store, study.folder, 1)))
print(sorted({{"torch", "sklearn", "onnxruntime"}} & set(sys.modules)))
"""
    done = processes.run(processes.python("-c", code))
    assert done.stdout.split("\n")[:2] == ["True 8", "[]"], done.stderr


# --- the doors --------------------------------------------------------------------------------------------------------


def test_the_backend_tells_and_starts(store: Store) -> None:
    cost = handlers.estimate_study(store, EstimateStudy(study_spec()))
    assert (cost.done, lifecycle.listing(store)) == (0, [])
    assert cost.runs == cost.missing > 0
    started = handlers.start_study(store, StartStudy(study_spec()))

    (study,) = lifecycle.listing(store, "optimizers")
    assert (study.id, study.active, started.id) == (cost.id, True, study.id)
    assert study.report(store).finding


def test_an_optimizer_that_would_not_fit_is_refused_before_anything(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallalign_core.training.optim._memory.memory", lambda: 20_000_000)
    monkeypatch.setattr(
        "smallalign_core.training.precision_tuning.precision",
        lambda *_: pytest.fail("the reference took its first steps"),
    )
    wide = study_spec(network={"kind": "mlp", "width": 512}, optimizers=["soap"])

    with pytest.raises(BadSpec, match="more than half of the memory") as told:
        handlers.start_study(store, StartStudy(wide))

    assert "soap" in str(told.value)
    assert lifecycle.listing(store) == []
    assert store.runs() == []


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(SMALL))

    queued = command("optimizers", file, "--queue", "--json", store=store)
    assert queued.returncode == 0, queued.stderr
    assert json.loads(queued.stdout)["active"] is True
    served = command("worker", "--once", "--json", store=store)
    assert served.returncode == 0, served.stderr
    done = command("optimizers", file, "--seeds", 3, "--json", store=store)
    assert done.returncode == 0, done.stderr

    found = json.loads(done.stdout)
    assert (found["complete"], found["seeds"]) == (True, [0, 1, 2])
    raced = {run["id"]: run["val"]["accuracy"] for arm in found["arms"] for run in arm["runs"]}
    best = {one["id"]: max(point["accuracy"] for point in one["points"]) for one in found["curves"]}
    assert best == raced, "a curve of each run; the best epoch by validation is kept"
    assert all(one["points"][-1]["seconds"] > one["points"][-1]["own_seconds"] > 0 for one in found["curves"])
    assert json.loads(served.stdout)["taken"] + 4 == len(store.runs()), "one more seed of four arms"
    for run in store.runs():
        assert [event["kind"] for event in run.events("started")] == ["started"], "trained once"
    refused = command("optimizers", file, "--set", "optimizers=[sgdd]", store=store)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1), refused.stderr
    assert "no kind 'sgdd'" in refused.stderr


@pytest.mark.slow
def test_the_rates_found_are_better_than_the_librarys(store: Store) -> None:
    """The reason why anything is tuned: AdamW at its library's rate is far behind on short budgets."""
    usual = [{"kind": "adamw", "lr": 0.001}]
    spec = study_spec(network={"kind": "cnn", "width": 6}, optimizers=[], hands_off=usual, epochs=8)
    study = lifecycle.create(store, "optimizers", resolve_study(store, "optimizers", spec, "cpu"))
    lifecycle.run_to_end(study, store, device="cpu")

    tuned, library = study.report(store).arms

    assert (tuned.mean("accuracy") or 0) > (library.mean("accuracy") or 1) + 0.1
    assert (tuned.ratio or 0) > 4
