"""The loss contract: the facts that well-known code bases get wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallalign_core import losses
from smallalign_core.errors import BadSpec
from smallalign_core.losses import Answer
from smallalign_core.spec import CrossEntropy, HintonKd, LogitMse


def logits(classes: int = 10, batch: int = 64, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(batch, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(classes, (batch,), generator=draw)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_kd_sums_over_classes_and_averages_over_the_batch(classes: int) -> None:
    student, teacher, _ = logits(classes)
    temperature = 4.0
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    by_hand = temperature**2 * (q * (q.log() - p.log())).sum(1).mean()
    assert losses.hinton_kd(student, teacher, temperature).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_kd_gradient_keeps_its_size_over_temperature() -> None:
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0, 20.0):
        student, teacher, _ = logits(scale=1.0)
        student = student.float().requires_grad_()
        losses.hinton_kd(student, teacher, temperature).backward()
        norms.append(student.grad.norm().item())  # type: ignore[union-attr]
    assert max(norms) / min(norms) < 1.6  # without T squared the ratio is about 400


def test_kd_tends_to_logit_mse() -> None:
    """Hinton et al. 2015, equation 4: at high temperature, soft targets are centred logit matching over C."""
    student, teacher, _ = logits()
    limit = losses.hinton_kd(student.double(), teacher.double(), 300.0).item()
    assert limit == pytest.approx(losses.logit_mse(student, teacher).item(), rel=2e-2)


def test_kd_gradient_equals_soft_cross_entropy() -> None:
    student, teacher, _ = logits()
    student = student.float()
    grads = []
    for loss in (
        lambda z: losses.hinton_kd(z, teacher, 1.0),
        lambda z: F.cross_entropy(z, teacher.float().softmax(1)),
    ):
        z = student.clone().requires_grad_()
        loss(z).backward()
        grads.append(z.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)


def test_an_offset_of_the_teacher_costs_nothing() -> None:
    student, teacher, _ = logits()
    for loss in (losses.logit_mse, lambda s, t: losses.hinton_kd(s, t, 4.0)):
        assert loss(student, teacher + 50).item() == pytest.approx(loss(student, teacher).item(), rel=1e-4)


@pytest.mark.parametrize("loss", [losses.logit_mse, lambda s, t: losses.hinton_kd(s, t, 4.0)])
def test_a_perfect_copy_is_the_minimum(loss: object) -> None:
    _, teacher, _ = logits()
    copy = teacher.float().clone().requires_grad_()
    value = loss(copy, teacher)  # type: ignore[operator]
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert copy.grad is not None
    assert copy.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gap", [0.0, 60.0, 120.0])
@pytest.mark.parametrize("spec", [HintonKd(temperature=1), HintonKd(), LogitMse(), CrossEntropy(smoothing=0.1)])
def test_finite_in_half_precision(dtype: torch.dtype, gap: float, spec: HintonKd | LogitMse | CrossEntropy) -> None:
    student = torch.zeros(4, 10, dtype=dtype)
    student[:, 0] = gap
    teacher = torch.zeros(4, 10, dtype=dtype)
    teacher[:, 1] = gap
    student.requires_grad_()
    total = torch.stack(list(losses.terms(spec, Answer(student), Answer(teacher), torch.full((4,), 2)).values())).sum()
    total.backward()
    assert total.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_weights_share_one_between_teacher_and_labels() -> None:
    student, teacher, labels = logits()
    parts = losses.terms(HintonKd(temperature=2, weight=0.75), Answer(student), Answer(teacher), labels)
    assert parts["teacher"].item() == pytest.approx(0.75 * losses.hinton_kd(student, teacher, 2).item())
    assert parts["labels"].item() == pytest.approx(0.25 * F.cross_entropy(student.float(), labels).item())
    assert "labels" not in losses.terms(HintonKd(weight=1), Answer(student), Answer(teacher), labels)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels = logits()
    teacher.requires_grad_()
    student.requires_grad_()
    losses.terms(HintonKd(), Answer(student), Answer(teacher), labels)["teacher"].backward()
    assert teacher.grad is None


def test_a_loss_without_its_teacher_is_refused() -> None:
    student, _, labels = logits()
    with pytest.raises(BadSpec, match="needs a teacher"):
        losses.terms(HintonKd(), Answer(student), None, labels)


def test_uniform_logits_cost_log_classes() -> None:
    assert losses.cross_entropy(torch.zeros(3, 7), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(7))
