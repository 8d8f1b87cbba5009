"""Commands have one name in the help, and their names of 2026-11 still work."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import command
from typer.models import OptionInfo

from smallalign_core.cli._main import app
from smallalign_core.cli.runs import app as runs_app
from smallalign_core.runs.store import Store

SPEC = "data: digits\nnetwork: {kind: mlp, width: 8}\naugment: [shift]\n"


@pytest.mark.parametrize(("group", "old", "new"), [(app, "worth", "ablate"), (app, "views", "preview")])
def test_an_old_name_is_the_same_command_and_hidden(group: object, old: str, new: str) -> None:
    known = {one.name or one.callback.__name__: one for one in group.registered_commands}  # type: ignore[attr-defined]
    assert known[old].callback is known[new].callback
    assert (known[old].hidden, known[new].hidden) == (True, False)
    listed = command("--help").stdout
    assert re.search(rf"\b{new} ", listed)
    assert not re.search(rf"^\W*{old} ", listed, re.MULTILINE)


def test_runs_keep_is_runs_publish(store: Store) -> None:
    known = {one.name: one for one in runs_app.registered_commands}
    assert known["keep"].callback is known["publish"].callback
    assert (known["keep"].hidden, known["publish"].hidden) == (True, False)
    for name in ("keep", "publish"):
        done = command("runs", name, "0" * 16, "--as", "mine", store=store)
        assert (done.returncode, "Run not found" in done.stderr) == (2, True), done.stderr


def test_worth_queues_as_ablate_does(tmp_path: Path, store: Store) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    for name in ("worth", "ablate"):
        done = command(
            name, tmp_path / "spec.yaml", "--without", "augment", "--seeds", 1, "--queue", "--json", store=store
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["of"] == 1


def test_views_previews(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("- {kind: shift, pixels: 1}\n")
    done = command("views", tmp_path / "policy.yaml", "--data", "digits", "--to", tmp_path / "out", store=Store())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_the_environment_names_the_store_of_every_command() -> None:
    found = [one for group in (app, runs_app) for one in group.registered_commands if not one.hidden]
    for one in found:
        store = inspect.signature(one.callback).parameters.get("store")  # type: ignore[arg-type]
        if store is not None:
            (option,) = [part for part in _parts(store.annotation, one.callback) if isinstance(part, OptionInfo)]
            assert option.envvar == "SMALLALIGN_STORE", one.name or one.callback
    assert len(found) > 20


def _parts(annotation: object, callback: object) -> tuple[object, ...]:
    if isinstance(annotation, str):
        annotation = get_type_hints(callback, include_extras=True)["store"]
    return get_args(annotation)


@pytest.mark.parametrize("option", ["--fix", "--mend"])
def test_doctor_removes_stale_files_by_either_name(option: str, store: Store) -> None:
    old = store.root / "exports" / "0123456789abcdef"
    old.mkdir(parents=True)
    (old / "model.onnx").write_bytes(b"of a run that is deleted")
    for path in (old / "model.onnx", old):
        os.utime(path, (0, 0))
    found = json.loads(command("doctor", "--json", store=store).stdout)
    listed = [path for check in found["checks"] for path in check["mend"]]
    done = command("doctor", option, "--json", store=store)
    assert json.loads(done.stdout)["removed"] == listed != []
    assert not old.exists()
    assert "--mend" not in command("doctor", "--help").stdout
