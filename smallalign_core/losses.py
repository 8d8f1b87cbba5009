"""Losses: functions of tensors, each with the reason for its odd factors.

Student and teacher logits are [N, C], labels int64 [N]; each function returns a scalar float32. They are computed in
float32 whatever the precision of the networks. `terms` maps a loss's spec to its weighted terms.
"""

from __future__ import annotations

from typing import assert_never

import torch.nn.functional as F
from torch import Tensor

from smallalign_core.errors import BadSpec
from smallalign_core.spec import CrossEntropy, HintonKd, LogitMse, Loss


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean negative log-likelihood of the labels."""
    return F.cross_entropy(student.float(), labels, label_smoothing=smoothing)


def hinton_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) of logits softened by T (Hinton, Vinyals & Dean, 2015).

    Summed over classes and averaged over the batch ("batchmean"): "mean" would divide by the number of classes too, the
    commonest mistake in published code. T² keeps the gradient's size the same for every T.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """½ mean over batch and classes of the squared difference between centred logits (Ba & Caruana, 2014).

    Centred, because softmax cannot see an offset; ½ and the mean over classes make it the limit of `hinton_kd` as T
    grows (Hinton et al., 2015, eq. 4), so it has no temperature of its own.
    """
    gap = (student.float() - student.float().mean(1, keepdim=True)) - (
        teacher.float() - teacher.float().mean(1, keepdim=True)
    )
    return gap.square().mean() / 2


def terms(loss: Loss, student: Tensor, teacher: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """The weighted terms of `loss`; their sum is what training minimises.

    Raises:
        BadSpec: the loss compares with a teacher and there is none.
    """
    match loss:
        case CrossEntropy():
            return {"labels": cross_entropy(student, labels, loss.smoothing)}
        case HintonKd() | LogitMse():
            if teacher is None:
                raise BadSpec(f"loss `{loss.kind}` needs a teacher", do="name a teacher, or use loss cross_entropy")
            teacher = teacher.detach()
            matched = (
                hinton_kd(student, teacher, loss.temperature)
                if isinstance(loss, HintonKd)
                else logit_mse(student, teacher)
            )
            weighted = {"teacher": loss.weight * matched}
            if loss.weight < 1:
                weighted["labels"] = (1 - loss.weight) * cross_entropy(student, labels)
            return weighted
        case _:
            assert_never(loss)
