"""Ablations: pairs that differ in one choice alone, honest statistics, and nothing trained twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import command, tiny
from scipy import stats
from streamlit.testing.v1 import AppTest

from pages.ui.app import context
from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.service import handlers
from smallalign_core.service.requests import Ablate
from smallalign_core.spec import RunSpec, digest
from smallalign_core.studies import ablation
from smallalign_core.studies.ablation import METRICS, effect
from smallalign_core.training.resolve import resolve

POLICY = [{"kind": "shift", "pixels": 1}, {"kind": "rotate", "degrees": 10}]
NOISY = [0.94, 0.95, 0.93, 0.96], [0.93, 0.96, 0.92, 0.95]


def augmented(store: Store, **fields: Any) -> RunSpec:
    return resolve(store, tiny(augment=POLICY, **fields))


def pretend(store: Store, spec: RunSpec, **scores: Any) -> Run:
    """A run whose folder says that it is finished with these validation scores."""
    run = store.create(spec)
    run.weights.write_bytes(b"")
    val = {"accuracy": 0.9, "nll": 0.3, "ece": 0.05, "images": 143, "recall": {"a": 0.8, "b": 0.6}} | scores
    (run.folder / "result.json").write_text(json.dumps({"id": run.id, "val": val}))
    return run


# --- the arms ---------------------------------------------------------------------------------------------------------


def test_what_a_loss_brings_along_cannot_be_left_out() -> None:
    """Function matching adds MixUp by itself: both arms would be the same run."""
    spec = tiny(teacher="t", loss="function_matching")
    with pytest.raises(BadSpec, match="part of loss function_matching"):
        ablation.without(spec, "augment")
    assert [
        part.kind
        for part in ablation.without(tiny(**spec.model_dump() | {"augment": ["flip", "mixup"]}), "augment").augment
    ] == ["mixup"]


def test_every_choice_has_a_control() -> None:
    assert set(get_args(ablation.What)) == set(ablation.CONTROLS)


def test_the_arms_of_a_pair_differ_in_the_choice_alone() -> None:
    spec = tiny(augment=POLICY, views=4, seed=7, teacher="digits-teacher", shuffled=True, loss={"kind": "kd"})

    for what, gone in (("augment", {"augment", "views"}), ("teacher", {"teacher", "loss", "shuffled"})):
        found = ablation.pairs(spec, what, 3)

        assert [ours.seed for ours, _ in found] == [7, 8, 9]
        for ours, theirs in found:
            a, b = ours.model_dump(), theirs.model_dump()
            assert {name for name in a if a[name] != b[name]} == gone
            assert ours == spec.model_copy(update={"seed": ours.seed})


def test_what_is_left_out_is_gone() -> None:
    spec = tiny(augment=POLICY, views=4, teacher="digits-teacher")

    assert (ablation.without(spec, "augment").augment, ablation.without(spec, "augment").views) == ((), 0)
    assert ablation.without(spec, "augment").teacher == "digits-teacher"
    control = ablation.without(spec, "teacher")
    assert (control.teacher, control.loss.kind) == (None, "cross_entropy")


def test_the_control_keeps_what_a_spec_was_resolved_to(store: Store) -> None:
    spec = augmented(store)

    control = ablation.without(spec, "augment")

    assert control == resolve(store, tiny())


@pytest.mark.parametrize("what", ["augment", "teacher", "shuffled"])
def test_nothing_to_leave_out_is_refused_in_words(what: ablation.What) -> None:
    with pytest.raises(BadSpec, match="Nothing to ablate"):
        ablation.pairs(tiny(), what, 3)


@pytest.mark.parametrize("seeds", [0, -1, 101])
def test_a_number_of_seeds_that_makes_no_sense_is_refused(seeds: int) -> None:
    with pytest.raises(BadInput, match="must be 1 to 100"):
        ablation.pairs(tiny(augment=POLICY), "augment", seeds)


def test_seeds_beyond_the_last_one_are_refused() -> None:
    with pytest.raises(BadSpec, match="seed"):
        ablation.pairs(tiny(augment=POLICY, seed=2**31 - 1), "augment", 2)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(BadInput, match="Unknown component"):
        ablation.without(tiny(augment=POLICY), "weather")  # type: ignore[arg-type]


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_is_that_of_a_paired_t_test(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.9, 0.02, n), rng.normal(0.88, 0.02, n)

    found = effect("accuracy", ours.tolist(), theirs.tolist())

    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.sd == pytest.approx((ours - theirs).std(ddof=1))
    assert (found.verdict == "noise") == (expected.pvalue > 0.05)


def test_pairing_is_by_seed() -> None:
    """Seeds that differ much and an effect that does not: only pairs see it."""
    theirs = [0.70, 0.80, 0.90]

    found = effect("accuracy", [0.711, 0.810, 0.909], theirs)
    mixed = effect("accuracy", [0.909, 0.711, 0.810], theirs)

    assert found.verdict == "helps"
    assert mixed.verdict == "noise"
    assert found.mean == pytest.approx(mixed.mean)


@pytest.mark.parametrize(
    ("metric", "up"), [("accuracy", "helps"), ("macro_recall", "helps"), ("nll", "hurts"), ("ece", "hurts")]
)
def test_which_way_is_better(metric: str, up: str) -> None:
    higher, lower = [0.31, 0.32, 0.33], [0.21, 0.225, 0.23]
    down = {"helps": "hurts", "hurts": "helps"}[up]

    assert effect(metric, higher, lower).verdict == up
    assert effect(metric, lower, higher).verdict == down
    assert effect(metric, higher, lower).words().endswith(up)


def test_one_seed_is_not_evidence() -> None:
    found = effect("accuracy", [0.95], [0.93])

    assert (found.verdict, found.low, found.sd) == ("not evidence", None, None)
    assert (
        found.words()
        == "accuracy 95.00% with, 93.00% without: +2.00 points. Single seed; run more before drawing conclusions"
    )


def test_no_pair_says_so() -> None:
    assert effect("nll", [], []).words() == "NLL: no finished pair yet"


def test_equal_differences_are_no_proof() -> None:
    """With few images two seeds easily differ by the same count, and a t interval would have no width."""
    found = effect("accuracy", [130 / 143, 128 / 143], [129 / 143, 127 / 143])

    assert found.verdict == "no spread"
    assert found.low is None
    assert "add seeds" in found.words()
    assert effect("accuracy", [0.9, 0.8], [0.9, 0.8]).words().endswith("no difference")


def test_noise_says_what_it_would_take() -> None:
    found = effect("accuracy", *NOISY)

    assert found.verdict == "noise"
    assert (
        f"not statistically significant; about {found.more_seeds} more seeds needed, if the observed mean"
        in found.words()
    )


def test_no_number_of_seeds_shows_what_is_not_there() -> None:
    found = effect("accuracy", [0.9, 0.8, 0.85], [0.8, 0.9, 0.85])

    assert (found.verdict, found.more_seeds) == ("noise", None)
    assert "may not become significant" in found.words()


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("accuracy", 0.0123, "+1.23"),
        ("accuracy", -0.0123, "−1.23"),
        ("ece", -1e-9, "0.00"),
        ("nll", -0.04567, "−0.0457"),
    ],
)
def test_differences_carry_their_sign(metric: str, value: float, said: str) -> None:
    assert METRICS[metric].change(value) == said


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_reads_validation_and_never_test(store: Store) -> None:
    spec = augmented(store)
    for ours, theirs in ablation.pairs(spec, "augment", 3):
        pretend(store, ours, accuracy=0.95 + ours.seed / 1000)
        pretend(store, theirs, accuracy=0.90)

    found = ablation.report(store, spec, "augment", 3)

    assert (found.finished, found.missing, found.images) == (3, 0, 143)
    assert found.effects[0].mean == pytest.approx(0.051)
    assert found.verdict == "The augmentation helps"
    assert "143 validation images" in found.words()
    assert "test images are not used" in found.words()


def test_half_a_pair_counts_for_nothing(store: Store) -> None:
    spec = augmented(store)
    (first, second) = ablation.pairs(spec, "augment", 2)
    pretend(store, first[0])
    pretend(store, first[1])
    pretend(store, second[0], accuracy=0.1)

    found = ablation.report(store, spec, "augment", 2)

    assert (found.finished, found.missing) == (1, 1)
    assert found.effects[0].verdict == "not evidence"
    assert "1 of 2 pairs finished, 1 run to start" in found.words()
    assert found.pairs[1].control.state == ablation.NOT_STARTED


def test_a_failed_arm_is_named_with_its_reason(store: Store) -> None:
    spec = augmented(store)
    ((ours, theirs),) = ablation.pairs(spec, "augment", 1)
    with RunWriter(store.create(ours)) as recording:
        recording.write_status(ended=State.FAILED, reason="The loss became nan.")
    pretend(store, theirs)

    found = ablation.report(store, spec, "augment", 1)

    assert found.failed == ["seed 0 with the augmentation: The loss became nan."]
    assert "favours the arm that failed" in found.words()


def test_damaged_runs_do_not_hide_the_others(store: Store) -> None:
    spec = augmented(store)
    found = ablation.pairs(spec, "augment", 2)
    for pair in found:
        for arm in pair:
            pretend(store, arm)
    for content in ("", "{}", "[]", '{"val": {}}', '{"val": {"accuracy": "much"}}'):
        (store.root / "runs" / digest(found[0][0]) / "result.json").write_text(content)

        report = ablation.report(store, spec, "augment", 2)

        assert report.finished == 1, content
        assert report.pairs[0].treated.state == ablation.DAMAGED
        assert report.failed[0].startswith("seed 0 with the augmentation: ")


def test_starting_again_queues_only_what_is_missing(store: Store) -> None:
    spec = augmented(store)
    ((ours, _),) = ablation.pairs(spec, "augment", 1)
    pretend(store, ours)

    ablation.start(store, spec, "augment", 2)
    ablation.start(store, spec, "augment", 2)

    assert len(store.runs()) == 4
    order = [arm for pair in ablation.pairs(spec, "augment", 2) for arm in pair][1:]
    assert [run.id for run in store.queue()] == [digest(arm) for arm in order], "pair after pair"
    assert ablation.report(store, spec, "augment", 2).running == 2


def test_what_was_stopped_goes_on_when_started_again(store: Store) -> None:
    spec = augmented(store)
    runs = ablation.start(store, spec, "augment", 1)
    for run in runs:
        run.request("cancel")
    assert ablation.report(store, spec, "augment", 1).missing == 2

    ablation.start(store, spec, "augment", 1)

    assert [run.state for run in runs] == [State.QUEUED, State.QUEUED]


def test_policies_share_their_control(store: Store) -> None:
    ablation.start(store, augmented(store), "augment", 2)
    ablation.start(store, resolve(store, tiny(augment=["flip"])), "augment", 2)

    assert len(store.runs()) == 6


# --- the doors --------------------------------------------------------------------------------------------------------


def test_the_backend_reports_and_starts(store: Store) -> None:
    request = Ablate(tiny(augment=POLICY), "augment", 2)

    first = handlers.ablate(store, request).report
    assert (first.missing, store.runs()) == (4, [])
    second = handlers.ablate(store, replace(request, start=True))

    assert (second.report.running, len(store.queue())) == (2, 4)
    assert second.spec.data.fingerprint
    with pytest.raises(BadSpec, match="Nothing to ablate"):
        handlers.ablate(store, Ablate(tiny(), "augment"))


@pytest.mark.slow
def test_the_command_line_trains_pairs_and_never_twice(tmp_path: Path, store: Store) -> None:
    (tmp_path / "spec.yaml").write_text(
        "data: {source: digits, images: 200}\nnetwork: {kind: cnn, width: 4, depth: 2}\nepochs: 4\naugment: [shift]\n"
    )
    arguments = ("ablate", tmp_path / "spec.yaml", "--without", "augment", "--seeds", 2, "--json")

    done = command(*arguments, store=store)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert (found["finished"], found["of"], found["split"], found["failed"]) == (2, 2, "val", [])
    assert set(found["metrics"]) == {"accuracy", "macro_recall", "nll", "ece"}
    for pair in found["pairs"]:
        for arm, policy in (("with", True), ("without", False)):
            run = store.run(pair[arm]["id"])
            assert (run.spec.seed, bool(run.spec.augment)) == (pair["seed"], policy)
            assert pair[arm]["scores"]["nll"] == (run.result or {})["val"]["nll"]
    nll = found["metrics"]["nll"]
    expected = stats.ttest_rel(
        *[[pair[arm]["scores"]["nll"] for pair in found["pairs"]] for arm in ("with", "without")]
    )
    assert (nll["low"], nll["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))

    before = {run.id: run.weights.stat().st_mtime_ns for run in store.runs()}
    assert len(before) == 4
    again = command(*arguments, store=store)
    assert json.loads(again.stdout) == found
    assert {run.id: run.weights.stat().st_mtime_ns for run in store.runs()} == before


@pytest.mark.slow
def test_the_command_line_goes_on_after_a_failed_arm(tmp_path: Path, store: Store) -> None:
    (tmp_path / "spec.yaml").write_text(
        "data: {source: digits, images: 200}\nnetwork: {kind: mlp, width: 8}\nepochs: 20\naugment: [shift]\n"
        "optimizer: {kind: sgd, lr: 100, momentum: 0.99}\n"
    )

    done = command("ablate", tmp_path / "spec.yaml", "--without", "augment", "--seeds", 1, "--json", store=store)

    assert done.returncode == 1
    assert "seed 0 with" in done.stderr
    found = json.loads(done.stdout)
    assert "seed 0 with the augmentation: The loss became" in found["failed"][0]
    assert found["pairs"][0]["without"]["state"] in ("finished", "failed"), "it was trained all the same"


@pytest.mark.slow
def test_the_command_line_queues(tmp_path: Path, store: Store) -> None:
    (tmp_path / "spec.yaml").write_text("data: digits\nnetwork: cnn\nteacher: digits-teacher\n")

    done = command("ablate", tmp_path / "spec.yaml", "--without", "teacher", "--queue", store=store)

    assert done.returncode == 0, done.stderr
    assert "0 of 3 pairs finished, 3 running or queued" in done.stdout
    assert [run.spec.loss.kind for run in store.queue()] == ["kd", "cross_entropy"] * 3


# --- the panel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def panel(store: Store, backend_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw the panel alone, for a spec in the test's store, beside an empty page of runs that it may link to."""
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    frame = "import streamlit as st\nst.navigation([st.Page('panel.py', default=True), st.Page('runs.py')]).run()\n"
    (tmp_path / "frame.py").write_text(frame)
    (tmp_path / "runs.py").write_text("")

    def show(spec: RunSpec, **query: str) -> AppTest:
        (tmp_path / "panel.py").write_text(
            "import json\nfrom pages.ui.ablation import panel\nfrom pages.ui.app import context\n"
            f"panel.panel(json.loads({spec.model_dump_json()!r}), 'augment', context.store(), key='worth')\n"
        )
        app = AppTest.from_file(str(tmp_path / "frame.py"), default_timeout=120)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception
        return app

    yield show
    context.client().close()


