"""The loss contract: the facts that well-known code bases get wrong. References are written by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from scipy.stats import pearsonr, zscore
from torch import Tensor

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    AttentionTransfer,
    CrossEntropy,
    Dist,
    Dkd,
    Embedding,
    FitNets,
    FunctionMatching,
    HintonKd,
    LogitMse,
    Loss,
    PythonLoss,
    ScaledMse,
    StandardizedKd,
    labels_share,
    loss_kinds,
    parse,
)
from smallalign_core.training import contracts, losses
from smallalign_core.training.contracts import Function, drawn as logits, gradient
from smallalign_core.training.losses import NetworkOutput

Array = NDArray[np.float64]

FUNCTIONS: dict[str, Function] = {
    "kd": lambda s, t, _: losses.hinton_kd(s, t, 4.0),
    "logit_mse": lambda s, t, _: losses.logit_mse(s, t),
    "scaled_mse": lambda s, t, _: losses.scaled_mse(s, t, 4.0),
    "dkd": lambda s, t, y: losses.dkd(s, t, y, 4.0, 1.0, 8.0),
    "dist": lambda s, t, _: losses.dist(s, t, 1.0, 2.0, 2.0),
    "standardized_kd": lambda s, t, _: losses.standardized_kd(s, t, 2.0),
}


def kl(q: Array, p: Array) -> Array:
    return rel_entr(q, p).sum(-1)


def decoupled(s: Array, t: Array, y: NDArray[np.int64]) -> float:
    """Image by image, from probabilities: (label, rest) and the others renormalised."""
    total = 0.0
    for p, q, label in zip(softmax(s / 4, 1), softmax(t / 4, 1), y, strict=True):
        two = [np.array([x[label], 1 - x[label]]) for x in (q, p)]
        others = [np.delete(x, label) / (1 - x[label]) for x in (q, p)]
        total += 1.0 * kl(*two) + 8.0 * kl(*others)
    return 16 * total / len(s)


def correlated(s: Array, t: Array) -> float:
    p, q = softmax(s, 1), softmax(t, 1)
    rows = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    return float(2 * rows + 2 * columns)


def standard(x: Array) -> Array:
    return softmax(zscore(x, axis=1, ddof=1) / 2, 1)


REFERENCES: dict[str, Callable[[Array, Array, NDArray[np.int64]], float]] = {
    "kd": lambda s, t, _: 16 * kl(softmax(t / 4, 1), softmax(s / 4, 1)).mean(),
    "logit_mse": lambda s, t, _: np.mean((s - s.mean(1, keepdims=True) - t + t.mean(1, keepdims=True)) ** 2) / 2,
    "scaled_mse": lambda s, t, _: np.mean((s - t) ** 2) / 16,
    "dkd": decoupled,
    "dist": lambda s, t, _: correlated(s, t),
    "standardized_kd": lambda s, t, _: 4 * kl(standard(t), standard(s)).mean(),
}


def in_words(spec: Loss, student: Tensor, teacher: Tensor, labels: Tensor, **more: float) -> dict[str, Tensor]:
    """The terms of any loss; layers, where it compares some, put out what the logits are."""
    if isinstance(spec, FitNets | AttentionTransfer):
        spec = spec.model_copy(update={"student_layer": "a", "teacher_layer": "b"})
    maps = isinstance(spec, AttentionTransfer)
    answers = [
        NetworkOutput(made, {path: made.repeat_interleave(4, 1).unflatten(1, (-1, 2, 2)) if maps else made})
        for made, path in ((student, "a"), (teacher, "b"))
    ]
    made = losses.projector(spec, *answers)
    return losses.terms(spec, *answers, labels, companion=made, **more)


# --- what each loss is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [4, 10, 100, 1000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_its_formula_summed_and_averaged_as_published(name: str, classes: int) -> None:
    student, teacher, labels = logits(classes)
    by_hand = REFERENCES[name](student.numpy(), teacher.numpy(), labels.numpy())
    assert FUNCTIONS[name](student, teacher, labels).item() == pytest.approx(by_hand, rel=1e-4)


def test_two_classes_are_enough_for_soft_targets() -> None:
    student, teacher, labels = logits(2)
    for name in ("kd", "logit_mse", "scaled_mse"):
        by_hand = REFERENCES[name](student.numpy(), teacher.numpy(), labels.numpy())
        assert FUNCTIONS[name](student, teacher, labels).item() == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_perfect_copy_is_the_minimum(name: str) -> None:
    assert not contracts.least_at_the_teacher(FUNCTIONS[name])


@pytest.mark.parametrize("name", ["kd", "logit_mse", "scaled_mse", "dkd", "standardized_kd"])
def test_it_is_a_mean_over_images(name: str) -> None:
    assert not contracts.averaged(FUNCTIONS[name])


def test_a_perfect_copy_costs_nothing_even_where_nothing_varies() -> None:
    """Pearson's correlation of constants does not exist; equal constants are equal all the same."""
    for name, loss in FUNCTIONS.items():
        flat = torch.ones(5, 7)
        assert loss(flat, flat, torch.zeros(5, dtype=torch.int64)).item() == 0, name


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_the_gradient_keeps_its_size_over_temperature(name: str) -> None:
    made: dict[str, Callable[[float], Function]] = {
        "kd": lambda heat: lambda s, t, _: losses.hinton_kd(s, t, heat),
        "dkd": lambda heat: lambda s, t, y: losses.dkd(s, t, y, heat, 1.0, 1.0),
    }
    assert not contracts.keeps_gradient_size(made[name])


