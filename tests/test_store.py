"""The store and the worker: equal specs are one run, nothing acknowledged is lost, a resume ends with the same bits."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
from conftest import Train, command, tiny
from filelock import FileLock

from pages.ui.app import context, supervisor
from smallalign_core.errors import BadInput, BadModel, Diverged, Refused, SmallAlignError, UnknownRun, WorkFailed
from smallalign_core.runs.store import Run, State, Store, _take
from smallalign_core.runs.writer import RunWriter, checkpoints
from smallalign_core.service import worker
from smallalign_core.service.client import BackendClient
from smallalign_core.service.requests import Estimate, Inspect, Submit, Submitted
from smallalign_core.service.users import OWNER
from smallalign_core.spec import RunSpec, digest, parse_data
from smallalign_core.system import files
from smallalign_core.training import runner
from smallalign_core.training.resolve import resolve


def until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def long_run(store: Store, **fields: object) -> Run:
    return store.submit(resolve(store, tiny(epochs=400, augment=["shift", "rotate"], **fields)))


ONE_WORKER = ("worker", "--once", "--device", "cpu")
"""Ends when the queue is empty."""


@pytest.fixture(scope="module")
def forks() -> Iterator[processes.Forks]:
    with processes.forking() as fork:
        yield fork


def work_in_a_thread(store: Store) -> threading.Thread:
    """A worker without a process of its own."""
    working = threading.Thread(target=worker.serve, args=(store,), kwargs={"device": "cpu", "once": True}, daemon=True)
    working.start()
    return working


def test_an_equal_spec_is_the_same_run(train: Train, store: Store) -> None:
    run = train()
    again = store.submit(resolve(store, tiny()))
    assert again.id == run.id
    assert again.state is State.FINISHED
    assert store.queue() == []
    before = run.weights.stat().st_mtime_ns
    train()
    assert run.weights.stat().st_mtime_ns == before


def test_states_in_the_order_of_a_life(store: Store) -> None:
    run = store.create(resolve(store, tiny()))
    assert run.state is State.INTERRUPTED
    store.enqueue(run)
    assert run.state is State.QUEUED
    assert [waiting.id for waiting in store.queue()] == [run.id]
    with RunWriter(run):
        assert run.state is State.RUNNING
        assert store.queue() == []
    assert run.state is State.INTERRUPTED
    worker.execute(run, store, device="cpu")
    assert run.state is State.FINISHED


def test_results_say_what_scripts_need(train: Train) -> None:
    result = train().result
    assert result is not None
    assert {
        "id",
        "state",
        "test",
        "val",
        "params",
        "weights_sha256",
        "images_per_second",
        "temperature",
    } <= result.keys()
    assert {"accuracy", "nll", "ece"} <= result["test"].keys()
    assert result["params"] == 6 * 9 + 12 + 6 * 12 * 9 + 24 + 12 * 10 + 10


@pytest.mark.slow
def test_a_second_worker_on_the_same_run_is_refused(store: Store) -> None:
    run = store.create(resolve(store, tiny()))
    with RunWriter(run), pytest.raises(Refused, match=r"(?i)another worker"):
        worker.execute(run, store, device="cpu")
    assert run.result is None


@pytest.mark.slow
def test_a_second_worker_on_the_same_store_is_refused(store: Store) -> None:
    store.root.mkdir(parents=True)
    with FileLock(store.root / "worker-cpu.lock"), pytest.raises(Refused, match=r"(?i)another worker"):
        worker.serve(store, device="cpu", once=True)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda:1"])
def test_the_dashboard_sees_a_worker_on_any_device_and_starts_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    class Twice(threading.Event):
        """Set once the supervisor has checked twice."""

        checks = 0

        def wait(self, _timeout: float | None = None) -> bool:
            self.checks += 1
            if self.checks == 2:
                self.set()
            return self.is_set()

    store.submit(resolve(store, tiny()))
    started: list[Store] = []
    monkeypatch.setattr(supervisor, "start_worker", lambda one: started.append(one) or SimpleNamespace(poll=lambda: 0))
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    monkeypatch.setattr(context.auth, "current_user", lambda: OWNER)
    with FileLock(store.worker_lock(device)):
        assert store.workers() == [device.replace(":", "-")]
        assert context.worker_alive()
        supervisor.keep_worker(store, Twice())
    assert not started
    assert not store.workers()
    assert not context.worker_alive()
    supervisor.keep_worker(store, Twice())
    assert started


@pytest.mark.slow
def test_looking_never_keeps_a_worker_out(store: Store) -> None:
    """Two threads look all the time; whoever wants the lock gets it every time."""
    run = store.create(resolve(store, tiny()))
    with RunWriter(run):
        assert all(files.is_held(run.folder / "lock") for _ in range(50))
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            files.is_held(run.folder / "lock")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(40):
            with RunWriter(run):
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert run.status["attempt"] == 41


def test_many_writers_of_one_file_do_not_break_each_other(tmp_path: Path) -> None:
    failures = []

    def scribble(number: int) -> None:
        for _ in range(50):
            try:
                files.write(tmp_path / "file", str(number) * 1000)
            except SmallAlignError as error:
                failures.append(error)

    threads = [threading.Thread(target=scribble, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set((tmp_path / "file").read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_marker_on_a_finished_run_does_not_hold_up_the_queue(train: Train, store: Store) -> None:
    done = train()
    waiting = store.submit(resolve(store, tiny(seed=9)))
    (done.folder / "queued").write_text("0")
    assert [run.id for run in store.queue()] == [waiting.id]
    before = done.weights.stat().st_mtime_ns
    assert worker.serve(store, device="cpu", once=True) == 1
    assert waiting.state is State.FINISHED
    assert done.weights.stat().st_mtime_ns == before


def test_a_run_cancelled_after_it_was_listed_is_not_trained(store: Store) -> None:
    run = store.submit(resolve(store, tiny()))
    (listed,) = store.queue()
    run.request("cancel")
    with pytest.raises(Refused, match="no longer in the queue"):
        worker.execute(listed, store, device="cpu", from_queue=True)
    assert run.state is State.CANCELLED
    assert run.events() == []


def test_a_cancel_asked_while_the_worker_starts_is_obeyed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.submit(resolve(store, tiny(epochs=50)))
    say = RunWriter.write_status

    def ask_then_say(self: RunWriter, **facts: object) -> None:
        if "ended" in facts and facts["ended"] is None:
            assert self.run.state is State.RUNNING
            Run(self.run.folder).request("cancel")
        say(self, **facts)

    monkeypatch.setattr(RunWriter, "write_status", ask_then_say)
    worker.execute(run, store, device="cpu", from_queue=True)
    assert run.state is State.CANCELLED


def test_a_finished_run_is_not_trained_again_by_one_who_waited(train: Train, store: Store) -> None:
    run = train()
    before = run.weights.stat().st_mtime_ns
    with RunWriter(run):
        pass
    assert worker.execute(run, store, device="cpu", observe=lambda _: pytest.fail("it trained")) == run.result
    assert run.weights.stat().st_mtime_ns == before


def test_a_result_without_weights_is_not_finished(train: Train, store: Store) -> None:
    run = train()
    expected = run.weights.read_bytes()
    run.weights.unlink()
    assert run.state is not State.FINISHED
    worker.execute(run, store, device="cpu")
    assert run.weights.read_bytes() == expected


def test_only_runs_of_the_store_are_deleted(tmp_path: Path, store: Store) -> None:
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / "spec.json").write_text("{}")
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match=r"(?i)only runs of this store"):
        store.delete(str(mine))
    assert (mine / "thesis.txt").exists()


def test_one_damaged_run_does_not_hide_the_others(train: Train, store: Store) -> None:
    run = train()
    damaged = store.root / "runs" / "0123456789abcdef"
    damaged.mkdir()
    (damaged / "spec.json").write_text("{}")
    done = command("runs", "list", "--json", store=store)
    assert done.returncode == 0
    states = {entry["name"]: entry["state"] for entry in json.loads(done.stdout)["runs"]}
    assert states[run.name] == "finished"
    assert states[damaged.name] == "damaged"


def test_a_folder_may_move_and_the_worker_may_stand_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_data import folder_of

    folder_of(tmp_path / "pictures", "ab", 20, size=(8, 8), mode="L")
    monkeypatch.chdir(tmp_path)
    run = store.submit(resolve(store, tiny(data="pictures")))
    (tmp_path / "pictures").rename(tmp_path / "moved")
    again = store.submit(resolve(store, tiny(data="moved")))
    assert again.id == run.id
    monkeypatch.chdir("/")
    assert worker.execute(Run(run.folder), store, device="cpu")["state"] == "finished"


def test_a_network_that_would_take_all_memory_is_refused(store: Store) -> None:
    with pytest.raises(SmallAlignError, match=r"(?i)would have .* parameters"):
        resolve(store, tiny(network={"kind": "cnn", "width": 2048, "depth": 8}))


@pytest.mark.parametrize("request_", ["pause", "cancel"])
def test_pause_and_cancel_keep_a_checkpoint_and_resume_goes_on(request_: str, store: Store) -> None:
    run = long_run(store)
    working = work_in_a_thread(store)
    until(lambda: bool(run.events("progress")))
    run.request(request_)
    working.join(60)
    assert run.state is (State.PAUSED if request_ == "pause" else State.CANCELLED)
    assert run.pending_request is None
    assert run.status["reason"] is None
    step = run.events()[-1]["step"]
    assert step > 0
    store.enqueue(run)
    assert run.state is State.QUEUED
    working = work_in_a_thread(store)
    until(lambda: any(event["kind"] == "resumed" for event in run.events()))
    assert run.events("resumed")[0]["step"] == step
    run.request("cancel")
    working.join(60)
    assert run.state is State.CANCELLED


def test_a_queued_run_can_be_cancelled_without_a_worker(store: Store) -> None:
    run = long_run(store)
    run.request("cancel")
    assert run.state is State.CANCELLED
    assert store.queue() == []
    with pytest.raises(Refused, match="nothing to cancel"):
        run.request("cancel")


def medium(store: Store, epochs: int = 16) -> Run:
    return store.create(resolve(store, tiny(epochs=epochs, optimizer="lookahead", augment=["shift", "rotate"])))


def group(store: Store, teacher: Run, epochs: int = 4) -> list[Run]:
    """Three runs on the same views: with a teacher, with its answers mixed up, and without."""
    shared = {"epochs": epochs, "augment": ["shift"], "seed": 3}
    specs = (
        tiny(**shared, teacher=teacher.id),
        tiny(**shared, teacher=teacher.id, shuffled=True),
        tiny(**shared, optimizer="lookahead"),
    )
    return [store.submit(resolve(store, spec)) for spec in specs]


@pytest.mark.slow
def test_the_queue_trains_runs_with_equal_views_in_lockstep(store: Store, train: Train, tmp_path: Path) -> None:
    """Each ends as it would alone."""
    runs = group(store, train())
    other = store.submit(resolve(store, tiny(seed=4)))
    assert worker.serve(store, once=True, device="cpu") == 4
    assert [run.status["together"] for run in (*runs, other)] == [3, 3, 3, 1]
    for run in runs:
        alone = Store(tmp_path / run.id)
        twin = alone.create(resolve(store, run.spec))
        if run.spec.teacher:
            _take.run(store.run(run.spec.teacher), alone)
        assert worker.execute(twin, alone, device="cpu")["weights_sha256"] == (run.result or {})["weights_sha256"]


@pytest.mark.slow
def test_one_of_a_lockstep_is_cancelled_and_the_others_end(store: Store, train: Train) -> None:
    """The one that was cancelled is then behind the others, and goes on alone, to the weights it would have had."""
    runs = group(store, train(), epochs=12)

    def cancel(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 3 and runs[1].state is State.RUNNING:
            runs[1].request("cancel")

    ended = runner.run_lockstep(runs, store, device="cpu", from_queue=True, observe=cancel)
    assert [how["state"] for how in ended if isinstance(how, dict)] == ["finished", "cancelled", "finished"]
    again = runner.run_lockstep(runs, store, device="cpu")
    assert [how["state"] for how in again if isinstance(how, dict)] == ["finished"] * 3
    assert runs[1].events("resumed")[0]["step"] > 0


def test_one_of_a_lockstep_diverges_and_the_others_end(store: Store) -> None:
    wild = {"kind": "sgd", "lr": 100.0, "weight_decay": 10.0}
    specs = [tiny(epochs=8), tiny(epochs=8, network={"kind": "mlp", "width": 32}, optimizer=wild)]
    runs = [store.create(resolve(store, spec)) for spec in specs]
    fine, broken = runner.run_lockstep(runs, store, device="cpu")
    assert isinstance(fine, dict)
    assert fine["state"] == "finished"
    assert isinstance(broken, Diverged)
    assert runs[1].state is State.FAILED
    assert "learning rate 100" in str(runs[1].status["reason"])


def test_a_lockstep_that_cannot_start_is_tried_one_by_one(store: Store, train: Train) -> None:
    teacher = train()
    runs = group(store, teacher)
    teacher.weights.write_bytes(b"nothing")
    ended = runner.run_lockstep(runs, store, device="cpu", from_queue=True)
    assert [run.state for run in runs] == [State.FAILED, State.FAILED, State.FINISHED]
    assert isinstance(ended[0], BadModel)


@pytest.mark.slow
def test_runs_at_different_steps_are_trained_one_after_the_other(store: Store, train: Train) -> None:
    runs = group(store, train(), epochs=6)
    for run, epoch in zip(runs[:2], (2, 4), strict=True):

        def pause(event: dict[str, Any], run: Run = run, epoch: int = epoch) -> None:
            if event["kind"] == "epoch" and event["epoch"] == epoch:
                run.request("pause")

        worker.execute(run, store, device="cpu", observe=pause)
    ended = runner.run_lockstep(runs, store, device="cpu")
    assert [how["state"] for how in ended if isinstance(how, dict)] == ["finished"] * 3
    assert [run.status["together"] for run in runs] == [1, 1, 1]


def test_last_and_best_weights_are_both_reported(train: Train) -> None:
    result = train(epochs=8, optimizer={"kind": "adamw", "lr": 0.05}).result or {}
    assert result["best_epoch"] <= 8
    assert set(result["last"]) == {"test", "val"}
    assert result["last"]["val"]["accuracy"] <= result["val"]["accuracy"]
    assert result["last"]["test"]["images"] == result["test"]["images"]


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(forks: processes.Forks, store: Store, tmp_path: Path) -> None:
    """Acknowledged events stay, checkpoints are whole, and the resumed run ends with the same bits."""
    whole = Store(tmp_path / "whole")
    expected = worker.execute(medium(whole, epochs=60), whole, device="cpu")["weights_sha256"]

    run = store.enqueue(medium(store, epochs=60))
    draw = random.Random(0)
    kills = 0
    while run.state is not State.FINISHED:
        known = None
        assert run.state is not State.FAILED, run.status
        with forks(*ONE_WORKER, "--store", store.root) as running:
            seen = len(run.events())
            while running() and (kills >= 6 or len(run.events()) < seen + draw.randint(2, 12)):
                time.sleep(0.1 * draw.random())
            if running():
                known = (run.folder / "events.jsonl").read_bytes()
        if known is not None:
            kills += 1
            assert (run.folder / "events.jsonl").read_bytes().startswith(known)
            assert run.state in (State.INTERRUPTED, State.QUEUED, State.FINISHED)
            assert all((run.folder / entry["file"]).exists() for entry in checkpoints(run))
            store.enqueue(run)
    assert kills == 6
    assert run.result is not None
    assert run.result["weights_sha256"] == expected
    steps = [event["step"] for event in run.events("epoch")]
    assert steps == sorted(set(steps)), "a reader sees every epoch once, whatever was repeated"
    assert len(steps) == 60


EVENTS = 9  # of a run of 4 epochs on digits: two an epoch, and a few in between on a slow machine


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[RunSpec, dict[str, Any]]]:
    """(spec, result) of runs of 1 and 4 epochs."""
    whole, found = Store(tmp_path_factory.mktemp("whole") / "models"), []
    for epochs in (1, 4):
        spec = tiny(epochs=epochs, optimizer={"kind": "adamw", "lr": 0.02})
        found.append((spec, worker.execute(whole.create(resolve(whole, spec)), whole, device="cpu")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("index", range(1, EVENTS))
def test_pausing_at_any_event_changes_nothing(
    index: int, store: Store, unbroken: list[tuple[RunSpec, dict[str, Any]]]
) -> None:
    """Also between an epoch's last step and its validation, and in the only epoch that there is."""
    for spec, expected in unbroken:
        run = store.create(resolve(store, spec))
        seen = []

        def pause(event: dict[str, object], run: Run = run, seen: list[object] = seen) -> None:
            seen.append(event)
            if len(seen) == index:
                files.write(run.folder / "request", "pause")

        for _ in range(3):
            result = worker.execute(run, store, device="cpu", observe=pause)
            if run.finished:
                break
        assert result["weights_sha256"] == expected["weights_sha256"]
        assert result["best_epoch"] == expected["best_epoch"]
        assert [event["epoch"] for event in run.events("epoch")] == list(range(1, int(spec.epochs) + 1))


