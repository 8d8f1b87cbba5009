"""Every page, opened as a visitor would, in an empty store and with finished, failed and damaged runs in it."""

from __future__ import annotations

import json
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from pages.ui import backstage, listing
from smallalign_core.errors import Diverged
from smallalign_core.store import Run, Store
from tests.conftest import ROOT, Train

PAGES = ("home", "data", "distil", "runs", "compare", "export")


def test_every_page_is_opened_here():
    files = {file.stem for file in (ROOT / "pages").glob("*.py")} - {"frame"}

    assert files == set(PAGES)


@pytest.fixture
def shown(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Open a page of the test's store: `shown("runs", run=...)`."""
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))

    def show(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=120).run()
        assert not app.exception
        for name, value in query.items():
            app.query_params[name] = value
        app = app.run() if page == "home" else app.switch_page(f"{page}.py").run()
        assert not app.exception
        return app

    yield show
    backstage.desk().close()


def texts(app: AppTest) -> str:
    """All that is written on a page."""
    found = [*app.title, *app.header, *app.subheader, *app.markdown, *app.caption, *app.info, *app.error, *app.warning]
    return "\n".join(str(element.value) for element in found)


def break_spec(store: Store) -> Run:
    folder = store.root / "runs" / "deadbeefdeadbeef"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"spec": 3')
    return Run(folder)


def fail(store: Store, train: Train) -> Run:
    with pytest.raises(Diverged):
        train(network={"kind": "mlp", "width": 32}, optimizer={"kind": "sgd", "lr": 100, "momentum": 0.99})
    return next(run for run in store.runs() if run.state == "failed")


def test_every_page_opens_in_an_empty_store(shown):
    for page in PAGES:
        app = shown(page)

        assert not app.error, page
        assert app.title[0].value
        assert "No run is being trained" in texts(app), page


def test_every_page_opens_with_finished_failed_and_damaged_runs(shown, store: Store, train: Train):
    train()
    fail(store, train)
    break_spec(store)

    for page in PAGES:
        app = shown(page)

        assert not app.error, page
        assert len(texts(app)) > 100, page


def test_home_starts_a_real_run_and_goes_to_it(shown, store: Store):
    app = shown("home")

    next(button for button in app.button if button.label == "Distil a student now").click().run()

    assert not app.exception
    run = store.run(app.query_params["run"])
    assert run.spec.teacher == store.run("digits-teacher").id
    assert run.state == "queued"


def test_a_second_click_on_home_starts_another_seed(shown, store: Store):
    app = shown("home")
    next(button for button in app.button if button.label == "Distil a student now").click().run()
    first = store.run(app.query_params["run"])
    zoo = store.run("digits-student")
    (first.folder / "weights.safetensors").write_bytes(zoo.weights.read_bytes())
    (first.folder / "result.json").write_text(json.dumps({**(zoo.result or {}), "id": first.id}))

    app = shown("home")
    next(button for button in app.button if button.label == "Distil a student now").click().run()

    assert store.run(app.query_params["run"]).spec.seed == first.spec.seed + 1


def test_data_shows_counts_and_says_what_was_held_out(shown):
    app = shown("data", data="digits")

    assert [metric.value for metric in app.metric][:2] == ["1,797", "10"]
    assert "held out" in texts(app)


def test_data_says_in_a_sentence_that_a_path_does_not_exist(shown):
    app = shown("data", data="/no/such/folder")

    assert "no such path exists" in app.error[0].value


def test_distil_submits_what_the_form_says(shown, store: Store):
    app = shown("distil")
    app.selectbox(key="pick-teacher").set_value("none").run()
    app.number_input(key="spec.epochs").set_value(2)
    app.selectbox(key="spec.optimizer.kind").set_value("lookahead").run()
    app.number_input(key="spec.optimizer.lookahead.k").set_value(7).run()

    next(button for button in app.button if button.label == "Start").click().run()

    assert not app.exception
    (run,) = store.runs()
    assert (run.spec.epochs, run.spec.optimizer.kind, run.spec.optimizer.k) == (2, "lookahead", 7)
    assert run.spec.loss.kind == "cross_entropy"


def test_distil_begins_with_the_best_teacher_there_is(shown):
    app = shown("distil")

    assert (
        "digits-teacher" in app.selectbox(key="pick-teacher").value or app.selectbox(key="pick-teacher").value != "none"
    )
    assert any("Parameters" in metric.label for metric in app.metric), "the cost is shown before training"


def test_distil_with_a_teacher_offers_only_losses_that_ask_it(shown):
    app = shown("distil", teacher="digits-teacher")

    options = app.selectbox(key="spec.loss.kind").options

    assert len(options) == 2
    assert not any("cross_entropy" in option for option in options)


