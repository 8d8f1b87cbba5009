"""One changed byte in each kind of file: noticed, and never another value. Files of older and of newer versions."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Train, command, tiny

from smallalign_core import data, export, metrics
from smallalign_core.analysis import compare
from smallalign_core.data import DataSpec
from smallalign_core.errors import BadModel, Refused, SmallAlignError
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter, checkpoints
from smallalign_core.service import doctor, worker
from smallalign_core.spec import digest
from smallalign_core.system import files
from smallalign_core.system.typed import flat
from smallalign_core.training import precision_tuning, runner
from smallalign_core.training.resolve import resolve

MASKS = (0x01, 0x10, 0x80)
OLD = ROOT / "tests" / "fixtures" / "schema-1"


def flip(file: Path, place: int | None = None, mask: int = 0x01) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= mask
    file.write_bytes(content)


@pytest.fixture
def paused(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was paused with two checkpoints."""
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    run = store.create(resolve(store, tiny()))

    def pause(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 2:
            files.write(run.folder / "request", "pause")

    worker.execute(run, store, device="cpu", observe=pause)
    assert run.state is State.PAUSED
    assert len(checkpoints(run)) == 2
    return run


# --- text that the store writes ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spec.json", "state.json", "checkpoints.json"])
def test_no_byte_of_a_json_file_changes_its_value_unnoticed(name: str, paused: Run, tmp_path: Path) -> None:
    content, file = (paused.folder / name).read_bytes(), tmp_path / name
    known, noticed = files.read_json(paused.folder / name), 0
    for place in range(len(content)):
        for mask in MASKS:
            changed = bytearray(content)
            changed[place] ^= mask
            file.write_bytes(changed)
            try:
                assert files.read_json(file) == flat(known), f"byte {place}: {bytes(changed[place - 9 : place + 9])!r}"
            except (BadModel, Refused):
                noticed += 1
    assert noticed > 2.5 * len(content), "only white space may change without harm"


def test_no_byte_of_a_line_changes_an_event_unnoticed(paused: Run, tmp_path: Path) -> None:
    content, file = (paused.folder / "events.jsonl").read_bytes(), tmp_path / "events.jsonl"
    known = files.read_lines(paused.folder / "events.jsonl")[0]
    assert len(known) > 3
    for place in range(len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= MASKS[place % 3]
        file.write_bytes(changed)
        found, damaged = files.read_lines(file)
        assert damaged >= 1, f"byte {place}"
        assert len(found) >= len(known) - 2
        assert all(event in known for event in found)


def test_a_damaged_event_is_told_of_when_the_run_goes_on(paused: Run, store: Store) -> None:
    flip(paused.folder / "events.jsonl", 30)
    worker.execute(paused, store, device="cpu")
    assert any("1 damaged line of events.jsonl was skipped" in event["message"] for event in paused.events("warning"))


def test_a_damaged_look_at_test_is_counted_rather_than_forgotten(store: Store) -> None:
    for run in "abc":
        store.count_test_look("0123456789abcdef", run, "evaluate")
    flip(store.root / "test-looks.jsonl", 40)
    assert store.test_looks("0123456789abcdef") == 3


def test_a_damaged_spec_or_result_is_one_sentence_and_hides_nothing_else(train: Train, store: Store) -> None:
    other, damaged = train(seed=1), [train(), train(seed=2)]
    flip(damaged[0].folder / "spec.json")
    flip(damaged[1].folder / "result.json")
    listed = json.loads(command("runs", "list", "--json", store=store).stdout)["runs"]
    states = {row["name"]: row["state"] for row in listed}
    assert [states[run.name] for run in (other, *damaged)] == ["finished", "damaged", "damaged"]
    for run in damaged:
        with pytest.raises(BadModel, match=r"damaged.*Delete the run"):
            _ = Run(run.folder).spec, Run(run.folder).result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.json", "checkpoints.json", "checkpoint-*.pt"])
def test_a_run_goes_on_without_what_is_damaged_to_the_same_weights(
    name: str, paused: Run, store: Store, tmp_path: Path
) -> None:
    other = Store(tmp_path / "undisturbed")
    expected = worker.execute(other.create(paused.spec), other, device="cpu")["weights_sha256"]
    kept = checkpoints(paused)
    flip(paused.folder / (kept[-1]["file"] if "*" in name else name))
    before = paused.folder / "events.jsonl"
    result = worker.execute(paused, store, device="cpu")
    assert result["weights_sha256"] == expected
    (resumed,) = [event for event in files.read_lines(before)[0] if event["kind"] == "resumed"]
    assert resumed["step"] == kept[0 if "*" in name else -1]["step"]


# --- weights, caches, bundles -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_weights_answer_nobody(train: Train, store: Store, tmp_path: Path) -> None:
    teacher, student = train(), train(seed=1)
    pupil = store.create(resolve(store, tiny(teacher=teacher.id)))
    content = teacher.weights.read_bytes()
    for place in (-1, len(content) // 2, 2, 30):
        changed = bytearray(content)
        changed[place] ^= 0x01
        teacher.weights.write_bytes(changed)
        for ask in (
            lambda: imported.classifier(teacher),
            lambda: compare.compare(teacher, student, store),
            lambda: export.export(teacher, tmp_path / "x.onnx"),
            lambda: worker.execute(pupil, store, device="cpu"),
        ):
            with pytest.raises(BadModel, match=r"damaged|do not match"):
                ask()
    assert not (tmp_path / "x.onnx").exists()
    assert "its weights are damaged" in str(doctor.examine(store))


def test_a_damaged_comparison_is_made_again(train: Train, store: Store) -> None:
    one, other = train(), train(seed=1)
    (known,) = compare.compare_once(one, [other], store)
    fingerprint = one.spec.data.fingerprint or ""
    file, looks = compare.kept(one, other, fingerprint, store, "test"), store.test_looks(fingerprint)
    assert compare.compare_once(one, [other], store) == [known]
    assert store.test_looks(one.spec.data.fingerprint or "") == looks, "it was read, not made"
    place = file.read_bytes().index(b'"both_right": ') + 14
    flip(file, place)
    assert compare.compare_once(one, [other], store) == [known]
    assert files.read_json(file) == flat(known)


@pytest.mark.parametrize("file", ["train.images.npy", "train.labels.npy", "train.source_ids.npy", "facts.json"])
@pytest.mark.parametrize("ram", [data.RAM_BUDGET, 0], ids=["in memory", "mapped"])
def test_damaged_images_are_decoded_again(file: str, ram: int, tmp_path: Path) -> None:
    spec = DataSpec(source="digits")
    known = data.load(spec, tmp_path, ram_budget=ram)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    flip(folder / file)
    for fingerprint in (None, known.fingerprint):  # before a run knows its data, and after
        found = data.load(
            spec.model_copy(update={"fingerprint": fingerprint}),
            tmp_path,
            ram_budget=ram,
        )
        assert found.fingerprint == known.fingerprint
        assert np.array_equal(found.train.images[:], known.train.images[:])
        flip(folder / file)
    data.load(spec, tmp_path)


def test_a_damaged_memory_of_precision_is_measured_again(store: Store, digits: data.Splits) -> None:
    spec = tiny()
    assert precision_tuning.precision(spec, store, digits, _cpu()) == "fp32"
    file = store.root / "cache" / "precision.json"
    known = files.read_json(file)
    flip(file)
    assert precision_tuning.precision(spec, store, digits, _cpu()) == "fp32"
    assert files.read_json(file) == flat(known)


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "images.bin", "logits.bin", "parity.json"])
def test_a_damaged_bundle_is_not_handed_out(name: str, bundled: tuple[Store, Run, Path]) -> None:
    store, run, folder = bundled
    assert export.kept_bundle(run, store) is not None
    flip(folder / name)
    assert export.kept_bundle(run, store) is None
    (found,) = [check for check in doctor.examine(store) if "parity.json" in check.name]
    assert found.mend == (folder,)
    flip(folder / name)
    assert export.kept_bundle(run, store) is not None


@pytest.fixture(scope="module")
def bundled(taught: tuple[Store, Run, Run]) -> tuple[Store, Run, Path]:
    store, _, student = taught
    export.bundle(student, store, count=20)
    return store, student, export.bundle_folder(student, store)


# --- other versions ---------------------------------------------------------------------------------------------------


def renewed(file: Path, change: Callable[[str], str] = lambda text: text) -> None:
    """Write a file as a later version would: another schema number, and a seal that is right."""
    value = {**files.read_json(file), "a_field_of_the_future": [1]}
    text = json.dumps({"schema": files.SCHEMA + 1, **value}, indent=1)
    file.write_text(f'{text[:-2]},\n "seal": "{files._seal(text)}"\n}}')


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spec.json", "state.json", "checkpoints.json", "result.json"])
def test_a_run_of_a_newer_version_is_refused_in_words_and_left_alone(
    name: str, paused: Run, store: Store, train: Train
) -> None:
    run = paused if name != "result.json" else train(seed=5)
    renewed(run.folder / name)
    waiting = store.submit(resolve(store, tiny(seed=6)))
    kept = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    run = Run(run.folder)
    if name == "result.json":
        with pytest.raises(Refused, match=r"newer SmallAlign \(schema 3, this one reads up to 2\).*Update SmallAlign"):
            _ = run.result
    else:
        with pytest.raises(Refused, match=r"newer SmallAlign"):
            worker.execute(run, store, device="cpu")
        (run.folder / "queued").write_text("1.0")
        worker.serve(store, device="cpu", once=True)
        (run.folder / "queued").unlink()
        assert waiting.state is State.FINISHED, "others do not wait for it"
    found = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    assert "newer SmallAlign" in found.pop("log.txt", b"newer SmallAlign").decode()
    assert found == kept
    assert any("newer SmallAlign" in check.found for check in doctor.examine(store) if not check.ok)


def test_events_of_a_newer_version_are_refused(paused: Run, store: Store) -> None:
    files.append(paused.folder / "events.jsonl", {"kind": "resumed", "step": 0, "schema": files.SCHEMA + 1})
    kept = {file.name: file.read_bytes() for file in paused.folder.iterdir()}
    with pytest.raises(Refused, match="newer SmallAlign"):
        worker.execute(paused, store, device="cpu")
    assert {file.name: file.read_bytes() for file in paused.folder.iterdir()} == kept


def test_a_finished_run_of_version_1_answers_as_it_did(store: Store) -> None:
    folder = store.root / "runs" / "da85c6e11f5f7490"
    shutil.copytree(OLD, folder)
    (folder / "weights.safetensors").write_bytes(base64.b64decode((OLD / "weights.base64").read_text()))
    (folder / "test-looks.jsonl").replace(store.root / "test-looks.jsonl")
    run = store.run("da85")
    assert (run.state, run.title) == (State.FINISHED, "cnn 3x1 · kd T=4 · digits · 2 epochs · seed 0")
    assert digest(run.spec) == run.id
    assert [event["kind"] for event in run.events()][:: len(run.events()) - 1] == ["started", "finished"]
    assert store.test_looks(run.spec.data.fingerprint or "") == 1
    splits = data.load(run.spec.data, store.data_cache)
    found = metrics.score(metrics.logits_of(imported.classifier(run), splits.test), splits.test.labels, splits.classes)
    assert found.accuracy == (run.result or {})["test"]["accuracy"]
    assert store.submit(run.spec).state is State.FINISHED, "an equal spec is still the same run"
    assert [check for check in doctor.examine(store) if not check.ok] == []


def test_a_stopped_run_of_version_1_goes_on(paused: Run, store: Store, tmp_path: Path) -> None:
    """It had no checksums, and its list of checkpoints was the list alone."""
    other = Store(tmp_path / "undisturbed")
    expected = worker.execute(other.create(paused.spec), other, device="cpu")["weights_sha256"]
    for name in ("spec.json", "state.json"):
        value = {"schema": 1, **files.read_json(paused.folder / name)}
        (paused.folder / name).write_text(json.dumps(value, indent=1))
    (paused.folder / "checkpoints.json").write_text(json.dumps(checkpoints(paused), indent=1))
    lines = files.read_lines(paused.folder / "events.jsonl")[0]
    (paused.folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert worker.execute(paused, store, device="cpu")["weights_sha256"] == expected
    assert paused.events("resumed")[0]["step"] > 0


def test_what_is_written_can_be_told_from_what_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, -0.0, 1e-300, 10**20, None, True, 'ü\ud800\n"\\'], "b": {"3": {}}, "c": [], "seal_": 1}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    with RunWriter(_made(tmp_path)) as recording:
        recording.event("progress", 3, **{"text": "\u2028\x00ü", "value": float("nan")})
    assert files.read_lines(tmp_path / "run" / "events.jsonl")[1] == 0


