"""What all tests share: a store of their own, digits decoded once, small specs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smallalign_core import data, desk, worker
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


def command(*arguments: object, store: Store | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    extra = ["--store", str(store.root)] if store else []
    return subprocess.run(
        [sys.executable, "-m", "smallalign_core", *map(str, arguments), *extra],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