def written(app: AppTest) -> str:
    found = [*app.markdown, *app.caption, *app.info, *app.error, *app.warning, *app.success]
    return "\n".join(str(element.value) for element in found)


@pytest.mark.slow
def test_the_panel_says_what_it_costs_and_queues_it(panel, store: Store) -> None:
    app = panel(tiny(augment=POLICY))
    assert "6 runs to train" in written(app)
    assert "No runs yet" in written(app)

    app.button(key="worth-start").click().run()

    assert not app.exception
    assert len(store.queue()) == 6
    assert app.button(key="worth-start").disabled
    app.button(key="worth-stop").click().run()
    assert {run.state for run in store.runs()} == {State.CANCELLED}
    assert not app.button(key="worth-start").disabled


@pytest.mark.slow
def test_the_panel_finds_results_again_with_the_seeds_of_its_address(panel, store: Store) -> None:
    spec = augmented(store)
    for ours, theirs in ablation.pairs(spec, "augment", 4):
        pretend(store, ours, accuracy=0.80 + ours.seed / 1000)
        pretend(store, theirs, accuracy=0.90)

    app = panel(tiny(augment=POLICY), **{"worth-seeds": "4"})

    assert "The augmentation hurts" in app.warning[0].value
    assert "4 seeds" in app.warning[0].value
    assert "The augmentation hurts" not in written(panel(tiny(augment=POLICY, seed=20)))
    assert "--without augment --seeds 4" in app.code[1].value


