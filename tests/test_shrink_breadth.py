"""The breadth of the budget search: recipes, given networks, pruning, mixed precision; what more budget would buy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_shrink import EVERY, Simulation, base, cards, decided, no_time_passed, simulated

from pages.ui.search.view import _export_address
from smallalign_core import export, search
from smallalign_core.errors import BadSpec
from smallalign_core.export import _size
from smallalign_core.runs.store import Store
from smallalign_core.search import _outlook, _plan, _pretrained, _proposals, _space, _steps, _teacher
from smallalign_core.search._evidence import Counts
from smallalign_core.search._journal import FILE, SEEN, Look, Record, Trial
from smallalign_core.search._lab import Lab
from smallalign_core.search._space import Candidate, Given
from smallalign_core.spec import HintonKd, RunSpec, Timm, digest
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.files import read_lines

__all__ = ["cards", "no_time_passed"]  # fixtures

WIDE = replace(EVERY, optimizers=("adamw", "muon", "sgd"), softened=True)


def network(**fields: Any) -> Any:
    return RunSpec.model_validate({"data": "digits", "network": {"kind": "cnn", **fields}}).network


# --- recipes and given networks ---------------------------------------------------------------------------------------


def test_a_recipe_differs_in_one_part_belongs_to_the_space_and_says_which() -> None:
    one = Candidate("cnn", 8, 3, taught=True, augment="light")
    found = WIDE.recipes(one)

    assert all(WIDE.has(other) for other in found)
    assert len(set(found)) == len(found)
    changed = [{name for name, value in other.as_dict().items() if value != getattr(one, name)} for other in found]
    assert {name for names in changed for name in names} == {"rate", "augment", "softness", "optimizer", "taught"}
    assert all(len(names) == 1 for names in changed)
    assert {other.differs(one) for other in found} >= {
        "learning rate times 3",
        "learning rate times 0.3",
        "Muon instead of AdamW",
        "strong augmentation",
        "distillation temperature times 2",
        "labels only",
    }


def test_without_a_temperature_none_is_tried() -> None:
    one = Candidate("cnn", 8, 3, taught=True)
    assert {other.softness for other in EVERY.recipes(one)} == {1.0}
    assert not EVERY.has(replace(one, softness=2.0))


def test_a_recipe_reaches_the_runs() -> None:
    loss = HintonKd(temperature=4.0, weight=0.5)
    one = Candidate("cnn", 8, 3, taught=True, optimizer="sgd", rate=3.0, softness=0.5)

    (run,) = _space.chain(base(), one, (2,), 28, _space.Taught("0" * 16, loss), 0)

    assert (run.optimizer.kind, run.optimizer.lr) == ("sgd", pytest.approx(0.3))  # type: ignore[union-attr]
    assert run.loss == loss.model_copy(update={"temperature": 2.0})
    plain = replace(one, optimizer="adamw", rate=1.0, softness=1.0)
    (usual,) = _space.chain(base(), plain, (2,), 28, _space.Taught("0" * 16, loss), 0)
    fields = {"network": {"kind": "cnn", "width": 8, "depth": 3}, "teacher": "0" * 16, "loss": loss, "epochs": 2}
    assert digest(usual) == digest(base(**fields)), "the usual recipe is the same run as before"


def test_a_candidate_with_a_given_network_is_read_back_as_it_was_written() -> None:
    pruned = network(width=8, pruned={"widths": [["0", 4, 3]]})
    one = Candidate("given", 0, 0, rate=0.3, given=Given("cnn pruned to 40%", pruned, "a" * 16, 0.4))

    again = Candidate.of(json.loads(json.dumps(one.as_dict())))

    assert again == one
    assert hash(again) == hash(one)
    assert one.label == "cnn pruned to 40%, labels only, 0.3 x rate"
    old = {"family": "cnn", "width": 8, "depth": 3, "scale": 1, "taught": False, "augment": "none"}
    assert Candidate.of(old) == Candidate("cnn", 8, 3), "records of before have fewer fields"


def test_a_pruned_network_starts_from_its_origin_and_a_pretrained_one_from_its_weights_once() -> None:
    pruned = Given("p", network(width=8, pruned={"widths": [["0", 4, 3]]}), "a" * 16, 0.4)
    first, second = _space.chain(base(), Candidate("given", 0, 0, given=pruned), (1, 3), 28, None, 0)
    assert (first.start, second.start) == ("a" * 16, digest(first))
    assert first.network == second.network == pruned.network

    timm = _pretrained.given(Timm(name="lcnet_050", pretrained=True, size=64))
    first, second = _space.chain(base(), Candidate("given", 0, 0, given=timm), (1, 3), 28, None, 0)
    assert (first.start, first.network.pretrained) == (None, True)  # type: ignore[union-attr]
    assert (second.start, second.network.pretrained) == (digest(first), False)  # type: ignore[union-attr]
    assert second.network.size == 64  # type: ignore[union-attr]


def test_a_backbone_without_weights_is_refused() -> None:
    with pytest.raises(BadSpec, match="without weights to start from"):
        search.parse_study({"data": "digits", "max_kb": 900, "backbones": ["timm:lcnet_050"]})
    with pytest.raises(BadSpec, match="names one twice"):
        search.parse_study({"data": "digits", "max_kb": 900, "optimizers": ["sgd", "sgd"]})


def test_pretrained_networks_that_cannot_fit_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for: list[str] = []
    monkeypatch.setattr("smallalign_core.networks.where_weights_are", lambda name: looked_for.append(name) or "cache")
    assert _pretrained._downloaded(simulated(max_kb=400)) == []
    assert not looked_for
    found = _pretrained._downloaded(simulated(max_kb=800))
    assert [one.name for one in found] == looked_for
    assert "mobilenetv3_small_050.lamb_in1k" in looked_for
    assert "tf_efficientnet_lite0.in1k" not in looked_for


def test_a_search_has_the_same_id_whatever_is_installed_and_downloaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {"data": "digits", "teacher": "none", "max_kb": 800, "budget": {"trials": 2}}
    downloaded = Timm(name="lcnet_050", pretrained=True)
    monkeypatch.setattr("smallalign_core.search._check.check", lambda *_: None)

    def resolved(**fields: Any) -> search.SearchSpec:
        spec = search.parse_study(written | fields)
        found: search.SearchSpec = resolve_study(store, search.KIND, spec, "cpu")
        return found

    ids, explicit = set(), set()
    for everything, networks in ((False, []), (True, [downloaded])):
        monkeypatch.setattr("smallalign_core.system.extras.installed", lambda _, there=everything: there)
        monkeypatch.setattr(_pretrained, "_downloaded", lambda _, known=networks: known)
        monkeypatch.setattr(_pretrained, "_filled", lambda network, *_: network)
        assert (resolved().optimizers, resolved().backbones) == ((), None)
        ids.add(search.study_id(resolved()))
        explicit.add(search.study_id(resolved(optimizers=["sgd"], backbones=[])))
    assert len(ids) == len(explicit) == 1
    assert ids != explicit


def test_a_continued_search_keeps_the_choices_it_found_at_its_start(
    store: Store, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_muon = [True]
    networks = [Timm(name="lcnet_050", pretrained=True, size=64)]
    monkeypatch.setattr(_space, "installed", lambda: ("adamw", "muon") if has_muon[0] else ("adamw", "sgd"))
    monkeypatch.setattr(_steps, "installed", _space.installed)
    monkeypatch.setattr(_pretrained, "_downloaded", lambda _: networks)
    monkeypatch.setattr(_pretrained, "_filled", lambda network, *_: network)
    lab = Simulation(store, simulated(min_accuracy=0.9, optimizers=[], backbones=None))
    assert lab.step_once()
    first = lab.record().choices
    assert first is not None
    assert (first.optimizers, first.backbones) == (("adamw", "muon"), tuple(networks))
    assert read_lines(lab.study.folder / FILE)[0][0]["kind"] == "choices"

    has_muon[0] = False
    networks.clear()
    again = Simulation(store, simulated(min_accuracy=0.9, optimizers=[], backbones=None))

    assert again.study.folder == lab.study.folder
    record = again.record()
    assert record.choices == first
    assert _plan.space_of(again.spec, record).optimizers == ("adamw", "muon")
    record.ready = {"taught": {}}
    found = list(_proposals._starters(again.spec, _plan.space_of(again.spec, record), lambda _: True, first.backbones))
    assert "lcnet_050" in " ".join(one.candidate.network for one in found)


def test_a_search_of_before_chooses_from_the_lists_of_its_spec() -> None:
    spec = simulated(min_accuracy=0.9, optimizers=("adamw", "sgd"))
    assert _plan.space_of(spec, Record(spec.budget, ready={"taught": {}})).optimizers == ("adamw", "sgd")


# --- whole searches, on simulated students ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_tries_recipes_and_prunes_what_is_good(store: Store, cards: list[str]) -> None:
    optimizers = ("adamw", "muon", "sgd")
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"trials": 40}, optimizers=optimizers))
    report = lab.finish()

    trained = [trial for trial in lab.record().tried]
    assert {trial.candidate.optimizer for trial in trained} == set(optimizers)
    assert {trial.candidate.rate for trial in trained} > {1.0}
    pruned = [trial for trial in trained if trial.candidate.given is not None]
    assert pruned
    for trial in pruned:
        given = trial.candidate.given
        assert given is not None
        origin = store.by_id(given.start or "")
        assert origin.finished
        assert lab.params(origin.spec) > lab.params(_plan.last_run(lab.spec, lab.record(), trial.candidate))
        assert trial.why.startswith("pruned: trial ")
    assert all(row.why for row in report.rows)
    assert report.met


def test_recipes_are_tried_where_a_smaller_file_nearly_met_the_limit() -> None:
    spec = simulated(min_accuracy=0.93, optimizers=("adamw", "muon"))
    record = Record(spec.budget, ready={"taught": {}})
    for number, width in enumerate((8, 4, 2), 1):
        record.trials.append(Trial(number, Candidate("cnn", width, 3, augment="light"), "start", 1))
    for number, right in enumerate((970, 925, 800), 1):
        counts = Counts(0, right, 0, 1000 - right)
        record.looks.append(Look(number, "int8", "r", 9_000 - 1_000 * number, 0.1, counts))
    assert _plan.best_look(spec, record.looks) == record.looks[0]

    found = list(_proposals._repaired(spec, replace(WIDE, optimizers=("adamw", "muon")), record))

    nearest = record.trial(2).candidate
    assert [one.candidate for one in found[:3]] == [
        replace(nearest, rate=3.0),
        replace(nearest, augment="strong"),
        replace(nearest, optimizer="muon"),
    ]
    assert found[0].why.startswith("another recipe for trial 2, smaller and 2.")
    assert found[0].why.endswith(" points short: learning rate times 3")
    assert {one.candidate.width for one in found} == {4, 2}, "the best one's recipe stays"


@pytest.mark.slow
def test_int8_with_layers_in_float_is_evaluated_where_int8_alone_misses(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.955, precisions=("fp16", "int8"), budget={"trials": 16}))
    lab.integers = 0.3
    report = lab.finish()

    looks = lab.record().looks
    mixed = [look for look in looks if look.precision == "int8-drop0.5"]
    assert mixed
    for look in mixed:
        before = next(one for one in looks if one.trial == look.trial)
        assert (before.precision, look.files) == ("int8", 3)
        trial = lab.record().trial(look.trial)
        assert trial.measured is not None
        assert look.bytes < (trial.measured.bytes["fp16"] or 0)
    assert report.looks == len(looks) + 2 * len(mixed), "files compared to choose layers count"
    assert report.row is not None
    if report.row.precision == "int8-drop0.5":
        assert report.bytes == report.row.bytes


@pytest.mark.slow
def test_a_mixed_file_beyond_the_limit_is_no_answer(store: Store, cards: list[str]) -> None:
    lab = Simulation(
        store, simulated(max_ms=1.0, min_accuracy=0.955, precisions=("fp16", "int8"), budget={"trials": 16})
    )
    lab.integers, lab.mixed_ms = 0.3, 2.0
    lab.finish()
    assert lab.record().mixed
    assert set(lab.record().mixed.values()) == {"2 ms"}
    assert not [look for look in lab.record().looks if look.precision == "int8-drop0.5"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_three_times_at_random_the_broad_search_takes_the_same_decisions(
    tmp_path: Path, cards: list[str], seed: int
) -> None:
    spec = simulated(min_accuracy=0.93, budget={"trials": 32}, seed=seed, optimizers=("adamw", "muon", "sgd"))
    whole = Simulation(Store(tmp_path / "whole"), spec)
    whole.integers = 0.05
    whole.finish()
    steps = len(read_lines(whole.study.folder / "search.jsonl")[0]) + whole.trained // 4
    kills = set(np.random.default_rng(seed).choice(steps, 3, replace=False).tolist())
    killed, step = Simulation(Store(tmp_path / "killed"), spec), 0
    killed.integers = 0.05
    while killed.step_once():
        if step in kills:
            SEEN.clear()
            killed = Simulation(killed.store, spec)
            killed.time, killed.integers = 1e5 * step, 0.05
        step += 1

    assert step > max(kills)
    assert decided(killed.record()) == decided(whole.record())
    assert killed.report().answer() == whole.report().answer()
    assert {trial.candidate.given is None for trial in whole.record().tried} == {True, False}


def test_the_page_of_the_export_opens_with_the_same_file() -> None:
    assert _export_address("int8") == {"precision": "int8"}
    assert _export_address("int8-drop2.5") == {"precision": "int8", "max-drop": "2.5"}


# --- what more budget would buy ---------------------------------------------------------------------------------------


def test_the_rate_is_that_of_a_weighted_regression_of_increments() -> None:
    rng = np.random.default_rng(0)
    spent = np.cumsum(rng.uniform(20, 60, 7))
    best = np.exp(12 - np.cumsum(rng.uniform(0.0, 0.4, 7)))
    growth, falls = np.diff(np.log(spent)), -np.diff(np.log(best))
    rate = np.average(falls / growth, weights=growth)
    error = np.sqrt(np.sum(growth * (falls / growth - rate) ** 2) / (len(growth) - 1) / growth.sum())
    assert rate - stats.t.ppf(0.9, len(growth) - 1) * error > 0

    assert _outlook.shown_rate(list(spent), list(best)) == pytest.approx(rate)


def test_a_power_law_is_found_again_and_no_fall_is_nothing() -> None:
    spent = [30.0, 70.0, 100.0, 180.0]
    assert _outlook.shown_rate(spent, [1000 * each**-0.4 for each in spent]) == pytest.approx(0.4)
    assert _outlook.shown_rate(spent, [1000.0] * 4) is None
    assert _outlook.shown_rate(spent, [1000.0, 400.0, 400.0, 400.0]) is None, "one fall in three rounds is no rate"
    assert _outlook.shown_rate(spent[:3], [1000 * each**-0.4 for each in spent[:3]]) is None


def test_where_nothing_more_is_to_be_had_a_gain_is_seldom_named() -> None:
    """Rounds that draw from one distribution of results: the running best falls at first, and then hardly ever."""
    rng, named = np.random.default_rng(1), 0
    for _ in range(400):
        best = np.minimum.accumulate(np.maximum(500.0, rng.lognormal(7, 0.3, 40)))[20:]
        named += _outlook.shown_rate(list(30.0 * np.arange(21, 41)), list(best)) is not None
    assert named / 400 < 0.15


@pytest.mark.slow
def test_the_answer_says_what_more_budget_would_buy(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.93, budget={"trials": 32}))
    while lab.record().stopped is None:
        assert lab.report().outlook is None
        assert lab.step_once()
    report = lab.finish()
    assert report.outlook is not None
    assert report.outlook.more == "11 more trials"
    spent, best = _outlook._curve(lab.spec, lab.record(), "bytes")
    assert best == sorted(best, reverse=True)
    assert report.row is not None
    assert best[-1] == report.row.bytes
    rate = _outlook.shown_rate(spent, best)
    if rate is None:
        assert report.outlook.gain is None
        assert report.answer().endswith("11 more trials would probably buy nothing that can be shown.")
    else:
        expected = best[-1] * (1 - ((spent[-1] + 11) / spent[-1]) ** -rate)
        assert report.outlook.gain == pytest.approx(expected)
        assert "11 more trials would probably buy" in report.answer()
    assert report.as_dict()["outlook"]["of"] == "bytes"


def test_a_short_search_cannot_show_a_gain(store: Store, cards: list[str]) -> None:
    report = Simulation(store, simulated(min_accuracy=0.6, budget={"trials": 8})).finish()
    assert report.answer().endswith("3 more trials would probably buy nothing that can be shown.")


# --- the budget -------------------------------------------------------------------------------------------------------


def test_time_before_the_first_decision_counts_once(store: Store, cards: list[str]) -> None:
    lab = Simulation(store, simulated(min_accuracy=0.6, budget={"seconds": 300}))
    search.begin(lab.study.folder, lab.spec.budget, 40.0)
    search.begin(lab.study.folder, lab.spec.budget, 40.0)
    assert lab.record().spent == 40.0
    SEEN.clear()
    report = lab.finish()
    assert report.spent == pytest.approx(40 + lab.time, abs=30)
    assert 40 + lab.time <= 1.1 * 300


def test_only_the_smallest_new_teacher_is_measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the largest can take seconds: measuring each, from the largest on, once took most of a budget."""
    lab = Simulation(store, simulated(min_accuracy=0.9, teacher=None, budget={"seconds": 1200}))
    measured: list[int] = []
    step = lab.step
    monkeypatch.setattr(lab, "step", lambda run: measured.append(run.network.width) or step(run))

    found = _teacher.choose(lab.spec, store, lab)  # type: ignore[arg-type]

    assert measured == [min(_teacher.WIDTHS)]
    width = found["spec"]["network"]["width"]
    steps = 9 * lab.train_images / 32
    takes = {
        one: 1.3 * steps * step(base(network={"kind": "resnet", "width": one, "depth": 2})) for one in _teacher.WIDTHS
    }
    assert takes[width] <= 0.25 * 1200
    larger = [one for one in _teacher.WIDTHS if one > width]
    assert all(takes[one] > 0.2 * 1200 for one in larger), "about the largest that fits"


# --- on real networks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mixed_file_has_exactly_the_bytes_that_are_exported(store: Store) -> None:
    run = store.run("digits-student")
    drop = export.least_drop(143)
    assert 4 < drop <= 5

    made = _size.within_drop(run, store, drop)
    kept = export.bundle(run, store, precision="int8", options=export.FileOptions(max_drop=drop))

    assert len(made.content) == kept["bytes"]
    assert made.logits.shape == (143, 10)


@pytest.mark.slow
def test_a_finished_network_is_pruned_and_trains_on(store: Store) -> None:
    lab = Lab(store, store.run("digits-student").spec, "cpu")
    run = store.run("digits-student")

    smaller = lab.pruned(run, 0.5)

    assert smaller.pruned is not None
    sizes = [
        lab.sizes(run.spec.model_copy(update={"network": one}), ("int8",))["int8"]
        for one in (run.spec.network, smaller)
    ]
    assert sizes[1] is not None
    assert sizes[0] is not None
    assert sizes[1] < 0.85 * sizes[0]
