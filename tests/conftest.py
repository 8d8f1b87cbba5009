"""What all tests share: a store of their own, digits decoded once, small specs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallalign_core import data, desk, worker
from smallalign_core.__main__ import main
from smallalign_core.data import Splits
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.store import Run, Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
    monkeypatch.setattr(desk.Desk, "_alive", lambda _: pytest.fail("a process was started"))


def command(*arguments: object, store: Store | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which has torch imported already."""
    given, out, err = _given(arguments, store), io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given)
    finally:
        torch.set_num_threads(1)
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
