"""The one loop: deterministic, resumable, paired, and it learns."""

from __future__ import annotations

import copy
import io
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import tiny

from smallalign_core import networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadSpec, Diverged
from smallalign_core.metrics import fidelity, logits_of, score
from smallalign_core.spec import DataSpec, RunSpec, Schedule, parse
from smallalign_core.spec.optimizer import Constant, Cosine
from smallalign_core.training import loop, losses, optim
from smallalign_core.training.loop import Progress, Stopped, Training, Validated
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.student import Student
from smallalign_core.training.teacher import Teacher

OPTIMIZERS: list[Any] = [
    {"kind": "sgd", "lr": 0.05},
    "adamw",
    {"kind": "lookahead", "k": 7},
    {"kind": "lookahead", "inner": {"kind": "sgd", "lr": 0.05}},
]


class Watching(Teacher):
    """A teacher that remembers what it was asked."""

    def __init__(self, teacher: Teacher) -> None:
        self.__dict__ |= teacher.__dict__
        self.batches: list[torch.Tensor] = []

    def output(self, images: torch.Tensor) -> NetworkOutput:
        self.batches.append(images.clone())
        return super().output(images)


def weights(training: Training, student: int = 0) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in training.students[student].classifier.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@pytest.fixture(scope="module")
def teacher(digits: Splits) -> Teacher:
    training = Training([tiny(network={"kind": "cnn", "width": 16}, epochs=6)], digits)
    list(training)
    return Teacher(training.students[0].best(), digits.classes)


def test_it_learns(digits: Splits) -> None:
    training = Training([tiny(network={"kind": "cnn", "width": 16}, epochs=6)], digits)
    list(training)
    test = digits.test
    assert score(logits_of(training.students[0].best(), test), test.labels, test.classes).accuracy > 0.93


def test_equal_specs_give_equal_weights(digits: Splits) -> None:
    runs = [Training([tiny(augment=["flip", "shift"])], digits) for _ in range(2)]
    for run in runs:
        list(run)
    assert equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_images_train_resume_exactly_and_reach_the_teacher(mixing: str, digits: Splits, teacher: Teacher) -> None:
    """Half labels, half teacher; the teacher is asked about the mixed image, and the labels are the mixture's."""
    augment = [{"kind": mixing, "probability": 1, "alpha": 1}]
    spec = tiny(teacher="t", loss={"kind": "kd", "weight": 0.5}, augment=augment)
    whole = Training([spec], digits, teacher)
    batch = whole.views(0)
    assert batch.labels.shape == (128, 10)
    watched = Watching(teacher)
    Training([spec], digits, watched).advance()
    assert torch.equal(watched.batches[0], batch.images)
    answers = torch.softmax(teacher.logits(batch.images), 1)
    agreement, chance = (float((answers * said).sum()) for said in (batch.labels, batch.labels.roll(1, 0)))
    assert agreement > 1.5 * chance, "the label says what the teacher sees"
    list(whole)
    first, second = (Training([spec], digits, teacher) for _ in range(2))
    for _ in range(9):
        first.advance()
    second.restore(through_a_file(first.state()))
    list(second)
    assert equal(weights(whole), weights(second))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 9, 23])
def test_resume_is_exact(optimizer: Any, stop: int, digits: Splits, teacher: Teacher) -> None:
    """Also in the middle of a Lookahead cycle, and with dropout, whose random numbers must not depend on the past."""
    spec = tiny(
        optimizer=optimizer,
        teacher="t",
        augment=["shift"],
        network={"kind": "cnn", "width": 4, "depth": 2, "dropout": 0.3},
    )
    whole = Training([spec], digits, teacher)
    list(whole)
    first = Training([spec], digits, teacher)
    for _ in range(stop):
        first.advance()
    second = Training([spec], digits, teacher)
    second.restore(through_a_file(first.state()))
    torch.manual_seed(999)
    list(second)
    assert equal(weights(whole), weights(second))
    assert second.step == whole.step


