"""What all tests share: a store of their own, digits decoded once, small specs, pages, a browser."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from smallalign_core import backends, data, desk, scaling, studies, worker
from smallalign_core.__main__ import main
from smallalign_core.data import Splits
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.store import Run, Store
from smallalign_core.studies import Study

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and thousands of files are flushed: that is a good part of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of decoded images that all tests share."""
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="session")
def digits(decoded: Path) -> Splits:
    return data.load(DataSpec(source="digits"), decoded)


@pytest.fixture(scope="session")
def few(digits: Splits) -> Splits:
    """Digits with a quarter of the training images: with `batch=32` as many steps an epoch, each a quarter as long."""
    return replace(digits, train=digits.train.take(np.arange(0, len(digits.train), 4)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that all tests of a file share."""
    return Store(tmp_path_factory.mktemp("place") / "models")


def tiny(**fields: Any) -> RunSpec:
    """A run of about a second."""
    return parse({"data": "digits", "network": {"kind": "cnn", "width": 6, "depth": 2}, "epochs": 3, **fields})


Train = Callable[..., Run]


@pytest.fixture
def train(store: Store) -> Train:
    """Train a tiny run in the test's store and return it."""

    def now(**fields: Any) -> Run:
        run = store.create(desk.resolve(store, tiny(**fields)))
        worker.execute(run, store, device="cpu")
        return run

    return now


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Run]:
    """(store, teacher, student): a finished pair, for tests that only read."""
    place = Store(tmp_path_factory.mktemp("taught") / "models")
    teacher = place.create(desk.resolve(place, tiny(epochs=6)))
    worker.execute(teacher, place, device="cpu")
    student = place.create(
        desk.resolve(place, tiny(network={"kind": "cnn", "width": 3, "depth": 2}, teacher=teacher.id))
    )
    worker.execute(student, place, device="cpu")
    return place, teacher, student


@pytest.fixture(scope="session")
def components() -> Any:
    """What Streamlit finds when it reads the metadata of every installed package, as it does for each new page."""
    from streamlit.components.v2.manifest_scanner import scan_component_manifests

    return scan_component_manifests()


@pytest.fixture
def desk_here(components: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are opened without what costs seconds each time and is the same for all of them.

    The desk answers in this process, over the same lines; another one would import torch.
    """

    def exchange(asking: desk.Desk, question: str, _timeout: float, _verb: str) -> str:
        answered = io.StringIO()
        desk.serve(asking.store, io.StringIO(question), answered)
        return answered.getvalue()

    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", lambda: components)
    monkeypatch.setattr(desk.Desk, "_exchange", exchange)
    monkeypatch.setattr(backends.Starter, "__call__", lambda _: pytest.fail("a process was started"))


Show = Callable[..., "AppTest"]


@pytest.fixture
def shown(store: Store, desk_here: None, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Open a page of the test's store: `shown("runs", run=...)`."""
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))

    def show(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=120).run()
        assert not app.exception
        for name, value in query.items():
            app.query_params[name] = value
        app = app.run() if page == "home" else app.switch_page(f"{page}.py").run()
        assert not app.exception
        return app

    return show


def texts(app: AppTest) -> str:
    """All that is written on a page."""
    said = [*app.title, *app.header, *app.subheader, *app.markdown, *app.caption, *app.text]
    return "\n".join(str(one.value) for one in [*said, *app.info, *app.error, *app.warning, *app.success])


SCALING: dict[str, Any] = {
    "data": "digits",
    "network": {"kind": "mlp", "width": 8, "depth": 1},
    "batch": 64,
    "epochs": 2,
    "precision": "fp32",
    "widths": [4, 8, 16],
    "images": [40, 80, 160],
    "augment": [{"kind": "shift", "pixels": 1}],
    "recipes": ["baseline", "augment"],
    "replicates": 3,
}
"""A scaling study in miniature: 54 runs of a few steps."""


def scaled(store: Store, **changes: Any) -> Study:
    """That study, with changes, untrained."""
    spec = scaling.parse_study(SCALING | changes)
    return studies.create(store, "scaling", desk.resolve_study(store, "scaling", spec, "cpu"))


@pytest.fixture(scope="module")
def finished(place: Store) -> Study:
    """It, trained."""
    study = scaled(place)
    assert not studies.drive(study, place, device="cpu")
    return study


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    import chromium
    from playwright.sync_api import sync_playwright

    if (found := chromium.executable()) is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=chromium.FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(place: Store) -> Iterator[str]:
    """The address of a dashboard over the file's store."""
    import chromium

    environment = {"SMALLALIGN_STORE": str(place.root), "OMP_NUM_THREADS": "1"}
    with chromium.dashboard(place.root.parent / "server.log", environment=environment) as address:
        yield address


def command(*arguments: object, store: Store | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which has torch imported already."""
    given, out, err = _given(arguments, store), io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log, logged = logging.getLogger(), (list(logging.getLogger().handlers), logging.getLogger().level)
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given)
    finally:
        torch.set_num_threads(1)
        log.handlers[:] = logged[0]
        log.setLevel(logged[1])
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def program(*arguments: object, store: Store | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a process of its own: two seconds of importing each time."""
    return subprocess.run(
        [sys.executable, "-m", "smallalign_core", *_given(arguments, store)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _given(arguments: tuple[object, ...], store: Store | None) -> list[str]:
    return [*map(str, arguments), *(["--store", str(store.root)] if store else [])]
