"""The augmentation family: parts of a policy, each with its ranges, help and source.

A policy is a tuple of parts, applied in order. A part that mixes images with each other comes last, and alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand

Probability = Annotated[float, Field(ge=0, le=1, description="Share of the images that it is applied to.")]


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


# --- where pixels go: all of these in a row are one resampling --------------------------------------------------------


class Flip(_Augmentation):
    """Mirror the image."""

    amounts = ("probability",)
    draws = 3
    kind: Literal["flip"] = "flip"
    axis: Annotated[Literal["horizontal", "vertical"], Field(description="Left-right or top-bottom.")] = "horizontal"
    probability: Probability = 0.5


class Shift(_Augmentation):
    """Move the image by whole pixels, each direction alike; what enters is black."""

    amounts = ("pixels",)
    draws = 3
    kind: Literal["shift"] = "shift"
    pixels: Annotated[int, Field(ge=1, le=64, description="Largest shift in pixels.")] = 2
    probability: Probability = 1.0


class Rotate(_Augmentation):
    """Turn the image about its centre (bilinear); what enters is black."""

    amounts = ("degrees",)
    draws = 3
    kind: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(gt=0, le=180, description="Largest angle, either way.")] = 10.0
    probability: Probability = 1.0


class Affine(_Augmentation):
    """Translate, scale and shear about the centre (bilinear); what enters is black."""

    amounts = ("translate", "scale", "shear")
    draws = 6
    kind: Literal["affine"] = "affine"
    translate: Annotated[
        float, Field(ge=0, le=0.9, description="Largest move along each axis, as a share of the side.")
    ] = 0.1
    scale: Annotated[float, Field(ge=0, le=0.9, description="Largest change of size, either way: 0.1 is ±10 %.")] = 0.1
    shear: Annotated[float, Field(ge=0, le=60, description="Largest shear along each axis, in degrees.")] = 5.0
    probability: Probability = 1.0


class Crop(_Augmentation):
    """Crop with padding (He et al., 2015): pad every side, then cut out the old size anywhere."""

    amounts = ("padding",)
    draws = 3
    kind: Literal["crop"] = "crop"
    padding: Annotated[int, Field(ge=1, le=128, description="Pixels added on each side; less than the side.")] = 4
    fill: Annotated[
        Literal["black", "edge", "mirror"],
        Field(description="What the padding shows: black, rim or reflection."),
    ] = "black"
    probability: Probability = 1.0


class ResizedCrop(_Augmentation):
    """Resized crop (Szegedy et al., 2015): a window of the image, stretched back to the old size (bilinear)."""

    amounts = ("smallest", "aspect")
    draws = 5
    kind: Literal["resized_crop"] = "resized_crop"
    smallest: Annotated[float, Field(ge=0.05, le=1, description="Smallest window, as a share of the area.")] = 0.6
    aspect: Annotated[
        float, Field(ge=1, le=4, description="Largest ratio of width to height, and of height to width.")
    ] = 1.33
    probability: Probability = 1.0

    def stronger(self, strength: float) -> dict[str, float]:
        return {"smallest": 1 - (1 - self.smallest) * strength, "aspect": self.aspect**strength}


class Perspective(_Augmentation):
    """Perspective: each corner moves inwards by a random amount (bilinear); what enters is black."""

    amounts = ("distortion",)
    draws = 9
    kind: Literal["perspective"] = "perspective"
    distortion: Annotated[
        float, Field(gt=0, le=0.95, description="Largest move of a corner, as a share of half the side.")
    ] = 0.2
    probability: Probability = 0.5


# --- what pixels show -------------------------------------------------------------------------------------------------


class Colour(_Augmentation):
    """Colour jitter: brightness, contrast, saturation and hue, in this order."""

    amounts = ("brightness", "contrast", "saturation", "hue")
    draws = 5
    kind: Literal["colour"] = "colour"
    brightness: Annotated[float, Field(ge=0, le=1, description="Largest change, either way: 0.2 is 80 to 120 %.")] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1, description="Largest change, either way: 0.2 is 80 to 120 %.")] = 0.2
    saturation: Annotated[float, Field(ge=0, le=1, description="Largest change, either way; needs colour images.")] = (
        0.0
    )
    hue: Annotated[
        float, Field(ge=0, le=0.5, description="Largest turn of the colour wheel, in turns; needs colour images.")
    ] = 0.0
    probability: Probability = 1.0


class Blur(_Augmentation):
    """Gaussian blur; its width is drawn for each image."""

    amounts = ("sigma",)
    draws = 2
    kind: Literal["blur"] = "blur"
    sigma: Annotated[
        float, Field(ge=0.1, le=10, description="Largest standard deviation in pixels; the smallest is 0.1.")
    ] = 1.0
    probability: Probability = 0.5


class Noise(_Augmentation):
    """Gaussian noise, drawn for each pixel and channel."""

    amounts = ("amount",)
    draws = 1
    kind: Literal["noise"] = "noise"
    amount: Annotated[float, Field(gt=0, le=1, description="Standard deviation, as a share of white.")] = 0.05
    probability: Probability = 0.5


class Erase(_Augmentation):
    """Random erasing (Zhong et al., 2017): a rectangle turns black."""

    amounts = ("largest",)
    draws = 5
    kind: Literal["erase"] = "erase"
    largest: Annotated[
        float, Field(ge=0.02, le=0.9, description="Largest rectangle, as a share of the area; the smallest is 2 %.")
    ] = 0.2
    probability: Probability = 0.5


class Posterize(_Augmentation):
    """Posterize: keep only the highest bits of each pixel."""

    amounts = ("bits",)
    draws = 1
    kind: Literal["posterize"] = "posterize"
    bits: Annotated[int, Field(ge=1, le=8, description="Bits that are kept, of 8.")] = 4
    probability: Probability = 0.5

    def stronger(self, strength: float) -> dict[str, float]:
        return {"bits": 8 - (8 - self.bits) * strength}


class Solarize(_Augmentation):
    """Solarize: invert the pixels that are brighter than a threshold."""

    amounts = ("threshold",)
    draws = 1
    kind: Literal["solarize"] = "solarize"
    threshold: Annotated[float, Field(ge=0, le=1, description="Share of white from which pixels are inverted.")] = 0.5
    probability: Probability = 0.5

    def stronger(self, strength: float) -> dict[str, float]:
        return {"threshold": 1 - (1 - self.threshold) * strength}


class Equalize(_Augmentation):
    """Equalize: stretch each channel's histogram until all brightnesses are as frequent."""

    amounts = ("probability",)
    draws = 1
    kind: Literal["equalize"] = "equalize"
    probability: Probability = 0.5


