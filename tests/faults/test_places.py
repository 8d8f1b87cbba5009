"""Stores that cannot be: every verb says why in one sentence, nothing is scattered, and the doctor finds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import command, tiny

from smallalign_core import data
from smallalign_core.errors import SYSTEM, BadData, Refused, of_system
from smallalign_core.runs import writer
from smallalign_core.runs.store import State, Store
from smallalign_core.service import doctor
from smallalign_core.spec import DataSpec
from smallalign_core.training import runner
from smallalign_core.training.resolve import resolve

SPEC = "models/zoo/digits-student/spec.yaml"
VERBS = {
    "train": ["train", SPEC, "--set", "epochs=1"],
    "submit": ["submit", SPEC],
    "ablate": ["ablate", SPEC, "--without", "teacher"],
    "inspect": ["inspect", "digits"],
    "datasets": ["datasets"],
    "runs": ["runs", "list"],
    "cancel": ["runs", "cancel", "digits-student"],
    "evaluate": ["evaluate", "digits-student"],
    "compare": ["compare", "digits-teacher", "digits-student"],
    "preflight": ["preflight", "digits-teacher"],
    "export": ["export", "digits-student", "--to", "OUT/x.onnx"],
    "worker": ["worker", "--once"],
    "landscape": ["landscape", "digits-student"],
    "optimizers": ["optimizers", SPEC],
    "scale": ["scale", SPEC],
}


def unusable(kind: str, folder: Path) -> str:
    """The path of a store that neither is one nor can be."""
    if kind == "file":
        (folder / "file").write_text("x")
        return str(folder / "file")
    if kind == "loop":
        (folder / "a").symlink_to(folder / "b")
        (folder / "b").symlink_to(folder / "a")
        return str(folder / "a")
    return {"empty": "", "long": "x" * 300, "below a file": f"{unusable('file', folder)}/models"}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["file", "loop", "empty", "long", "below a file"])
def test_an_impossible_store_is_one_sentence(kind: str, verb: str, tmp_path: Path) -> None:
    given = [word.replace("OUT", str(tmp_path)) for word in VERBS[verb]]
    here = sorted(Path.cwd().iterdir())
    done = command(*given, "--store", unusable(kind, tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "store" in done.stderr
    assert sorted(Path.cwd().iterdir()) == here, "nothing is scattered"


@pytest.mark.parametrize("kind", ["file", "loop", "long", "below a file"])
def test_the_doctor_finds_an_impossible_store(kind: str, tmp_path: Path) -> None:
    done = command("doctor", "--json", "--store", unusable(kind, tmp_path))
    assert done.returncode == 1, done.stderr
    (found,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "store"]
    assert not found["ok"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="NOT TESTED: no /proc here")
@pytest.mark.parametrize("verb", ["train", "submit", "inspect", "evaluate"])
def test_a_folder_in_which_nothing_can_be_made(verb: str) -> None:
    done = command(*VERBS[verb], "--store", "/proc")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") <= 1  # a line of progress may stand before it
    assert command("doctor", "--json", "--store", "/proc").returncode == 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("verb", ["train", "submit", "inspect"])
def test_what_the_system_answers_to_a_write_is_one_sentence(
    code: int, verb: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), str(store.root))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(tempfile, "mkstemp", refused)
    done = command(*VERBS[verb], store=store)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith(".")
    assert "Traceback" not in done.stderr


def test_a_file_system_without_locks_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.root.mkdir(parents=True)

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    done = command("inspect", "digits", store=store)
    assert done.returncode == 2
    assert "locks" in done.stderr
    assert [check for check in doctor._place(store) if not check.ok]


def test_a_folder_of_a_store_that_is_a_file_is_found(store: Store) -> None:
    (store.root / "cache").mkdir(parents=True)
    (store.root / "cache" / "teacher").write_text("x")
    (wrong,) = [check for check in doctor._place(store) if not check.ok]
    assert wrong.name == "store teacher"


def test_a_full_disk_leaves_room_for_the_reason(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk on which only what the run itself held back can be written again."""
    run = store.create(resolve(store, tiny(epochs=2)))
    written = writer.write_json

    def full(*_: Any, **__: Any) -> None:
        raise Refused("the disk is full")

    def where_there_is_room(file: Path, value: dict[str, Any]) -> None:
        if (run.folder / writer.RESERVE).exists() and file.name == "state.json":
            full()
        written(file, value)

    def observe(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            monkeypatch.setattr(writer, "write_json", where_there_is_room)
            monkeypatch.setattr(writer, "write", full)
            monkeypatch.setattr(writer, "append", full)

    with pytest.raises(Refused, match="disk is full"):
        runner.execute(run, store, device="cpu", observe=observe)
    monkeypatch.undo()
    assert run.state is State.PAUSED
    assert "disk is full" in run.status["reason"]
    assert not (run.folder / writer.RESERVE).exists()


def test_refused_datasets_leave_no_pile_of_locks(store: Store, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"d{number}").mkdir()
        with pytest.raises(BadData):
            data.load(DataSpec(source=str(tmp_path / f"d{number}")), store.data_cache)
    assert len(list(store.data_cache.glob("*.lock"))) <= 256


def test_every_system_error_has_words() -> None:
    for code in [*SYSTEM, 12345]:
        told = of_system(OSError(code, os.strerror(code), "x"))
        assert isinstance(told, Refused)
        assert told.do
    assert of_system(RuntimeError("Symlink loop from '/x'")) is not None
    assert of_system(NotImplementedError("FileSystem does not appear to support flock")) is not None
    assert of_system(ValueError("x")) is None


def test_an_unreadable_list_of_looks_costs_its_own_number_only(store: Store) -> None:
    (store.root / "test-looks.jsonl").mkdir(parents=True)
    assert store.test_looks("x") is None
    store.count_test_look("x", "y", "z")
    done = command("evaluate", "digits-student", store=store)
    assert done.returncode == 0, done.stderr
    assert "unknown number of times" in " ".join(done.stdout.split())
    assert command("doctor", store=store).returncode == 1
