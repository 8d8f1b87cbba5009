"""The contract of a loss: what well-known implementations get wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from smallalign_core.spec import PythonLoss
from smallalign_core.training.losses import _python

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Student logits [N, C], teacher logits [N, C] and labels int64 [N] to a scalar."""
Case = tuple[Tensor, Tensor, Tensor]
Result = str | tuple[bool | None, str]

NEAR, SLOPE = 1e-6, 1e-5
"""Largest value and gradient where student and teacher are equal."""
GROWTH = 1.6
"""Largest ratio of gradient norms from T = 1 to 20; without the factor T² it is about 400."""
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)


def drawn(classes: int = 10, batch: int = 64, scale: float = 3.0, seed: int = 0) -> Case:
    """Random logits of student and teacher, float64 [N, C], and labels."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(batch, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(classes, (batch,), generator=draw)


def gradient(loss: Function, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The gradient of a loss at the student's logits, float32 [N, C]."""
    leaf = student.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, teacher, labels), leaf)
    return found


def least_at_the_teacher(loss: Function, classes: int = 10) -> str:
    """A perfect copy of the teacher costs nothing, has no gradient, and all around it costs more."""
    _, teacher, labels = drawn(classes)
    value = loss(teacher, teacher, labels).item()
    if abs(value) > NEAR:
        return f"the loss is {value:.3g} where student and teacher logits are equal, not 0"
    if (slope := gradient(loss, teacher, teacher, labels).abs().max().item()) >= SLOPE:
        return f"its gradient is {slope:.3g} where student and teacher logits are equal, not 0"
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        near = teacher + 0.1 * torch.randn(teacher.shape, generator=draw)
        if loss(near, teacher, labels) <= SLOPE:
            return "another student near the teacher costs no more than a perfect copy"
    return ""


def keeps_gradient_size(made: Callable[[float], Function], classes: int = 10) -> str:
    """The gradient keeps its size over the temperature: the factor T² of Hinton et al. (2015)."""
    student, teacher, labels = drawn(classes, scale=1.0)
    norms = [gradient(made(heat), student, teacher, labels).norm().item() for heat in TEMPERATURES]
    ratio = max(norms) / max(min(norms), 1e-30)
    if ratio < GROWTH:
        return ""
    return (
        f"the gradient norm is {norms[0]:.3g} at temperature 1 and {norms[-1]:.3g} at 20, a ratio of {ratio:.3g}: "
        "multiply the loss by the square of the temperature"
    )