@pytest.mark.slow
def test_lockstep_changes_nobody(digits: Splits, teacher: Teacher) -> None:
    specs = [
        tiny(network={"kind": "mlp", "width": 16, "dropout": 0.5}),
        tiny(teacher="t"),
        tiny(teacher="t", loss="logit_mse", optimizer="lookahead"),
    ]
    together = Training(specs, digits, teacher)
    list(together)
    for index, spec in enumerate(specs):
        alone = Training([spec], digits, teacher if spec.teacher else None)
        list(alone)
        assert equal(weights(together, index), weights(alone)), spec


def test_lockstep_asks_the_teacher_once_a_step(digits: Splits, teacher: Teacher) -> None:
    watched = Watching(teacher)
    training = Training([tiny(teacher="t"), tiny(teacher="t", loss="logit_mse")], digits, watched)
    training.advance()
    assert [len(images) for images in watched.batches] == [128]


def test_lockstep_refuses_what_cannot_be_paired(digits: Splits) -> None:
    for other in (tiny(seed=1), tiny(precision="bf16"), tiny(batch=64)):
        with pytest.raises(BadSpec, match="lockstep"):
            Training([tiny(), other], digits)


def test_epochs_are_numbered_one_by_one_whatever_the_batch(digits: Splits) -> None:
    for batch in (500, 1000):
        validated = [e for e in Training([tiny(epochs=5, batch=batch)], digits) if isinstance(e, Validated)]
        assert [event.epoch for event in validated] == sorted({event.epoch for event in validated})
        assert validated[-1].epoch == 5


def test_events(digits: Splits) -> None:
    events = list(Training([tiny(epochs=4)], digits))
    validated = [event for event in events if isinstance(event, Validated)]
    assert [event.epoch for event in validated] == [1, 2, 3, 4]
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.step == last.steps == int(np.ceil(4 * len(digits.train) / 128))
    assert last.losses["total"] == pytest.approx(sum(v for k, v in last.losses.items() if k != "total"), rel=1e-5)


def test_the_best_weights_are_the_best_on_validation(digits: Splits) -> None:
    training = Training([tiny(epochs=6, optimizer={"kind": "adamw", "lr": 0.03})], digits)
    validated = [event for event in training if isinstance(event, Validated)]
    best = max(event.scores.accuracy for event in validated)
    val = digits.val
    assert score(logits_of(training.students[0].best(), val), val.labels, val.classes).accuracy == best


def test_nothing_is_learned_or_chosen_from_test(digits: Splits) -> None:
    """Scrambled test labels and pixels change nothing."""
    from dataclasses import replace

    scrambled = replace(
        digits, test=replace(digits.test, images=255 - digits.test.images, labels=9 - digits.test.labels)
    )
    runs = [Training([tiny()], splits) for splits in (digits, scrambled)]
    for run in runs:
        list(run)
    assert equal([*runs[0].students[0].best_weights.values()], [*runs[1].students[0].best_weights.values()])


@pytest.mark.slow
def test_a_diverging_run_says_so(digits: Splits) -> None:
    spec = tiny(optimizer={"kind": "sgd", "lr": 100.0, "weight_decay": 10.0}, network={"kind": "mlp"}, epochs=40)
    steady = spec.model_copy(update={"optimizer": tiny().optimizer})
    training = Training([spec, steady], digits)
    (stopped,) = [event for event in training if isinstance(event, Stopped)]
    assert stopped.student == 0
    with pytest.raises(Diverged, match=r"at step \d+ of .*learning rate 100.*Lower optimizer\.lr"):
        raise stopped.error
    alone = Training([steady], digits)
    list(alone)
    assert equal(weights(training, 1), weights(alone)), "the other one went on as if nothing had happened"


def test_shuffled_answers_are_those_of_classmates(digits: Splits, teacher: Teacher) -> None:
    views = Training([tiny()], digits).views
    batch = views(3)
    others = views.same_class_permutation(3, batch.labels)
    assert sorted(others.tolist()) == list(range(128)), "nobody's answer is lost"
    assert torch.equal(batch.labels[others], batch.labels)
    assert not (others == torch.arange(128)).any()
    assert torch.equal(others, views.same_class_permutation(3, batch.labels))
    assert not torch.equal(others, views.same_class_permutation(4, batch.labels))
    few = torch.tensor([0, 1, 1, 2])
    assert views.same_class_permutation(0, few).tolist() == [3, 2, 1, 0], "those alone in their class change places"


