"""The benchmarks that claim something run, print what they promise, and can find what they look for."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import chromium
import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, Train, tiny

from pages.ui.browser._npm import PACKAGES
from smallalign_core import networks
from smallalign_core.augment import Views
from smallalign_core.data import Splits
from smallalign_core.metrics import logits_of
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import worker
from smallalign_core.system import files
from smallalign_core.training import runner
from smallalign_core.training.loop import Training
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import Teacher


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module(name)


def printed(*command: str) -> tuple[int, str]:
    done = processes.run(processes.python(*command), timeout=540)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout


# --- benchmarks/paper.py ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_digits_table_says_what_the_protocol_shows() -> None:
    """2 seeds and two thirds of the epochs: enough for what is far larger than its spread. With a third, labels win."""
    code, text = printed("benchmarks/paper.py", "digits", "--seeds", "2", "--epochs", "100")
    assert code == 0
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    named = {row[0].strip("| "): row for row in rows}
    found = json.loads(text.splitlines()[-1])
    for name, measured in found["rows"].items():
        errors = np.array(measured["errors"])
        assert len(errors) == 2
        assert f"{errors.mean():.1f} ± {errors.std(ddof=1):.1f}" == named[name][1].strip()
    mean = {name: np.mean(measured["errors"]) for name, measured in found["rows"].items()}
    assert mean["Teacher"] < 60
    assert mean["KD T=4"] < mean["CE"]
    assert mean["KD, augmented, same view, 4x epochs"] < mean["KD, augmented, stale cache, 4x epochs"]
    assert mean["KD, augmented, same view, 4x epochs"] < mean["KD, augmented, same view"] < mean["CE"]


def test_the_stale_teacher_answers_for_clean_images(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = benchmark("paper", monkeypatch)
    classifier = networks.build(tiny().network, digits.classes, digits.shape, mean=[0.3], std=[0.4])
    teacher = Teacher(classifier, digits.classes)
    views = Views(digits.train, tiny(augment=["rotate"]).augment, batch=32, seed=0)
    batch, said = paper.Stale(teacher, digits.train).batch_with_targets(views, 5)
    clean = torch.from_numpy(digits.train.images[batch.rows.numpy()])
    torch.testing.assert_close(said.logits, teacher.logits(clean), atol=2e-3, rtol=2e-3)
    assert (said.logits - teacher.batch_with_targets(views, 5)[1].logits).abs().max() > 1e-2


def test_weights_of_the_table_are_those_of_the_loop(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = benchmark("paper", monkeypatch)
    (classifier,) = paper.trained([tiny()], digits)
    training = Training([tiny()], digits)
    list(training)
    assert np.array_equal(
        logits_of(classifier, digits.test), logits_of(training.students[0].classifier.eval(), digits.test)
    )


def test_the_bias_of_a_missing_class_is_the_one_with_fewest_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = benchmark("paper", monkeypatch)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 400)
    logits = (4 * np.eye(4)[labels] + draw.normal(size=(400, 4))).astype(np.float32)
    logits[:, 2] -= 9
    bias = paper.chosen_bias(logits, labels, (2,))
    wrong = {move: (paper.biased(logits, (2,), move).argmax(1) != labels).sum() for move in np.arange(-20, 20.25, 0.25)}
    assert wrong[bias] == min(wrong.values()) < wrong[0.0]
    assert 7 < bias < 11
    intact = 4 * np.eye(4, dtype=np.float32)[labels]
    assert paper.chosen_bias(intact, labels, (2,)) == 0


def test_intervals_are_students(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import stats

    paper = benchmark("paper", monkeypatch)
    differences = np.array([-3.0, -1.0, -4.0, 2.0])
    mean, low, high = paper._interval(differences)
    known = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((-1.5, known.low, known.high))


# --- benchmarks/chaos.py ----------------------------------------------------------------------------------------------


@pytest.fixture
def halfway(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was paused with two checkpoints."""
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    run = store.create(resolve(store, tiny(epochs=6)))
    seen: list[object] = []

    def pause(event: dict[str, object]) -> None:
        seen.append(event)
        if len(seen) == 6:
            files.write(run.folder / "request", "pause")

    worker.execute(run, store, device="cpu", observe=pause)
    assert run.state is State.PAUSED
    return run


