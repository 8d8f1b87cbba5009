"""The Scaling page: a form that lives in the address, and a study in all of its states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from pages.ui.charts import plotting, theme
from pages.ui.studies.scaling import charts, setup_form, view
from smallalign_core.analysis import data_quality
from smallalign_core.data import Decision
from smallalign_core.runs.store import State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.service import handlers
from smallalign_core.service.requests import Inspect
from smallalign_core.spec import parse_data
from smallalign_core.studies import lifecycle, optimizers, scaling
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.studies.scaling import most_of, parse_study
from tests.conftest import Show, scaled, texts


@pytest.fixture
def store(place: Store) -> Store:
    """All tests of this file share one."""
    return place


# --- the form ---------------------------------------------------------------------------------------------------------


def spec_of_form(app: AppTest) -> scaling.ScalingStudySpec:
    return parse_study(yaml.safe_load(app.code[0].value))


def test_an_empty_store_has_a_form_that_is_ready_to_start(shown: Show) -> None:
    app = shown("scaling", data="digits")
    spec = spec_of_form(app)
    assert "No studies yet" in texts(app)
    assert [button.label for button in app.button].count("Start study") == 1
    assert {metric.label: metric.value for metric in app.metric}["Runs"] == "72"
    assert spec.recipes == ("baseline", "augment")
    assert (len(spec.widths), len(spec.fractions), spec.replicates) == (3, 3, 4)


def test_what_is_chosen_is_in_the_address_and_comes_back_from_it(shown: Show) -> None:
    app = shown("scaling", data="digits", recipes="augment,clean,noise,all", draws="5", preset="standard", steps="50")
    spec = spec_of_form(app)
    assert spec.recipes == ("baseline", "augment", "clean", "all", "noise")
    assert (spec.replicates, spec.steps, len(spec.widths), spec.decisions) == (5, 50, 4, "automatic")
    names = ("student", "recipes", "draws", "preset", "steps")
    again = shown("scaling", data="digits", **{name: str(app.query_params[name]) for name in names})
    assert spec_of_form(again) == spec


def test_unlabeled_images_are_a_variant(shown: Show, tmp_path: Path) -> None:
    student = '{"network":{"kind":"mlp","width":8},"data":{"images":300}}'
    app = shown("scaling", data="digits", recipes="unlabeled", student=student, teacher="digits-teacher")
    spec = spec_of_form(app)
    assert (spec.recipes, spec.unlabeled, spec.student.data.unlabeled) == (("baseline", "unlabeled"), "rest", None)
    assert spec.teacher is not None

    app.text_input(key="scaling/unlabeled").set_value(str(tmp_path)).run()
    assert spec_of_form(app).unlabeled == str(tmp_path)
    assert setup_form.address(spec_of_form(app))["unlabeled"] == app.query_params["unlabeled"]


def test_all_together_needs_two_things_and_none_is_a_sentence(shown: Show) -> None:
    app = shown("scaling", data="digits", recipes="augment,all")
    assert "All combined needs at least two variants" in texts(app)
    assert spec_of_form(app).recipes == ("baseline", "augment")
    assert "No variant selected" in texts(shown("scaling", data="digits", recipes=""))


def test_a_student_too_narrow_for_sizes_around_it_is_a_sentence(shown: Show) -> None:
    student = '{"network":{"kind":"mlp","width":2}}'
    assert "too narrow for 3 distinct sizes" in texts(shown("scaling", data="digits", student=student))


def test_own_decisions_are_offered_where_there_are_some(shown: Show, place: Store) -> None:
    fingerprint = handlers.inspect(place, Inspect(parse_data("digits"))).fingerprint
    data_quality.decide(place, fingerprint, "digits", [(255, Decision("drop"))])
    app = shown("scaling", data="digits", recipes="clean", cleaning="decided")
    assert spec_of_form(app).decisions == str(data_quality.file_of(place, fingerprint))


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_study_without_runs_says_so(shown: Show, place: Store) -> None:
    app = shown("scaling", study=scaled(place, epochs=3).id)
    assert "No finished runs yet" in texts(app)
    assert "Resume" in [button.label for button in app.button]


@pytest.mark.slow
def test_an_adaptive_study_is_extended_by_runs(shown: Show, place: Store) -> None:
    study = scaled(place, budget=60)
    app = shown("scaling", study=study.id)
    assert app.number_input(key="extend-runs").value == 80
    app.number_input(key="extend-runs").set_value(70).run()
    next(button for button in app.button if button.label == "Extend and start").click().run()
    assert not app.exception
    more = lifecycle.find(place, app.query_params["study"][0])
    assert (more.spec.budget, more.active) == (70, True)
    assert more.spec.model_copy(update={"budget": 60}) == study.spec
    lifecycle.pause(place, more)
    whole = scaled(place, budget=most_of(study.spec))
    assert "Start a study with more sizes" in texts(shown("scaling", study=whole.id))


def test_failed_runs_are_told_by_reason_and_a_damaged_study_is_opened_from_the_list(shown: Show, place: Store) -> None:
    study, bad = scaled(place, epochs=5), scaled(place, epochs=6)
    for spec, reason in zip(
        study.missing(place)[:4], ["no memory", "no memory", "no images", "no memory"], strict=True
    ):
        with RunWriter(place.create(spec)) as recording:
            recording.write_status(ended=State.FAILED, reason=reason)
    (study.folder / "trouble").write_text("The disk is full (given: 0 MB free). Make room.")
    (bad.folder / "study.json").write_text("{")
    app = shown("scaling", study=study.id)
    assert [one.value for one in app.error] == [
        "Run failed: baseline, width 4, 160 images and 2 more: no memory",
        "The disk is full (given: 0 MB free). Make room.",
        "Run failed: baseline, width 16, 160 images: no images",
    ]
    assert f"study's study.json is damaged (given: {bad.id}). Delete the study" in texts(shown("scaling"))
    (bad.folder / "study.json").unlink()
    (study.folder / "trouble").unlink()


@pytest.mark.slow
def test_a_finished_study_shows_verdict_instrument_and_every_tab(shown: Show, finished: Study, place: Store) -> None:
    report = finished.report(place)
    assert report.complete
    for metric in ("nll", "error"):
        app = shown("scaling", study=finished.id, metric=metric)
        said = texts(app)
        reading = report.readings[metric]
        assert reading.gate is not None
        if not reading.gate.passed:
            assert "do not support a scaling law" in said
            assert "Paired differences" in said
        assert "Sanity checks" in said
        assert f"{sum(test.passed for test in reading.tests)} of {len(reading.tests)} sanity checks passed" in said
        for tab in [*app.tabs]:
            shown("scaling", study=finished.id, metric=metric, part=tab.label)
    assert "All metrics" in [tab.label for tab in app.tabs]


@pytest.mark.slow
def test_where_the_law_holds_the_forest_is_of_its_figures(
    finished: Study, place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = finished.report(place)
    reading = report.readings["nll"]
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plotting, "plot", lambda figure, **how: drawn.update(figure=figure, **how))
    monkeypatch.setattr(theme, "palette", lambda: ["#0072B2", "#C24E00", "#00805A", "#8899AA"])
    monkeypatch.setattr(theme, "ink", lambda: "#000000")
    charts.forest(report, reading, key="x")
    (one,) = reading.worth
    assert drawn["table"]["times"] == [one.parameters.k, one.images.k]
    assert drawn["table"]["low"] == [one.parameters.low, one.images.low]
    hidden = dataclasses.replace(one, hidden_parameters="because")
    charts.forest(report, dataclasses.replace(reading, worth=(hidden,)), key="x")
    assert "not shown" in drawn["figure"].layout.annotations[0].text
    charts.sanity_checks(reading, key="x")
    assert drawn["table"]["truth"] == [test.truth for test in reading.tests]
    marks = [note.text[0] for note in drawn["figure"].layout.annotations]
    assert marks == [{"passed": "✓", "missed": "✗", "uninformative": "–"}[test.outcome] for test in reading.tests]


@pytest.mark.slow
def test_the_headline_sorts_recipes_by_their_intervals(finished: Study, place: Store) -> None:
    report = finished.report(place)
    reading = report.readings["nll"]
    (one,) = reading.worth
    for low, high, told in ((1.2, 2.0, "better: "), (0.4, 0.8, "worse: "), (0.8, 1.2, "inconclusive: ")):
        found = dataclasses.replace(
            one, hidden_parameters="", parameters=dataclasses.replace(one.parameters, k=1.0, low=low, high=high)
        )
        assert told in view._headline(report, dataclasses.replace(reading, worth=(found,)))
        turned = dataclasses.replace(found, hidden_parameters="flat", images=found.parameters, hidden_images="")
        alone, beside = (
            view._headline(report, dataclasses.replace(reading, worth=worth)) for worth in ((turned,), (found, turned))
        )
        assert "images, in images: " in alone
        assert told in alone
        assert "(in images)" in beside


def test_a_study_that_is_not_there_is_a_sentence(shown: Show) -> None:
    assert "study not found" in texts(shown("scaling", study="ffff")).lower()


@pytest.mark.slow
def test_the_pages_of_both_kinds_of_study_open_in_one_session(shown: Show, finished: Study, place: Store) -> None:
    """Both have a menu `metric` with other options: what one was left at is no option of the other."""
    student = {"data": {"source": "digits", "images": 100}, "network": {"kind": "mlp", "width": 4, "depth": 1}}
    amount = {"batch": 50, "epochs": 1, "optimizers": ["sgd"], "hands_off": [], "trials": 1, "seeds": 2, "budgets": [1]}
    spec = optimizers.parse_study(student | amount)
    raced = lifecycle.create(place, "optimizers", resolve_study(place, "optimizers", spec))
    assert not lifecycle.run_to_end(raced, place, device="cpu")
    app = shown("scaling", study=finished.id, metric="error")
    chosen = [("optimizers", raced, "accuracy"), ("scaling", finished, "error"), ("optimizers", raced, "accuracy")]
    for page, study, metric in chosen:
        app.query_params.clear()
        app.query_params["study"] = study.id
        app.switch_page(f"{page}.py").run()
        assert not app.exception
        assert not app.error
        assert app.session_state[f"{page}/metric"] == metric
