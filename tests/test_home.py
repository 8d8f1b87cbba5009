"""Home: what ended since the last visit, recent named runs, and studies as one line each."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from typing import Any

from filelock import FileLock

from smallalign_core.runs import visits
from smallalign_core.runs.store import Run, Store
from smallalign_core.studies import lifecycle
from smallalign_core.studies.optimizers import parse_study
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.files import write_json
from smallalign_core.training.resolve import resolve
from tests.conftest import Show, texts, tiny

STUDY: dict[str, Any] = {
    "data": {"source": "digits", "images": 100},
    "network": {"kind": "mlp", "width": 8, "depth": 1},
    "epochs": 2,
    "optimizers": ["sgd"],
    "hands_off": [],
    "trials": 1,
    "seeds": 2,
    "budgets": [1],
}


def finish(store: Store, run: Run, *, ago: float = 0) -> None:
    """What a worker leaves, with the zoo's weights."""
    student = store.run("digits-student")
    shutil.copy(student.weights, run.weights)
    result = run.folder / "result.json"
    result.write_text(json.dumps({**(student.result or {}), "id": run.id}))
    os.utime(result, (time.time() - ago,) * 2)


def test_a_first_visit_has_no_news_and_the_next_one_has_what_ended_between(store: Store) -> None:
    assert visits.enter(store, "ada") is None
    assert visits.enter(store, "ada") is None, "a page that is loaded again is no other visit"
    (file,) = (store.root / "cache" / "visits").iterdir()
    last = time.time() - 3600
    write_json(file, {"at": last})
    assert visits.enter(store, "ada") == last
    assert visits.enter(store, "ada") == last, "what is new stays so when the page is loaded again"
    assert visits.enter(store, "bob") is None, "each user has visits of their own"


def test_home_has_what_is_new(shown: Show, store: Store) -> None:
    old, new = (store.create(resolve(store, tiny(seed=seed))) for seed in (1, 2))
    store.annotate([new.id], name="tiny winner")
    finish(store, old, ago=7200)
    assert "New since your last visit" not in texts(shown("home")), "the first visit"

    file = next((store.root / "cache" / "visits").iterdir())
    write_json(file, {"at": time.time() - 3600})
    finish(store, new, ago=60)
    app = shown("home")

    assert "New since your last visit" in texts(app)
    links = [one.proto.label for one in app.get("page_link")]
    assert links.count("tiny winner") == 2, "among the news, and among the recent ones"
    assert links.count(next(run.title for run in [store.run(old.id)])) == 1


def test_a_study_is_one_line_with_progress(shown: Show, store: Store) -> None:
    study = lifecycle.create(store, "optimizers", resolve_study(store, "optimizers", parse_study(STUDY)))
    lifecycle.start(store, study)
    for spec in study.wanted(store):
        store.create(spec)

    app = shown("home")

    titles = [one.proto.label for one in app.get("page_link")]
    assert sum("optimizers: " in title for title in titles) == 1
    assert f"0 of {len(study.wanted(store))} runs" in texts(app)
    assert not app.error
    lifecycle.pause(store, study)


def test_an_empty_store_has_the_demo_only(shown: Show) -> None:
    app = shown("home")
    assert "No runs yet" in texts(app)


def test_the_strip_shows_the_workers_of_all_devices(shown: Show, store: Store) -> None:
    with ExitStack() as held:
        held.enter_context(FileLock(store.worker_lock("cpu:0")))
        assert "Worker ready" in texts(shown("home"))
        held.enter_context(FileLock(store.worker_lock("cpu:1")))
        assert "2 workers: cpu-0, cpu-1" in texts(shown("home"))
    assert "No worker" in texts(shown("home"))
