"""Studies: asked once, trained by whoever is there, gone on with after anything, nothing trained twice."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import processes
import pytest
from conftest import command, tiny
from pydantic import BaseModel

from smallalign_core.errors import BadData, Refused, UnknownRun
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.service import worker
from smallalign_core.service.users import Role, User
from smallalign_core.spec import RunSpec, digest, parse
from smallalign_core.studies import kinds, lifecycle
from smallalign_core.studies.lifecycle import Study
from smallalign_core.training.resolve import resolve


class ToySpec(BaseModel):
    """A study that wants a first run, and then one whose epochs depend on how that went."""

    student: dict[str, Any]
    lengths: list[int] = [1]


class Toy(ModuleType):
    def __init__(self) -> None:
        super().__init__("toy")
        self.prepared = 0
        self.broken: Exception | None = None
        self.unready = 0

    def parse_study(self, written: dict[str, Any]) -> ToySpec:
        return ToySpec(**written)

    def study_id(self, spec: ToySpec) -> str:
        return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]

    def title_of(self, _: ToySpec) -> str:
        return "a toy"

    def probes(self, spec: ToySpec) -> list[RunSpec]:
        return [parse(spec.student)]

    def prepare(self, *_: object) -> bool:
        self.prepared += 1
        if self.broken:
            raise self.broken
        self.unready -= self.unready > 0
        return self.unready > 0

    def report(self, _: ToySpec, store: Store, folder: Path, **__: object) -> SimpleNamespace:
        return SimpleNamespace(complete=not Study(folder).missing(store))

    def wanted(self, spec: ToySpec, store: Store, _: Path) -> list[RunSpec]:
        found = [parse(spec.student | {"epochs": length}) for length in spec.lengths]
        first = store.find(found[0])
        if first is not None and first.finished:
            found.append(found[0].model_copy(update={"seed": 7}))
        return found


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    kind = Toy()
    monkeypatch.setitem(kinds.KINDS, "toy", kind)
    return kind


@pytest.fixture
def resolved(store: Store) -> RunSpec:
    fields = {"data": {"source": "digits", "images": 100}, "network": {"kind": "mlp", "width": 8}, "batch": 50}
    return resolve(store, tiny(**fields, epochs=1))


def ask(store: Store, spec: RunSpec, *lengths: int) -> Study:
    return lifecycle.create(store, "toy", ToySpec(student=spec.model_dump(mode="json"), lengths=list(lengths) or [1]))


def serve(store: Store) -> int:
    return worker.serve(store, device="cpu", once=True)


# --- what it is -------------------------------------------------------------------------------------------------------


def test_an_equal_question_is_the_same_study(store: Store, toy: Toy, resolved: RunSpec) -> None:
    first = ask(store, resolved)
    written = (first.folder / "study.json").read_bytes()

    again = ask(store, resolved)

    assert again.id == first.id
    assert ask(store, resolved, 1, 2).id != first.id
    assert (first.folder / "study.json").read_bytes() == written
    assert Study(first.folder).spec == first.spec
    assert [study.id for study in lifecycle.listing(store, "toy")].count(first.id) == 1


def test_it_is_found_by_the_beginning_of_its_id(store: Store, toy: Toy, resolved: RunSpec) -> None:
    study = ask(store, resolved)

    assert lifecycle.find(store, study.id[:6]).id == study.id
    for reference in ("", "zzzz"):
        with pytest.raises(UnknownRun):
            lifecycle.find(store, reference)


def test_a_damaged_one_hides_no_other(store: Store, toy: Toy, resolved: RunSpec) -> None:
    good, bad = ask(store, resolved), ask(store, resolved, 1, 2)
    for content in ("", "[]", '{"kind": "weather"}'):
        (bad.folder / "study.json").write_text(content)

        lines = {line.id: line for line in (lifecycle.summary(study, store) for study in lifecycle.listing(store))}

        assert lines[bad.id].kind is None, content
        assert "damaged" in lines[bad.id].title
        assert (lines[good.id].kind, lines[good.id].title) == ("toy", "a toy")
    lifecycle.delete(store, Study(bad.folder))
    good.folder.with_name(".deleted-1").mkdir()
    (good.folder.with_name(".deleted-1") / "study.json").write_text("{}")
    assert [study.id for study in lifecycle.listing(store)] == [good.id]


# --- training ---------------------------------------------------------------------------------------------------------


def test_what_follows_from_what_is_finished_is_trained_too(store: Store, toy: Toy, resolved: RunSpec) -> None:
    study = ask(store, resolved)
    assert len(study.wanted(store)) == 1

    failed = lifecycle.run_to_end(study, store, device="cpu")

    assert (failed, study.missing(store)) == ([], [])
    assert sorted(run.spec.seed for run in store.runs()) == [0, 7]
    assert all(run.finished for run in store.runs())


def test_asking_again_trains_nothing(store: Store, toy: Toy, resolved: RunSpec) -> None:
    lifecycle.run_to_end(ask(store, resolved), store, device="cpu")
    before = {run.id: (run.folder / "events.jsonl").read_bytes() for run in store.runs()}

    lifecycle.run_to_end(ask(store, resolved), store, device="cpu")

    assert {run.id: (run.folder / "events.jsonl").read_bytes() for run in store.runs()} == before


def test_a_larger_study_repeats_nothing(store: Store, toy: Toy, resolved: RunSpec) -> None:
    lifecycle.run_to_end(ask(store, resolved), store, device="cpu")
    done = {run.id for run in store.runs()}

    missing = ask(store, resolved, 1, 2).missing(store)

    assert [spec.epochs for spec in missing] == [2]
    assert not {digest(spec) for spec in missing} & done


def test_runs_that_keep_step_are_trained_in_equal_groups(resolved: RunSpec) -> None:
    same = [resolved.model_copy(update={"network": {"n": n}}) for n in range(9)]  # network is not looked at
    other = resolved.model_copy(update={"seed": 5})

    first = lifecycle.lockstep_groups([*same, other])

    assert first == same[:5]
    assert lifecycle.lockstep_groups(same[5:]) == same[5:]
    assert lifecycle.lockstep_groups([other, *same]) == [other]


# --- by workers -------------------------------------------------------------------------------------------------------


def test_a_worker_trains_an_active_study_to_its_end(store: Store, toy: Toy, resolved: RunSpec) -> None:
    study = ask(store, resolved)
    assert serve(store) == 0, "nobody started it"
    lifecycle.start(store, study)
    assert lifecycle.any_active(store)

    taken = serve(store)

    assert not lifecycle.any_active(store)
    assert (taken, study.missing(store), study.active) == (2, [], False)


def test_what_people_submit_comes_before_studies(store: Store, toy: Toy, resolved: RunSpec) -> None:
    lifecycle.start(store, ask(store, resolved))
    own = store.submit(resolved.model_copy(update={"seed": 3}))

    serve(store)

    began = {run.spec.seed: run.events("started")[0]["time"] for run in store.runs()}
    assert own.finished
    assert began[3] == min(began.values())
    assert len(began) == 3


def test_what_is_submitted_while_a_study_is_prepared_does_not_wait_for_it(
    store: Store, toy: Toy, resolved: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ask(store, resolved)
    lifecycle.start(store, study)
    toy.unready, before = 10, []
    own = resolved.model_copy(update={"seed": 3})
    real = worker.serve_some

    def serving(runs: Any, *rest: Any) -> None:
        before.append((runs[0].spec.seed, toy.prepared))
        real(runs, *rest)

    def prepare(*arguments: object) -> bool:
        if toy.prepared == 2:
            store.submit(own)
        return Toy.prepare(toy, *arguments)

    monkeypatch.setattr(worker, "serve_some", serving)
    monkeypatch.setattr(toy, "prepare", prepare)

    serve(store)

    assert before[:2] == [(3, 3), (0, 10)]
    assert study.missing(store) == []


def test_the_foreground_prepares_to_the_end_first(store: Store, toy: Toy, resolved: RunSpec) -> None:
    toy.unready = 5
    study = ask(store, resolved)

    lifecycle.run_to_end(study, store, device="cpu")

    assert (toy.unready, study.missing(store)) == (0, [])
    assert toy.prepared >= 5


def test_a_study_that_cannot_go_on_says_why_and_the_worker_lives(store: Store, toy: Toy, resolved: RunSpec) -> None:
    good, bad = ask(store, resolved), ask(store, resolved, 2)
    for study in (good, bad):
        lifecycle.start(store, study)
    toy.broken = BadData("the images are gone", given="digits", do="bring them back")

    assert serve(store) == 0

    assert bad.trouble == "The images are gone (given: digits). Bring them back."
    assert not bad.active
    toy.broken = None
    lifecycle.start(store, bad)
    assert bad.trouble is None
    serve(store)
    assert bad.missing(store) == []


def test_a_run_that_failed_waits_for_a_person(
    store: Store, toy: Toy, resolved: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ask(store, resolved)
    with RunWriter(store.create(study.wanted(store)[0])) as recording:
        recording.write_status(ended=State.FAILED, reason="no memory")
    lifecycle.start(store, study)  # queues it once more
    (run,) = store.queue()
    with RunWriter(run) as recording:
        recording.write_status(ended=State.FAILED, reason="no memory")

    assert serve(store) == 0

    assert (run.state, study.active) == (State.FAILED, False)


def test_a_run_that_kills_its_worker_is_not_taken_for_ever(store: Store, toy: Toy, resolved: RunSpec) -> None:
    study = ask(store, resolved)
    run = store.create(study.wanted(store)[0])
    for _ in range(lifecycle.ATTEMPTS):
        with RunWriter(run):
            pass  # and the worker is gone, without a word
    assert run.state is State.INTERRUPTED
    (study.folder / "active").touch()

    assert not lifecycle.queue_next(store, "cpu", threading.Event())

    assert not study.active


def test_a_diverged_run_is_settled(store: Store, toy: Toy, resolved: RunSpec) -> None:
    wild = resolved.model_copy(update={"optimizer": tiny(optimizer={"kind": "sgd", "lr": 100}).optimizer})
    study = ask(store, wild, 30)

    (error,) = lifecycle.run_to_end(study, store, device="cpu")

    assert "loss became" in str(error)
    assert store.runs()[0].status["diverged"] is True
    assert study.missing(store) == []


def test_pausing_keeps_checkpoints_and_starting_goes_on(store: Store, toy: Toy, resolved: RunSpec) -> None:
    study = ask(store, resolved, 1, 2)
    lifecycle.start(store, study)
    assert lifecycle.queue_next(store, "cpu", threading.Event())

    lifecycle.pause(store, study)

    assert not study.active
    assert [run.state for run in store.runs()] == [State.PAUSED]
    assert serve(store) == 0
    lifecycle.start(store, study)
    serve(store)
    assert study.missing(store) == []


def test_where_the_queue_has_no_room_a_study_stays_as_it_is(
    store: Store, toy: Toy, resolved: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLALIGN_WAITING_EACH", "1")
    study = ask(store, resolved, 1, 2)
    for spec in study.missing(store):
        store.submit(spec).request("pause")
    user = Store(store.root, User("somebody"))

    with pytest.raises(Refused, match="at most 1 waiting run"):
        lifecycle.start(user, study)

    assert not study.active
    assert store.queue() == []


def test_stopping_ends_the_foreground(store: Store, toy: Toy, resolved: RunSpec) -> None:
    stop = threading.Event()
    study = ask(store, resolved, 40)

    def observe(*_: object) -> Any:
        return lambda event: stop.set() if event["kind"] == "epoch" else None

    lifecycle.run_to_end(study, store, device="cpu", stop=stop, observe=observe)

    assert [run.state for run in store.runs()] == [State.PAUSED]
    lifecycle.run_to_end(study, store, device="cpu")
    assert study.missing(store) == []


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleting_keeps_the_runs_of_others(store: Store, toy: Toy, resolved: RunSpec) -> None:
    small, large = ask(store, resolved, 1), ask(store, resolved, 1, 2)
    lifecycle.run_to_end(large, store, device="cpu")
    (small.folder / "active").touch()
    with pytest.raises(Refused, match="Pause it"):
        lifecycle.delete(store, small, runs=True)
    (small.folder / "active").unlink()

    gone = lifecycle.delete(store, large, runs=True)

    assert [Run(store.root / "runs" / run).name for run in gone] == gone
    assert sorted(run.spec.epochs for run in store.runs()) == [1, 1]
    assert len(gone) == 1
    assert [study.id for study in lifecycle.listing(store)] == [small.id]
    lifecycle.delete(store, small)
    assert len(store.runs()) == 2, "without `runs` they stay"


def test_a_teacher_stays_while_a_study_lacks_runs(store: Store, toy: Toy, resolved: RunSpec) -> None:
    """Whoever trains it, active or paused; not once it is complete, nor once it is deleted."""
    teacher = store.create(resolved.model_copy(update={"seed": 9, "epochs": 20}))
    worker.execute(teacher, store, device="cpu")
    student = resolve(store, parse(resolved.model_dump(mode="json") | {"teacher": teacher.id, "loss": "kd"}))
    study, other = ask(store, student), ask(store, student, 2)
    for one in (study, other):
        lifecycle.start(store, one)
        lifecycle.pause(store, one)

    refused = command("runs", "delete", teacher.id, store=store)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Unfinished studies depend on it (given: ")
    assert study.id in refused.stderr
    assert other.id in refused.stderr
    assert refused.stderr.rstrip().endswith("or delete them: their finished runs are kept.")
    lifecycle.delete(store, other)
    lifecycle.start(store, study)
    with pytest.raises(Refused, match=f"given: {study.id}"):
        store.delete(teacher.id)
    serve(store)
    assert study.missing(store) == []
    store.delete(teacher.id)
    assert sorted(run.spec.seed for run in store.runs()) == [0, 7]


def test_a_teacher_is_let_go_by_studies_that_are_complete_or_no_more(
    store: Store, toy: Toy, resolved: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused before the last run was finished, or trained by somebody else: nothing is left that would let it go."""
    teacher = store.create(resolved.model_copy(update={"seed": 9, "epochs": 20}))
    worker.execute(teacher, store, device="cpu")
    student = resolve(store, parse(resolved.model_dump(mode="json") | {"teacher": teacher.id, "loss": "kd"}))
    study, lost = ask(store, student), ask(store, student, 2)
    for one in (study, lost):
        lifecycle.start(store, one)
        lifecycle.pause(store, one)
    (lost.folder / "study.json").unlink()
    damaged = ask(store, student, 3)
    for name in ("needs", "trouble"):
        (damaged.folder / name).write_bytes(b"\xff\xfe")
    assert damaged.trouble

    complete = {study.id: False}
    monkeypatch.setattr(Study, "report", lambda self, _: SimpleNamespace(complete=complete[self.id]))
    with pytest.raises(Refused, match=rf"given: {study.id}\)"):
        lifecycle.delete_run(store, teacher.id)
    complete[study.id] = True
    with pytest.raises(Refused, match="you cannot delete runs"):
        lifecycle.delete_run(Store(store.root, User("somebody", Role.VIEWER)), teacher.id)

    lifecycle.delete_run(store, teacher.id)

    assert store.runs() == []


