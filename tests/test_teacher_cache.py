"""The cache of teacher logits: the same weights whatever part of it exists; nothing stale, damaged or too large."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import Train, program, tiny
from test_store import ONE_WORKER, flip_a_byte, forks as forks

from smallalign_core import export, networks
from smallalign_core.augment import Views, of_run
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import doctor, handlers, worker
from smallalign_core.service.requests import Estimate
from smallalign_core.spec import RunSpec
from smallalign_core.training import runner, teacher_loading
from smallalign_core.training.loop import Training, Waiting
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import CacheIndex, CachePlan, Teacher, TeacherCache, _cache, _index, plan

CPU = torch.device("cpu")
CHUNK = 128
POLICIES: dict[str, dict[str, Any]] = {
    "clean": {},
    "stream": {"augment": ["shift", "rotate"]},
    "fixed": {"augment": ["shift", "rotate"], "views": 2},
    "mixup": {"augment": ["shift", {"kind": "mixup", "probability": 1}]},
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks an epoch, the last of them ragged."""
    monkeypatch.setattr(_index, "CHUNK_IMAGES", CHUNK)


@pytest.fixture(scope="module")
def classifier(few: Splits) -> networks.Classifier:
    training = Training([tiny(network={"kind": "resnet", "width": 4}, epochs=4, batch=32)], few)
    list(training)
    return training.students[0].best()


def spec_of(**fields: Any) -> RunSpec:
    student = {"kind": "mlp", "width": 8, "depth": 1}  # whose own steps cost next to nothing
    return tiny(**{"teacher": "t", "epochs": 3, "batch": 32, "precision": "fp32", "network": student, **fields})


def planned(spec: RunSpec, few: Splits) -> CachePlan:
    found = plan(spec, few, ["0" * 64], CPU)
    assert found is not None
    return found


class Lesson:
    """A bank in a folder, with a teacher that can be forbidden and warnings that are kept."""

    def __init__(self, root: Path, classifier: networks.Classifier, few: Splits, limit: int = 10**9) -> None:
        self.root, self.classifier, self.digits, self.limit = root, classifier, few, limit
        self.said: list[str] = []
        self.loads = 0

    def teacher(self) -> Teacher:
        self.loads += 1
        return Teacher(self.classifier, self.digits.classes)

    def bank(self, spec: RunSpec) -> TeacherCache:
        return TeacherCache(
            planned(spec, self.digits), CacheIndex(self.root, self.limit), self.teacher, warn=self.said.append
        )

    def train(self, spec: RunSpec, stop: int | None = None, state: dict[str, Any] | None = None) -> Training:
        with self.bank(spec) as bank:
            training = Training([spec], self.digits, bank)
            if state:
                training.restore(copy.deepcopy(state))
            while training.step < (training.steps if stop is None else stop):
                training.advance()
            bank.on(self.digits.val)
            self.answered = bank.answered
        return training

    @property
    def files(self) -> list[Path]:
        return sorted(file for file in self.root.glob("*/*") if file.suffix in (".answers", ".images", ".logits"))


@pytest.fixture
def lesson(tmp_path: Path, classifier: networks.Classifier, few: Splits) -> Lesson:
    return Lesson(tmp_path / "teacher", classifier, few)


