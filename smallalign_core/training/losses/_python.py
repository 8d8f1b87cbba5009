"""A loss of the user's own Python: a function of logits and labels that returns a scalar, or several with names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallalign_core.errors import BadInput, BadModel
from smallalign_core.spec.loss import PythonLoss
from smallalign_core.system import usercode

TAKES = ("student", "teacher", "labels", "epoch")
"""What a function may have parameters for: logits float32 [N, C] of both networks, labels int64 [N] (float [N, C] for
mixed and unlabeled images), and the number of epochs so far."""
DO = "return one number as a tensor, the mean over the batch, or a dict of such tensors"


@functools.lru_cache(maxsize=64)
def function(loss: PythonLoss) -> tuple[Callable[..., Any], frozenset[str]]:
    """The function, and which of `TAKES` it has parameters for.

    Raises:
        BadInput: the file cannot be read or imported, or the function does not take its arguments.
    """
    if loss.file is not None:
        found = usercode.function_of(Path(loss.file), loss.call, loss.sha256)
    else:
        found, _ = usercode.entry_of(loss.group, loss.entry or "", loss.package)
    taken = frozenset(usercode.accepted(found, dict.fromkeys(TAKES)))
    if "student" not in taken:
        raise BadInput(
            "the loss function has no parameter `student`",
            given=loss.shown,
            do="write it as def loss(student, teacher, labels): ...; teacher, labels and epoch may be left out",
        )
    try:
        inspect.signature(found).bind(**dict.fromkeys(taken), **loss.arguments)
    except TypeError as error:
        raise BadInput(
            f"the loss function cannot be called with these arguments: {error}",
            given=f"{loss.shown}; it gets: {', '.join([*sorted(taken), *loss.arguments])}",
            do="add a missing argument to `with`, or remove an unknown one",
        ) from None
    return found, taken


def terms(
    loss: PythonLoss, student: Tensor, teacher: Tensor | None, labels: Tensor, epoch: float = 0.0
) -> dict[str, Tensor]:
    """What the function returns for logits [N, C], by name: scalars float32.

    Raises:
        BadInput: it raised an exception.
        BadModel: it returned something else.
    """
    found, taken = function(loss)
    given = {
        "student": student.float(),
        "teacher": None if teacher is None else teacher.float(),
        "labels": labels,
        "epoch": epoch,
    }
    with usercode.explained():
        made = found(**{name: given[name] for name in taken}, **loss.arguments)
    parts: Mapping[str, Any] = made if isinstance(made, Mapping) else {"teacher" if "teacher" in taken else "own": made}
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.ndim or not part.is_floating_point() or name in ("labels", "total"):
            what = f"a tensor of shape {list(part.shape)}, {part.dtype}" if isinstance(part, Tensor) else type(part)
            raise BadModel(f"the loss function returned {what} as `{name}`", given=loss.shown, do=DO)
    if not parts:
        raise BadModel("the loss function returned no term", given=loss.shown, do=DO)
    return {str(name): part.float() for name, part in parts.items()}


def check(loss: PythonLoss, *, classes: int, mixed: bool, taught: bool) -> None:
    """Try the function on random logits of 8 images.

    Raises:
        BadInput, BadModel: as `terms`; it needs a teacher and there is none, or has no use for one.
    """
    takes = "teacher" in function(loss)[1]
    if takes != taught:
        raise BadInput(
            "the loss function needs teacher logits, and there is no teacher"
            if takes
            else "the loss function does not use teacher logits, and there is a teacher",
            given=loss.shown,
            do="set `teacher`" if takes else "remove `teacher`, or give the function a parameter `teacher`",
        )
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, classes, generator=draw) for _ in range(2))
    labels = torch.arange(8) % classes
    wanted = torch.nn.functional.one_hot(labels, classes).float() if mixed else labels
    leaf = student.requires_grad_()
    parts = terms(loss, leaf, teacher if taught else None, wanted)
    total = torch.stack(list(parts.values())).sum()
    if not total.requires_grad:
        raise BadModel(
            "no gradient of the loss reaches the student",
            given=loss.shown,
            do="compute it from `student` without detach(), argmax or NumPy",
        )
