"""Classes of unequal size: weights, sampling and logit adjustment against their papers, and training with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import program, tiny
from hypothesis import given, strategies as st
from sklearn.utils.class_weight import compute_class_weight
from test_teacher_cache import Lesson, spec_of, weights

from smallalign_core import networks
from smallalign_core.analysis.landscape import _surface
from smallalign_core.augment import Views, of_run
from smallalign_core.augment._balanced import Balanced, quotas
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadSpec
from smallalign_core.runs import model_card
from smallalign_core.runs.store import Store
from smallalign_core.spec import (
    ClassWeights,
    EffectiveNumber,
    LogitAdjustment,
    Sampling,
    Unbalanced,
    digest,
    parse,
    parse_policy,
    set_field,
    to_yaml,
)
from smallalign_core.studies import ablation
from smallalign_core.training import losses
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import NetworkOutput, class_balance, cross_entropy
from smallalign_core.training.teacher import Teacher

COUNTS = [200, 40, 5]
KINDS: list[Any] = ["class_weights", "effective_number", "sampling", {"kind": "sampling", "q": 0.5}, "logit_adjustment"]
LABELS = np.repeat([0, 1, 2], COUNTS)


def logits(rows: int = 7, classes: int = 3) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def classifier(few: Splits) -> networks.Classifier:
    training = Training([tiny(network={"kind": "resnet", "width": 4}, epochs=4, batch=32)], few)
    list(training)
    return training.students[0].best()


@pytest.fixture(scope="module")
def rare(few: Splits) -> Splits:
    """Digits of which some classes have a tenth of their training images."""
    train = few.train
    rows = [np.flatnonzero(train.labels == label)[: None if label % 2 else 3] for label in range(10)]
    return Splits(train.take(np.sort(np.concatenate(rows))), few.val, few.test)


@pytest.fixture
def lesson(tmp_path: Path, classifier: networks.Classifier, rare: Splits) -> Lesson:
    return Lesson(tmp_path / "teacher", classifier, rare)


# --- the label loss ---------------------------------------------------------------------------------------------------


def test_class_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert class_balance(ClassWeights(), COUNTS).weights.numpy() == pytest.approx(expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.9999])
def test_effective_numbers_are_those_of_the_paper(beta: float) -> None:
    """E_n as the sum that the paper derives it from, and a mean weight of 1 over images."""
    each = np.array([1 / sum(beta**i for i in range(n)) for n in COUNTS])
    expected = each * 245 / np.dot(each, COUNTS)
    found = class_balance(EffectiveNumber(beta=beta), COUNTS).weights
    assert found is not None
    assert found.numpy() == pytest.approx(expected, rel=1e-5)


def test_effective_numbers_lie_between_no_weights_and_inverse_frequencies() -> None:
    none, inverse = (class_balance(EffectiveNumber(beta=beta), COUNTS).weights for beta in (0.0, 1 - 1e-9))
    assert none is not None
    assert inverse is not None
    assert none.numpy() == pytest.approx(1)
    assert inverse.numpy() == pytest.approx(class_balance(ClassWeights(), COUNTS).weights.numpy(), rel=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_is_equation_10_of_the_paper(tau: float) -> None:
    """log(1 + Σ (π_y' / π_y)^τ exp(f_y' - f_y)) over the other classes, in float64."""
    f, labels, share = logits().numpy(), np.array([0, 1, 2, 2, 1, 0, 2]), np.array(COUNTS) / 245
    expected = np.mean(
        [
            np.log1p(sum((share[o] / share[y]) ** tau * np.exp(row[o] - row[y]) for o in range(3) if o != y))
            for row, y in zip(f, labels, strict=True)
        ]
    )
    balance = class_balance(LogitAdjustment(tau=tau), COUNTS)
    assert float(cross_entropy(torch.from_numpy(f), torch.from_numpy(labels), balance=balance)) == pytest.approx(
        expected, rel=1e-5
    )


def test_weighted_loss_is_a_mean_over_images_whatever_their_batch() -> None:
    """So that processes that share a batch, and batches that differ in their classes, agree."""
    labels, balance = torch.tensor([0, 1, 2, 2, 1, 0, 2, 0]), class_balance(ClassWeights(), COUNTS)
    f, log_p = logits(8), logits(8).log_softmax(1).numpy()
    own = np.array([245 / (3 * n) for n in COUNTS])
    expected = -(own[labels.numpy()] * log_p[np.arange(8), labels.numpy()]).mean()
    whole = cross_entropy(f, labels, balance=balance)
    halves = [cross_entropy(f[part], labels[part], balance=balance) for part in (slice(4), slice(4, 8))]
    assert float(whole) == pytest.approx(expected, rel=1e-5)
    assert float(sum(halves) / 2) == pytest.approx(float(whole), rel=1e-6)


def test_a_mixed_label_weighs_as_its_parts_do() -> None:
    f, balance = logits(1), class_balance(ClassWeights(), COUNTS)
    mixed = cross_entropy(f, torch.tensor([[0.3, 0.0, 0.7]]), balance=balance)
    parts = [cross_entropy(f, torch.tensor([label]), balance=balance) for label in (0, 2)]
    assert float(mixed) == pytest.approx(0.3 * float(parts[0]) + 0.7 * float(parts[1]), rel=1e-5)


def test_the_teachers_term_is_not_balanced() -> None:
    loss, labels = parse({"data": "digits", "network": "cnn", "teacher": "t", "loss": "kd"}).loss, torch.tensor([0, 2])
    said = NetworkOutput(logits(2)), NetworkOutput(logits(2).flip(1)), labels
    plain, balanced = (
        losses.terms(loss, *said, balance=class_balance(one, COUNTS)) for one in (Unbalanced(), ClassWeights())
    )
    assert torch.equal(plain["teacher"], balanced["teacher"])
    assert not torch.equal(plain["labels"], balanced["labels"])


def test_a_class_without_images_is_no_infinity() -> None:
    for balance in (ClassWeights(), EffectiveNumber(), LogitAdjustment()):
        found = cross_entropy(logits(), torch.zeros(7, dtype=torch.int64), balance=class_balance(balance, [4, 3, 0]))
        assert found.isfinite()


# --- sampling ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 500), min_size=2, max_size=30), st.sampled_from([0.0, 0.3, 0.5, 0.99]))
def test_an_epoch_keeps_its_size_and_every_class(counts: list[int], q: float) -> None:
    found = quotas(counts, q)
    assert sum(found) == sum(counts)
    assert min(found) >= 1
    exact = np.array(counts, float) ** q
    assert np.abs(found - exact / exact.sum() * sum(counts)).max() < 1


def stream(q: float, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    draw = lambda pass_, of: np.random.default_rng([pass_, of])  # noqa: E731
    found = [Balanced(LABELS, q, draw).epoch(number) for number in range(epochs)]
    return np.concatenate([rows for rows, _ in found]), np.concatenate([met for _, met in found])


@pytest.mark.parametrize(("q", "shares"), [(0.0, [1 / 3] * 3), (0.5, [0.6228, 0.2785, 0.0985])])
def test_classes_are_met_in_their_shares_and_images_equally_often(q: float, shares: list[float]) -> None:
    rows, met = stream(q, 6)
    assert np.bincount(LABELS[rows]) / len(rows) == pytest.approx(shares, abs=0.005)
    times = np.bincount(rows, minlength=245)
    for label in range(3):
        own = times[label == LABELS]
        assert own.max() - own.min() <= 1
    assert len({*zip(rows.tolist(), met.tolist(), strict=True)}) == len(rows)  # a repeated image has another view
    for row in (0, 220, 244):
        assert sorted(met[rows == row]) == list(range(times[row]))


def a_set() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (245, 1, 8, 8)).astype(np.uint8)
    return ImageSet(pixels, LABELS, np.arange(245, dtype=np.uint64), ("a", "b", "c"))


def test_an_augmented_image_is_the_same_with_and_without_sampling() -> None:
    policy = parse_policy(["shift", "flip", "rotate", {"kind": "noise"}])
    plain, sampled = (Views(a_set(), policy, batch=16, seed=3, sampling=q) for q in (None, 0.0))
    rows, view = np.array([3, 244, 17, 100, 244]), np.array([0, 7, 7, 2, 1])
    assert torch.equal(plain.augmented(rows, view), sampled.augmented(rows, view))


def test_what_the_preview_shows_is_what_sampled_training_sees() -> None:
    policy = parse_policy(["shift", {"kind": "mixup", "probability": 1}])
    views = Views(a_set(), policy, batch=16, seed=3, sampling=0.0)
    for step in (0, 9, 40):
        batch, (rows, met) = views(step), views.sample_indices(step)
        for at in (0, 7):
            image, label = views.view_of(int(rows[at]), int(met[at]))
            assert torch.equal(image, batch.images[at])
            assert torch.equal(label, batch.labels[at])


def test_steps_and_parts_of_a_batch_are_those_of_the_whole() -> None:
    """Whatever was asked before, and by whichever process."""
    how: dict[str, Any] = {"batch": 16, "seed": 3, "sampling": 0.5}
    policy = parse_policy(["shift"])
    one = Views(a_set(), policy, **how)
    whole = [one(step) for step in range(20)]
    for step in (19, 3, 11):
        parts = [Views(a_set(), policy, share=part, **how)(step) for part in (slice(0, 8), slice(8, 16))]
        assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole[step].labels)


# --- training ---------------------------------------------------------------------------------------------------------

POLICIES: dict[str, dict[str, Any]] = {
    "clean": {},
    "stream": {"augment": ["shift"]},
    "fixed": {"augment": ["shift"], "views": 3},
    "mixup": {"augment": ["shift", {"kind": "mixup", "probability": 1}]},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_sampled_training_ends_alike_whatever_is_cached_and_where_it_stopped(policy: Any, lesson: Lesson) -> None:
    spec = spec_of(epochs=4, balance="sampling", **policy)
    cold = lesson.train(spec)
    answered = lesson.answered
    warm = lesson.train(spec)
    assert weights(warm) == weights(cold)
    assert (answered > 0, lesson.answered, lesson.said) == (True, 0, [])
    half = lesson.train(spec, stop=cold.steps // 2)
    assert weights(lesson.train(spec, state=half.students[0].state() | {"step": half.step})) == weights(cold)
    if not policy:  # an image without augmentation has its logits once, and they are shared with runs without sampling
        assert answered <= len(lesson.digits.train) + spec.batch + len(lesson.digits.val) + 10
        lesson.train(spec_of(epochs=4))
        assert lesson.answered == 0


def test_cached_logits_of_sampled_images_are_the_teachers(lesson: Lesson, classifier: networks.Classifier) -> None:
    spec = spec_of(epochs=5, balance="sampling", augment=["shift"], views=3)
    live, views = Teacher(classifier, lesson.digits.classes), of_run(spec, lesson.digits.train)
    with lesson.bank(spec) as bank:
        for step in range(0, 5 * len(lesson.digits.train) // 32, 3):
            batch, said = bank.batch_with_targets(views, step)
            expected, answers = live.batch_with_targets(views, step)
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)
            assert torch.allclose(said.logits, answers.logits, atol=2e-2, rtol=1e-2)  # of another batch, in half


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_kind_changes_training_and_resumes_exactly(kind: Any, rare: Splits) -> None:
    spec = tiny(balance=kind, epochs=2, batch=32, augment=["shift"])
    whole = Training([spec], rare)
    for _ in range(whole.steps):
        whole.advance()
    first = Training([spec], rare)
    for _ in range(3):
        first.advance()
    second = Training([spec], rare)
    second.restore(copy.deepcopy(first.state()))
    while second.step < second.steps:
        second.advance()
    assert weights(second) == weights(whole)
    plain = Training([tiny(epochs=2, batch=32, augment=["shift"])], rare)
    for _ in range(plain.steps):
        plain.advance()
    assert weights(plain) != weights(whole)


def test_balances_of_the_label_loss_train_in_lockstep_and_sampling_only_with_its_equal(rare: Splits) -> None:
    kinds = ["none", "class_weights", "logit_adjustment"]
    specs = [tiny(balance=kind, epochs=2, batch=32) for kind in kinds]
    together = Training(specs, rare)
    for _ in range(together.steps):
        together.advance()
    for at, spec in enumerate(specs):
        alone = Training([spec], rare)
        for _ in range(alone.steps):
            alone.advance()
        own = together.students[at].classifier.state_dict()
        assert b"".join(tensor.numpy().tobytes() for tensor in own.values()) == weights(alone)
    sampled = tiny(balance="sampling")
    assert sampled.can_lockstep_with(tiny(balance={"kind": "sampling", "q": 0.0}, select="macro"))
    assert not sampled.can_lockstep_with(tiny())
    with pytest.raises(BadSpec):
        Training([sampled, tiny()], rare)


def test_selection_by_macro_recall_keeps_another_epoch(rare: Splits) -> None:
    student = Training([tiny(select="macro")], rare).students[0]
    other = Training([tiny()], rare).students[0]
    from smallalign_core.metrics import score

    def scores(*said: int) -> Any:
        confident = np.full((10, 2), -3.0, np.float32)
        confident[np.arange(10), said] = 3
        return score(confident, np.array([0] * 8 + [1] * 2), ("a", "b"))

    accurate, even = scores(*[0] * 10), scores(*[0] * 5, *[1] * 5)
    assert (accurate.accuracy, accurate.macro_recall) == (0.8, 0.5)
    for one, kept in ((student, [True, True]), (other, [True, False])):
        assert [one.keep_if_best(one.classifier, found, at) for at, found in enumerate((accurate, even))] == kept


# --- specs and entry points -------------------------------------------------------------------------------------------


def test_a_balance_is_written_in_any_spelling_and_its_default_has_no_digest() -> None:
    plain = tiny()
    assert digest(tiny(balance="none", select="accuracy")) == digest(plain)
    assert "balance" not in to_yaml(plain)
    found = {digest(tiny(balance=kind)) for kind in KINDS} | {digest(tiny(select="macro"))}
    assert len(found | {digest(plain)}) == len(KINDS) + 2
    fields = set_field(plain.model_dump(mode="json"), "balance=sampling")
    assert parse(set_field(fields, "balance.q=0.5")).balance == Sampling(q=0.5)


@pytest.mark.parametrize("kind", ["class_weights", "effective_number", "logit_adjustment"])
def test_a_balance_of_labels_needs_labels(kind: str) -> None:
    loss = {"kind": "kd", "weight": 1}
    with pytest.raises(BadSpec, match="changes the label loss"):
        tiny(teacher="t", loss=loss, balance=kind)
    assert tiny(teacher="t", loss=loss, balance="sampling").sampling == 0


@pytest.mark.slow
def test_the_command_line_balances_reports_classes_and_writes_a_card(tmp_path: Path) -> None:
    spec = {"data": {"source": "digits", "images": 60}, "network": {"kind": "cnn", "width": 4, "depth": 2}, "epochs": 1}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    store, changes = Store(tmp_path / "models"), ("--set", "balance=logit_adjustment", "--set", "select=macro")
    done = program("train", tmp_path / "spec.yaml", *changes, store=store)
    assert "macro recall" in done.stdout
    assert "top-5" in done.stdout
    run = store.runs()[0]
    result = run.result or {}
    assert result["test"]["macro_recall"] == pytest.approx(np.mean(list(result["test"]["recall"].values())))
    assert set(result["per_class"]) == set(result["classes"])
    card = model_card.card(run, store, "a")
    assert "logit_adjustment; probabilities are those for classes of more equal size" in card
    assert f"least recall {result['test']['worst_recall']:.2%}" in card


def test_an_ablation_leaves_the_balance_out_and_compares_macro_recall() -> None:
    spec = tiny(balance="sampling")
    assert ablation.without(spec, "balance") == tiny()
    with pytest.raises(BadSpec, match="does not have the class balance"):
        ablation.without(tiny(), "balance")
    assert "macro_recall" in ablation.METRICS


def test_the_surface_of_a_balanced_run_is_that_of_its_own_loss() -> None:
    plain, balanced = (
        _surface.Surface(tiny(balance=kind), small(), [part()], "eval", COUNTS) for kind in ("none", "class_weights")
    )
    labels = part().labels
    with torch.no_grad():
        said = balanced.network(part().images)
        expected = cross_entropy(said, labels, balance=class_balance(ClassWeights(), COUNTS))
    assert float(balanced.loss(part()).detach()) == pytest.approx(float(expected))
    assert float(plain.loss(part()).detach()) == pytest.approx(float(torch.nn.functional.cross_entropy(said, labels)))
    assert float(expected) != pytest.approx(float(torch.nn.functional.cross_entropy(said, labels)))


def small() -> networks.Classifier:
    spec = parse({"data": "digits", "network": {"kind": "mlp", "width": 4, "depth": 1}}).network
    return networks.build(spec, ["a", "b", "c"], (1, 8, 8), mean=[0.5], std=[0.5], seed=0)


def part() -> _surface.Part:
    images = torch.from_numpy(a_set().images[[0, 210, 244, 243]])
    return _surface.Part(images, torch.tensor([0, 1, 2, 2]), None)
