"""Losses that compare logits: functions of tensors, each with the reason for its constant factors, and `term`, which
maps a spec to its own.

All take logits [N, C] and return a scalar float32, computed in float32 and from log-probabilities, whatever the
precision of the networks: finite, and with finite gradients, for any logits that half precision can hold.
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from smallalign_core.errors import BadSpec
from smallalign_core.spec.loss import (
    Dist,
    Dkd,
    FunctionMatching,
    HintonKd,
    LogitMse,
    OfLogits,
    ScaledMse,
    StandardizedKd,
)
from smallalign_core.training.losses._balance import NEUTRAL, ClassBalance


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0, balance: ClassBalance = NEUTRAL) -> Tensor:
    """Mean negative log-likelihood of the labels: int64 [N], or probabilities float [N, C].

    Weights of classes weight the terms of their sum over images, which is divided by the number of images; offsets are
    added to the logits (logit adjustment; Menon et al., ICLR 2021). Images without a label (-1, or a row of zeros) add
    nothing to the sum, and count among the images.
    """
    logits = student.float() if balance.offset is None else student.float() + balance.offset
    if balance.weights is None and not balance.partial:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    whole = F.cross_entropy(
        logits, labels, balance.weights, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return whole / len(logits)


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

    Centred, because softmax is invariant to an offset; ½ and the mean over classes make it the limit of `hinton_kd`
    as T grows (Hinton et al., 2015, eq. 4), so it has no temperature of its own.
    """
    gap = _centred(student.float(), 1) - _centred(teacher.float(), 1)
    return gap.square().mean() / 2


def scaled_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared error of logits divided by T, as tutorials write it: not centred, and its gradient falls with T²."""
    return F.mse_loss(student.float() / temperature, teacher.float() / temperature)


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """T² (α KL of (label's class, all others) + β KL among the others) (Zhao et al., CVPR 2022, eq. 7).

    `hinton_kd` at T = 1 is the same with α = 1 and, for each image, β = the teacher's probability of the others.

    Args:
        labels: int64 [N].
    """
    ours, theirs = (_decoupled(logits.float() / temperature, labels) for logits in (student, teacher))
    of_target, of_others = (
        F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        for log_p, log_q in zip(ours, theirs, strict=True)
    )
    return temperature**2 * (alpha * of_target + beta * of_others)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, 2] of target and rest, and [N, C] of the others among themselves (0 at the target).

    In log space: the published log(softmax(logits - 1000 · mask)) is infinite at gaps of 120 and NaN in half precision.
    """
    place, log_all = labels[:, None], F.log_softmax(logits, dim=1)
    target = torch.zeros_like(logits, dtype=torch.bool).scatter(1, place, True)
    rest = log_all.masked_fill(target, -torch.inf).logsumexp(1, keepdim=True)
    two = torch.cat([log_all.gather(1, place), rest], dim=1)
    others = F.log_softmax(logits.masked_fill(target, -torch.inf), dim=1)
    return two, others.masked_fill(target, 0)


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """T² (β (1 - ρ between classes) + γ (1 - ρ between images)) of softened probabilities (Huang et al., NeurIPS 2022).

    ρ is Pearson's correlation: over the classes of each image, averaged over images, and over the images of the batch
    for each class, averaged over classes. Where several processes share a batch, each correlates its own part.
    """
    p, q = ((logits.float() / temperature).softmax(1) for logits in (student, teacher))
    return temperature**2 * (beta * _uncorrelated(p, q, 1) + gamma * _uncorrelated(p, q, 0))


def _uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Mean of 1 - Pearson's correlation along `dim`.

    Written as half the squared distance of the two directions, which is the same number, and exactly 0 for equals even
    where a correlation does not exist because nothing varies.
    """
    return (_direction(a, dim) - _direction(b, dim)).square().sum(dim).mean() / 2


def _direction(x: Tensor, dim: int) -> Tensor:
    """`x` centred along `dim`, with length 1; what varies by less than a thousandth of its size fades to 0.

    Without that floor a constant row has a gradient of 0/0, and an almost constant one a boundless gradient.
    """
    centred = _centred(x, dim)
    floor = 1e-6 * x.square().sum(dim, keepdim=True) + 1e-30
    return centred / (centred.square().sum(dim, keepdim=True) + floor).sqrt()


def standardized_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`hinton_kd` of logits that were each brought to mean 0 and deviation 1 (Sun et al., CVPR 2024)."""
    return hinton_kd(_standardized(student.float()), _standardized(teacher.float()), temperature)


def _standardized(logits: Tensor) -> Tensor:
    """Logits [N, C] with mean 0 and unbiased deviation 1 in each row.

    The floor of the deviation is 0.001, not the 1e-7 of the paper: beside any real deviation neither shows, but it
    bounds the gradient of constant and almost constant rows.
    """
    centred = _centred(logits, 1)
    variance = centred.square().sum(1, keepdim=True) / max(1, logits.shape[1] - 1)
    return centred / (variance + 1e-6).sqrt()


def _centred(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


# --- by their specs ---------------------------------------------------------------------------------------------------


def term(loss: OfLogits, student: Tensor, teacher: Tensor, labels: Tensor, epoch: float) -> Tensor:
    """The weighted term of the teacher: scalar float32.

    Args:
        student, teacher: logits [N, C].
        labels: int64 [N], or float [N, C] for mixed images.
        epoch: epochs so far, for losses with warm-up.

    Raises:
        BadSpec: as `check`.
    """
    match loss:
        case HintonKd():
            temperature, weight = loss.numbers
            return weight * hinton_kd(student, teacher, temperature)
        case LogitMse():
            return loss.weight * logit_mse(student, teacher)
        case ScaledMse():
            return loss.weight * scaled_mse(student, teacher, loss.temperature)
        case Dkd():
            check(loss, classes=student.shape[1], batch=len(student), mixed=labels.ndim > 1)
            # As published: whole epochs, the first of which counts as one.
            grown = min(1.0, (int(epoch) + 1) / loss.warmup_epochs) if loss.warmup_epochs else 1.0
            return grown * dkd(student, teacher, labels, loss.temperature, loss.alpha, loss.beta)
        case Dist():
            return dist(student, teacher, loss.temperature, loss.beta, loss.gamma)
        case StandardizedKd():
            return loss.teacher_weight * standardized_kd(student, teacher, loss.temperature)
        case FunctionMatching():
            return hinton_kd(student, teacher, loss.temperature)
        case _:
            assert_never(loss)


def check(loss: OfLogits, *, classes: int, batch: int, mixed: bool) -> None:
    """Check that a loss is applicable to the data. See `check` of the package.

    Raises:
        BadSpec: it is not.
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
                "DKD compares the non-target classes, and there is only one",
                f"{classes} classes",
                "use loss kd",
            )
        case Dkd() if mixed:
            wrong, given, do = (
                "DKD needs a single target class, and a mixed image has two",
                "mixup or cutmix in `augment`",
                "remove it, or use loss kd or function_matching",
            )
        case Dist() if min(classes, batch) < 3:
            wrong, given, do = (
                "a correlation between two numbers is always plus or minus one",
                f"{classes} classes, batch {batch}",
                "use loss kd" if classes < 3 else "raise `batch`: DIST compares the images of a batch",
            )
        case HintonKd() | LogitMse() | ScaledMse() | FunctionMatching():
            return
        case StandardizedKd() | Dkd() | Dist():
            return  # none of the above holds
        case _:
            assert_never(loss)
    raise BadSpec(wrong, given=given, do=do)
