"""Teacher outputs for views: live or cached."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core.augment import Batch, Views
from smallalign_core.data import ImageSet
from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.metrics import logits_of
from smallalign_core.networks import BaseClassifier, Classifier, Embedder
from smallalign_core.system import _compat
from smallalign_core.system.batching import in_batches
from smallalign_core.training.losses import NetworkOutput, network_output
from smallalign_core.training.teacher import _top
from smallalign_core.training.teacher._cache import TeacherCache as TeacherCache
from smallalign_core.training.teacher._chunk import rounded
from smallalign_core.training.teacher._index import (
    CacheIndex as CacheIndex,
    CachePlan as CachePlan,
    intact as intact,
    plan as plan,
)


class TeacherSource(Protocol):
    """A source of a step's images and the teacher's outputs for them: live, or from a cache.

    Attributes:
        answered: number of images with a teacher forward pass so far.
        live: whether every image needs a forward pass.
    """

    @property
    def answered(self) -> int: ...

    @property
    def live(self) -> bool: ...

    def prepare(self, views: Views, step: int) -> Iterator[float]:
        """Do the slow part of `batch_with_targets` in advance; yields progress, 0..1. The caller may stop."""
        ...

    def batch_with_targets(self, views: Views, step: int) -> tuple[Batch, NetworkOutput]:
        """The batch of `step`, and the teacher's output for it."""
        ...

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images without augmentation."""
        ...


class Teacher:
    """Frozen classifiers in evaluation mode, without gradients.

    An ensemble averages probabilities. Logits are rounded to half precision, as in the cache, so that cached and live
    logits are identical.

    Args:
        classifiers: finished or imported classifiers, one or more.
        classes: the classes of the data; none where features are wanted, of an `Embedder`.
        layers: paths below the body whose outputs are included; only for a single classifier.
        precision: `bf16` uses autocast.
        top: only the largest so many logits are kept, see `_top`; None, or as many as classes: all.

    Raises:
        BadInput: their classes are not those of the data, in the same order.
        BadSpec: layers of several teachers were requested.
    """

    def __init__(
        self,
        classifiers: BaseClassifier | Sequence[BaseClassifier],
        classes: tuple[str, ...],
        device: torch.device | str = "cpu",
        *,
        layers: Sequence[str] = (),
        precision: str = "fp32",
        top: int | None = None,
    ) -> None:
        several = [classifiers] if isinstance(classifiers, BaseClassifier) else list(classifiers)
        for classifier in several:
            if classifier.classes != classes:
                raise BadInput(
                    "the teacher's classes do not match the data",
                    given=f"teacher: {_listed(classifier.classes)}; data: {_listed(classes)}",
                    do="choose a teacher that was trained on these classes",
                )
        if layers and len(several) > 1:
            raise BadSpec(
                "layers of several teachers cannot be averaged",
                given=f"{len(several)} teachers",
                do="give one teacher, or a loss that compares logits only",
            )
        self._classifiers = [classifier.eval().requires_grad_(False).to(device) for classifier in several]
        self._layers, self._precision, self._device = tuple(layers), precision, torch.device(device)
        self._networks = [_cast(one) for one in self._classifiers] if precision == "bf16" else self._classifiers
        self.answered, self.live = 0, True
        self._top = _top.used(top, len(classes))

    def output(self, images: Tensor) -> NetworkOutput:
        """The output for uint8 images [N, channels, H, W]; its logits are float32 [N, C]."""
        self.answered += len(images)
        half = self._precision == "bf16"
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16) if half else contextlib.nullcontext():
            said = [_answer(classifier, images, self._layers) for classifier in self._networks]
            features = {path: made.float() for path, made in said[0].features.items()}
            whole = rounded(averaged([one.logits.float() for one in said]))
            return NetworkOutput(_top.kept(whole, self._top), features)

    def logits(self, images: Tensor) -> Tensor:
        """Logits float32 [N, C] of uint8 images [N, channels, H, W]."""
        return self.output(images).logits

    def prepare(self, views: Views, step: int) -> Iterator[float]:  # noqa: ARG002
        """Nothing to prepare: each batch is computed when it is needed."""
        return iter(())

    def batch_with_targets(self, views: Views, step: int) -> tuple[Batch, NetworkOutput]:
        """The batch of `step`, and the teacher's output for it."""
        batch = views(step)
        return batch, self.output(batch.images)

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images without augmentation, in full precision."""
        self.answered += len(images)
        found = [torch.from_numpy(logits_of(one, images, device=self._device)) for one in self._classifiers]
        return averaged(found).numpy()


def _answer(classifier: BaseClassifier, images: Tensor, layers: Sequence[str]) -> NetworkOutput:
    """As `losses.answer`, in smaller batches if all images would need too much memory."""
    if layers:  # layer outputs are kept for all images anyway
        return network_output(classifier, images, layers)
    return NetworkOutput(in_batches(classifier, images))


def _cast(classifier: BaseClassifier) -> BaseClassifier:
    """A copy with large weights cast to bf16; autocast would cast them at each call, with the same result."""
    if not isinstance(classifier, Classifier | Embedder):
        return classifier
    copied = copy.deepcopy(classifier)
    for module in copied.modules():
        if type(module) in (
            nn.Linear,
            nn.Conv2d,
        ):  # attention passes weights of its own Linear subclass to fused kernels
            module.to(torch.bfloat16)
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            _pack(module)
    return copied


def _pack(linear: nn.Linear) -> None:
    """Pack the weights of a bf16 layer on the CPU for oneDNN, which otherwise reorders them at each call.

    Outputs are bit-identical, and a tenth of a dense teacher's time is saved.
    """
    if (forward := _compat.packed_linear(linear)) is not None:
        linear.forward = forward  # type: ignore[assignment, method-assign]


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """Logits [N, C] of the mean probabilities of all `logits`; a single one is returned unchanged."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - float(np.log(len(logits)))


def averaged_logits(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """As `averaged`, for arrays."""
    return np.asarray(averaged([torch.from_numpy(one) for one in logits]).numpy())


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
