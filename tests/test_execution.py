"""Recorded training of several runs at once: who was stopped by whom, and what their folders say."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny

from smallalign_core.cli._main import main
from smallalign_core.runs import writer
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import worker
from smallalign_core.spec import to_yaml
from smallalign_core.training import loop, runner
from smallalign_core.training.loop import Training
from smallalign_core.training.resolve import resolve


@pytest.fixture
def group(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Three queued runs on the same views; every step is an event."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    specs = [tiny(network={"kind": "cnn", "width": width, "depth": 2}) for width in (6, 7, 8)]
    return [store.submit(resolve(store, spec)) for spec in specs]


def at_step(step: int, event: dict[str, Any]) -> bool:
    return event["kind"] == "progress" and event["step"] == step


def test_a_stopped_worker_puts_back_only_what_nobody_else_stopped(
    store: Store, group: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, together = threading.Event(), runner.run_lockstep
    states: list[State] = []

    def watched(*runs: Any, **how: Any) -> Any:
        def ask(event: dict[str, Any]) -> None:
            if at_step(5, event) and group[0].state is State.RUNNING and group[0].pending_request is None:
                group[0].request("cancel")
                group[1].request("pause")
            if at_step(12, event) and not stop.is_set():
                states.extend(run.state for run in group)
                stop.set()

        return together(*runs, **how, observe=ask)

    monkeypatch.setattr(worker, "run_lockstep", watched)
    assert worker.serve(store, device="cpu", stop=stop) == 3
    assert states == [State.CANCELLED, State.PAUSED, State.RUNNING], "they do not wait for the others"
    assert [run.state for run in group] == [State.CANCELLED, State.PAUSED, State.QUEUED]


@pytest.mark.slow
def test_runs_that_are_tried_again_alone_tell_their_events_once(
    store: Store, group: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Training.advance

    def fail_together(training: Training) -> None:
        if len(training.students) > 1 and training.step == 15:
            raise MemoryError
        advance(training)

    monkeypatch.setattr(Training, "advance", fail_together)
    ended = runner.run_lockstep(group, store, device="cpu")
    assert [how["state"] for how in ended if isinstance(how, dict)] == ["finished"] * 3
    for run in group:
        assert [event["epoch"] for event in run.events("epoch")] == [1, 2, 3]
        assert len(run.events("started")) == 1


def test_the_command_line_waits_for_a_teacher_who_answers_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume whose cache is gone asks for all earlier answers first, and says so step by step."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    spec = tiny(teacher="digits-teacher", precision="fp32")
    run = store.create(resolve(store, spec))

    def pause(event: dict[str, Any]) -> None:
        if at_step(5, event):
            run.request("pause")

    assert runner.execute(run, store, device="cpu", observe=pause)["state"] == "paused"
    shutil.rmtree(store.teacher_cache)
    (tmp_path / "spec.yaml").write_text(to_yaml(spec))
    assert main(["train", str(tmp_path / "spec.yaml"), "--store", str(store.root), "--device", "cpu"]) == 0
    assert run.state is State.FINISHED


@pytest.mark.parametrize("silenced", ["disabled", "level"])
def test_a_runs_log_holds_errors_whatever_was_done_to_loggers(silenced: str, store: Store) -> None:
    run, log = store.create(resolve(store, tiny())), logging.getLogger("smallalign")
    before = log.disabled, log.level
    try:
        log.disabled = silenced == "disabled"
        log.setLevel(logging.CRITICAL if silenced == "level" else logging.NOTSET)
        kept = log.disabled, log.level
        with writer.capture_logs([run]):
            log.error("what went wrong")
        assert (log.disabled, log.level) == kept
    finally:
        log.disabled, log.level = before
    assert "what went wrong" in (run.folder / "log.txt").read_text()