def test_a_shuffled_teacher_teaches_otherwise_and_in_lockstep(digits: Splits, teacher: Teacher) -> None:
    specs = [tiny(teacher="t"), tiny(teacher="t", shuffled=True), tiny()]
    together = Training(specs, digits, teacher)
    list(together)
    assert not equal(weights(together, 0), weights(together, 1))
    alone = Training([specs[1]], digits, teacher)
    list(alone)
    assert equal(weights(together, 1), weights(alone))


def test_shares_and_fidelity_are_what_they_say(digits: Splits, teacher: Teacher) -> None:
    """Shares against one backward pass a term, by hand; fidelity against the answers themselves."""
    spec = tiny(teacher="t", loss={"kind": "kd", "temperature": 2, "weight": 0.5}, epochs=1)
    training = Training([spec, tiny(epochs=1)], digits, teacher)
    model = copy.deepcopy(training.students[0].classifier).train()
    batch = training.views(0)
    lengths = {}
    for name in ("teacher", "labels"):
        parts = losses.terms(spec.loss, NetworkOutput(model(batch.images)), teacher.output(batch.images), batch.labels)
        model.zero_grad()
        parts[name].backward()
        lengths[name] = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    (taught, alone) = [event for event in training if isinstance(event, Validated)]
    for name, length in lengths.items():
        assert taught.shares[name] == pytest.approx(length / sum(lengths.values()), rel=1e-3)
    assert alone.shares == {"labels": 1.0}
    assert alone.fidelity is None
    said = logits_of(training.students[0].classifier, digits.val)
    assert taught.fidelity == fidelity(teacher.on(digits.val), said)
    assert taught.fidelity.agreement == (teacher.on(digits.val).argmax(1) == said.argmax(1)).mean()
    assert taught.fitted.nll <= taught.scores.nll


def test_several_teachers_answer_with_the_mean_of_their_probabilities(digits: Splits, teacher: Teacher) -> None:
    other = Training([tiny(epochs=1)], digits)
    list(other)
    models = [teacher._classifiers[0], other.students[0].best()]
    images = torch.from_numpy(np.asarray(digits.val.images))
    mean = sum(Teacher(model, digits.classes).logits(images).softmax(1) for model in models) / 2
    assert torch.allclose(Teacher(models, digits.classes).logits(images).softmax(1), mean, atol=2e-3)
    with pytest.raises(BadSpec, match="several teachers"):
        Teacher(models, digits.classes, layers=["0"])


def test_the_teacher_never_changes(digits: Splits, teacher: Teacher) -> None:
    before = [tensor.clone() for tensor in teacher._classifiers[0].state_dict().values()]
    list(Training([tiny(teacher="t", loss={"kind": "kd", "weight": 1})], digits, teacher))
    assert equal(before, list(teacher._classifiers[0].state_dict().values()))
    assert not teacher._classifiers[0].training
    assert not any(parameter.requires_grad for parameter in teacher._classifiers[0].parameters())


def test_a_teacher_of_other_classes_is_refused(digits: Splits, teacher: Teacher) -> None:
    with pytest.raises(BadInput, match=r"do not match.*teacher: 10.*data: 2"):
        Teacher(teacher._classifiers[0], ("cat", "dog"))


@pytest.mark.parametrize("schedule", [Cosine(), Constant(), Cosine(warmup=0), Cosine(warmup=0.5)])
def test_schedules(schedule: Schedule) -> None:
    rates = [optim.factor(schedule, step, 200) for step in range(200)]
    warm = round(schedule.warmup * 200)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert max(rates) == pytest.approx(1)
    assert rates[-1] < 0.01 if isinstance(schedule, Cosine) else rates[-1] == 1


def test_cosine_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert optim.factor(Cosine(warmup=0), step, 50) == pytest.approx(reference.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        reference.step()


def test_weight_decay_spares_biases_and_norms(digits: Splits) -> None:
    classifier = networks.build(tiny().network, digits.classes, digits.shape, mean=[0.5], std=[0.5])
    groups = optim.build(tiny().optimizer, classifier).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for parameter in classifier.parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1)


