"""The augmentation family: transforms of a policy, each with its ranges, help and source.

A policy is a tuple of transforms, applied in order. At most one mixes images, and it comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand
from smallalign_core.spec.python import IDENTIFIER, Code

Probability = Annotated[float, Field(ge=0, le=1, description="Probability of applying the transform to an image.")]


class _Augmentation(Part):
    """Facts of a part besides its fields, each given by its class: see `tests/test_families.py`.

    Attributes:
        amounts: the fields that carry its strength; its probability where it has no amount.
        draws: uniform draws an image, the first of which decides whether it is applied; changing it changes every view.
            0 for those that mix images, which draw for a batch; those of several operations count their own.
    """

    amounts: ClassVar[tuple[str, ...]]
    draws: ClassVar[int]

    def stronger(self, strength: float) -> dict[str, float]:
        """Its amounts at another strength: 0 changes nothing, 1 is as written. Not yet held within their limits."""
        return {name: getattr(self, name) * strength for name in self.amounts}


# --- geometric: consecutive ones are composed into one resampling -----------------------------------------------------


class Flip(_Augmentation):
    """Flip the image."""

    amounts = ("probability",)
    draws = 3
    kind: Literal["flip"] = "flip"
    axis: Annotated[Literal["horizontal", "vertical"], Field(description="Left-right or top-bottom.")] = "horizontal"
    probability: Probability = 0.5


class Shift(_Augmentation):
    """Shift the image by whole pixels, uniformly in each direction; zero padding."""

    amounts = ("pixels",)
    draws = 3
    kind: Literal["shift"] = "shift"
    pixels: Annotated[int, Field(ge=1, le=64, description="Largest shift in pixels.")] = 2
    probability: Probability = 1.0


class Rotate(_Augmentation):
    """Rotate the image about its centre (bilinear, zero padding)."""

    amounts = ("degrees",)
    draws = 3
    kind: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(gt=0, le=180, description="Maximum angle in degrees, either direction.")] = 10.0
    probability: Probability = 1.0


class Affine(_Augmentation):
    """Affine transform about the centre: translate, scale and shear (bilinear, zero padding)."""

    amounts = ("translate", "scale", "shear")
    draws = 6
    kind: Literal["affine"] = "affine"
    translate: Annotated[
        float, Field(ge=0, le=0.9, description="Maximum translation along each axis, as a fraction of the side.")
    ] = 0.1
    scale: Annotated[float, Field(ge=0, le=0.9, description="Maximum change of scale: 0.1 is ±10%.")] = 0.1
    shear: Annotated[float, Field(ge=0, le=60, description="Maximum shear along each axis, in degrees.")] = 5.0
    probability: Probability = 1.0


class Crop(_Augmentation):
    """Random crop with padding (He et al., 2015): pad every side, then crop to the original size."""

    amounts = ("padding",)
    draws = 3
    kind: Literal["crop"] = "crop"
    padding: Annotated[
        int, Field(ge=1, le=128, description="Padding per side in pixels; less than the image side.")
    ] = 4
    fill: Annotated[
        Literal["black", "edge", "mirror"],
        Field(description="Padding mode: black, edge or reflection."),
    ] = "black"
    probability: Probability = 1.0


class ResizedCrop(_Augmentation):
    """Random resized crop (Szegedy et al., 2015): a window of the image, resized to the original size (bilinear)."""

    amounts = ("smallest", "aspect")
    draws = 5
    kind: Literal["resized_crop"] = "resized_crop"
    smallest: Annotated[
        float, Field(ge=0.05, le=1, description="Minimum area of the crop, as a fraction of the image area.")
    ] = 0.6
    aspect: Annotated[float, Field(ge=1, le=4, description="Maximum aspect ratio, in either direction.")] = 1.33
    probability: Probability = 1.0

    def stronger(self, strength: float) -> dict[str, float]:
        return {"smallest": 1 - (1 - self.smallest) * strength, "aspect": self.aspect**strength}


class Perspective(_Augmentation):
    """Random perspective: each corner moves inwards by a random amount (bilinear, zero padding)."""

    amounts = ("distortion",)
    draws = 9
    kind: Literal["perspective"] = "perspective"
    distortion: Annotated[
        float, Field(gt=0, le=0.95, description="Maximum displacement of a corner, as a fraction of half the side.")
    ] = 0.2
    probability: Probability = 0.5


# --- photometric ------------------------------------------------------------------------------------------------------


class Colour(_Augmentation):
    """Colour jitter: brightness, contrast, saturation and hue, in this order."""

    amounts = ("brightness", "contrast", "saturation", "hue")
    draws = 5
    kind: Literal["colour"] = "colour"
    brightness: Annotated[float, Field(ge=0, le=1, description="Maximum change: 0.2 is 80 to 120%.")] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1, description="Maximum change: 0.2 is 80 to 120%.")] = 0.2
    saturation: Annotated[float, Field(ge=0, le=1, description="Maximum change; needs colour images.")] = 0.0
    hue: Annotated[
        float,
        Field(ge=0, le=0.5, description="Maximum hue shift, as a fraction of the colour wheel; needs colour images."),
    ] = 0.0
    probability: Probability = 1.0


class Blur(_Augmentation):
    """Gaussian blur; the standard deviation is sampled per image."""

    amounts = ("sigma",)
    draws = 2
    kind: Literal["blur"] = "blur"
    sigma: Annotated[
        float, Field(ge=0.1, le=10, description="Maximum standard deviation in pixels; the minimum is 0.1.")
    ] = 1.0
    probability: Probability = 0.5


class Noise(_Augmentation):
    """Additive Gaussian noise, sampled per pixel and channel."""

    amounts = ("amount",)
    draws = 1
    kind: Literal["noise"] = "noise"
    amount: Annotated[float, Field(gt=0, le=1, description="Standard deviation, as a fraction of white.")] = 0.05
    probability: Probability = 0.5


class Erase(_Augmentation):
    """Random erasing (Zhong et al., 2017): a rectangle is set to black."""

    amounts = ("largest",)
    draws = 5
    kind: Literal["erase"] = "erase"
    largest: Annotated[
        float,
        Field(
            ge=0.02,
            le=0.9,
            description="Maximum area of the rectangle, as a fraction of the image; the minimum is 2%.",
        ),
    ] = 0.2
    probability: Probability = 0.5


class Posterize(_Augmentation):
    """Posterize: keep only the highest bits of each pixel."""

    amounts = ("bits",)
    draws = 1
    kind: Literal["posterize"] = "posterize"
    bits: Annotated[int, Field(ge=1, le=8, description="Bits to keep, of 8.")] = 4
    probability: Probability = 0.5

    def stronger(self, strength: float) -> dict[str, float]:
        return {"bits": 8 - (8 - self.bits) * strength}


class Solarize(_Augmentation):
    """Solarize: invert all pixels above a threshold."""

    amounts = ("threshold",)
    draws = 1
    kind: Literal["solarize"] = "solarize"
    threshold: Annotated[float, Field(ge=0, le=1, description="Threshold, as a fraction of white.")] = 0.5
    probability: Probability = 0.5

    def stronger(self, strength: float) -> dict[str, float]:
        return {"threshold": 1 - (1 - self.threshold) * strength}


class Equalize(_Augmentation):
    """Equalize: histogram equalization per channel."""

    amounts = ("probability",)
    draws = 1
    kind: Literal["equalize"] = "equalize"
    probability: Probability = 0.5


# --- automated policies -----------------------------------------------------------------------------------------------


class RandAugment(_Augmentation):
    """RandAugment (Cubuk et al., 2020): a number of operations out of fourteen, at one magnitude."""

    amounts = ("magnitude",)
    kind: Literal["rand_augment"] = "rand_augment"
    operations: Annotated[int, Field(ge=1, le=6, description="Operations per image, sampled with replacement.")] = 2
    magnitude: Annotated[float, Field(ge=0, le=30, description="Magnitude of each operation, 0 to 30.")] = 9.0
    probability: Probability = 1.0


class TrivialAugment(_Augmentation):
    """TrivialAugment (Müller & Hutter, 2021): one operation out of fourteen, at a magnitude up to a limit."""

    amounts = ("magnitude",)
    kind: Literal["trivial_augment"] = "trivial_augment"
    magnitude: Annotated[float, Field(gt=0, le=30, description="Maximum magnitude, 0 to 30; 30 in the paper.")] = 30.0
    probability: Probability = 1.0


class AugMix(_Augmentation):
    """AugMix (Hendrycks et al., 2020): three short chains of operations, mixed with the image itself."""

    amounts = ("severity",)
    kind: Literal["augmix"] = "augmix"
    severity: Annotated[float, Field(gt=0, le=10, description="Maximum severity of an operation, 0 to 10.")] = 3.0
    probability: Probability = 1.0


# --- mixing -----------------------------------------------------------------------------------------------------------

Alpha = Annotated[
    float, Field(gt=0, le=10, description="α of the Beta(α, α) distribution of the mixing ratio: 1 is uniform.")
]


class MixUp(_Augmentation):
    """MixUp (Zhang et al., 2018): a convex combination of two images and of their labels."""

    amounts = ("alpha",)
    draws = 0
    kind: Literal["mixup"] = "mixup"
    alpha: Alpha = 0.2
    probability: Probability = 1.0


class CutMix(_Augmentation):
    """CutMix (Yun et al., 2019): a rectangle of another image; labels are weighted by area."""

    amounts = ("probability",)
    draws = 0
    kind: Literal["cutmix"] = "cutmix"
    alpha: Alpha = 1.0
    probability: Probability = 0.5


# --- the user's own ---------------------------------------------------------------------------------------------------


class PythonAugment(Code, _Augmentation):
    """Your own: a Python function that returns a transform of one uint8 image, such as one of torchvision's."""

    group: ClassVar[str] = "smallalign.augmentations"
    amounts = ("strength",)
    draws = 2
    kind: Literal["python"] = "python"
    call: Annotated[
        str, Field(pattern=IDENTIFIER, max_length=100, description="Name of the function or class that makes it.")
    ] = "make"
    strength: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            description="Passed to the function if it has a parameter `strength`; else it multiplies the probability.",
        ),
    ] = 1.0
    label_preserving: Annotated[
        bool,
        Field(
            description="Whether an augmented image keeps its class. If not, the label of each image that it is "
            "applied to is left out: the teacher's targets remain, so it needs a teacher."
        ),
    ] = True
    probability: Probability = 1.0


