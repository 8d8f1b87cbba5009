"""Training objectives: functions of tensors, and `terms`, which maps a loss spec to its weighted terms.

Logits are [N, C], labels int64 [N], or float [N, C] for mixed images. Losses are computed in float32 whatever
the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smallalign_core.augment import as_probabilities
from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    AttentionTransfer,
    CrossEntropy,
    Embedding,
    FitNets,
    Loss,
    OfLayers,
    PythonLoss,
    labels_share,
)
from smallalign_core.spec.loss import OfLogits
from smallalign_core.training.losses import _embedding, _features, _logits, _python
from smallalign_core.training.losses._balance import (
    NEUTRAL as NEUTRAL,
    ClassBalance as ClassBalance,
    class_balance as class_balance,
)
from smallalign_core.training.losses._embedding import (
    EmbeddingScores as EmbeddingScores,
    cosine_distance as cosine_distance,
    embedding_scores as embedding_scores,
    smooth_l1 as smooth_l1,
)
from smallalign_core.training.losses._features import (
    attention as attention,
    hint as hint,
    outputs as outputs,
    place as place,
)
from smallalign_core.training.losses._logits import (
    cross_entropy as cross_entropy,
    dist as dist,
    dkd as dkd,
    hinton_kd as hinton_kd,
    logit_mse as logit_mse,
    scaled_mse as scaled_mse,
    standardized_kd as standardized_kd,
)


@dataclass(frozen=True)
class NetworkOutput:
    """The outputs of a network for a batch.

    Attributes:
        logits: float [N, C]; of a network without a head its features, float [N, F].
        features: outputs of inner modules, by module path below the classifier's body.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: Tensor) -> NetworkOutput:
        """The outputs at these indices, int64 [M]."""
        return NetworkOutput(self.logits[rows], {path: made[rows] for path, made in self.features.items()})


def network_output(
    classifier: nn.Module,
    images: Tensor,
    layers: Sequence[str] = (),
    call: Callable[[Tensor], Tensor] | None = None,
) -> NetworkOutput:
    """The outputs of `classifier` for images, with those of `layers` (paths below its body), captured by hooks.

    Args:
        call: a wrapper of the classifier to call instead.

    Raises:
        BadSpec: it has no such layer, or does not use it.
    """
    call = classifier if call is None else call  # `or` would call len() on a compiled module
    if not layers:
        return NetworkOutput(call(images))
    body, found = classifier.get_submodule("body"), dict[str, Tensor]()

    def keep(path: str, _module: nn.Module, _given: Any, made: Tensor) -> None:
        found[path] = made

    handles = []
    try:
        for path in layers:
            try:
                handles.append(body.get_submodule(path).register_forward_hook(partial(keep, path)))
            except AttributeError:
                raise BadSpec(
                    "the network has no such layer", given=path, do="use the path of one of its modules"
                ) from None
        logits = call(images)
    finally:
        for handle in handles:
            handle.remove()
    if silent := [path for path in layers if path not in found]:
        raise BadSpec("the layer is not used in the forward pass", given=silent[0], do="choose another layer")
    return NetworkOutput(logits, found)


def classes_of(labels: Tensor, teacher: NetworkOutput) -> Tensor:
    """The class of each image: int64 [N]; of a mixed one the larger share. That of an image without a label is the
    teacher's.

    Args:
        labels: int64 [N], -1 without a label; or float [N, C] for mixed images, which then sum to less than a half.
    """
    known, classes = (labels, labels) if labels.ndim == 1 else (labels.sum(1) - 0.5, labels.argmax(1))
    return torch.where(known < 0, teacher.logits.argmax(1), classes)


def check(loss: Loss, *, classes: int, batch: int, mixed: bool, taught: bool = True) -> None:
    """Check that a loss is applicable to the data.

    Args:
        classes: number of classes.
        batch: batch size.
        mixed: whether the policy mixes images or some have no label, so that labels are not single classes.
        taught: whether there is a teacher; a user's function may need one.

    Raises:
        BadSpec: it is not.
        BadInput, BadModel: a user's function cannot be used.
    """
    if isinstance(loss, PythonLoss):
        _python.check(loss, classes=classes, mixed=mixed, taught=taught)
    elif isinstance(loss, OfLogits):
        _logits.check(loss, classes=classes, batch=batch, mixed=mixed)