# --- policies of several operations -----------------------------------------------------------------------------------


class RandAugment(_Augmentation):
    """RandAugment (Cubuk et al., 2020): some operations of fourteen, all of one magnitude."""

    amounts = ("magnitude",)
    kind: Literal["rand_augment"] = "rand_augment"
    operations: Annotated[int, Field(ge=1, le=6, description="Operations an image, drawn with replacement.")] = 2
    magnitude: Annotated[float, Field(ge=0, le=30, description="Strength of each operation, of 30.")] = 9.0
    probability: Probability = 1.0


class TrivialAugment(_Augmentation):
    """TrivialAugment (Müller & Hutter, 2021): one operation of fourteen, of any magnitude up to a limit."""

    amounts = ("magnitude",)
    kind: Literal["trivial_augment"] = "trivial_augment"
    magnitude: Annotated[float, Field(gt=0, le=30, description="Largest strength, of 30; the paper's is 30.")] = 30.0
    probability: Probability = 1.0


class AugMix(_Augmentation):
    """AugMix (Hendrycks et al., 2020): three short chains of operations, mixed with the image itself."""

    amounts = ("severity",)
    kind: Literal["augmix"] = "augmix"
    severity: Annotated[float, Field(gt=0, le=10, description="Largest strength of an operation, of 10.")] = 3.0
    probability: Probability = 1.0


# --- images mixed with each other -------------------------------------------------------------------------------------

Alpha = Annotated[
    float, Field(gt=0, le=10, description="Of the Beta(α, α) that the share is drawn from: 1 is any share alike.")
]


class MixUp(_Augmentation):
    """MixUp (Zhang et al., 2018): a weighted mean of two images and of their labels."""

    amounts = ("alpha",)
    draws = 0
    kind: Literal["mixup"] = "mixup"
    alpha: Alpha = 0.2
    probability: Probability = 1.0


class CutMix(_Augmentation):
    """CutMix (Yun et al., 2019): a rectangle of another image; labels count by area."""

    amounts = ("probability",)
    draws = 0
    kind: Literal["cutmix"] = "cutmix"
    alpha: Alpha = 1.0
    probability: Probability = 0.5


Geometric = Flip | Shift | Rotate | Affine | Crop | ResizedCrop | Perspective
Photometric = Colour | Blur | Noise | Erase | Posterize | Solarize | Equalize
Several = RandAugment | TrivialAugment | AugMix
Mixing = MixUp | CutMix
MIXING = tuple(str(one.model_fields["kind"].default) for one in get_args(Mixing))

GROUPS: dict[str, tuple[type[Part], ...]] = {
    "Where pixels go": get_args(Geometric),
    "What pixels show": get_args(Photometric),
    "Several at once": get_args(Several),
    "Images mixed": get_args(Mixing),
}
"""The family in the groups that a menu shows."""

Augment = Annotated[
    Geometric | Photometric | Several | Mixing,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def misplaced(policy: Sequence[Part]) -> str | None:
    """What is wrong with the order of a policy, in words; None if nothing is."""
    mixing = [index for index, part in enumerate(policy) if isinstance(part, Mixing)]
    if len(mixing) > 1:
        return f"a policy mixes images at most once, this one has {len(mixing)} mixing parts: keep one"
    if mixing and mixing[0] != len(policy) - 1:
        return f"`{policy[mixing[0]].kind}` mixes finished images: put it last"  # type: ignore[attr-defined]
    return None