def test_lookahead_is_the_papers(digits: Splits) -> None:
    """Zhang et al. 2019, algorithm 1, against a hand-made loop around the same inner optimizer."""
    spec = tiny(optimizer={"kind": "lookahead", "inner": {"kind": "sgd", "lr": 0.05}, "k": 3, "alpha": 0.4})
    ours = Training([spec], digits)
    plain = Training([tiny(optimizer={"kind": "sgd", "lr": 0.05})], digits)
    slow = [p.detach().clone() for p in plain.students[0].classifier.parameters()]
    for step in range(1, 8):
        ours.advance()
        plain.advance()
        if step % 3 == 0:
            with torch.no_grad():
                for kept, fast in zip(slow, plain.students[0].classifier.parameters(), strict=True):
                    kept += 0.4 * (fast - kept)
                    fast.copy_(kept)
    for a, b in zip(ours.students[0].classifier.parameters(), plain.students[0].classifier.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_bf16_runs_and_stays_close(digits: Splits) -> None:
    runs = []
    for precision in ("fp32", "bf16"):
        training = Training([tiny(precision=precision, epochs=5, network={"kind": "cnn", "width": 16})], digits)
        list(training)
        runs.append(training)
    assert abs(runs[0].students[0].best_score[0] - runs[1].students[0].best_score[0]) < 0.1
    assert not equal(weights(runs[0]), weights(runs[1]))


def test_devices() -> None:
    assert loop.pick_device("cpu").type == "cpu"
    with pytest.raises(BadSpec, match="not available on this machine"):
        loop.pick_device("tpu")


def test_views_are_shared_by_teacher_and_student(digits: Splits, teacher: Teacher) -> None:
    """The teacher is asked about the augmented image: the wrong way round is worse than no teacher."""
    watched, seen = Watching(teacher), list[torch.Tensor]()
    training = Training([tiny(teacher="t", augment=["flip", "shift"])], digits, watched)
    training.students[0].classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    training.advance()
    assert torch.equal(watched.batches[0], seen[0])
    rows = training.views(0).rows.numpy()
    assert not np.array_equal(seen[0].numpy(), digits.train.images[rows])


@pytest.mark.slow
def test_soft_targets_beat_labels_when_images_are_few(digits: Splits) -> None:
    """With 100 images, soft targets at T=4 leave clearly fewer errors than labels alone. 3 paired seeds."""
    from dataclasses import replace

    from smallalign_core.data._division import hold_out

    teaching = Training([parse({"data": "digits", "network": {"kind": "cnn", "width": 24}, "epochs": 25})], digits)
    list(teaching)
    knowing = Teacher(teaching.students[0].best(), digits.classes)
    few = replace(digits, train=hold_out(digits.train, 0.1, DataSpec(source="digits"), salt=b"few", count=100)[1])
    errors = []
    for seed in range(3):
        base = {"data": "digits", "network": {"kind": "mlp", "width": 64}, "epochs": 150, "batch": 50, "seed": seed}
        specs: list[RunSpec] = [parse(base), parse({**base, "teacher": "t"})]
        training = Training(specs, few, knowing)
        list(training)
        test = digits.test
        errors.append(
            [1 - score(logits_of(s.best(), test), test.labels, test.classes).accuracy for s in training.students]
        )
    labels_only, taught = np.mean(errors, 0)
    assert taught < 0.85 * labels_only


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_student_learns_resumes_and_measures_its_shares(digits: Splits, teacher: Teacher) -> None:
    spec = tiny(teacher="t", compile=True, precision="fp32", epochs=2)
    whole, first = Training([spec], digits, teacher), Training([spec], digits, teacher)
    events = [event for event in whole if isinstance(event, Validated)]
    assert set(events[-1].shares) == {"teacher", "labels"}
    plain = Training([spec.model_copy(update={"compile": False})], digits, teacher)
    for _ in range(3):
        first.advance()
        plain.advance()
    for ours, theirs in zip(weights(first), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.001)
    again = Training([spec], digits, teacher)
    again.restore(copy.deepcopy(first.state()))
    list(again)
    assert equal(weights(again), weights(whole))


@pytest.mark.parametrize("waits", [False, True])
def test_the_step_that_an_optimizer_could_not_take_is_named(
    waits: bool, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the report comes steps later, and when the teacher was waited for in between."""
    training = Training([tiny(epochs=1)], digits)
    (student,) = training.students
    real, taken = student.optimizer.step, []

    def step(*given: Any) -> Any:
        taken.append(training.step)
        if len(taken) == 3:
            raise torch.linalg.LinAlgError
        return real(*given)

    student.optimizer.step = step  # type: ignore[method-assign]
    monkeypatch.setattr(loop, "REPORT_SECONDS", 1e9)
    prepared = SimpleNamespace(
        prepare=lambda _, at: [0.5] * (waits and at == 3), batch_with_targets=lambda views, at: (views(at), None)
    )
    monkeypatch.setattr(training, "teacher", prepared)

    *before, last = training

    assert len(before) == waits
    assert isinstance(last, loop.Stopped)
    assert f"nan at step 3 of {training.steps}" in str(last.error)
    assert len(taken) == 3


def test_the_best_epoch_is_the_most_accurate_then_the_likeliest_then_the_first(few: Splits) -> None:
    (student,) = Training([tiny()], few).students
    logits, labels = logits_of(student.classifier, few.val), few.val.labels
    base = score(logits, labels, few.val.classes)

    def offered(epoch: int, accuracy: float, nll: float) -> bool:
        return student.keep_if_best(student.classifier, replace(base, accuracy=accuracy, nll=nll), epoch)

    assert offered(1, 0.8, 0.7)
    assert not offered(2, 0.8, 0.9), "as accurate, less likely"
    assert not offered(3, 0.8, 0.7), "equal: the first stays"
    assert offered(4, 0.8, 0.6), "as accurate, likelier"
    assert not offered(5, 0.7, 0.1), "less accurate, much likelier"
    assert offered(6, 0.9, 2.0)
    assert student.best_epoch == 6


@pytest.mark.slow
def test_a_narrow_strided_convolution_learns_rightly_on_every_processor() -> None:
    """The AVX2 kernel of oneDNN for 1 x 1 of less than 8 channels in channels_last crashes, hangs or is wrong."""
    code = """
import torch
from smallalign_core import networks
from smallalign_core.spec import parse
torch.set_num_threads(1)
spec = parse({"data": "digits", "network": {"kind": "resnet", "width": 4}}).network
classifier = networks.build(spec, tuple("0123456789"), (1, 16, 16), mean=[0.3], std=[0.4])
images = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
def slope():
    classifier.zero_grad()
    classifier(images).square().sum().backward()
    return torch.cat([weight.grad.flatten() for weight in classifier.parameters()])
ours = slope()
torch.backends.mkldnn.flags(enabled=False).__enter__()
classifier.channels_last = False
classifier.body.to(memory_format=torch.contiguous_format)
theirs = slope()
print(float((ours - theirs).norm() / theirs.norm()))
"""
    for lowered in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}):
        done = processes.run(processes.python("-c", code), environment=lowered, check=True)
        assert float(done.stdout) < 1e-3, lowered


def test_seconds_of_earlier_attempts_are_added_and_a_step_is_in_milliseconds() -> None:
    student = Student.__new__(Student)
    student.before, student.gradients, student.evaluations = (3.0, 4.0), 7, 2
    student.clock, student.shared = SimpleNamespace(seconds=2.0, median=0.005), SimpleNamespace(seconds=0.5)  # type: ignore[assignment]
    student.classifier, student.companion, student.features = torch.nn.Linear(3, 2), None, None  # type: ignore[assignment]
    student.state_bytes, student.saved_bytes = 10, 100
    assert student.cost_so_far() == {
        "gradients": 7, "evaluations": 2, "own_seconds": 5.0, "shared_seconds": 4.5
    }  # fmt: skip
    assert student.cost()["step_ms"] == 5.0
    assert student.cost()["memory_bytes"] == 8 * 4 + 8 * 4 + 10 + 100, "weights, gradients, optimizer, kept tensors"
