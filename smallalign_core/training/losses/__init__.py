"""What students are asked to match: functions of tensors, and `terms`, which maps a loss's spec to its weighted terms.

Logits are [N, C], labels int64 [N], or float [N, C] where a view mixes images. Losses are computed in float32 whatever
the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    AttentionTransfer,
    CrossEntropy,
    Dist,
    Dkd,
    FitNets,
    FunctionMatching,
    HintonKd,
    LogitMse,
    Loss,
    OfLayers,
    ScaledMse,
    StandardizedKd,
    labels_share,
)
from smallalign_core.training.losses import _features
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
    """What a network says to a batch.

    Attributes:
        logits: float [N, C].
        features: what inner modules put out, by module path below the classifier's body.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: Tensor) -> NetworkOutput:
        """The answers in these rows, int64 [M]."""
        return NetworkOutput(self.logits[rows], {path: made[rows] for path, made in self.features.items()})


def network_output(
    classifier: nn.Module,
    images: Tensor,
    layers: Sequence[str] = (),
    call: Callable[[Tensor], Tensor] | None = None,
) -> NetworkOutput:
    """The answer of `classifier` to images, with the outputs of `layers` (paths below its body), seen through hooks.

    Args:
        call: what to call instead of the classifier: something that wraps it.

    Raises:
        BadSpec: it has no such layer, or never asks it.
    """
    call = classifier if call is None else call  # `or` would ask a compiled module for its length
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
                raise BadSpec("the network has no such layer", given=path, do="name one of its modules") from None
        logits = call(images)
    finally:
        for handle in handles:
            handle.remove()
    if silent := [path for path in layers if path not in found]:
        raise BadSpec("the network has such a layer and never asks it", given=silent[0], do="name another one")
    return NetworkOutput(logits, found)


def check(loss: Loss, *, classes: int, batch: int, mixed: bool) -> None:
    """Refuse a loss that cannot say anything about such data.

    Args:
        classes: how many there are.
        batch: images a step.
        mixed: whether the view mixes images, so that a label is no single class.

    Raises:
        BadSpec: it cannot.
    """
    match loss:
        case StandardizedKd() if classes < 4:
            wrong, given, do = (
                "logits of fewer than 4 classes, standardized, are nearly the same for every image",
                f"{classes} classes",
                "use loss kd",
            )
        case Dkd() if classes < 3:
            wrong, given, do = (
                "DKD compares the classes besides the label's, and there is only one",
                f"{classes} classes",
                "use loss kd",
            )
        case Dkd() if mixed:
            wrong, given, do = (
                "DKD tells the label's class from the others, and a mixed image has two labels",
                "mixup or cutmix in `augment`",
                "remove it, or use loss kd or function_matching",
            )
        case Dist() if min(classes, batch) < 3:
            wrong, given, do = (
                "a correlation between two numbers is always plus or minus one",
                f"{classes} classes, batch {batch}",
                "use loss kd" if classes < 3 else "raise `batch`: what DIST learns from is a batch",
            )
        case (
            CrossEntropy()
            | HintonKd()
            | LogitMse()
            | ScaledMse()
            | FunctionMatching()
            | FitNets()
            | AttentionTransfer()
        ):
            return
        case StandardizedKd() | Dkd() | Dist():
            return  # none of the above holds
        case _:
            assert_never(loss)
    raise BadSpec(wrong, given=given, do=do)


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
            do="name as many of the student as of the teacher, or let `place` choose",
        )
    return ours, theirs


def projector(loss: Loss, student: NetworkOutput, teacher: NetworkOutput | None) -> nn.Module | None:
    """What `loss` itself must learn beside the student, given both answers to some images; None for most.

    It is trained and kept in checkpoints with the student, and is no part of the weights that are exported.
    """
    if not isinstance(loss, FitNets) or teacher is None:
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
) -> dict[str, Tensor]:
    """The weighted terms of `loss`; their sum is what training minimises. A term of weight 0 is left out.

    Args:
        labels: int64 [N], or float [N, C] where the view mixes images. Not looked at where they have no weight.
        epoch: how often every image was seen, for losses that warm up.
        companion: what `companion` made for this student.

    Raises:
        BadSpec: the loss compares with a teacher and there is none, or cannot take mixed labels.
    """
    taught = {} if isinstance(loss, CrossEntropy) else _taught(loss, student, teacher, labels, epoch, companion)
    if weight := labels_share(loss):
        smoothing = loss.smoothing if isinstance(loss, CrossEntropy) else 0.0
        taught["labels"] = weight * cross_entropy(student.logits, labels, smoothing)
    return taught


def _taught(
    loss: Loss,
    student: NetworkOutput,
    teacher: NetworkOutput | None,
    labels: Tensor,
    epoch: float,
    companion: nn.Module | None,
) -> dict[str, Tensor]:
    """The weighted terms that the teacher has a part in."""
    if teacher is None:
        raise BadSpec(f"loss `{loss.kind}` needs a teacher", do="name a teacher, or use loss cross_entropy")
    ours, theirs = student.logits, teacher.logits.detach()
    match loss:
        case CrossEntropy():
            return {}
        case HintonKd():
            temperature, weight = loss.numbers
            return {"teacher": weight * hinton_kd(ours, theirs, temperature)}
        case LogitMse():
            return {"teacher": loss.weight * logit_mse(ours, theirs)}
        case ScaledMse():
            return {"teacher": loss.weight * scaled_mse(ours, theirs, loss.temperature)}
        case Dkd():
            check(loss, classes=ours.shape[1], batch=len(ours), mixed=labels.ndim > 1)
            # As published: whole epochs, the first of which counts as one.
            grown = min(1.0, (int(epoch) + 1) / loss.warmup_epochs) if loss.warmup_epochs else 1.0
            return {"teacher": grown * dkd(ours, theirs, labels, loss.temperature, loss.alpha, loss.beta)}
        case Dist():
            return {"teacher": dist(ours, theirs, loss.temperature, loss.beta, loss.gamma)}
        case StandardizedKd():
            return {"teacher": loss.teacher_weight * standardized_kd(ours, theirs, loss.temperature)}
        case FunctionMatching():
            return {"teacher": hinton_kd(ours, theirs, loss.temperature)}
        case FitNets() | AttentionTransfer():
            of_layers = _of_layers(loss, student, teacher, companion)
            if loss.kd_weight:
                of_layers["teacher"] = loss.kd_weight * hinton_kd(ours, theirs, loss.temperature)
            return of_layers
        case _:
            assert_never(loss)


def _of_layers(
    loss: OfLayers, student: NetworkOutput, teacher: NetworkOutput, companion: nn.Module | None
) -> dict[str, Tensor]:
    pairs = [
        (student.features[ours], teacher.features[theirs].detach()) for ours, theirs in zip(*layers(loss), strict=True)
    ]
    if isinstance(loss, AttentionTransfer):
        return {"attention": loss.attention_weight * torch.stack([attention(*pair) for pair in pairs]).sum()}
    if companion is None:
        raise BadSpec("loss `fitnets` learns a regressor beside the student", do="pass what `companion` made")
    return {"hint": loss.hint_weight * hint(*pairs[0], companion)}
