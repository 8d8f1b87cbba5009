"""Whether the parts of a spec fit each other: checks raise ValueError, which validation turns into one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallalign_core.spec.balance import Unbalanced
from smallalign_core.spec.loss import Dkd, Embedding, OfLayers, PythonLoss
from smallalign_core.spec.optimizer import Ema, ScheduleFree, nest
from smallalign_core.spec.parts import GivenNetwork, LibraryNetwork

if TYPE_CHECKING:
    from smallalign_core.spec import RunSpec


def check_teacher(spec: RunSpec) -> None:
    """Loss, teacher, and what else depends on the teacher."""
    loss, uses_teacher = spec.loss, spec.loss.uses_teacher
    if isinstance(loss, PythonLoss):  # its function decides: see `losses.check`
        uses_teacher = spec.teacher is not None
    if uses_teacher and spec.teacher is None:
        raise ValueError(f"loss '{loss.kind}' needs a teacher: set `teacher`, or use loss 'cross_entropy'")
    if not uses_teacher and spec.teacher is not None:
        raise ValueError(f"loss '{loss.kind}' does not use a teacher: remove `teacher`, or use loss 'kd'")
    if isinstance(loss, OfLayers) and len(spec.teachers) > 1:
        raise ValueError(
            f"loss '{loss.kind}' compares layers, which cannot be averaged over teachers: give one teacher"
        )
    if spec.shuffled and spec.teacher is None:
        raise ValueError("`shuffled` permutes teacher logits, and there is no teacher: set `teacher`")
    if spec.top is not None and spec.teacher is None:
        raise ValueError("`top` keeps the largest teacher logits, and there is no teacher: set `teacher`")
    if spec.answers != "torch" and isinstance(loss, OfLayers):
        raise ValueError(
            f"loss '{loss.kind}' reads layers of the teacher, which ONNX Runtime hides: leave `answers` out"
        )


def check_unlabeled(spec: RunSpec) -> None:
    """Unlabeled images need targets that are not labels."""
    if not spec.data.has_labels:
        if not spec.headless:
            raise ValueError(
                "`data` has no labeled images, as `source` is missing or the same as `unlabeled`: give others, or use "
                "loss 'embedding'"
            )
        if spec.data.images is not None or spec.data.noise or spec.data.decisions or spec.data.groups:
            raise ValueError("`data` has no labeled images: leave `images`, `noise`, `decisions` and `groups` out")
        if not isinstance(spec.balance, Unbalanced):
            raise ValueError(f"balance '{spec.balance.kind}' needs labels, and `data` has none: leave `balance` out")
    elif spec.data.unlabeled and spec.teacher is None:
        raise ValueError("`data.unlabeled` has no targets without a teacher: set `teacher`, or leave it out")
    if spec.data.unlabeled and isinstance(spec.loss, Dkd):
        raise ValueError("loss 'dkd' needs the label of every image: leave `data.unlabeled` out, or use loss 'kd'")


def check_headless(spec: RunSpec) -> None:
    """A network without a head can learn from features, and start as a teacher of features."""
    if not isinstance(spec.loss, Embedding):
        if isinstance(spec.network, LibraryNetwork) and spec.network.num_classes == 0 and spec.epochs:
            raise ValueError(
                "`network.num_classes` 0 has no head to train: set `epochs: 0`, which makes a teacher of its weights, "
                "or use loss 'embedding'"
            )
        return
    if len(spec.teachers) > 1:
        raise ValueError("loss 'embedding' compares features, which cannot be averaged: give one teacher")
    if spec.shuffled:
        raise ValueError("`shuffled` permutes teacher logits, and loss 'embedding' has none: leave it out")
    if spec.answers != "torch":
        raise ValueError("loss 'embedding' reads features, which need the PyTorch teacher: leave `answers` out")
    if spec.top is not None:
        raise ValueError("`top` keeps the largest teacher logits, and loss 'embedding' has none: leave it out")
    averaged = [part.kind for part in nest(spec.optimizer) if isinstance(part, Ema | ScheduleFree)]
    if averaged:  # the average is of the network alone: it would be scored with another network's projector
        raise ValueError(
            f"optimizer '{averaged[0]}' averages weights, and loss 'embedding' has a projector: use another"
        )
    if spec.select != "accuracy":
        raise ValueError(
            "loss 'embedding' has no accuracy: the best epoch is that of the lowest loss; leave `select` out"
        )
    if isinstance(spec.network, GivenNetwork) and (spec.network.frozen or spec.network.head_rate != 1):
        raise ValueError("`frozen` and `head_rate` are about the head, and loss 'embedding' trains without: leave out")


def check_no_epochs(spec: RunSpec) -> None:
    """Without epochs, initial weights are evaluated."""
    begins = spec.start or (isinstance(spec.network, GivenNetwork) and spec.network.begins)
    if not spec.epochs and not begins:
        raise ValueError("`epochs` 0 evaluates initial weights, and there are none: give `weights` or `start`")
    if not spec.epochs and (spec.teacher or spec.bits):
        raise ValueError("`epochs` 0 evaluates initial weights as they are: leave `teacher` and `bits` out")