def _made(tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


# --- the doctor -------------------------------------------------------------------------------------------------------


def told(store: Store) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(store)}


@pytest.mark.slow
def test_the_doctor_finds_what_nobody_owns_and_mends_it(train: Train, store: Store, tmp_path: Path) -> None:
    import os

    run, gone = train(), train(seed=1)
    compare.compare_once(gone, [run], store)
    kept = compare.kept(gone, run, run.spec.data.fingerprint or "", store, "test").read_bytes()
    (store.root / "exports" / gone.id).mkdir(parents=True)
    bundle = store.root / "exports" / gone.id / "model.onnx"
    store.delete(gone.id)
    old = [
        store.root / "runs" / f".adopting-{run.id}-{2**22 + 1}" / "spec.json",
        store.root / "runs" / f".deleted-{run.id}-{2**22 + 1}" / "result.json",
        store.root / "runs" / "00112233aabbccdd" / "lock",
        run.folder / ".result.json.x.part",
        store.root / "cache" / "data" / "0011.part" / "x.npy",
        store.root / "cache" / "compare" / f"{gone.id}.01234567-{run.id}.01234567-test.json",
        bundle,
    ]
    young, mine = run.folder / ".young.part", store.root / "runs" / f".importing-x-{os.getpid()}"
    for file in (*old, young, mine / "model.onnx"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kept)
    for file in (*old, mine / "model.onnx"):
        for path in (file, file.parent):
            os.utime(path, (0, 0))
    os.utime(run.folder)
    before = {file: file.read_bytes() for file in run.folder.iterdir() if file != old[3]}
    assert told(store)["stale files"].found.startswith("7, ")
    found = command("doctor", "--fix", "--json", store=store)
    assert found.returncode == 0, found.stderr
    removed = json.loads(found.stdout)["removed"]
    assert len(removed) == 8
    assert [one for one in removed if gone.id in Path(one).name and ".trash" in one], "the deleted run too"
    assert not any(file.exists() for file in old)
    assert young.exists()
    assert mine.exists(), "its maker lives"
    assert {file: file.read_bytes() for file in run.folder.iterdir()} == before
    assert told(store)["stale files"].found == "none"