def test_a_gradient_that_falls_with_temperature_is_found() -> None:
    assert "a ratio of 4" in contracts.keeps_gradient_size(lambda heat: lambda s, t, _: losses.scaled_mse(s, t, heat))


def test_the_snippets_gradient_falls_with_the_square_of_the_temperature() -> None:
    """Its size at T = 1 and 20 with a student of deviation 1 and a teacher of 3: 0.36 and 0.0009."""
    student, teacher, labels = logits(batch=32, scale=1.0)
    norms = [
        gradient(lambda s, t, _, heat=heat: losses.scaled_mse(s, t, heat), student, 3 * teacher, labels).norm().item()
        for heat in (1.0, 20.0)
    ]
    assert norms == [pytest.approx(0.36, rel=0.1), pytest.approx(0.0009, rel=0.1)]
    assert norms[0] / norms[1] == pytest.approx(400, rel=1e-4)


def test_kd_tends_to_logit_mse() -> None:
    """Hinton et al. 2015, equation 4: at high temperature, soft targets are centred logit matching over C."""
    student, teacher, _ = logits()
    limit = losses.hinton_kd(student.double(), teacher.double(), 300.0).item()
    assert limit == pytest.approx(losses.logit_mse(student, teacher).item(), rel=2e-2)


def test_kd_gradient_equals_soft_cross_entropy() -> None:
    student, teacher, labels = logits()
    ours = gradient(lambda s, t, _: losses.hinton_kd(s, t, 1.0), student, teacher, labels)
    soft = gradient(lambda s, t, _: F.cross_entropy(s, t.float().softmax(1)), student, teacher, labels)
    torch.testing.assert_close(ours, soft, atol=1e-6, rtol=1e-4)


def test_decoupled_parts_make_up_kd() -> None:
    """Zhao et al. 2022, equation 7: KD = KL(label, rest) + (1 - teacher's p of the label) · KL(others)."""
    student, teacher, labels = logits(batch=16)
    for s, t, y in zip(student.split(1), teacher.split(1), labels.split(1), strict=True):
        others = 1 - t.softmax(1)[0, y].item()
        whole = losses.hinton_kd(s, t, 1.0).item()
        assert losses.dkd(s, t, y, 1.0, 1.0, others).item() == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_standardized_logits_have_no_scale_and_no_offset(scale: float) -> None:
    student, teacher, _ = logits()
    plain = losses.standardized_kd(student, teacher, 2.0).item()
    assert losses.standardized_kd(scale * student + 5, teacher, 2.0).item() == pytest.approx(plain, rel=1e-4)
    assert losses.standardized_kd(scale * teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.001), (0.001, 1.0), (3.0, 0.5)])
