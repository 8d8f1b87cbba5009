"""Exports of a run's record for experiment trackers: read back by each tracker's own reader, equal to events.jsonl."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import command

from smallalign_core.errors import BadInput, MissingExtra
from smallalign_core.runs import trackers
from smallalign_core.runs.store import Run, Store
from smallalign_core.system import extras
from smallalign_core.system.files import append

Taught = tuple[Store, Run, Run]
Read = dict[str, list[tuple[int, float]]]


def client(package: str) -> None:
    """Skip by name where a tracker's client is absent."""
    if not extras.installed(package):
        pytest.skip(f"{package} is not installed here: {extras.command(package)}")


def lines(run: Run) -> Read:
    """(step, value) of each metric, straight from the lines of the file."""
    found: Read = defaultdict(list)
    for line in (run.folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "progress":
            found["train/loss"].append((event["step"], event["loss"]))
            found["train/images_per_second"].append((event["step"], event["images_per_second"]))
        if event["kind"] == "epoch":
            for name in ("accuracy", "macro_recall", "nll", "ece", "agreement"):
                found[f"val/{name}"].append((event["step"], event[name]))
    return found


def export(run: Run, store: Store, tracker: str, at: Path) -> dict[str, Any]:
    done = command("runs", "export", run.id, "--to", tracker, "--at", at, "--json", store=store)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["run"], said["tracker"]) == (run.id, tracker)
    again = command("runs", "export", run.id, "--to", tracker, "--at", at, store=store)
    assert again.returncode == 2
    assert "exported there before" in again.stderr or "exists already" in again.stderr
    assert "Traceback" not in again.stderr
    return said


def check(found: Read, run: Run, *, exact: bool = True) -> None:
    for name, wanted in lines(run).items():
        steps, values = zip(*wanted, strict=True)
        assert tuple(step for step, _ in found[name]) == steps, name
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-12 if exact else 1e-6), name


# --- the reader -------------------------------------------------------------------------------------------------------


def test_the_history_leaves_out_what_a_resume_has_undone(taught: Taught, tmp_path: Path) -> None:
    student = taught[2]
    folder = tmp_path / "models" / "runs" / student.id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes((student.folder / "spec.json").read_bytes())
    for kind, step, loss in (("started", 0, 0.0), ("progress", 10, 2.0), ("progress", 20, 1.5), ("resumed", 10, 0.0)):
        append(folder / "events.jsonl", {"kind": kind, "step": step, "time": 5.0, "epoch": 0.5, "loss": loss})
    append(folder / "events.jsonl", {"kind": "progress", "step": 20, "time": 9.0, "epoch": 1.0, "loss": math.pi})
    append(
        folder / "events.jsonl", {"kind": "epoch", "step": 20, "time": 9.0, "epoch": 1, "agreement": None, "best": True}
    )
    found = trackers.history(Run(folder))
    assert [(point.step, point.values) for point in found.points] == [
        (10, {"train/loss": 2.0}),
        (20, {"train/loss": math.pi}),
    ]
    assert found.summary == {}
    assert found.params["optimizer.kind"]


def test_what_has_no_record_is_refused_in_words(store: Store, tmp_path: Path) -> None:
    done = command("runs", "export", "digits-student", "--to", "csv", "--at", tmp_path / "x.csv", store=store)
    assert done.returncode == 2
    assert "no record of its training" in done.stderr
    assert not list(tmp_path.glob("*.csv"))