@pytest.mark.slow
def test_the_doctor_names_what_is_damaged_and_leaves_runs_alone(train: Train, store: Store) -> None:
    teacher = train()
    train(teacher=teacher.id, views=2, augment=["shift"])
    (answers, *_) = store.root.glob("cache/teacher/*/*.answers")
    assert json.loads(command("doctor", "--json", store=store).stdout)["ok"]
    flip(teacher.folder / "events.jsonl", 40)
    flip(teacher.weights)
    flip(answers)
    done = command("doctor", "--mend", "--json", store=store)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    wrong = {check["name"]: check["found"] for check in said["checks"] if not check["ok"]}
    assert set(wrong) == {"runs", f"run {teacher.name}", "files", f"runs/{teacher.name}/events.jsonl"}
    assert said["removed"] == [str(answers)]
    assert "1 damaged lines" in wrong[f"runs/{teacher.name}/events.jsonl"]
    assert teacher.weights.exists()


def test_the_doctor_says_where_the_jail_is_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reachable from inside: nothing" in told(store)["sandbox"].found
    open_ = {"namespace": False, "seccomp": False, "network": True, "programs": True}
    monkeypatch.setattr(doctor.sandbox, "abilities", lambda: open_)
    assert told(store)["sandbox"].found == "resource limits only; reachable from inside: the network and other programs"


def test_a_store_that_is_not_there_is_whole(tmp_path: Path) -> None:
    with pytest.raises(SmallAlignError):
        Store(tmp_path / "nowhere").run("0123")
    assert [check for check in doctor.examine(Store(tmp_path / "nowhere")) if not check.ok] == []