DAMAGE = ["spec.json", "state.json", "events.jsonl", "checkpoints.json", "checkpoint-*.pt"]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_torn_file_is_found(name: str, halfway: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos = benchmark("chaos", monkeypatch)
    assert chaos.torn(store) == []
    file = next(halfway.folder.glob(name))
    file.write_bytes(file.read_bytes()[:-3])
    assert len(chaos.torn(store)) == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_a_torn_result_is_found(name: str, train: Train, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos = benchmark("chaos", monkeypatch)
    file = train().folder / name
    assert chaos.torn(store) == []
    file.write_bytes(file.read_bytes()[:-3])
    assert chaos.torn(store)


def test_a_torn_answer_of_a_teacher_is_found(train: Train, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos = benchmark("chaos", monkeypatch)
    train(teacher="digits-student", views=2, augment=["shift"])
    (file, *_) = store.root.glob("cache/teacher/*/*.answers")
    assert chaos.torn(store) == []
    file.write_bytes(file.read_bytes()[:-3])
    assert len(chaos.torn(store)) == 1


def test_lost_events_wrong_states_and_other_weights_are_found(
    halfway: Run, store: Store, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import random

    chaos = benchmark("chaos", monkeypatch)
    ordeal = chaos.Ordeal(store, random.Random(0), chaos.Tally(), tmp_path / "log.txt")
    ordeal.look([halfway])
    ordeal.requests[halfway.id] = "pause"
    ordeal.judge([halfway], 0, dict(ordeal.read))
    assert (ordeal.tally.lost, ordeal.tally.wrong) == ([], [])
    lines = (halfway.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (halfway.folder / "events.jsonl").write_bytes(b"".join(lines[:-2]))
    ordeal.requests.clear()
    ordeal.judge([halfway], 0, dict(ordeal.read))
    assert len(ordeal.tally.lost) == 2
    assert "paused" in ordeal.tally.wrong[0]
    assert "ended with 70" in chaos.wrong_state(halfway, 70, None, True)
    one, other = train(), train(seed=1)
    assert chaos.differences(one, one) == []
    assert any("weights_sha256" in line for line in chaos.differences(one, other))


@pytest.mark.slow
def test_all_kinds_are_killed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallalign_core.spec import Loss, Optimizer, choices

    chaos = benchmark("chaos", monkeypatch)
    groups = list(chaos.rounds(store, 0))
    specs = [spec for group in groups for spec in group]
    # A user's own loss has no state of ours: tests/test_python_files.py kills its runs.
    assert {spec.loss.kind for spec in specs} == set(choices(Loss)) - {"python"}
    assert {spec.optimizer.kind for spec in specs} == set(choices(Optimizer))
    assert {bool(spec.teacher) for spec in specs} == {True, False}
    assert {len(group) for group in groups} >= {1, 3}


def test_a_worker_removes_what_a_kill_after_the_result_left(train: Train, store: Store) -> None:
    run = train()
    kept = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    for name in ("checkpoint-9-0.pt", "checkpoints.json", ".checkpoint-9-0.pt.x.part", ".young.part"):
        (run.folder / name).write_bytes(b"1")
    os.utime(run.folder / ".checkpoint-9-0.pt.x.part", (0, 0))
    worker.serve(store, once=True, device="cpu")
    (run.folder / ".young.part").unlink()
    assert {file.name: file.read_bytes() for file in run.folder.iterdir()} == kept


@pytest.mark.slow
def test_chaos_loses_nothing() -> None:
    code, text = printed("benchmarks/chaos.py", "--kills", "4", "--seed", "3")
    found = json.loads(text.splitlines()[-1])
    assert code == 0, text
    assert found.pop("kills") >= 4
    assert found == {"lost events": 0, "torn files": 0, "differing digests": 0, "wrong states": 0}


# --- benchmarks/distil.py ---------------------------------------------------------------------------------------------

FASHION = Path("/usr/share/datasets/fashion-mnist")
WAYS = ("tutorial", "kept memory", "torchdistill", "ours", "ours, int8", "ours, cache")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_duel_prints_every_ratio() -> None:
    code, text = printed("benchmarks/distil.py", "--quick")
    assert code == 0, text
    (found,) = json.loads(text.splitlines()[-1]).values()
    cost = found["us an image"]
    assert tuple(cost) == WAYS
    assert all(0 < share < 1 for share in found["share of peak"].values())
    assert len(found["peak GFLOP/s"]) == 4
    for mine in WAYS[3:]:
        assert tuple(found["times"][mine]) == WAYS[:3]
        (line,) = [line for line in text.splitlines() if line.split("  ")[1:2] == [mine]]
        for other, times in found["times"][mine].items():
            assert times["minima"] == pytest.approx(cost[other] / cost[mine])
            assert len(times["rounds"]) == 2
            assert f"{times['minima']:.1f}x {other}" in line


def test_all_ways_do_the_same_work(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same views in distribution, and from the same weights on the same images the same step."""
    ways = benchmark("ways", monkeypatch)
    pair = ways.QUICK["MLP-64 > MLP-16"]
    usual = ways.Usual(digits.train)
    theirs = torch.stack([usual[row][0] for row in range(1024)])
    training = Training(
        [ways.our_spec(pair, data="digits")], digits, Teacher(ways.teacher_of(pair, digits), digits.classes)
    )
    prepare = training.students[0].classifier.prepare
    ours = torch.cat([prepare(training.views(step).images) for step in range(8)])
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.15, rtol=0)

    batch = training.views(0)
    images, labels = prepare(batch.images), batch.labels
    monkeypatch.setattr(ways.Usual, "__getitem__", lambda _, row: (images[row % 128], int(labels[row % 128])))
    monkeypatch.setattr(ways.Usual, "__len__", lambda _: 128)
    stepped = {}
    for way in (ways.tutorial, ways.torchdistill):
        kept: list[torch.nn.Module] = []
        monkeypatch.setattr(ways, "usual_bodies", lambda *_, kept=kept: _remembered(ways, pair, digits, kept))
        assert next(way(pair, digits, Path())) == 128
        stepped[way.__name__] = [weight.detach() for weight in kept[0].parameters()]
    training.advance()
    stepped["ours"] = [weight.detach() for weight in training.students[0].classifier.body.parameters()]
    fresh = list(ways.classifier(pair.student, digits).parameters())
    for name, weights in stepped.items():
        for weight, same, before in zip(weights, stepped["tutorial"], fresh, strict=True):
            assert not torch.equal(weight, before), name
            torch.testing.assert_close(weight - before, same - before, atol=2e-5, rtol=2e-2, msg=name)


def _remembered(
    ways: ModuleType, pair: object, splits: Splits, kept: list[torch.nn.Module]
) -> tuple[torch.nn.Module, torch.nn.Module]:
    teacher, student = ways.teacher_of(pair, splits).body, ways.classifier(pair.student, splits).body.train()  # type: ignore[attr-defined]
    kept.append(student)
    return teacher, student


# --- benchmarks/browser.py --------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_browser_benchmark_prints_times_and_ratios() -> None:
    if chromium.executable() is None or not PACKAGES.installed():
        pytest.skip("no Chromium, or the browser parts are not installed")
    options = ["--rounds", "1", "--threads", "1", "--only", "digits-student"]
    code, text = printed("benchmarks/browser.py", *options)
    assert code == 0, text
    _, row, slowest, ratio = text.splitlines()
    seconds, web, here, times = (float(row.split()[at]) for at in (3, 5, 7, 9))
    assert times == pytest.approx(web / here, abs=0.05 + 0.05 * times)
    assert f"{seconds:.2f} s (promised: 5 s)" in slowest
    assert f"{times:.1f} to {times:.1f} (goal: at most 3)" in ratio


# --- benchmarks/lockstep.py -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_lockstep_is_compared_on_the_same_work() -> None:
    code, text = printed("benchmarks/lockstep.py", "--rounds", "1", "--steps", "4", "--images", "256")
    assert code == 0, text
    found = json.loads(text.splitlines()[-1])
    assert found["optimizers"] == 6
    assert text.count("weights equal") == len(found["together_over_separate"]) == 8


def test_lockstep_notices_other_weights(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    lockstep, calls = benchmark("lockstep", monkeypatch), iter(range(4))

    def drifting(group: list[Any], *_: object) -> tuple[float, list[list[torch.Tensor]]]:
        return 1.0, [[torch.full((1,), float(next(calls) == 2))] for _ in group]

    monkeypatch.setattr(lockstep, "trained", drifting)
    with pytest.raises(AssertionError, match="not the same weights"):
        lockstep.ratio([tiny(), tiny()], digits, lambda: None, 1, 1)


# --- benchmarks/gpu.py ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gpu_benchmark_reports_each_section(tmp_path: Path) -> None:
    """A rehearsal on the CPU: a figure of each section, or why there is none; a table and the same rows as JSON."""
    options = ("--device", "cpu", "--only", "machine", "augment", "--seconds", "120", "--to", tmp_path / "rows.json")
    code, text = printed("-m", "benchmarks.gpu", *map(str, options))
    assert code == 0, text
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert text.splitlines()[-1].startswith(f"{len(rows)} measured or passed, 0 skipped")
    found = {(row["section"], row["name"]): row for row in rows}
    assert found["machine", "device"]["value"] == "cpu"
    assert found["augment", "ours, each image its own"]["value"] > 0
    assert {row["section"] for row in rows} == {"machine", "augment"}
    assert "| augment | ours, each image its own |" in text