@pytest.mark.slow
def test_the_panel_calls_one_seed_no_evidence_before_and_after(panel, store: Store) -> None:
    app = panel(tiny(augment=POLICY), **{"worth-seeds": "1"})
    assert "Single seed" in written(app)

    ((ours, theirs),) = ablation.pairs(augmented(store), "augment", 1)
    pretend(store, ours)
    pretend(store, theirs)

    assert "Single seed; run more before drawing conclusions" in app.run().warning[0].value


@pytest.mark.slow
def test_the_panel_names_a_failed_run(panel, store: Store) -> None:
    ((ours, _),) = ablation.pairs(augmented(store), "augment", 1)
    with RunWriter(store.create(ours)) as recording:
        recording.write_status(ended=State.FAILED, reason="The loss became nan.")

    app = panel(tiny(augment=POLICY))

    assert app.error[0].value == "Run failed: seed 0 with the augmentation: The loss became nan."


def test_the_panel_without_anything_to_leave_out_says_what_to_do(panel) -> None:
    app = panel(tiny())

    assert "Add transforms to `augment`" in app.info[0].value
    assert not app.button


# --- the student's form -----------------------------------------------------------------------------------------------


@pytest.fixture
def form(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Draw the form alone; what it returns is written as JSON."""
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))

    def show(**query: str) -> AppTest:
        app = AppTest.from_string(
            "import json\nimport streamlit as st\n"
            "from pages.ui.app import context\nfrom pages.ui.studies import student_form\n"
            "from smallalign_core.service import handlers, requests\nfrom smallalign_core.spec import parse_data\n"
            "facts = handlers.inspect(context.store(), requests.Inspect(parse_data('digits')))\n"
            "st.code(json.dumps(student_form.form(facts, context.store(), key='student')))\n",
            default_timeout=120,
        )
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception
        return app

    return show


def test_a_student_is_found_again_by_the_address(form) -> None:
    app = form()
    app.number_input(key="student.epochs").set_value(7)
    app.number_input(key="student.network.cnn.width").set_value(12)
    app.number_input(key="student.data.images").set_value(200).run()

    again = form(student=app.query_params["student"])

    chosen = json.loads(again.code[0].value)
    assert (chosen["epochs"], chosen["network"]["width"], chosen["data"]["images"]) == (7, 12, 200)
    assert chosen["teacher"] is None
    assert chosen == json.loads(app.code[0].value)


@pytest.mark.parametrize("wrong", ["{", "[]", '{"network": "owl"}', '{"data": 3}', '{"epochs": -1}'])
def test_an_address_that_names_no_student_is_said_so(form, wrong: str) -> None:
    app = form(student=wrong)

    assert "Invalid link parameter" in app.warning[0].value
    assert json.loads(app.code[0].value)["network"]["kind"] == "cnn"
