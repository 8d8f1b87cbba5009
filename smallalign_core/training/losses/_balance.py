"""What a `balance` of a spec does to the label loss: a weight and an offset for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from smallalign_core.spec import Balance, ClassWeights, EffectiveNumber, LogitAdjustment, Sampling, Unbalanced


@dataclass(frozen=True)
class ClassBalance:
    """The label loss of classes of unequal size.

    Attributes:
        weights: float32 [C], of the cross entropy of each class; None: all are 1.
        offset: float32 [C], added to the logits in the label loss only; None: nothing is.
        partial: whether some images have no label (-1, or a row of zeros), and so no label loss.
    """

    weights: Tensor | None = None
    offset: Tensor | None = None
    partial: bool = False


NEUTRAL = ClassBalance()


def class_balance(
    balance: Balance, counts: Sequence[int], device: torch.device | str = "cpu", *, partial: bool = False
) -> ClassBalance:
    """The weights or offsets of a `balance`, from the training images per class.

    A class without images has those of one image. Weights have mean 1 over the images, so that the label loss keeps
    its size; the loss is then divided by the number of images and not by the sum of their weights, which would make
    an image's gradient depend on the rest of its batch, and on how processes share it.

    Args:
        counts: labelled training images per class.
        partial: whether there are unlabelled ones too.
    """
    whole = np.asarray(counts, np.float64)
    n = np.maximum(whole, 1)
    match balance:
        case Unbalanced() | Sampling():
            return ClassBalance(partial=partial)
        case ClassWeights():
            weights = n**-balance.power
        case EffectiveNumber():
            with np.errstate(divide="ignore"):  # β = 0: every class counts as one image
                weights = (1 - balance.beta) / -np.expm1(n * np.log(balance.beta))
        case LogitAdjustment():
            offset = balance.tau * np.log(n / n.sum())
            return ClassBalance(offset=torch.from_numpy(offset).float().to(device), partial=partial)
        case _:
            assert_never(balance)
    weights *= whole.sum() / (whole * weights).sum()
    return ClassBalance(torch.from_numpy(weights).float().to(device), partial=partial)
