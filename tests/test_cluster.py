"""A cluster of real Ray nodes: runs come back as if they had been trained here, once, whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
from conftest import Train, program, tiny

from smallalign_core.data import Decision, Decisions, load
from smallalign_core.errors import BadInput, Diverged, Refused, SmallAlignError, WorkFailed
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.service import worker
from smallalign_core.spec import digest
from smallalign_core.studies import lifecycle, ray_executor
from smallalign_core.studies.ray_executor import _node, _payload
from smallalign_core.training.resolve import resolve


def packed(run: Run, how: dict[str, Any] | SmallAlignError | None = None) -> _payload.RunOutcome:
    return _payload.outcome(run, run.result or {} if how is None else how, "there")


# --- what is sent, and what comes back --------------------------------------------------------------------------------


def test_a_run_that_comes_back_is_as_if_trained_here(train: Train, store: Store, tmp_path: Path) -> None:
    there = train()
    here = Store(tmp_path / "home").create(there.spec)
    with RunWriter(here) as recording:
        recording.event("progress", 1)  # of an earlier attempt here
        assert ray_executor.accepted(recording, packed(there)) == there.result
        assert here.state is State.FINISHED
    assert {event["kind"] for event in here.events()} == {event["kind"] for event in there.events()}
    assert here.events("progress") == there.events("progress")
    assert here.weights.read_bytes() == there.weights.read_bytes()
    assert here.status["host"] == "there"
    assert here.status["attempt"] == 1


def test_what_was_finished_meanwhile_is_not_overwritten(train: Train, tmp_path: Path) -> None:
    there = train()
    other = packed(there)
    assert other.result is not None
    here = Store(tmp_path / "home").create(there.spec)
    with RunWriter(here) as recording:
        ray_executor.accepted(recording, other)
    before = (here.folder / "result.json").read_bytes()
    with RunWriter(here) as recording:
        assert ray_executor.accepted(recording, other)["id"] == here.id
    weights = other.files["weights.safetensors"] + b" "
    forged = {**other.result, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    changed = _payload.RunOutcome("there", forged, None, other.said, {**other.files, "weights.safetensors": weights})
    with RunWriter(here) as recording:
        told = ray_executor.accepted(recording, changed)
    assert isinstance(told, WorkFailed)
    assert "Two machines trained different weights" in str(told)
    assert (here.folder / "result.json").read_bytes() == before


def test_damage_and_divergence_are_told_as_at_home(train: Train, tmp_path: Path) -> None:
    there = train()
    whole = packed(there)
    store = Store(tmp_path / "home")
    cut = _payload.RunOutcome("there", whole.result, None, whole.said, {**whole.files, "weights.safetensors": b"x"})
    here = store.create(there.spec)
    with RunWriter(here) as recording:
        told = ray_executor.accepted(recording, cut)
    assert "damaged" in str(told)
    assert here.state is State.FAILED
    assert not here.finished
    diverged = packed(there, Diverged("the loss became nan at step 3 of 9", given="lr", do="lower it"))
    with RunWriter(here) as recording:
        told = ray_executor.accepted(recording, diverged)
    assert isinstance(told, Diverged)
    assert here.state is State.FAILED
    assert here.status["diverged"] is True
    assert (
        "the loss became nan at step 3 of 9" in here.status["reason"].lower() or "Loss became" in here.status["reason"]
    )


def test_a_parcel_carries_what_specs_name(train: Train, store: Store, tmp_path: Path) -> None:
    teacher = train()
    splits = load(teacher.spec.data, store.data_cache)
    file = tmp_path / "mine.json"
    Decisions("digits", {int(splits.train.ids[3]): Decision("drop")}).write(file)
    spec = resolve(store, tiny(teacher=teacher.id, data={"source": "digits", "decisions": str(file)}))
    (needed,) = _payload.needs([spec])
    given = _payload.payload([spec], "home", "cpu")
    assert spec.data.decisions is not None
    Path(spec.data.decisions).unlink()
    other = Store(tmp_path / "there")
    _payload.install(_payload.dependency(store.finished(needed)), other)
    (same,) = _payload.unpacked(given, other)
    assert digest(same) == digest(spec)
    assert other.finished(needed).spec == teacher.spec
    assert len(load(same.data, other.data_cache).train) == len(splits.train) - 1


def test_another_torch_is_refused_in_words(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    given = _payload.payload([train().spec], "home", "cpu")
    import torch

    monkeypatch.setattr(torch, "__version__", "1.0")
    (reply,) = _node.train(given, [])
    assert "another version of torch" in str(_payload.error_of(reply))
    assert reply.unfit


def test_other_code_and_other_images_are_refused_in_words(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = train().spec
    given = _payload.payload([spec], "home", "cpu")
    (reply,) = _node.train(replace(given, code="0" * 16), [])
    assert "another version of SmallAlign" in str(_payload.error_of(reply))
    assert reply.unfit
    gone = spec.model_copy(update={"data": spec.data.model_copy(update={"source": str(tmp_path / "gone")})})
    (reply,) = _node.train(_payload.payload([gone], "home", "cpu"), [])
    assert "path does not exist" in str(_payload.error_of(reply))
    assert reply.unfit


def test_a_teacher_that_was_trained_anew_is_sent_anew(train: Train, tmp_path: Path) -> None:
    first = _payload.dependency(train())
    there = Store(tmp_path / "there")
    _payload.install(first, there)
    other = {"weights.safetensors": b"other", "result.json": b"{}"}
    _payload.install(replace(first, files={**first.files, **other}), there)
    assert (there.root / "runs" / first.id / "weights.safetensors").read_bytes() == b"other"


class Idle:
    """A cluster that answers when it is told to, instead of ray."""

    def __init__(self) -> None:
        self.done: dict[str, list[_payload.RunOutcome]] = {}
        self.cancelled: list[str] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, *given: Any, **_: Any) -> Any:
        return (lambda _: self) if not given else "group"

    def wait(self, refs: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.done], []

    def get(self, ref: str) -> list[_payload.RunOutcome]:
        return self.done[ref]

    def cancel(self, ref: str, **_: Any) -> None:
        self.cancelled.append(ref)

    def shutdown(self) -> None:
        pass


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Idle:
    ray = Idle()
    monkeypatch.setattr(ray_executor, "_connected", lambda _: ray)
    return ray


def test_a_machine_that_cannot_take_part_stops_the_study_and_fails_no_run(idle: Idle, store: Store) -> None:
    run = store.create(resolve(store, tiny()))
    with ray_executor.Cluster("x:1", store) as crew:
        crew.begin([run])
        assert run.state is State.RUNNING
        idle.done["group"] = [_payload.refusal("there", BadInput("it has no images"), unfit=True)]
        with pytest.raises(Refused, match="is not usable"):
            crew.ended()
    assert run.state is State.PAUSED


def test_who_pauses_a_run_that_is_away_gets_it_back(idle: Idle, store: Store) -> None:
    runs = [store.create(resolve(store, tiny(network={"kind": "mlp", "width": width}))) for width in (4, 5)]
    with ray_executor.Cluster("x:1", store) as crew:
        crew.begin(runs)
        runs[0].request("pause")
        assert (crew.ended(), idle.cancelled) == ([], []), "the other one needs the group"
        runs[1].request("cancel")
        ((back, how),) = crew.ended()
    assert idle.cancelled == ["group"]
    assert back == runs
    assert [one["state"] for one in how if isinstance(one, dict)] == ["paused", "cancelled"]
    assert [run.state for run in runs] == [State.PAUSED, State.CANCELLED]


def test_a_run_that_cannot_be_sent_fails_alone(idle: Idle, train: Train, store: Store, tmp_path: Path) -> None:
    teacher = train()
    images = load(teacher.spec.data, store.data_cache).train.ids
    file = tmp_path / "mine.json"
    Decisions("digits", {int(images[3]): Decision("drop")}).write(file)
    run = store.create(resolve(store, tiny(data={"source": "digits", "decisions": str(file)})))
    assert run.spec.data.decisions is not None
    Path(run.spec.data.decisions).unlink()
    with ray_executor.Cluster("x:1", store) as crew:
        crew.begin([run])
        ((_, (told,)),) = crew.ended()
    assert "a file that a run needs" in str(told).lower()
    assert run.state is State.FAILED


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nowhere", "Not an address of a Ray cluster"),
        ("127.0.0.1:9", "not reachable"),
        ("ray://127.0.0.1:9", "not reachable"),
    ],
)
def test_a_wrong_address_is_a_sentence_at_once(address: str, why: str, store: Store) -> None:
    with pytest.raises(BadInput, match=why):
        ray_executor.Cluster(address, store)


@pytest.mark.slow
def test_another_server_at_the_address_is_no_cluster(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes, and fill the terminal."""
    monkeypatch.setattr(ray_executor, "HEALTHY_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(BadInput, match="is not a Ray head"):
        ray_executor.Cluster(f"127.0.0.1:{other.getsockname()[1]}", store)


def test_a_cluster_that_wants_a_token_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told = subprocess.CompletedProcess([], 1, "", "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token of this machine's
    with (
        socket.create_server(("127.0.0.1", 0)) as head,
        pytest.raises(BadInput, match=r"rejected the authentication token.*auth_token"),
    ):
        ray_executor.Cluster(f"127.0.0.1:{head.getsockname()[1]}", store)


def test_the_token_of_this_machine_is_used_unless_somebody_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")  # so that what the call below sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not ray_executor._take_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert ray_executor._take_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not ray_executor._take_token(), "said already"


@pytest.mark.slow
def test_nothing_imports_ray_unless_it_is_asked_for() -> None:
    code = "import sys, smallalign_core.cli._main, smallalign_core.studies.ray_executor; print('ray' in sys.modules)"
    done = processes.run(processes.python("-c", code), check=True)
    assert done.stdout.strip() == "False"


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that trains nothing, and two machines that train one group each."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else anything else that runs here starves its workers
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made, [made.add_node(num_cpus=1) for _ in range(2)]
    finally:
        made.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_may_die_and_every_run_is_finished_once(
    nodes: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made, (_, doomed) = nodes
    specs = [resolve(store, tiny(seed=seed, epochs=10)) for seed in range(6)]
    finished: Counter[str] = Counter()
    finish = RunWriter.finish

    def counted(recording: RunWriter, *what: Any) -> None:
        finished[recording.run.id] += 1
        finish(recording, *what)

    monkeypatch.setattr(RunWriter, "finish", counted)
    with ray_executor.Cluster(made.address, store, device="cpu") as crew:
        waiting, over = list(specs), 0
        while over < len(specs):
            while waiting and crew.free:
                crew.begin([store.create(waiting.pop())])
            for runs, how in crew.ended():
                assert not [one for one in how if isinstance(one, SmallAlignError)], how
                over += len(runs)
                if over == 1:  # in the middle of others
                    made.remove_node(doomed, allow_graceful=False)
    assert set(finished.values()) == {1}
    assert len(finished) == len(specs)
    alone = Store(tmp_path / "alone")
    for spec in specs:
        twin = alone.create(spec)
        worker.execute(twin, alone, device="cpu")
        run = store.find(spec)
        assert run is not None
        assert run.state is State.FINISHED
        assert (twin.result or {})["weights_sha256"] == (run.result or {})["weights_sha256"]
        assert (twin.result or {})["test"] == (run.result or {})["test"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_by_command_on_a_cluster(nodes: Any, store: Store, tmp_path: Path) -> None:
    made, _ = nodes
    study = {"data": "digits", "network": {"kind": "mlp", "width": 8}, "epochs": 1, "optimizers": ["sgd"]}
    file = tmp_path / "study.json"
    file.write_text(json.dumps({**study, "hands_off": [], "trials": 1, "seeds": 2, "budgets": [1]}))
    done = program("optimizers", file, "--ray", made.address, "--json", store=store, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (found,) = lifecycle.listing(store)
    assert found.report(store).complete
    assert {run.status["host"] for run in store.runs() if run.finished} == {socket.gethostname()}
    assert all("test accuracy" in (run.folder / "log.txt").read_text() for run in store.runs())