def test_a_study_deletes_its_own_teachers_too(store: Store, toy: Toy, resolved: RunSpec) -> None:
    knowing = resolved.model_copy(update={"epochs": 20})
    teacher = store.create(knowing)
    worker.execute(teacher, store, device="cpu")
    student = resolve(store, parse(resolved.model_dump(mode="json") | {"teacher": teacher.id, "loss": "kd"}))
    study = ask(store, student, 2)
    toy.wanted = lambda *_: [knowing, student]  # type: ignore[method-assign]
    lifecycle.start(store, study)
    lifecycle.pause(store, study)
    store.create(student)

    assert lifecycle.delete(store, study, runs=True) == [digest(student), teacher.id]

    assert store.runs() == []


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_runs(tmp_path: Path) -> None:
    """SIGKILL in the search for rates, in a trial and in the race; then the same command."""
    (tmp_path / "study.yaml").write_text(
        "data: {source: digits, images: 100}\nnetwork: {kind: mlp, width: 12}\nepochs: 30\nbatch: 10\n"
        "optimizers: [adamw, sgd]\nhands_off: []\ntrials: 2\nseeds: 2\nbudgets: [1]\n"
    )
    arguments = ["optimizers", str(tmp_path / "study.yaml"), "--json"]
    whole = command(*arguments, store=Store(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    killed = Store(tmp_path / "killed")
    for moment in ("finders.json.", "", "", ""):
        line = processes.python("-m", "smallalign_core", *arguments, "--store", killed.root)
        with processes.started(line) as process:
            events = sum(len(run.events()) for run in killed.runs())
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if moment and list(killed.root.glob("studies/*/lock")):
                    break
                if not moment and sum(len(run.events()) for run in killed.runs()) > events + 5:
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
    again = command(*arguments, store=killed)
    assert again.returncode == 0, again.stderr

    ours, theirs = json.loads(again.stdout), json.loads(whole.stdout)
    assert ours["id"] == theirs["id"]
    for one, other in zip(ours["arms"], theirs["arms"], strict=True):
        assert [trial["rate"] for trial in one["trials"]] == [trial["rate"] for trial in other["trials"]]
        assert (one["rate"], one["test"], one["sd"]) == (other["rate"], other["test"], other["sd"])
        assert one["differences"] == other["differences"]
    digests = [
        {run.id: (run.result or {})["weights_sha256"] for run in place.runs()}
        for place in (killed, Store(tmp_path / "whole"))
    ]
    assert digests[0] == digests[1]