def test_distil_adds_and_removes_augmentations(shown):
    app = shown("distil")
    app.button(key="spec.augment.add.shift").click().run()
    app.button(key="spec.augment.add.rotate").click().run()
    assert "kind: rotate" in app.code[0].value

    next(button for button in app.button if button.label == "Remove").click().run()

    assert "kind: shift" not in app.code[0].value
    assert "kind: rotate" in app.code[0].value


def test_distil_takes_over_the_spec_of_a_run(shown, train: Train):
    run = train(augment=[{"kind": "shift", "pixels": 3}], seed=11)

    app = shown("distil", like=run.id)

    assert "pixels: 3" in app.code[0].value
    assert "seed: 11" in app.code[0].value


def test_distil_tells_that_an_equal_run_is_finished(shown, store: Store, train: Train):
    run = train()
    app = shown("distil", like=run.id)

    next(button for button in app.button if button.label == "Start").click().run()

    assert "exists already" in texts(app)
    assert len(store.runs()) == 1


def test_a_finished_run_shows_scores_with_intervals_and_asks_for_evidence(shown, train: Train):
    run = train()

    app = shown("runs", run=run.id)

    assert app.metric[0].label == "Test accuracy"
    assert "95 % interval" in texts(app)
    assert "1 seed: not evidence" in texts(app)


def test_a_failed_run_says_why(shown, store: Store, train: Train):
    run = fail(store, train)

    app = shown("runs", run=run.id)

    assert "The loss became" in app.error[0].value


def test_a_damaged_run_says_so_and_can_be_deleted(shown, store: Store):
    run = break_spec(store)
    app = shown("runs", run=run.name)
    assert "damaged" in app.error[0].value

    next(button for button in app.button if button.label == "Delete for good").click().run()

    assert not run.folder.exists()


def test_no_damaged_file_breaks_the_table(shown, store: Store, train: Train):
    whole = train()
    contents = ("", "{}", "[]", '{"spec": {}}', '{"spec": {"data": 1}}', "\x00")
    cases = [(name, content) for name in ("spec.json", "state.json", "result.json") for content in contents]
    for number, (name, content) in enumerate(cases):
        folder = store.root / "runs" / f"{number:016x}"
        shutil.copytree(whole.folder, folder)
        (folder / name).write_text(content)
        if name == "state.json":
            (folder / "result.json").unlink()

    app = shown("runs")

    assert not app.error
    assert any(row.finished and row.id == whole.id for row in listing.rows(store))
    for number, (name, content) in enumerate(cases):
        assert not shown("runs", run=f"{number:016x}").exception, (name, content)


def test_a_link_to_no_run_says_so(shown):
    app = shown("runs", run="nothere")

    assert "No run goes by that name" in app.error[0].value


def test_a_paused_run_can_be_resumed(shown, store: Store, train: Train):
    app = shown("distil")
    next(button for button in app.button if button.label == "Start").click().run()
    (run,) = store.runs()
    run.ask("pause")

    app = shown("runs", run=run.id)
    next(button for button in app.button if button.label == "Resume").click().run()

    assert run.state == "queued"


def test_the_table_is_filtered_by_words(shown, train: Train):
    train()
    app = shown("runs")

    app.text_input(key="filter").set_value("teacher resnet").run()

    assert next(iter(app.dataframe[0].value["What"])).startswith("digits-teacher")
    assert len(app.dataframe[0].value) == 1


def test_compare_counts_who_is_right(shown, store: Store):
    app = shown("compare", teacher="digits-teacher", student="digits-student")

    found = {metric.label: metric.value for metric in app.metric}
    four = ("Both right", "Only teacher right", "Only student right", "Both wrong")
    assert sum(int(found[name]) for name in four) == 359
    assert "McNemar" in texts(app)


def test_export_proves_the_file(shown, store: Store):
    app = shown("export", run="digits-student")

    assert "agree on 100.00%" in app.success[0].value
    folder = store.root / "exports" / store.run("digits-student").id
    assert json.loads((folder / "parity.json").read_text())["parity"]["ok"]
    assert backstage.exported(folder.name, "model.onnx") == folder / "model.onnx"


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors", "../model.onnx", "model.onnx.part"])
def test_only_the_files_of_an_export_are_served(name: str):
    assert backstage.exported("0123456789abcdef", name) is None


def test_several_seeds_are_told_apart_and_put_together(store: Store, train: Train):
    runs = [train(seed=seed) for seed in (0, 1)]
    other = train(epochs=2)

    rows = listing.rows(store)
    first = next(row for row in rows if row.id == runs[0].id)

    assert {row.id for row in listing.siblings(store, first)} == {run.id for run in runs}
    assert other.id not in {row.id for row in listing.siblings(store, first)}