def finite(loss: Function, student: Tensor, teacher: Tensor, labels: Tensor) -> str:
    """The loss is float32 and finite, and so is its gradient, whatever the precision of the logits."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf, teacher, labels)
    (slope,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if value.dtype != torch.float32:
        return f"the loss of {student.dtype} logits is {value.dtype}, not float32"
    if not value.isfinite():
        return f"the loss of {student.dtype} logits up to {student.abs().max():.0f} is {value.item()}"
    if slope is None or not slope.isfinite().all():
        return f"the gradient for {student.dtype} logits up to {student.abs().max():.0f} is not finite"
    return ""


def confident(dtype: torch.dtype, gap: float, classes: int) -> Case:
    """Student and teacher that are sure of different classes, by so much."""
    student, teacher = torch.zeros(4, classes, dtype=dtype), torch.zeros(4, classes, dtype=dtype)
    student[:, 0], teacher[:, 1] = gap, gap
    return student, teacher, torch.arange(4) % classes


def extremes(classes: int) -> Iterator[Case]:
    """Logits at the end of half precision, in which a teacher's are kept: up to 60,000, either way."""
    teacher = torch.full((3, classes), -60_000.0)
    teacher[:, classes // 2] = 60_000.0
    draw = torch.Generator().manual_seed(0)
    for wanted in (teacher, -teacher):
        for student in (torch.zeros(3, classes), torch.randn(3, classes, generator=draw), -wanted):
            yield student, wanted, torch.arange(3) % classes


def teacher_is_constant(loss: Function, student: Tensor, teacher: Tensor, labels: Tensor) -> str:
    """No gradient reaches the teacher, and some reaches the student."""
    student, teacher = student.detach().float().requires_grad_(), teacher.detach().float().requires_grad_()
    ours, theirs = torch.autograd.grad(loss(student, teacher, labels), [student, teacher], allow_unused=True)
    if theirs is not None:
        return "a gradient reaches the teacher"
    if ours is None or not ours.abs().sum():
        return "no gradient reaches the student"
    return ""


def averaged(loss: Function, classes: int = 10) -> str:
    """Each image twice gives the same loss, and another order too: it is a mean over the batch."""
    case = drawn(classes, batch=16)
    once, twice, turned = (
        loss(*some).item() for some in (case, [torch.cat([one, one]) for one in case], [one.flip(0) for one in case])
    )
    if abs(turned - once) > 1e-4 * max(1.0, abs(once)):
        return f"the loss depends on the order of images: {once:.6g}, reversed {turned:.6g}"
    if abs(twice - once) > 1e-4 * max(1.0, abs(once)):
        return f"the loss of every image twice is {twice:.6g}, of each once {once:.6g}: average over the batch"
    return ""


# --- a user's own -----------------------------------------------------------------------------------------------------


def checks(spec: PythonLoss, classes: int, *, zero: bool) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    """Names, the words where they pass, and checks of a user's loss, in order."""
    loss = function_of(spec)
    yield "arguments", "", lambda: _takes(spec)
    yield "scalar", "", lambda: _scalar(spec, classes)
    yield "gradient", "a finite gradient reaches the student", lambda: _reaches(loss, drawn(classes, 8))
    yield (
        "mean over the batch",
        "it does not depend on the number of images or their order",
        lambda: averaged(loss, classes),
    )
    yield (
        "finite for confident logits",
        "loss and gradient are finite for logits that half precision can hold",
        lambda: _all_finite(loss, classes),
    )
    yield (
        "zero at the teacher",
        "a perfect copy costs nothing, and everything near it more",
        lambda: _zero(spec, loss, classes, claimed=zero),
    )
    yield (
        "gradient size over temperature",
        "the gradient keeps its size from temperature 1 to 20",
        lambda: _heat(spec, classes),
    )


def function_of(spec: PythonLoss) -> Function:
    """The sum of the terms of a user's loss."""

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return torch.stack(list(_python.terms(spec, student, teacher.detach(), labels).values())).sum()

    return loss


def _takes(spec: PythonLoss) -> Result:
    taken = sorted(_python.function(spec)[1], key=_python.TAKES.index)
    return True, f"gets {', '.join([*taken, *spec.arguments])}"


def _scalar(spec: PythonLoss, classes: int) -> Result:
    student, teacher, labels = drawn(classes, 8)
    parts = _python.terms(spec, student, teacher, labels)
    return True, ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())


def _reaches(loss: Function, case: Case) -> Result:
    slope = gradient(loss, *case)
    if not slope.isfinite().all():
        return "the gradient at the student's logits is not finite"
    return "" if slope.abs().sum() else "the gradient at the student's logits is zero"


def _all_finite(loss: Function, classes: int) -> Result:
    sure: Sequence[Case] = [
        confident(dtype, gap, classes)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for gap in (0.0, 60.0, 120.0)
    ]
    return next((wrong for case in [*sure, *extremes(classes)] if (wrong := finite(loss, *case))), "")


def _zero(spec: PythonLoss, loss: Function, classes: int, *, claimed: bool) -> Result:
    if "teacher" not in _python.function(spec)[1]:
        return None, "it does not use a teacher"
    _, teacher, labels = drawn(classes)
    value = loss(teacher, teacher, labels).item()
    if not claimed and abs(value) > NEAR:
        return None, f"it is {value:.3g} there, which a label term explains; --zero checks that it is 0"
    return least_at_the_teacher(loss, classes)


def _heat(spec: PythonLoss, classes: int) -> Result:
    import inspect

    found, taken = _python.function(spec)
    if "teacher" not in taken or "temperature" not in inspect.signature(found).parameters:
        return None, "it has no parameter `temperature`"

    def made(heat: float) -> Function:
        given: Any = {**spec.arguments, "temperature": heat}
        return function_of(spec.model_copy(update={"with": type(spec.arguments)(given)}))

    return keeps_gradient_size(functools.cache(made), classes)