def test_trackio_is_refused_with_another_way(taught: Taught) -> None:
    store, _, student = taught
    with pytest.raises(MissingExtra, match=r"Pillow below 13 .*--to csv.*trackio\.import_csv"):
        trackers.export(student, "trackio")
    done = command("runs", "export", student.id, "--to", "trackio", store=store)
    assert done.returncode == 2


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
def test_a_client_that_is_not_installed_is_one_sentence(
    tracker: Any, taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "installed", lambda package: package != tracker)
    with pytest.raises(MissingExtra, match=rf'pip install "smallalign\[{tracker}\]"'):
        trackers.export(taught[2], tracker, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


# --- each tracker's own reader ----------------------------------------------------------------------------------------


def test_csv(taught: Taught, tmp_path: Path) -> None:
    store, _, run = taught
    said = export(run, store, "csv", tmp_path / "run.csv")
    rows = list(csv.DictReader((tmp_path / "run.csv").open()))
    assert len(rows) == said["points"]
    found: Read = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if "/" in name and value:
                found[name].append((int(row["step"]), float(value)))
    check(found, run)
    assert sum(map(len, found.values())) == said["numbers"]
    times = [datetime.fromisoformat(row["timestamp"]).timestamp() for row in rows]
    assert times == sorted(times)
    recorded = [event["time"] for event in run.events() if event["kind"] in ("progress", "epoch")]
    assert times == pytest.approx(recorded, abs=1e-5, rel=0)


def test_a_csv_file_of_somebody_else_is_not_overwritten(taught: Taught, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        trackers.export(taught[2], "csv", str(tmp_path / "x.csv"))
    with pytest.raises(BadInput, match="folder of the file does not exist"):
        trackers.export(taught[2], "csv", str(tmp_path / "no" / "x.csv"))
    assert (tmp_path / "x.csv").read_text() == "mine"


def test_tensorboard(taught: Taught, tmp_path: Path) -> None:
    client("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store, _, run = taught
    said = export(run, store, "tensorboard", tmp_path / "board")
    board = EventAccumulator(said["to"], size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    found = {name: [(one.step, one.value) for one in board.Scalars(name)] for name in board.Tags()["scalars"]}
    check(found, run, exact=False)
    assert run.result is not None
    assert found["test/accuracy"][0][1] == pytest.approx(run.result["test"]["accuracy"], rel=1e-6)
    first = board.Scalars("train/loss")[0]
    assert first.wall_time == pytest.approx(run.events("progress")[0]["time"], abs=1e-3)

    folder = Path(said["to"])
    with pytest.raises(BadInput, match="was exported there before"):
        trackers.export(run, "tensorboard", str(tmp_path / "board"))
    for extent in (None, "1 points, running"):  # cut off, and of a run in training
        (folder / trackers.MARK).unlink()
        if extent:
            (folder / trackers.MARK).write_text(extent)
        trackers.export(run, "tensorboard", str(tmp_path / "board"))
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    (folder / trackers.MARK).unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="has other files"):
        trackers.export(run, "tensorboard", str(tmp_path / "board"))
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="TensorBoard refused the run"):
        trackers.export(run, "tensorboard", str(tmp_path / "file"))


def test_passwords_in_addresses_are_not_shown() -> None:
    with (
        pytest.raises(BadInput) as caught,
        trackers._answering("MLflow", "https://me:secret@host/x"),
    ):
        raise RuntimeError("no answer from https://me:secret@host/x")
    assert "secret" not in str(caught.value)
    assert "https://host/x" in str(caught.value)


def test_mlflow(taught: Taught, tmp_path: Path) -> None:
    client("mlflow")
    import mlflow

    store, teacher, run = taught
    said = export(run, store, "mlflow", tmp_path / "m.db")
    export(teacher, store, "mlflow", tmp_path / "m.db")
    reader = mlflow.MlflowClient(tracking_uri=said["to"])
    place = reader.get_experiment_by_name("smallalign").experiment_id
    (one,) = [found for found in reader.search_runs([place]) if found.data.tags["smallalign.run"] == run.id]
    found = {
        name: sorted((point.step, point.value) for point in reader.get_metric_history(one.info.run_id, name))
        for name in lines(run)
    }
    check(found, run)
    assert one.info.status == "FINISHED"
    assert one.data.params["optimizer.kind"] == run.spec.optimizer.kind
    assert run.result is not None
    assert one.data.metrics["test/accuracy"] == pytest.approx(run.result["test"]["accuracy"])
    with pytest.raises(BadInput, match="was exported there before"):
        trackers.export(run, "mlflow", str(tmp_path / "m.db"))
    reader.delete_tag(one.info.run_id, trackers.EXTENT)  # as if it had been cut off
    trackers.export(run, "mlflow", str(tmp_path / "m.db"))
    (again,) = [found for found in reader.search_runs([place]) if found.data.tags["smallalign.run"] == run.id]
    assert again.info.run_id != one.info.run_id
    with pytest.raises(BadInput, match="in an existing folder"):
        trackers.export(run, "mlflow", str(tmp_path / "no" / "m.db"))
    (tmp_path / "text").write_text("not a database, but a text of some length")
    with pytest.raises(BadInput, match="MLflow refused"):
        trackers.export(run, "mlflow", str(tmp_path / "text"))


def records(log: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: a log of LevelDB, blocks of 32 KiB, after seven bytes of its own."""
    block, at, parts = 32768, 7, b""
    assert log.startswith(b":W&B")
    while at + 7 <= len(log):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        parts += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            yield parts
            parts = b""


def test_wandb_writes_an_offline_run(taught: Taught, tmp_path: Path) -> None:
    client("wandb")
    import wandb
    from wandb.proto import wandb_internal_pb2

    store, _, run = taught
    said = export(run, store, "wandb", tmp_path)
    (file,) = Path(said["to"]).glob("*.wandb")
    found: Read = defaultdict(list)
    config = {}
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
        values = {one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.history.item}
        for name, value in values.items():
            if "/" in name:
                found[name].append((values["_step"], value))
    check(found, run)
    assert config["optimizer.kind"] == run.spec.optimizer.kind
    with pytest.raises(BadInput, match="was exported there before"):
        trackers.export(run, "wandb", str(tmp_path))
    (Path(said["to"]) / trackers.MARK).unlink()
    trackers.export(run, "wandb", str(tmp_path))
    assert len(list(tmp_path.glob(f"wandb/*run-*-{run.id}"))) == 1
    with pytest.raises(BadInput, match="folder does not exist"):
        trackers.export(run, "wandb", str(tmp_path / "no"))
    wandb.teardown()  # its service, before the end of the tests ends it
