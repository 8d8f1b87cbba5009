"""Requests about augmentation, and images in requests; a part of `service.requests`."""

from __future__ import annotations

import base64
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from smallalign_core.analysis.label_report import LabelPreservation, Prediction
from smallalign_core.service.wire import LongRequest, Progress, Request
from smallalign_core.spec import Augment, DataSpec

# --- images -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """One image or several.

    Attributes:
        shape: of the uint8 array; pixels: its bytes in base64.
    """

    shape: tuple[int, ...]
    pixels: str

    @staticmethod
    def of(images: NDArray[np.uint8]) -> Pixels:
        """The pixels of a uint8 array."""
        return Pixels(images.shape, base64.b64encode(images.tobytes()).decode())

    def array(self) -> NDArray[np.uint8]:
        """The uint8 array.

        Raises:
            ValueError: there are more or fewer bytes than `shape` says.
        """
        return np.frombuffer(base64.b64decode(self.pixels), np.uint8).reshape(self.shape)


# --- augmentation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfPolicy:
    """An augmentation policy for a dataset, at a global strength."""

    policy: tuple[Augment, ...]
    data: DataSpec
    strength: float = field(default=1.0, kw_only=True)


Mixture = tuple[tuple[str, float], ...] | None
"""The classes of a mixed label with their shares, the largest first; None if not mixed."""


@dataclass(frozen=True)
class AugmentedImages:
    """Augmented images.

    Attributes:
        rows, labels: [rows]; the label of a user's image is None.
        mixed: [rows][draws].
        images: uint8 [rows, 1 + draws, C, H, W], the original first.
        said: [rows][1 + draws], the teacher's predictions.
    """

    rows: tuple[int, ...]
    labels: tuple[str | None, ...]
    mixed: tuple[tuple[Mixture, ...], ...]
    classes: tuple[str, ...]
    images: Pixels
    said: tuple[tuple[Prediction, ...], ...] | None


@dataclass(frozen=True)
class AugmentImages(OfPolicy, Request[AugmentedImages]):
    """Augment images repeatedly.

    Attributes:
        teacher: a run that predicts the class of each image.
        rows: indices of training images; default: `images` of them, over all classes in turn.
        own: a user's image instead.
        draws, first: number of augmentations per image, and the first epoch. With the seed and batch size of a run
            these are exactly the pixels that it trains on.
    """

    shared: ClassVar[bool] = True

    _: KW_ONLY
    teacher: str | None = None
    rows: tuple[int, ...] | None = None
    own: Pixels | None = None
    images: int = 8
    draws: int = 6
    first: int = 0
    seed: int = 0
    batch: int = 128


@dataclass(frozen=True)
class AugmentedBatch:
    """The first images of an epoch.

    Attributes:
        rows, labels, mixed: [images].
        images: uint8 [images, 2, C, H, W], the original and the augmented image.
    """

    rows: tuple[int, ...]
    labels: tuple[str, ...]
    mixed: tuple[Mixture, ...]
    images: Pixels


@dataclass(frozen=True)
class AugmentBatch(OfPolicy, Request[AugmentedBatch]):
    """The first training images of an epoch, in the order and with the augmentation of a run of that seed and batch
    size.
    """

    shared: ClassVar[bool] = True

    _: KW_ONLY
    epoch: int = 0
    images: int = 12
    seed: int = 0
    batch: int = 128


@dataclass(frozen=True)
class CheckedLabels:
    """Label preservation of a policy.

    Attributes:
        changed: uint8 [n, 2, C, H, W], the original and the augmented image of the most confident label changes.
    """

    report: LabelPreservation
    changed: Pixels


@dataclass(frozen=True)
class CheckLabels(OfPolicy, LongRequest[Progress[CheckedLabels]]):
    """Label preservation of a policy according to a teacher.

    Attributes:
        strength: that of the figures; the sweep covers all strengths.
        limit: maximum label-change rate.
    """

    teacher: str
    _: KW_ONLY
    seed: int = 0
    limit: float = 0.05


@dataclass(frozen=True)
class PolicyCode:
    """A policy at one strength: its transforms, as YAML, and as code for torchvision."""

    parts: tuple[Augment, ...]
    policy: str
    code: str


@dataclass(frozen=True)
class WritePolicy(OfPolicy, Request[PolicyCode]):
    """A policy at a strength, to be used elsewhere."""

    shared: ClassVar[bool] = True
