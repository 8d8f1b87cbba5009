"""The message on other pages when a run or study ends that the session opened while it was active."""

from __future__ import annotations

from smallalign_core.runs.store import Store
from smallalign_core.studies import lifecycle
from smallalign_core.studies.optimizers import parse_study
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.training.resolve import resolve
from tests.conftest import Show, tiny
from tests.test_home import STUDY, finish


def test_a_run_that_was_open_gives_one_toast_on_another_page(store: Store, shown: Show) -> None:
    run, other = (store.submit(resolve(store, tiny(seed=seed))) for seed in (1, 2))
    app = shown("runs", run=run.name)
    assert not app.toast
    app.query_params.clear()
    app.switch_page("home.py").run()
    assert not app.toast, "it is still queued"
    for one in (run, other):
        (one.folder / "queued").unlink()
        finish(store, one)
    app.run()
    accuracy = (run.result or {})["test"]["accuracy"]
    assert [one.value for one in app.toast] == [f"cnn 6x2: finished, test accuracy {accuracy:.1%}"], (
        "only what was open"
    )
    app.run()
    assert not app.toast


def test_the_page_of_the_run_itself_needs_no_toast(store: Store, shown: Show) -> None:
    run = store.submit(resolve(store, tiny()))
    app = shown("runs", run=run.name)
    (run.folder / "queued").unlink()
    finish(store, run)
    app.run()
    assert not app.toast
    app.query_params.clear()
    app.switch_page("home.py").run()
    assert not app.toast, "its end was seen"


def test_a_study_that_was_open_gives_a_toast(store: Store, shown: Show) -> None:
    study = lifecycle.create(store, "optimizers", resolve_study(store, "optimizers", parse_study(STUDY)))
    lifecycle.start(store, study)
    app = shown("optimizers", study=study.id)
    app.query_params.clear()
    app.switch_page("home.py").run()
    assert not app.toast
    lifecycle.pause(store, study)
    app.run()
    (toast,) = app.toast
    assert toast.value == f"Study ended: {study.title}"