def stopped_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run paused after a few checkpoints."""
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    run = medium(store)
    seen = []

    def pause_later(event: dict[str, object]) -> None:
        seen.append(event)
        if len(seen) == 12:
            files.write(run.folder / "request", "pause")

    worker.execute(run, store, device="cpu", observe=pause_later)
    assert run.state is State.PAUSED
    return run


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Store(tmp_path / "whole")
    expected = worker.execute(medium(whole), whole, device="cpu")["weights_sha256"]
    run = stopped_run(store, monkeypatch)
    entries = checkpoints(run)
    assert len(entries) == 2
    flip_a_byte(run.folder / entries[-1]["file"])
    result = worker.execute(run, store, device="cpu")
    assert result["weights_sha256"] == expected
    assert any("damaged" in event.get("message", "") for event in run.events())


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(store, monkeypatch)
    for file in run.folder.glob("checkpoint-*.pt"):
        flip_a_byte(file)
    kept = {file.name: file.read_bytes() for file in run.folder.glob("checkpoint-*.pt")}
    with pytest.raises(BadModel, match=r"Every checkpoint of this run is damaged"):
        worker.execute(run, store, device="cpu")
    assert run.state is State.FAILED
    assert {file.name: file.read_bytes() for file in run.folder.glob("checkpoint-*.pt")} == kept


@pytest.mark.slow
def test_a_full_disk_pauses_and_overwrites_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_run(store, monkeypatch)
    before = {file.name: file.read_bytes() for file in run.folder.glob("checkpoint*")}
    real = os.fsync

    def full(descriptor: int) -> None:
        if any("checkpoint" in link for link in [str(Path(f"/proc/self/fd/{descriptor}").readlink())]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="disk is full"):
        worker.execute(run, store, device="cpu")
    monkeypatch.setattr(os, "fsync", real)
    assert run.state is State.PAUSED
    assert {file.name: file.read_bytes() for file in run.folder.glob("checkpoint*")} == before
    worker.execute(run, store, device="cpu")
    assert run.state is State.FINISHED


def test_a_diverged_run_is_kept_with_its_reason(train: Train, store: Store) -> None:
    with pytest.raises(WorkFailed):
        train(optimizer={"kind": "sgd", "lr": 100.0, "weight_decay": 10.0}, network="mlp", epochs=40)
    run = store.runs()[0]
    assert run.state is State.FAILED
    assert "optimizer.lr" in run.status["reason"]


def test_references(train: Train, store: Store) -> None:
    run = train()
    for reference in (run.id, run.id[:6], str(run.folder)):
        assert store.run(reference).id == run.id
    assert store.run("digits-teacher").in_zoo
    assert store.run(store.run("digits-teacher").id).name == "digits-teacher"
    for unknown in ("nothing", "ffff", "../..", "", "/etc/passwd"):
        with pytest.raises(UnknownRun):
            store.run(unknown)


def test_a_teacher_must_be_finished_and_know_the_classes(store: Store, train: Train) -> None:
    waiting = store.submit(resolve(store, tiny(epochs=99)))
    with pytest.raises(Refused, match="not finished"):
        resolve(store, tiny(teacher=waiting.id))
    with pytest.raises(UnknownRun):
        resolve(store, tiny(teacher="nobody"))
    from test_data import folder_of

    cats = folder_of(store.root / "cats", "ab", 20, size=(8, 8), mode="L")
    with pytest.raises(BadInput, match="classes do not match"):
        resolve(store, tiny(data=str(cats), teacher=train().id))


def test_a_teacher_by_path_is_taken_into_the_store(tmp_path: Path, store: Store) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    teacher = elsewhere.create(resolve(elsewhere, tiny()))
    worker.execute(teacher, elsewhere, device="cpu")
    spec = resolve(store, tiny(teacher=str(teacher.folder), seed=4))
    assert spec.teacher == teacher.id
    assert store.finished(teacher.id).folder.parent == store.root / "runs"


def test_delete(train: Train, store: Store) -> None:
    teacher = train()
    student = store.submit(resolve(store, tiny(teacher=teacher.id)))
    with pytest.raises(Refused, match="depend on it"):
        store.delete(teacher.id)
    store.delete(student.id)
    store.delete(teacher.id)
    assert store.runs() == []
    with pytest.raises(Refused, match=r"(?i)zoo"):
        store.delete("digits-teacher")


def test_test_looks_are_counted(train: Train, store: Store) -> None:
    run = train()
    fingerprint = run.spec.data.fingerprint
    assert fingerprint is not None
    assert store.test_looks(fingerprint) == 1
    train(seed=1)
    assert store.test_looks(fingerprint) == 2


def test_a_torn_last_line_is_skipped_and_the_next_is_whole(train: Train) -> None:
    run = train()
    count = len(run.events())
    with (run.folder / "events.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "progr')
    assert len(run.events()) == count
    files.append(run.folder / "events.jsonl", {"kind": "later", "step": 10**6})
    assert run.events()[-1]["kind"] == "later"


def test_a_damaged_result_is_named_not_shown_as_a_traceback(train: Train) -> None:
    run = train()
    (run.folder / "result.json").write_text("{")
    with pytest.raises(SmallAlignError, match="damaged"):
        _ = run.result


def test_zoo_specs_give_the_zoo_runs(store: Store) -> None:
    """The committed specs, resolved, have the ids that the committed results claim."""
    assert len(store.zoo()) >= 2
    for run in store.zoo():
        assert digest(resolve(store, run.spec)) == run.id


@pytest.mark.slow
def test_the_zoo_student_can_be_made_again(store: Store) -> None:
    zoo = store.run("digits-student")
    run = store.create(resolve(store, zoo.spec))
    result = worker.execute(run, store, device="cpu")
    assert zoo.result is not None
    assert abs(result["test"]["accuracy"] - zoo.result["test"]["accuracy"]) < 0.02
    if result["processor"] == zoo.result["processor"] and result["threads"] == zoo.result["threads"]:
        made_with = zoo.result.get("capability", "AVX512")  # those that ship were made before it was noted
        if result["capability"].split()[0] != made_with.split()[0] or "=" in result["capability"]:
            pytest.skip(f"NOT TESTED: equal weights are promised with {made_with}, this is {result['capability']}")
        assert result["weights_sha256"] == zoo.result["weights_sha256"]


@pytest.mark.slow
def test_the_backend_answers_refuses_and_recovers(store: Store) -> None:
    asking = BackendClient(store)
    try:
        found = asking.call(Inspect(parse_data("digits")))
        assert found.images == 1797
        with pytest.raises(BadInput, match="path does not exist"):
            asking.call(Inspect(parse_data("nowhere")))
        cost = asking.call(Estimate(tiny()))
        assert cost.params == 868
        assert cost.onnx_bytes > 4 * 868
        assert 0 < cost.seconds < 60
        for backend in asking.pool.backends():
            os.kill(backend.pid, signal.SIGKILL)
        assert asking.call(Submit(tiny())) == Submitted(cost.id, "queued", known=False)
        with pytest.raises(WorkFailed, match=r"no answer in 0"):
            asking.call(Estimate(tiny(epochs=77)), timeout=0.01)
    finally:
        asking.close()
