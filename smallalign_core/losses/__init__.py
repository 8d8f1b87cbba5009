"""Losses: functions of tensors, each with the reason for its odd factors.

Student and teacher logits are [N, C], labels int64 [N]; each function returns a scalar float32. They are computed in
float32 whatever the precision of the networks. `terms` maps a loss's spec to its weighted terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, assert_never

import torch.nn.functional as F
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import CrossEntropy, HintonKd, LogitMse, Loss


@dataclass(frozen=True)
class Answer:
    """What a network says to a batch.

    Attributes:
        logits: float [N, C].
        features: what inner modules put out, by module path below the classifier's body.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def taken(self, rows: Tensor) -> Answer:
        """The answers in these rows, int64 [M]."""
        return Answer(self.logits[rows], {path: made[rows] for path, made in self.features.items()})


def answer(
    classifier: nn.Module,
    images: Tensor,
    layers: Sequence[str] = (),
    call: Callable[[Tensor], Tensor] | None = None,
) -> Answer:
    """The answer of `classifier` to images, with the outputs of `layers` (paths below its body), seen through hooks.

    Args:
        call: what to call instead of the classifier: something that wraps it.

    Raises:
        BadSpec: it has no such layer.
    """
    body, found = classifier.get_submodule("body"), dict[str, Tensor]()

    def keep(path: str, _module: nn.Module, _given: Any, made: Tensor) -> None:
        found[path] = made

    handles = []
    try:
        for path in layers:
            try:
                handles.append(body.get_submodule(path).register_forward_hook(partial(keep, path)))
            except AttributeError:
                raise BadSpec("the network has no such layer", given=path, do="name one of its modules") from None
        return Answer((call or classifier)(images), found)
    finally:
        for handle in handles:
            handle.remove()


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


def layers(loss: Loss) -> tuple[tuple[str, ...], tuple[str, ...]]:  # noqa: ARG001
    """The layers of student and teacher whose outputs `loss` compares."""
    return (), ()


def companion(loss: Loss, student: Answer, teacher: Answer | None) -> nn.Module | None:  # noqa: ARG001
    """What `loss` itself must learn beside the student, given the answers to one image; None for most.

    It is trained and kept in checkpoints with the student, and is no part of the weights that are exported.
    """
    return None


def terms(
    loss: Loss,
    student: Answer,
    teacher: Answer | None,
    labels: Tensor,
    *,
    epoch: float = 0.0,  # noqa: ARG001
    companion: nn.Module | None = None,  # noqa: ARG001
) -> dict[str, Tensor]:
    """The weighted terms of `loss`; their sum is what training minimises.

    Args:
        labels: int64 [N], or float [N, C] where the view mixes images.
        epoch: how often every image was seen, for losses that warm up.
        companion: what `companion` made for this student.

    Raises:
        BadSpec: the loss compares with a teacher and there is none.
    """
    match loss:
        case CrossEntropy():
            return {"labels": cross_entropy(student.logits, labels, loss.smoothing)}
        case HintonKd() | LogitMse():
            if teacher is None:
                raise BadSpec(f"loss `{loss.kind}` needs a teacher", do="name a teacher, or use loss cross_entropy")
            wanted = teacher.logits.detach()
            matched = (
                hinton_kd(student.logits, wanted, loss.temperature)
                if isinstance(loss, HintonKd)
                else logit_mse(student.logits, wanted)
            )
            weighted = {"teacher": loss.weight * matched}
            if loss.weight < 1:
                weighted["labels"] = (1 - loss.weight) * cross_entropy(student.logits, labels)
            return weighted
        case _:
            assert_never(loss)
