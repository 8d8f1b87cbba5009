"""What decides the last bits of weights is noted, and a resume elsewhere is said."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from conftest import tiny

from smallalign_core.data import Splits
from smallalign_core.runs import model_card
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.system import machine
from smallalign_core.training import runner, teacher
from smallalign_core.training.resolve import resolve


def paused(store: Store) -> Run:
    """A run that was stopped after its first epoch, with a checkpoint."""
    run, stop = store.create(resolve(store, tiny(epochs=4))), threading.Event()

    def observe(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            stop.set()

    runner.execute(run, store, device="cpu", observe=observe, stop=stop)
    assert run.state is State.PAUSED
    return run


def test_a_resume_with_other_instructions_warns_and_is_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = paused(store)
    monkeypatch.setattr(machine, "capability", lambda: "DEFAULT")
    result = runner.execute(run, store, device="cpu")
    assert "now DEFAULT" in result["moved"]
    assert result["capability"] == "DEFAULT"
    (warning,) = [event["message"] for event in run.events("warning")]
    assert warning == result["moved"]
    assert "now DEFAULT" in model_card.card(run, store, "x")


def test_a_resume_on_the_same_machine_says_nothing(store: Store) -> None:
    run = paused(store)
    result = runner.execute(run, store, device="cpu")
    assert result["moved"] is None
    assert not run.events("warning")
    assert torch.backends.cpu.get_cpu_capability() in result["capability"]
    assert "its instruction sets too" in model_card.card(run, store, "x")


def test_the_key_of_kept_answers_holds_the_instructions(
    store: Store, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolve(store, tiny(teacher="digits-teacher"))

    def key() -> str:
        plan = teacher.plan(spec, digits, ["x"], torch.device("cpu"))
        assert plan is not None
        return plan.key

    first = key()
    assert key() == first
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert key() != first


def test_words_only_where_something_changed() -> None:
    now = {"device": "cpu", "processor": "a", "capability": "AVX2", "threads": 1}
    assert machine.difference(now, now) == machine.difference({}, now) == ""
    assert "threads 2, now 1" in machine.difference(now | {"threads": 2}, now)