def layers(loss: Loss) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers of student and teacher whose outputs `loss` compares, in pairs.

    Raises:
        BadSpec: they are not chosen yet.
    """
    if not isinstance(loss, OfLayers):
        return (), ()
    ours, theirs = _features.paths(loss.student_layer), _features.paths(loss.teacher_layer)
    if not ours or len(ours) != len(theirs):
        raise BadSpec(
            f"the layers of loss {loss.kind} are not chosen yet",
            given=f"student: {loss.student_layer or 'none'}; teacher: {loss.teacher_layer or 'none'}",
            do="give as many student layers as teacher layers, or leave both empty",
        )
    return ours, theirs


def projector(loss: Loss, student: NetworkOutput, teacher: NetworkOutput | None) -> nn.Module | None:
    """The trainable projector of `loss`, given both networks' outputs for some images; None for most losses.

    It is trained and checkpointed with the student, and not exported.
    """
    if teacher is None:
        return None
    if isinstance(loss, Embedding):
        return _embedding.projector(student.logits.shape[1], teacher.logits.shape[1])
    if not isinstance(loss, FitNets):
        return None
    (ours,), (theirs,) = layers(loss)
    return _features.regressor(student.features[ours], teacher.features[theirs])


def terms(
    loss: Loss,
    student: NetworkOutput,
    teacher: NetworkOutput | None,
    labels: Tensor,
    *,
    epoch: float = 0.0,
    companion: nn.Module | None = None,
    balance: ClassBalance = NEUTRAL,
) -> dict[str, Tensor]:
    """The weighted terms of `loss`, scalars float32; training minimises their sum. Terms of weight 0 are omitted.

    Args:
        labels: int64 [N], or float [N, C] for mixed images. Unused if their weight is 0. A user's function gets
            float [N, C] also where some images have no label, with rows of zeros for these.
        epoch: epochs so far, for losses with warm-up.
        companion: the projector of this student.
        balance: of the label loss, where classes have unequal size.

    Raises:
        BadSpec: the loss needs a teacher and there is none, or does not support mixed labels.
    """
    if isinstance(loss, PythonLoss):
        theirs = None if teacher is None else teacher.logits.detach()
        whole = balance.partial and labels.ndim == 1  # a user's cross entropy has no class -1
        wanted = as_probabilities(labels, student.logits.shape[1]) if whole else labels
        taught = _python.terms(loss, student.logits, theirs, wanted, epoch)
    else:
        taught = {} if isinstance(loss, CrossEntropy) else _taught(loss, student, teacher, labels, epoch, companion)
    if weight := labels_share(loss):
        smoothing = loss.smoothing if isinstance(loss, CrossEntropy) else 0.0
        taught["labels"] = weight * cross_entropy(student.logits, labels, smoothing, balance)
    return taught


def _taught(
    loss: Loss,
    student: NetworkOutput,
    teacher: NetworkOutput | None,
    labels: Tensor,
    epoch: float,
    companion: nn.Module | None,
) -> dict[str, Tensor]:
    """The weighted terms that depend on the teacher."""
    if teacher is None:
        raise BadSpec(f"loss `{loss.kind}` needs a teacher", do="set `teacher`, or use loss cross_entropy")
    ours, theirs = student.logits, teacher.logits.detach()
    match loss:
        case CrossEntropy() | PythonLoss():
            return {}  # see `terms`
        case Embedding():
            if companion is None:
                raise BadSpec("loss `embedding` needs a trained projector", do="pass the result of `projector`")
            return _embedding.terms(loss, ours, theirs, companion)
        case FitNets() | AttentionTransfer():
            of_layers = _of_layers(loss, student, teacher, companion)
            if loss.kd_weight:
                of_layers["teacher"] = loss.kd_weight * hinton_kd(ours, theirs, loss.temperature)
            return of_layers
    return {"teacher": _logits.term(loss, ours, theirs, labels, epoch)}


def _of_layers(
    loss: OfLayers, student: NetworkOutput, teacher: NetworkOutput, companion: nn.Module | None
) -> dict[str, Tensor]:
    pairs = [
        (student.features[ours], teacher.features[theirs].detach()) for ours, theirs in zip(*layers(loss), strict=True)
    ]
    if isinstance(loss, AttentionTransfer):
        return {"attention": loss.attention_weight * torch.stack([attention(*pair) for pair in pairs]).sum()}
    if companion is None:
        raise BadSpec("loss `fitnets` needs a trained projector", do="pass the result of `projector`")
    return {"hint": loss.hint_weight * hint(*pairs[0], companion)}