Geometric = Flip | Shift | Rotate | Affine | Crop | ResizedCrop | Perspective
Photometric = Colour | Blur | Noise | Erase | Posterize | Solarize | Equalize
Several = RandAugment | TrivialAugment | AugMix
Mixing = MixUp | CutMix
MIXING = tuple(str(one.model_fields["kind"].default) for one in get_args(Mixing))

GROUPS: dict[str, tuple[type[Part], ...]] = {
    "Geometric": get_args(Geometric),
    "Photometric": get_args(Photometric),
    "Automated": get_args(Several),
    "Mixing": get_args(Mixing),
    "Your own": (PythonAugment,),
}
"""The family, grouped as in the menu."""

Augment = Annotated[
    Geometric | Photometric | Several | Mixing | PythonAugment,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def drops_labels(policy: Sequence[Part]) -> bool:
    """Whether a part of a policy changes what images show, so that their labels are left out."""
    return any(isinstance(part, PythonAugment) and not part.label_preserving for part in policy)


def misplaced(policy: Sequence[Part], *, views: int = 0, targets: bool = True) -> str | None:
    """The error in a policy, as text; None if it is valid.

    Args:
        views: augmentations of each image that are used in turn; 0: new ones.
        targets: whether an image without a label has a target.
    """
    mixing = [index for index, part in enumerate(policy) if isinstance(part, Mixing)]
    if len(mixing) > 1:
        return f"a policy can have one mixing transform, this one has {len(mixing)}: keep one"
    if mixing and mixing[0] != len(policy) - 1:
        return f"`{policy[mixing[0]].kind}` mixes augmented images: put it last"  # type: ignore[attr-defined]
    if mixing and views:
        return "mixed images change at every step and cannot be cached: set `views` to 0"
    if drops_labels(policy) and not targets:
        return "`label_preserving: false` leaves only the teacher's targets: set `teacher`, and another loss than 'dkd'"
    return None
