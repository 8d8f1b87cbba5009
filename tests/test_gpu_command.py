"""`python -m benchmarks.gpu` without a GPU: the table has the same rows whatever happens, and nothing is made up."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import torch
from conftest import ROOT


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("benchmarks.gpu")


def section(command: ModuleType, seconds: float) -> tuple[Any, list[str]]:
    """A section of this process, and the lines that it writes."""
    lines: list[str] = []
    return command.Section("peak", torch.device("cpu"), time.time() + seconds, lines.append), lines


def values(command: ModuleType, lines: list[str]) -> dict[str, Any]:
    return {row.name: row.value for row in command.latest(lines)}


def test_what_goes_wrong_stands_in_its_row_and_the_next_is_measured(command: ModuleType) -> None:
    here, lines = section(command, 600)
    here.expect("lost", "wrong", "missing", "last")
    with here.trying("wrong"):
        raise RuntimeError("no kernel")
    with here.trying("missing"):
        raise importlib.import_module("gpu_section").Missing("kornia is not installed")
    with here.trying("last"):
        here.put("last", 3.0, "GB")
    found = {row.name: row for row in command.latest([*lines, "noise", "{}"])}
    assert list(found) == ["lost", "wrong", "missing", "last"], "in the order in which they were announced"
    assert (found["wrong"].value, found["wrong"].note) == ("failed", "RuntimeError: no kernel")
    assert (found["missing"].value, found["missing"].note) == ("skipped", "kornia is not installed")
    assert found["last"].value == 3.0
    ended = {row.name: row.value for row in command.closed("peak", list(found.values()), 9, late=True, wrong=None)}
    assert ended["lost"] == "no time"
    ended = {row.name: row.value for row in command.closed("peak", list(found.values()), 9, late=False, wrong="Oops")}
    assert (ended["lost"], ended["the section"], ended["last"]) == ("failed", "failed", 3.0)
    assert command.summary(list(found.values())) == "2 measured or passed, 1 skipped, 0 no time, 1 failed"


def test_nothing_is_measured_after_the_time(command: ModuleType) -> None:
    here, lines = section(command, -1)
    importlib.import_module("gpu_sections").peak(here)
    found = values(command, lines)
    assert found.pop("copies from page-locked memory") == "skipped"
    assert set(found.values()) == {"no time"}


def test_shares_of_a_step_are_shares(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of the same steps, so that no load of the machine makes them more than 1."""
    here, lines = section(command, 600)
    monkeypatch.setattr(here, "left", lambda parts=1: 5 / parts)  # always: the time is never over
    importlib.import_module("gpu_sections").data_path(here)
    found = values(command, lines)
    shares = [value for name, value in found.items() if name.startswith("share")]
    assert len(shares) == 2
    assert all(0 < value < 1 for value in shares), found


def test_ways_take_turns(command: ModuleType) -> None:
    parts: Any = importlib.import_module("gpu_section")
    here, _ = section(command, 600)
    order: list[str] = []

    def steps(name: str) -> Any:
        while True:
            order.append(name)
            yield 8

    def broken() -> Any:
        yield 8
        raise RuntimeError("out of memory")

    lanes = {name: parts.Lane(lambda name=name: steps(name)) for name in "ab"}
    here.in_turns({**lanes, "broken": parts.Lane(broken)}, time.time())  # at least one step each
    assert "".join(dict.fromkeys(order)) == "ab"
    assert all(lane.rate > 0 and len(lane.rates) == 1 for lane in lanes.values())
    order.clear()
    lanes["a"].turn(here, 0.0)
    assert order == ["a", "a"], "one that is not counted, and one that is"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 240])
def test_the_command_ends_in_time_with_all_its_rows(seconds: int, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--only", "machine", "peak", "--seconds", str(seconds)]
    done = processes.run(processes.python(*command, "--to", str(file)), timeout=540)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert all(f"| {row['name']} |" in done.stdout for row in rows)
    assert {row["section"] for row in rows} == {"machine", "peak"}
    if seconds == 0:
        peak = {row["value"] for row in rows if row["section"] == "peak"}
        assert "no time" in peak
        assert peak <= {"no time", "skipped"}, "of the section, or of each row if it had begun"
    else:
        assert next(row["value"] for row in rows if row["name"] == "torch") == torch.__version__


def test_a_device_that_is_not_there_is_one_line(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gpu", "--device", "cuda:77"])
        with pytest.raises(SystemExit, match="2"):
            command.main()
    assert "not available on this machine" in capsys.readouterr().err