def weights(training: Training) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in training.students[0].classifier.state_dict().values())


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_lesson_is_the_live_answer_in_the_batch_that_first_met_the_image(
    seed: int, lesson: Lesson, classifier: networks.Classifier, few: Splits
) -> None:
    """Against a dictionary, for random batch sizes (also above an epoch), epochs and numbers of views."""
    draw = random.Random(seed)
    images = replace(few, train=few.train.take(np.arange(draw.randint(60, len(few.train)))))
    lesson.digits = images
    spec = spec_of(
        batch=draw.choice([2, 17, 64, 128, 400]),
        epochs=draw.randint(1, 7),
        seed=seed,
        **draw.choice([*POLICIES.values(), {"augment": ["shift", "rotate"], "views": draw.randint(1, 5)}]),
    )
    live, views = Teacher(classifier, images.classes), of_run(spec, images.train)
    cycle = spec.views if spec.augment else 1
    met: dict[tuple[int, int], torch.Tensor] = {}
    steps = -(-spec.epochs * len(images.train) // spec.batch)
    for _ in range(2):  # cold, then warm
        with lesson.bank(spec) as bank:
            for step in range(steps):
                batch, said = bank.batch_with_targets(views, step)
                expected, answers = live.batch_with_targets(views, step)
                assert torch.equal(batch.images, expected.images)
                assert torch.equal(batch.labels, expected.labels)
                assert torch.equal(batch.rows, expected.rows)
                for place, row in enumerate(batch.rows.tolist()):
                    epoch = (step * spec.batch + place) // len(images.train)
                    key = (epoch % cycle if cycle else epoch, row)
                    assert torch.equal(said.logits[place], met.setdefault(key, answers.logits[place]))
    assert lesson.loads == 1
    assert lesson.said == []


@every_policy
def test_cold_warm_half_filled_evicted_and_resumed_end_alike(policy: dict[str, Any], lesson: Lesson) -> None:
    spec = spec_of(**policy)
    live = Training([spec], lesson.digits, lesson.teacher())
    list(live)
    cold = weights(lesson.train(spec))
    assert cold == weights(live)
    assert lesson.answered > 0
    assert weights(lesson.train(spec)) == cold
    assert lesson.answered == 0, "a warm run asks nobody"

    evaluated = 0
    for kind, which in ((".answers", slice(0, None, 2)), (".images", slice(1, None, 2))):  # half of it is gone
        for file in [file for file in lesson.files if file.suffix == kind][which]:
            evaluated += int(kind == ".answers")
            file.unlink()
    assert weights(lesson.train(spec)) == cold
    assert evaluated == 0 or 0 < lesson.answered < 1.1 * evaluated * CHUNK

    shutil.rmtree(lesson.root)
    half = lesson.train(spec, stop=23)
    state = half.state()
    assert weights(lesson.train(spec, state=state)) == cold
    shutil.rmtree(lesson.root)  # evicted between pause and resume: views of earlier epochs are answered again
    assert weights(lesson.train(spec, state=state)) == cold
    assert lesson.said == []


@every_policy
def test_a_longer_run_goes_on_where_a_shorter_one_ended(policy: dict[str, Any], lesson: Lesson) -> None:
    lesson.train(spec_of(**policy, epochs=1))
    first = lesson.answered
    lesson.train(spec_of(**policy, epochs=3))
    both = first + lesson.answered
    shutil.rmtree(lesson.root)
    lesson.train(spec_of(**policy, epochs=3))
    assert both - lesson.answered < 64, "but for what is checked, nothing was asked twice"


@every_policy
def test_the_cache_deleted_in_the_middle_of_training_changes_nothing(policy: dict[str, Any], lesson: Lesson) -> None:
    spec = spec_of(**policy)
    expected = weights(lesson.train(spec))
    for warm in (True, False):
        if not warm:
            shutil.rmtree(lesson.root, ignore_errors=True)
        with lesson.bank(spec) as bank:
            training = Training([spec], lesson.digits, bank)
            while training.step < training.steps:
                if training.step in (3, 17, 30):
                    shutil.rmtree(lesson.root, ignore_errors=True)
                training.advance()
        assert weights(training) == expected
    assert lesson.said == []


@every_policy
def test_lockstep_uses_one_bank(policy: dict[str, Any], lesson: Lesson) -> None:
    specs = [spec_of(**policy), spec_of(**policy, loss="logit_mse", optimizer="sgd"), spec_of(**policy, shuffled=True)]
    with lesson.bank(specs[0]) as bank:
        together = Training(specs, lesson.digits, bank)
        list(together)
    for index, spec in enumerate(specs):
        alone = Training([spec], lesson.digits, lesson.bank(spec))
        list(alone)
        ours = together.students[index].classifier.state_dict().values()
        assert all(map(torch.equal, ours, alone.students[0].classifier.state_dict().values()))
    assert lesson.loads == 1, "other losses and optimizers need no teacher"


def test_pause_does_not_wait_for_a_whole_view(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that finds the bank gone must answer a view again: control comes back after each batch."""
    monkeypatch.setattr("smallalign_core.training.loop.REPORT_SECONDS", 0.0)
    spec = spec_of(**POLICIES["fixed"])
    expected = weights(lesson.train(spec))
    state = lesson.train(spec, stop=25).state()
    shutil.rmtree(lesson.root)
    with lesson.bank(spec) as bank:
        training = Training([spec], lesson.digits, bank)
        training.restore(copy.deepcopy(state))
        first = next(iter(training))
        assert isinstance(first, Waiting)
        assert bank.answered == spec.batch
        state = training.state()
    with lesson.bank(spec) as bank:
        training = Training([spec], lesson.digits, bank)
        training.restore(copy.deepcopy(state))
        shares = [event.share for event in training if isinstance(event, Waiting)]
        assert shares[:10] == sorted(shares[:10])
        assert shares.count(1.0) >= 1
    assert weights(training) == expected


# --- keys -------------------------------------------------------------------------------------------------------------

DECIDING: list[dict[str, Any]] = [
    {"augment": ["shift"]},
    {"augment": ["rotate", "shift"]},
    {"augment": ["shift", {"kind": "rotate", "degrees": 11}]},
    {"views": 3},
    {"seed": 1},
    {"batch": 64},
    {"precision": "bf16"},
    {"data": {"source": "digits", "size": 12}},
]
INDIFFERENT: list[dict[str, Any]] = [
    {"network": "mlp"},
    {"loss": "logit_mse"},
    {"loss": {"kind": "kd", "temperature": 7}},
    {"optimizer": "sgd"},
    {"schedule": "constant"},
    {"shuffled": True},
    {"epochs": 9},
]


def test_each_ingredient_changes_the_key_and_nothing_else_does(
    few: Splits, decoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = spec_of(augment=["shift", "rotate"])
    keys = [planned(base, few).key]
    keys += [planned(spec_of(**{"augment": ["shift", "rotate"], **changed}), few).key for changed in DECIDING]
    fewer = replace(few, train=few.train.take(np.arange(300)))
    relabelled = replace(few, train=replace(few.train, labels=9 - few.train.labels))
    keys += [planned(base, other).key for other in (fewer, relabelled)]
    for teachers in (["1" * 64], ["0" * 64, "1" * 64], ["1" * 64, "0" * 64]):
        other = plan(base, few, teachers, CPU)
        assert other is not None
        keys.append(other.key)
    for name, value in (("get_num_threads", lambda: 7), ("__version__", "0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, value)
            keys.append(planned(base, few).key)
    for target in ("processor", "FORMAT", "LOOP"):
        with monkeypatch.context() as patch:
            patch.setattr(_index, target, (lambda: "another") if target == "processor" else 99)
            keys.append(planned(base, few).key)
    assert len(set(keys)) == len(keys)
    for changed in INDIFFERENT:
        assert planned(spec_of(**{"augment": ["shift", "rotate"], **changed}), few).key == keys[0], changed


def test_answers_to_clean_images_are_never_used_for_augmented_ones(lesson: Lesson) -> None:
    """The trap: it would train worse than no teacher."""
    lesson.train(spec_of())
    lesson.train(spec_of(augment=["shift"]))
    assert lesson.answered >= 3 * len(lesson.digits.train)


def test_what_changes_nothing_is_planned_as_what_it_is(few: Splits) -> None:
    """Without augmentation there is one view, however many are asked for; K views end with epoch K."""
    assert planned(spec_of(views=5), few).key == planned(spec_of(), few).key
    assert planned(spec_of(epochs=20), few).steps == 11
    assert planned(spec_of(epochs=20, augment=["shift"], views=2), few).steps == 21
    assert planned(spec_of(epochs=1, augment=["shift"], views=2), few).steps == 11
    assert planned(spec_of(epochs=20, augment=["shift"]), few).steps == 203


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".answers", ".images", ".logits", ".json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap"])
def test_damage_is_noticed_and_made_good(harm: str, kind: str, lesson: Lesson) -> None:
    spec = spec_of(**POLICIES["fixed" if harm in ("flip", "cut") else "stream"], epochs=2)
    expected = weights(lesson.train(spec))
    whole = {file: file.read_bytes() for file in lesson.files}
    harmed = next(file for file in lesson.root.glob("*/*") if file.suffix == kind)
    match harm:
        case "flip":
            flip_a_byte(harmed)
        case "cut":
            harmed.write_bytes(harmed.read_bytes()[:-100])
        case "empty":
            harmed.write_bytes(b"")
        case "swap":  # a whole file in another's place
            harmed.write_bytes(sorted(file for file in lesson.root.glob("*/*") if file.suffix == kind)[-1].read_bytes())
    changed = harmed.read_bytes() != whole.get(harmed)
    assert weights(lesson.train(spec)) == expected
    assert {file: file.read_bytes() for file in lesson.files} == whole
    if kind == ".json":
        assert json.loads(harmed.read_text())["augment"] == [{"kind": "shift"}, {"kind": "rotate"}]
    elif changed:
        assert any("damaged" in said for said in lesson.said)
        assert (lesson.answered > 0) == (kind != ".images"), "images are made anew without a teacher"


def test_changed_pixels_empty_the_bank(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should rendering change and nobody raise LOOP: the key is right and the answers are to other images."""
    spec = spec_of(augment=["shift"])
    lesson.train(spec)
    real = Views.augmented
    monkeypatch.setattr(Views, "augmented", lambda self, rows, view: real(self, rows, view) ^ 1)
    shown = Training([spec], lesson.digits, lesson.teacher())
    list(shown)
    assert weights(lesson.train(spec)) == weights(shown)
    assert any("images have changed" in said for said in lesson.said)
    assert weights(lesson.train(spec)) == weights(shown)
    assert lesson.answered == 0


@every_policy
def test_another_teacher_behind_the_same_key_is_caught(policy: dict[str, Any], lesson: Lesson) -> None:
    lesson.train(spec_of(**policy, epochs=1))
    other = networks.build(tiny().network, lesson.digits.classes, lesson.digits.shape, mean=[0.5], std=[0.3], seed=5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_(0, 0.3)
    lesson.classifier = other
    spec = spec_of(**policy)
    kept = sorted(lesson.root.glob("*/*.answers"))
    kept[-1].unlink()  # so that it has to be asked
    lesson.train(spec)
    assert any("differ from the teacher's" in said for said in lesson.said)
    assert lesson.files == [], "nothing of either teacher is left"
    live = Training([spec], lesson.digits, lesson.teacher())
    list(live)
    assert weights(lesson.train(spec)) == weights(live), "and the next run starts afresh"


def test_answers_that_are_kept_wrong_are_caught(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check after writing: here rows are shifted on their way to the disk."""
    spec = spec_of(augment=["shift"])
    real = _cache.Chunk.add

    def shifted(self: Any, logits: torch.Tensor, *rest: Any) -> None:
        real(self, logits.roll(1, 0), *rest)

    monkeypatch.setattr(_cache.Chunk, "add", shifted)
    with lesson.bank(spec) as bank:
        training = Training([spec], lesson.digits, bank)
        for _ in range(bank.plan.chunk_steps):
            training.advance()
        assert bank.live
    assert any("new cached logits differ" in said for said in lesson.said)
    assert lesson.files == []


# --- room -------------------------------------------------------------------------------------------------------------


def test_sizes_are_told_before_and_true_after(lesson: Lesson) -> None:
    for policy in POLICIES.values():
        wanted = planned(spec_of(**policy), lesson.digits)
        shelf = CacheIndex(lesson.root, 10**9)
        assert shelf.has(wanted) == 0
        size, images = shelf.fitting(wanted)
        assert images == bool(policy)
        lesson.train(spec_of(**policy))
        assert shelf.has(wanted) == wanted.steps
        folder = lesson.root / wanted.key
        kept = sum(file.stat().st_size for file in [*folder.glob("*.answers"), *folder.glob("*.images")])
        assert kept == pytest.approx(size, rel=0.03)


@pytest.mark.slow
def test_limits_and_eviction(lesson: Lesson, digits: Splits) -> None:
    lesson.digits = digits
    specs = [spec_of(seed=seed, augment=["shift"], epochs=2, batch=128) for seed in range(3)]
    wanted = [planned(spec, digits) for spec in specs]
    whole = wanted[0].answer_bytes + wanted[0].image_bytes
    shelf = CacheIndex(lesson.root, 4 * whole)
    assert shelf.fitting(wanted[0]) == (whole, True)
    assert CacheIndex(lesson.root, 4 * whole - 1).fitting(wanted[0]) == (wanted[0].answer_bytes, False)
    assert CacheIndex(lesson.root, wanted[0].answer_bytes - 1).fitting(wanted[0]) == (0, False)

    lesson.limit = int(2.5 * (wanted[0].answer_bytes + 10_000))  # answers of two fit, with what is kept beside them
    for spec in specs[:2]:
        lesson.train(spec)
    assert {one.folder.name for one in shelf.kept()} == {one.key for one in wanted[:2]}
    os.utime(lesson.root / wanted[1].key, (1, 1))  # so that the second is the least recently used
    lesson.train(specs[2])
    assert {one.folder.name for one in shelf.kept()} == {wanted[0].key, wanted[2].key}
    assert shelf.size <= lesson.limit
    assert not list(lesson.root.glob("*/*.images")), "images do not fit"

    os.utime(lesson.root / wanted[0].key, (1, 1))
    with lesson.bank(specs[0]):
        os.utime(lesson.root / wanted[0].key, (1, 1))
        lesson.train(specs[1])
    assert (lesson.root / wanted[0].key).is_dir(), "what is in use stays, though it was used longest ago"


def test_a_bank_that_cannot_be_written_teaches_all_the_same(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallalign_core.errors import Refused

    spec = spec_of(**POLICIES["fixed"])
    expected = weights(lesson.train(spec))
    shutil.rmtree(lesson.root)

    def full(*_: object) -> None:
        raise Refused("the disk is full")

    monkeypatch.setattr(_cache, "write_folder", full)
    assert weights(lesson.train(spec)) == expected
    few = lesson.digits
    assert lesson.answered < 2.3 * len(few.train) + len(few.val), "answers to fixed views stay in memory"
    assert lesson.said == ["teacher logits are not cached: The disk is full."]


@pytest.mark.parametrize("limit", ["much", "nan", "inf"])
def test_a_limit_is_a_number(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLALIGN_CACHE_GB", limit)
    with pytest.raises(BadInput, match="SMALLALIGN_CACHE_GB"):
        CacheIndex(tmp_path)
    monkeypatch.setenv("SMALLALIGN_CACHE_GB", "0.5")
    assert CacheIndex(tmp_path).limit <= 2**29


# --- recorded runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on, loading a teacher is an error."""

    def refuse(*_: object) -> Any:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(teacher_loading, "load_teacher", refuse)
    return


@pytest.mark.slow
def test_a_second_run_never_loads_the_teacher(train: Train, store: Store, request: pytest.FixtureRequest) -> None:
    teacher = train()
    first = train(teacher=teacher.id, augment=["shift"])
    assert first.result is not None
    assert first.result["teacher"] == "cache"
    assert first.events("started")[0]["teacher"] == "cache"
    images = 3 * 1295 + 143  # three epochs and validation
    assert images <= first.result["teacher_images"] < 1.03 * images + 128
    others: list[dict[str, Any]] = [
        {"loss": "logit_mse"},
        {"network": "mlp", "optimizer": "sgd"},
        {"shuffled": True},
        {"epochs": 2},
    ]
    waiting = [
        store.create(resolve(store, tiny(**{"teacher": teacher.id, "augment": ["shift"], **other}))) for other in others
    ]
    request.getfixturevalue("no_teacher")
    for run in waiting:
        result = worker.execute(run, store, device="cpu")
        assert result["teacher_images"] == 0
        assert 0 < result["fidelity"]["agreement"] < 1


@pytest.mark.slow
def test_a_warm_run_is_the_run_that_a_cold_one_is(train: Train, store: Store) -> None:
    teacher = train()
    run = train(teacher=teacher.id, augment=["shift"], views=2)
    assert run.result is not None
    digest = run.result["weights_sha256"]
    for limit in (None, "0"):  # warm, and live
        store.delete(run.id)
        with pytest.MonkeyPatch.context() as patch:
            if limit:
                patch.setenv("SMALLALIGN_CACHE_GB", limit)
            again = train(teacher=teacher.id, augment=["shift"], views=2)
        assert again.result is not None
        assert again.result["weights_sha256"] == digest
        assert again.result["teacher"] == ("live" if limit else "cache")


def test_a_teacher_whose_weights_were_replaced_is_refused(train: Train, store: Store) -> None:
    teacher, other = train(), train(seed=1)
    shutil.copy(other.weights, teacher.weights)
    with pytest.raises(BadInput, match="do not match the digest in its result"):
        resolve(store, tiny(teacher=teacher.id))


@pytest.mark.slow
def test_damage_is_told_in_the_runs_events(train: Train, store: Store) -> None:
    teacher = train()
    train(teacher=teacher.id)
    flip_a_byte(next(store.teacher_cache.glob("*/*.answers")))
    run = train(teacher=teacher.id, loss="logit_mse")
    assert ["damaged" in event["message"] for event in run.events("warning")] == [True]


@pytest.mark.slow
def test_the_estimate_tells_size_and_readiness_and_fills_nothing(
    train: Train, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "to_onnx", lambda _: b"")  # a second each, and another test's
    teacher = train()
    spec = tiny(teacher=teacher.id, augment=["shift"], epochs=2)
    cost = handlers.estimate(store, Estimate(spec))
    assert not list(store.teacher_cache.glob("*/*.answers"))
    assert cost.cache_ready == 0
    assert cost.cache_bytes == 21 * 128 * (10 * 2 + 64) + 21 * 8
    train(teacher=teacher.id, augment=["shift"])
    warm = handlers.estimate(store, Estimate(spec.model_copy(update={"seed": 0})))
    assert warm.cache_ready == 1
    assert handlers.estimate(store, Estimate(tiny())).cache_bytes == 0
    found = next(check.found for check in doctor.examine(store) if check.name == "teacher cache")
    assert "1 entry" in found
    assert str(store.teacher_cache) in found


def distilled(store: Store, **fields: Any) -> Run:
    teacher = store.create(resolve(store, tiny()))
    if not teacher.finished:
        worker.execute(teacher, store, device="cpu")
    return store.create(resolve(store, tiny(teacher=teacher.id, epochs=40, **fields)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [POLICIES["stream"], POLICIES["fixed"], POLICIES["mixup"]], ids=list(POLICIES)[1:])
def test_kill_9_at_random_moments_changes_nothing(
    policy: dict[str, Any],
    forks: processes.Forks,
    store: Store,
    tmp_path: Path,
) -> None:
    whole = Store(tmp_path / "whole")
    expected = runner.execute(distilled(whole, **policy), whole, device="cpu")["weights_sha256"]
    run = store.enqueue(distilled(store, **policy))
    draw, kills = random.Random(0), 0
    while run.state is not State.FINISHED:
        assert run.state is not State.FAILED, run.status
        with forks(*ONE_WORKER, "--store", store.root) as running:
            seen = len(run.events())
            while running() and (kills >= 4 or len(run.events()) < seen + draw.randint(2, 9)):
                time.sleep(0.1 * draw.random())
            killed = running()
        if killed:
            kills += 1
            if kills == 3:
                shutil.rmtree(store.teacher_cache)
            store.enqueue(run)
    assert kills == 4
    assert run.result is not None
    assert run.result["weights_sha256"] == expected
    assert not run.events("warning")


@pytest.mark.slow
def test_two_processes_fill_one_bank_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two command lines with the same views; both end as if alone, and the bank is whole."""
    monkeypatch.undo()  # chunks as the command line has them
    teacher = store.create(resolve(store, tiny()))
    worker.execute(teacher, store, device="cpu")
    lines = [
        ["--set", f"teacher={teacher.id}", "--set", f"loss={loss}", "--set", "augment=[shift]", "--set", "epochs=12"]
        for loss in ("kd", "logit_mse")
    ]
    (store.root / "base.yaml").write_text("data: digits\nnetwork: {kind: cnn, width: 6, depth: 2}\n")
    ended: list[dict[str, Any]] = []

    def run(line: list[str]) -> None:
        done = program("train", store.root / "base.yaml", *line, "--json", store=store)
        ended.append(json.loads(done.stdout))

    threads = [threading.Thread(target=run, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 2
    for result in ended:
        trained = store.run(result["id"])
        assert trained.events("warning") == []
        spec = trained.spec
        store.delete(trained.id)
        after = worker.execute(store.create(spec), store, device="cpu")
        assert after["weights_sha256"] == result["weights_sha256"]
        assert after["teacher_images"] == 0