def test_dist_weighs_classes_by_beta_and_images_by_gamma(beta: float, gamma: float) -> None:
    """Huang et al. (2022), equations 6 to 10, by numpy's correlation: beta between classes, gamma within each."""
    student, teacher, _ = logits(batch=8)
    p, q = (softmax(made.double().numpy() / 2, 1) for made in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert abs(rows - columns) > 0.01
    found = losses.dist(student, teacher, 2.0, beta, gamma).item()
    assert found == pytest.approx(4 * (beta * rows + gamma * columns), rel=2e-3)
    spec = Dist(temperature=2.0, beta=beta, gamma=gamma)
    said = in_words(spec, student.float(), teacher.float(), torch.zeros(8, dtype=torch.int64))["teacher"]
    assert said.item() == pytest.approx(found, rel=1e-5)


def test_dist_hardly_sees_the_scale() -> None:
    """Why short runs at T = 4 end uncalibrated: a hundredth of the teacher's logits costs little of what noise does."""
    student, teacher, _ = logits(batch=32)
    small, noise = (losses.dist(s, teacher, 4.0, 1.0, 1.0).item() for s in (0.01 * teacher, student))
    assert small < 0.1 * noise


def test_an_offset_of_the_teacher_costs_nothing_except_in_the_snippet() -> None:
    student, teacher, labels = logits()
    for name, loss in FUNCTIONS.items():
        moved, plain = (loss(student, t, labels).item() for t in (teacher + 50, teacher))
        assert (moved == pytest.approx(plain, rel=1e-4)) == (name != "scaled_mse"), name


# --- no precision and no number of classes makes them NaN -------------------------------------------------------------


def refuse_nan(name: str, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    assert not contracts.finite(FUNCTIONS[name], student, teacher, labels), name


@st.composite
def hard_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and labels: rows of any numbers, constant rows, and rows that are sure of themselves."""
    classes = draw(st.sampled_from([2, 3, 4, 7, 100, 1000]))
    batch = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))

    def row() -> Tensor:
        kind = draw(st.sampled_from(["any", "constant", "almost", "sure", "drawn"]))
        base = torch.full((classes,), draw(st.floats(-120, 120)))
        if kind == "any":
            base[: min(classes, 4)] = torch.tensor([draw(st.floats(-120, 120)) for _ in range(min(classes, 4))])
        elif kind == "almost":
            base[0] += draw(st.floats(-1e-3, 1e-3))
        elif kind == "sure":
            base[draw(st.integers(0, classes - 1))] += draw(st.sampled_from([-120.0, 60.0, 120.0]))
        elif kind == "drawn":
            base = draw(st.floats(0, 30)) * torch.randn(
                classes, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
            )
        return base

    student, teacher = (torch.stack([row() for _ in range(batch)]).to(dtype) for _ in range(2))
    labels = torch.tensor([draw(st.integers(0, classes - 1)) for _ in range(batch)])
    return student, student.clone() if draw(st.booleans()) else teacher, labels


@pytest.mark.slow
@settings(max_examples=150)
@given(case=hard_logits())
def test_never_nan(case: tuple[Tensor, Tensor, Tensor]) -> None:
    for name in FUNCTIONS:
        refuse_nan(name, *case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gap", [0.0, 60.0, 120.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_finite_where_student_and_teacher_are_sure_of_different_classes(
    dtype: torch.dtype, gap: float, classes: int
) -> None:
    student, teacher = torch.zeros(4, classes, dtype=dtype), torch.zeros(4, classes, dtype=dtype)
    student[:, 0], teacher[:, 1] = gap, gap
    for name in FUNCTIONS:
        for label in (0, 1):
            refuse_nan(name, student, teacher, torch.full((4,), label))


@pytest.mark.parametrize("heat", [0.5, 1.0, 4.0, 50.0])
def test_finite_at_the_end_of_half_precision(heat: float) -> None:
    """Teachers' answers are kept in half precision: up to 60,000, either way."""
    teacher = torch.full((3, 6), -60_000.0)
    teacher[:, 2] = 60_000.0
    for wanted in (teacher, teacher.half().float(), -teacher):
        for function in (
            lambda s, t: losses.hinton_kd(s, t, heat),
            lambda s, t: losses.scaled_mse(s, t, heat),
            lambda s, t: losses.dkd(s, t, torch.tensor([2, 0, 5]), heat, 1.0, 8.0),
            lambda s, t: losses.dist(s, t, heat, 2.0, 2.0),
            lambda s, t: losses.standardized_kd(s, t, heat),
            lambda s, t: losses.logit_mse(s, t),
        ):
            for start in (torch.zeros(3, 6), torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), -wanted):
                leaf = start.clone().requires_grad_()
                value = function(leaf, wanted)
                value.backward()
                assert value.isfinite()
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all()


# --- terms: what training minimises -----------------------------------------------------------------------------------

TAUGHT: list[Loss] = [lesson() for lesson in loss_kinds(taught=True) if lesson is not PythonLoss]  # type: ignore[misc]
WITHOUT_LABELS: list[Loss] = [
    HintonKd(weight=1),
    LogitMse(weight=1),
    ScaledMse(weight=1),
    Dist(labels_weight=0),
    StandardizedKd(labels_weight=0),
    FunctionMatching(),
    FitNets(labels_weight=0, kd_weight=1),
    AttentionTransfer(labels_weight=0, kd_weight=1),
]


def test_the_family_is_whole() -> None:
    assert [lesson.__name__ for lesson in loss_kinds(taught=False)] == ["CrossEntropy"]
    assert {HintonKd, Dkd, FitNets} <= {type(part) for part in TAUGHT}
    for part in TAUGHT:
        assert "19" in str(part.__doc__) or "20" in str(part.__doc__) or isinstance(part, ScaledMse), "source and year"


@pytest.mark.parametrize("spec", TAUGHT, ids=lambda spec: spec.kind)
def test_no_gradient_reaches_the_teacher(spec: Loss) -> None:
    student, teacher, labels = logits(batch=8)
    student, teacher = student.float().requires_grad_(), teacher.float().requires_grad_()
    torch.stack(list(in_words(spec, student, teacher, labels).values())).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", TAUGHT, ids=lambda spec: spec.kind)
def test_the_label_term_has_its_weight(spec: Loss) -> None:
    student, teacher, labels = logits(batch=8)
    parts = in_words(spec, student.float(), teacher.float(), labels)
    expected = labels_share(spec) * F.cross_entropy(student, labels).item()
    assert parts.get("labels", torch.zeros(())).item() == pytest.approx(expected, rel=1e-5)
    assert ("labels" in parts) == (not isinstance(spec, FunctionMatching | Embedding))
    assert len(parts) > 1 or isinstance(spec, FunctionMatching)


@pytest.mark.parametrize("spec", WITHOUT_LABELS, ids=lambda spec: spec.kind)
def test_without_weight_the_labels_are_not_looked_at(spec: Loss) -> None:
    student, teacher, _ = logits(batch=8)
    parts = in_words(spec, student.float(), teacher.float(), torch.full((8,), -7_777))
    assert "labels" not in parts
    assert all(part.isfinite() for part in parts.values())


def test_published_weights() -> None:
    """The terms of each paper with its defaults, from the functions above."""
    student, teacher, labels = (made.float() if made.is_floating_point() else made for made in logits(batch=8))
    expected = {
        "kd": 0.9 * losses.hinton_kd(student, teacher, 4),
        "logit_mse": 0.9 * losses.logit_mse(student, teacher),
        "scaled_mse": 0.9 * losses.scaled_mse(student, teacher, 4),
        "dkd": losses.dkd(student, teacher, labels, 4, 1, 8),
        "dist": losses.dist(student, teacher, 1, 2, 2),
        "standardized_kd": 9 * losses.standardized_kd(student, teacher, 2),
        "function_matching": losses.hinton_kd(student, teacher, 1),
    }
    for spec in TAUGHT:
        if spec.kind in expected:
            said = in_words(spec, student, teacher, labels, epoch=100.0)["teacher"]
            assert said.item() == pytest.approx(expected.pop(spec.kind).item(), rel=1e-6), spec.kind
    assert not expected
    for layered in (FitNets(kd_weight=0.5), AttentionTransfer(kd_weight=0.5)):
        said = in_words(layered, student, teacher, labels)["teacher"]
        assert said.item() == pytest.approx(0.5 * losses.hinton_kd(student, teacher, 4).item(), rel=1e-6)


def test_decoupled_distillation_warms_up_by_whole_epochs() -> None:
    student, teacher, labels = logits(batch=8)
    full = in_words(Dkd(warmup_epochs=0), student, teacher, labels)["teacher"].item()
    shares = [
        in_words(Dkd(), student, teacher, labels, epoch=epoch)["teacher"].item() / full
        for epoch in (0, 0.9, 1, 9.5, 19, 50)
    ]
    assert shares == pytest.approx([0.05, 0.05, 0.1, 0.5, 1, 1])


def test_mixed_labels_are_taken_where_a_label_may_be_a_mixture() -> None:
    student, teacher, labels = logits(batch=8)
    mixed = 0.7 * F.one_hot(labels, 10).float() + 0.3 * F.one_hot(labels.roll(1), 10).float()
    for spec in TAUGHT:
        if isinstance(spec, Dkd):
            with pytest.raises(BadSpec, match="single target class"):
                in_words(spec, student.float(), teacher.float(), mixed)
        else:
            said = in_words(spec, student.float(), teacher.float(), mixed).get("labels", torch.zeros(()))
            by_hand = -(mixed.double() * student.log_softmax(1)).sum(1).mean().item()
            assert said.item() == pytest.approx(labels_share(spec) * by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "data", "words"),
    [
        (StandardizedKd(), {"classes": 3}, ["fewer than 4 classes", "3 classes", "loss kd"]),
        (Dkd(), {"classes": 2}, ["only one", "2 classes", "loss kd"]),
        (Dkd(), {"mixed": True}, ["single target class", "mixup", "function_matching"]),
        (Dist(), {"classes": 2}, ["plus or minus one", "2 classes", "loss kd"]),
        (Dist(), {"batch": 2}, ["plus or minus one", "batch 2", "aise `batch`"]),
    ],
)
def test_a_loss_that_cannot_say_anything_is_refused_in_words(
    spec: Loss, data: dict[str, int], words: list[str]
) -> None:
    losses.check(spec, classes=4, batch=3, mixed=False)
    with pytest.raises(BadSpec) as caught:
        losses.check(spec, **{"classes": 4, "batch": 3, "mixed": False, **data})  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_soft_targets_are_never_refused() -> None:
    for spec in (CrossEntropy(), HintonKd(), LogitMse(), ScaledMse(), FunctionMatching()):
        losses.check(spec, classes=2, batch=2, mixed=True)


