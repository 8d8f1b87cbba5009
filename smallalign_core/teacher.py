"""The teacher's answers to views."""

from __future__ import annotations

import torch
from torch import Tensor

from smallalign_core.errors import BadInput
from smallalign_core.networks import Classifier


class Teacher:
    """A classifier that answers and never learns: evaluation mode, no gradients, for good.

    Args:
        classifier: any finished or imported classifier.
        classes: the classes of the data that it is asked about.

    Raises:
        BadInput: its classes are not those of the data, in the same order.
    """

    def __init__(self, classifier: Classifier, classes: tuple[str, ...], device: torch.device | str = "cpu") -> None:
        if classifier.classes != classes:
            raise BadInput(
                "the teacher's classes do not match the data",
                given=f"teacher: {_listed(classifier.classes)}; data: {_listed(classes)}",
                do="choose a teacher that was trained on these classes",
            )
        self._classifier = classifier.eval().requires_grad_(False).to(device)

    def logits(self, images: Tensor) -> Tensor:
        """Logits float32 [N, C] of uint8 images [N, channels, H, W]."""
        with torch.no_grad():
            return self._classifier(images).float()


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
