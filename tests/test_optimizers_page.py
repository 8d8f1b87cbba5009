"""The Optimizers page: a form that lives in the address, a study while it trains and after, every plot to take away."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import processes
import pytest
import yaml
from streamlit.testing.v1 import AppTest

from pages.ui.app import status
from pages.ui.charts import plotting
from pages.ui.studies.optimizers import charts, optimizer_picker, setup_form
from pages.ui.studies.optimizers.view import VIEW
from smallalign_core.runs.store import Store
from smallalign_core.spec import Lookahead, Muon
from smallalign_core.studies import lifecycle
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.optimizers import Curve, Point, parse_study
from smallalign_core.studies.resolve import resolve_study
from tests.conftest import Show, texts

SMALL: dict[str, Any] = {
    "data": {"source": "digits", "images": 100},
    "network": {"kind": "mlp", "width": 8, "depth": 1},
    "batch": 50,
    "epochs": 3,
    "optimizers": ["sgd"],
    "hands_off": [],
    "trials": 1,
    "seeds": 2,
    "budgets": [1],
}


@pytest.fixture
def store(place: Store) -> Store:
    """All tests of this file share one."""
    return place


def ask(store: Store, **changes: Any) -> Study:
    resolved = resolve_study(store, "optimizers", parse_study(SMALL | changes))
    return lifecycle.create(store, "optimizers", resolved)


@pytest.fixture(scope="module")
def raced(place: Store) -> Study:
    """A finished study."""
    study = ask(place, hands_off=[{"kind": "adamw", "lr": 0.001}])
    assert not lifecycle.run_to_end(study, place, device="cpu")
    return study


# --- the form ---------------------------------------------------------------------------------------------------------


def shown_yaml(app: AppTest) -> dict[str, Any]:
    return dict(yaml.safe_load(app.code[0].value))


def test_an_empty_store_has_a_form_that_is_ready_to_start(shown: Show):
    app = shown("optimizers")

    assert "No studies yet" in texts(app)
    assert [button.label for button in app.button].count("Start study") == 1
    assert {metric.label for metric in app.metric} == {"Runs", "Estimated time"}
    spec = parse_study(shown_yaml(app))
    assert set(spec.optimizers) == set(optimizer_picker.USUAL)
    assert (spec.seeds, spec.trials, spec.budgets) == (3, 3, (1,))


def test_what_is_chosen_is_in_the_address_and_comes_back_from_it(shown: Show):
    app = shown("optimizers")
    app.number_input(key="student.epochs").set_value(2)
    app.button(key="preset-Standard").click().run()
    app.number_input(key="optimizers/margin").set_value(2.5).run()

    again = shown(
        "optimizers",
        **{name: str(app.query_params[name]) for name in ("student", "seeds", "trials", "margin", "budgets")},
    )

    spec = parse_study(shown_yaml(again))
    assert (spec.student.epochs, spec.seeds, spec.trials, spec.budgets, spec.margin) == (2, 5, 4, (1, 2), 0.025)
    assert shown_yaml(again) == shown_yaml(app)


def test_a_nest_that_was_built_is_compared_and_in_the_address(shown: Show):
    app = shown("optimizers", optimizers='["muon"]')
    app.selectbox(key="contenders-own.kind").set_value("lookahead").run()
    app.number_input(key="contenders-own.lookahead.k").set_value(10).run()
    app.button(key="contenders-add").click().run()

    chosen = json.loads(str(app.query_params["optimizers"]))

    assert chosen == ["muon", {"kind": "lookahead", "k": 10}]
    assert parse_study(shown_yaml(app)).optimizers == (Muon(), Lookahead(k=10))
    assert "contenders-own.lookahead.inner.adamw.lr" not in app.session_state  # a rate is found, not given


def test_an_address_that_cannot_be_says_so(shown: Show):
    wrong = [
        ("optimizers", '["owl"]', "no such optimizers"),
        ("optimizers", "{", "no such optimizers"),
        ("hands-off", '["sgd"]', "no such optimizers"),
        ("budgets", "1,3", "no such option"),
        ("seeds", "0", "number between"),
    ]
    for name, value, says in wrong:
        app = shown("optimizers", **{name: value})

        assert says in "\n".join(str(one.value) for one in app.warning), name
        assert not app.error


def test_the_yaml_and_the_address_give_a_study_back(place: Store):
    spec = parse_study(
        SMALL
        | {
            "augment": [{"kind": "shift", "pixels": 1}],
            "optimizers": [{"kind": "lookahead", "k": 7}, "muon"],
            "hands_off": ["prodigy"],
            "budgets": [1, 4],
            "margin": 0.02,
            "target": 0.9,
        }
    )

    assert parse_study(yaml.safe_load(setup_form.written(spec, place))) == spec
    back = setup_form.address(spec)
    assert json.loads(back["optimizers"]) == [{"kind": "lookahead", "k": 7}, "muon"]
    assert (back["budgets"], back["margin"], back["data"]) == ("1,4", "2", "digits")
    student = json.loads(back["student"])
    assert student["augment"] == [{"kind": "shift", "pixels": 1}]
    assert student["data"] == {"images": 100}


def test_one_seed_is_called_no_evidence_before_it_starts(shown: Show):
    assert "Single seed" in texts(shown("optimizers", seeds="1"))


# --- a study ----------------------------------------------------------------------------------------------------------


def test_an_unknown_study_is_said_so(shown: Show):
    assert "study not found" in shown("optimizers", study="abc").error[0].value.lower()


def test_a_damaged_study_can_be_deleted_and_hides_no_other(shown: Show, place: Store):
    good, bad = ask(place, seeds=7), ask(place, seeds=8)
    (bad.folder / "study.json").write_text("{")

    assert bad.id in texts(shown("optimizers"))
    app = shown("optimizers", study=bad.id)

    assert "damaged" in app.error[0].value
    next(button for button in app.button if button.label == "Delete permanently").click().run()
    assert good.id in {study.id for study in lifecycle.listing(place)}
    assert not bad.folder.exists()


def test_a_study_waits_pauses_and_goes_on(shown: Show, place: Store):
    study = ask(place, seeds=9)
    lifecycle.start(place, study)

    app = shown("optimizers", study=study.id)
    assert "Starting the worker" in texts(app)  # none serves the test's store
    assert status._active(place), "the strip below moves, though no run is in the queue"
    assert [tab.label for tab in app.tabs] == ["Runs", "Spec and command"]
    next(button for button in app.button if button.label == "Pause").click().run()
    assert not study.active

    app = shown("optimizers", study=study.id)
    assert "No final runs yet" in texts(app)
    next(button for button in app.button if button.label == "Resume").click().run()
    assert study.active
    lifecycle.pause(place, study)


@pytest.mark.slow
def test_a_finished_study_shows_verdict_rates_and_one_open_tab(shown: Show, place: Store, raced: Study):
    study = raced
    report = study.report(place)

    app = shown("optimizers", study=study.id)

    told = texts(app)
    assert report.verdict(1) in told
    assert "At 3 epochs" in told
    assert report.scope() in told
    assert len(app.dataframe) == 1  # the table's tab is open, and no other is drawn
    table = app.dataframe[0].value
    assert set(table["Optimizer"]) == {"AdamW", "SGD", "AdamW lr 0.001"}
    by_name = dict(zip(table["Optimizer"], table["Test accuracy"], strict=True))
    assert by_name["SGD"] == pytest.approx(100 * (report.arm("sgd", 1).mean("accuracy") or 0))
    ratio = report.arm("adamw", 1).ratio
    assert ratio is not None
    assert (f"×{ratio:.3g} above its default" in told) == (ratio >= 4)
    assert report.defaults(1) in told
    for part in (
        "Curves",
        "Time to target",
        "Learning rates",
        "Accuracy vs. cost",
        "By seed",
        "Memory and time",
        "Runs",
    ):
        opened = shown("optimizers", study=study.id, part=part)
        assert not opened.error, part
        assert not opened.dataframe, part


@pytest.mark.slow
def test_one_seed_is_shown_and_called_no_evidence(shown: Show, place: Store, raced: Study):
    single = ask(place, seeds=1, hands_off=[{"kind": "adamw", "lr": 0.001}])
    runs = len(place.runs())
    lifecycle.run_to_end(single, place, device="cpu")
    assert len(place.runs()) == runs  # all were done already
    assert not single.missing(place)

    app = shown("optimizers", study=single.id)

    headlines = [*app.warning, *app.info]  # undecided is neutral
    assert headlines
    for one in headlines:
        assert "ingle seed; run more" in one.value
        assert "3 epochs" in one.value
        assert " better" not in one.value


@pytest.mark.slow
def test_diverged_runs_are_named_and_the_study_is_whole(shown: Show, place: Store):
    wild = {"kind": "sgd", "lr": 100.0, "momentum": 0.99}
    study = ask(place, optimizers=[], hands_off=[wild], network={"kind": "mlp", "width": 32, "depth": 2}, epochs=20)
    lifecycle.run_to_end(study, place, device="cpu")
    lost = study.report(place).arms[1].diverged
    assert lost

    app = shown("optimizers", study=study.id)

    assert any(
        "Diverged" in one.value and "SGD" in one.value and f"{lost} of 2 seeds" in one.value for one in app.warning
    )
    assert not app.error
    assert not {"Pause", "Resume", "Retry"} & {button.label for button in app.button}  # there is nothing left to do


@pytest.mark.slow
def test_extending_repeats_nothing(shown: Show, place: Store, raced: Study):
    study = raced
    runs = len(place.runs())
    app = shown("optimizers", study=study.id)
    app.number_input(key="extend-seeds").set_value(3).run()

    next(button for button in app.button if button.label == "Extend and start").click().run()

    wider = lifecycle.find(place, "".join(app.query_params["study"]))
    assert wider.id != study.id
    assert wider.active
    assert not lifecycle.run_to_end(wider, place, device="cpu")
    assert len(place.runs()) == runs + 3  # one more seed of three optimizers
    lifecycle.pause(place, wider)


@pytest.mark.slow
def test_what_is_needed_is_what_the_undecided_need(place: Store, raced: Study):
    report = raced.report(place)
    seeds = raced.spec.seeds

    def needed(verdict: Any, *more: int | None) -> tuple[int, int] | None:
        reference, *others = report.arms
        arms = [
            replace(
                arm, differences={"accuracy": replace(arm.differences["accuracy"], verdict=verdict, more_seeds=one)}
            )
            for arm, one in zip(others, more, strict=True)
        ]
        found = VIEW.needed(raced, replace(report, arms=(reference, *arms)))
        return None if found is None else (found.fields["seeds"] - seeds, found.runs)

    arms = len(report.arms)
    assert needed("undecided", 4, 9) == (9, 9 * arms)
    assert needed("undecided", 4, 60) == (4, 4 * arms), "one that needs very many does not decide"
    assert needed("undecided", 60, None) == (60, 60 * arms)
    assert needed("undecided", 400, None) is None
    assert needed("better", 4, 9) is None
    assert needed("not evidence", None, None) == (2, 2 * arms)
    assert (raced.seconds_a_run(place) or 0) > 0


@pytest.mark.slow
def test_the_page_never_loads_torch():
    code = (
        "import sys; from pages.ui.studies.optimizers import view, setup_form, optimizer_picker; "
        "assert 'torch' not in sys.modules"
    )
    processes.run(processes.python("-c", code), check=True)


# --- plots as files ---------------------------------------------------------------------------------------------------


def drawn_curves(losses: dict[str, list[list[float]]], monkeypatch: pytest.MonkeyPatch) -> tuple[go.Figure, list[str]]:
    """The NLL over steps of these optimizers, seeds and epochs, and who lies outside of the picture."""
    arms = [SimpleNamespace(name=name, label=name) for name in losses]
    study: Any = SimpleNamespace(budgets=(1,), reference="a", targets={1: None}, at=lambda _: arms, budget_words=str)
    found = [
        Curve(name, 1, seed, "-", tuple(Point(n, n, n, n, n, 0.5, value, None) for n, value in enumerate(values)))
        for name, seeds in losses.items()
        for seed, values in enumerate(seeds)
    ]
    kept: list[go.Figure] = []
    monkeypatch.setattr(charts, "plot", lambda figure, **_: kept.append(figure))
    outside = charts.curves(study, found, "step", "nll", key="-")
    return kept[0], outside


def test_a_wild_beginning_or_optimizer_leaves_the_others_to_be_seen(monkeypatch: pytest.MonkeyPatch):
    near = {name: [[1e20, 0.6, 0.5, 0.6 + shift], [8.0, 0.6, 0.4, 0.5]] for name, shift in (("a", 0), ("b", 0.02))}

    together, nobody = drawn_curves(near, monkeypatch)
    apart, far = drawn_curves({**near, "c": [[9.0, 30.0, 30.0, 30.0]]}, monkeypatch)

    assert (nobody, far) == ([], ["c"])
    for figure in (together, apart):
        low, high = figure.layout.yaxis.range
        assert low < 0.4
        assert 0.56 < high < 0.7, "what rises again at the end is seen"
        assert {trace.mode for trace in figure.data} == {"lines"}, "few points would be dots"


def test_a_csv_holds_what_the_traces_hold():
    figure = go.Figure()
    figure.add_bar(x=["a,b", "c"], y=[1.5, 2], name="one", error_y={"array": [0.5, 1], "arrayminus": [0.25, 0]})
    figure.add_scatter(x=["a,b"], y=[float("nan")], name="two", text=["here"])
    figure.update_layout(xaxis_title="class", yaxis_title="images")

    rows = list(csv.DictReader(io.StringIO(plotting.as_csv(plotting.traces(figure)))))

    assert rows == [
        {"series": "one", "class": "a,b", "images": "1.5", "low": "1.25", "high": "2.0", "text": ""},
        {"series": "one", "class": "c", "images": "2", "low": "2", "high": "3", "text": ""},
        {"series": "two", "class": "a,b", "images": "", "low": "", "high": "", "text": "here"},
    ]


def test_a_csv_of_a_matrix_has_a_row_for_each_cell():
    figure = go.Figure(go.Heatmap(z=[[1, 2], [3, None]]))

    rows = list(csv.reader(io.StringIO(plotting.as_csv(plotting.traces(figure)))))

    assert rows == [["x", "y", "value"], ["0", "0", "1"], ["1", "0", "2"], ["0", "1", "3"], ["1", "1", ""]]