def test_a_loss_without_its_teacher_is_refused() -> None:
    student, _, labels = logits()
    for spec in TAUGHT:
        with pytest.raises(BadSpec, match="needs a teacher"):
            losses.terms(spec, NetworkOutput(student), None, labels)


def test_uniform_logits_cost_log_classes() -> None:
    assert losses.cross_entropy(torch.zeros(3, 7), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(7))


def test_function_matching_mixes_and_says_so() -> None:
    base = {"data": "digits", "network": "cnn", "teacher": "t", "loss": "function_matching"}
    for given_loss in ("function_matching", {"kind": "function_matching"}, FunctionMatching()):
        (part,) = parse({**base, "loss": given_loss}).augment
        assert part.model_dump() == {"kind": "mixup", "alpha": 1.0, "probability": 1.0}
    assert [part.kind for part in parse({**base, "augment": ["flip"]}).augment] == ["flip", "mixup"]
    for mixing in ("cutmix", {"kind": "mixup", "alpha": 0.3}):
        assert parse({**base, "augment": [mixing]}) == parse({**base, "loss": "kd", "augment": [mixing]}).model_copy(
            update={"loss": FunctionMatching()}
        )
    spec = parse(base)
    assert parse(spec.model_dump(mode="json")) == spec
    with pytest.raises(BadSpec, match="`views` to 0"):
        parse({**base, "views": 4})


def test_specs_refuse_layers_of_several_teachers_and_heads_that_nobody_teaches() -> None:
    base = {"data": "digits", "network": "cnn"}
    for kind in ("fitnets", "attention"):
        with pytest.raises(BadSpec, match="averaged over teachers"):
            parse({**base, "teacher": ["a", "b"], "loss": kind})
        with pytest.raises(BadSpec, match="ast layer would get no gradient"):
            parse({**base, "teacher": "a", "loss": {"kind": kind, "labels_weight": 0}})
