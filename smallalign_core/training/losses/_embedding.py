"""The loss between embeddings, that is, pooled features: functions of tensors float [N, F], computed in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core.spec import Embedding


@dataclass(frozen=True)
class EmbeddingScores:
    """How near projected student features are to the teacher's.

    Attributes:
        images: number of images.
        loss: the mean loss; lower is better.
        cosine: the mean cosine similarity, -1..1.
    """

    images: int
    loss: float
    cosine: float


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images of 1 - cos(student, teacher): scalar float32 of [N, F] each. A zero vector has a cosine of 0."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1, eps=1e-8)).mean()


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of d²/2 where |d| < 1 and |d| - 1/2 elsewhere, d = student - teacher (Girshick, 2015)."""
    return F.smooth_l1_loss(student.float(), teacher.float())


def projector(student: int, teacher: int) -> nn.Linear:
    """The linear layer from a student's features to a teacher's number of them."""
    return nn.Linear(student, teacher)


def terms(loss: Embedding, student: Tensor, teacher: Tensor, projector: nn.Module) -> dict[str, Tensor]:
    """The weighted terms for features [N, F of each], without those of weight 0."""
    with torch.autocast(student.device.type, enabled=False):
        ours = projector(student.float())
        weighted = {
            "cosine": (loss.cosine_weight, cosine_distance),
            "smooth_l1": (loss.smooth_l1_weight, smooth_l1),
        }
        return {name: weight * of(ours, teacher) for name, (weight, of) in weighted.items() if weight}


def embedding_scores(
    loss: Embedding, student: NDArray[np.float32], teacher: NDArray[np.float32], projector: nn.Module
) -> EmbeddingScores:
    """The loss and the mean cosine of features [N, F of each], without a gradient."""
    device = next(projector.parameters()).device
    ours, theirs = torch.tensor(student, device=device), torch.tensor(teacher, device=device)  # of the cache: read-only
    with torch.no_grad():
        whole = sum(float(one) for one in terms(loss, ours, theirs, projector).values())
        return EmbeddingScores(len(student), whole, 1 - float(cosine_distance(projector(ours), theirs)))
