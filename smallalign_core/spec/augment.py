"""The augmentation family: parts of a policy, each with its ranges, help and source.

A policy is a tuple of parts, applied in order. A part that mixes images with each other comes last, and alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand

Probability = Annotated[float, Field(ge=0, le=1, description="Share of the images that it is applied to.")]

# --- where pixels go: all of these in a row are one resampling --------------------------------------------------------


class Flip(Part):
    """Mirror the image."""

    kind: Literal["flip"] = "flip"
    axis: Annotated[Literal["horizontal", "vertical"], Field(description="Left-right or top-bottom.")] = "horizontal"
    probability: Probability = 0.5


class Shift(Part):
    """Move the image by whole pixels, each direction alike; what enters is black."""

    kind: Literal["shift"] = "shift"
    pixels: Annotated[int, Field(ge=1, le=64, description="Largest shift in pixels.")] = 2
    probability: Probability = 1.0


class Rotate(Part):
    """Turn the image about its centre (bilinear); what enters is black."""

    kind: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(gt=0, le=180, description="Largest angle, either way.")] = 10.0
    probability: Probability = 1.0


class Affine(Part):
    """Translate, scale and shear about the centre (bilinear); what enters is black."""

    kind: Literal["affine"] = "affine"
    translate: Annotated[
        float, Field(ge=0, le=0.9, description="Largest move along each axis, as a share of the side.")
    ] = 0.1
    scale: Annotated[float, Field(ge=0, le=0.9, description="Largest change of size, either way: 0.1 is ±10 %.")] = 0.1
    shear: Annotated[float, Field(ge=0, le=60, description="Largest shear along each axis, in degrees.")] = 5.0
    probability: Probability = 1.0


class Crop(Part):
    """Crop with padding (He et al., 2015): pad every side, then cut out the old size anywhere."""

    kind: Literal["crop"] = "crop"
    padding: Annotated[int, Field(ge=1, le=128, description="Pixels added on each side; less than the side.")] = 4
    fill: Annotated[
        Literal["black", "edge", "mirror"],
        Field(description="What the padding shows: black, rim or reflection."),
    ] = "black"
    probability: Probability = 1.0


class ResizedCrop(Part):
    """Resized crop (Szegedy et al., 2015): a window of the image, stretched back to the old size (bilinear)."""

    kind: Literal["resized_crop"] = "resized_crop"
    smallest: Annotated[float, Field(ge=0.05, le=1, description="Smallest window, as a share of the area.")] = 0.6
    aspect: Annotated[
        float, Field(ge=1, le=4, description="Largest ratio of width to height, and of height to width.")
    ] = 1.33
    probability: Probability = 1.0


class Perspective(Part):
    """Perspective: each corner moves inwards by a random amount (bilinear); what enters is black."""

    kind: Literal["perspective"] = "perspective"
    distortion: Annotated[
        float, Field(gt=0, le=0.95, description="Largest move of a corner, as a share of half the side.")
    ] = 0.2
    probability: Probability = 0.5


# --- what pixels show -------------------------------------------------------------------------------------------------


class Colour(Part):
    """Colour jitter: brightness, contrast, saturation and hue, in this order."""

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


class Blur(Part):
    """Gaussian blur; its width is drawn for each image."""

    kind: Literal["blur"] = "blur"
    sigma: Annotated[
        float, Field(ge=0.1, le=10, description="Largest standard deviation in pixels; the smallest is 0.1.")
    ] = 1.0
    probability: Probability = 0.5


class Noise(Part):
    """Gaussian noise, drawn for each pixel and channel."""

    kind: Literal["noise"] = "noise"
    amount: Annotated[float, Field(gt=0, le=1, description="Standard deviation, as a share of white.")] = 0.05
    probability: Probability = 0.5


class Erase(Part):
    """Random erasing (Zhong et al., 2017): a rectangle turns black."""

    kind: Literal["erase"] = "erase"
    largest: Annotated[
        float, Field(ge=0.02, le=0.9, description="Largest rectangle, as a share of the area; the smallest is 2 %.")
    ] = 0.2
    probability: Probability = 0.5


class Posterize(Part):
    """Posterize: keep only the highest bits of each pixel."""

    kind: Literal["posterize"] = "posterize"
    bits: Annotated[int, Field(ge=1, le=8, description="Bits that are kept, of 8.")] = 4
    probability: Probability = 0.5


class Solarize(Part):
    """Solarize: invert the pixels that are brighter than a threshold."""

    kind: Literal["solarize"] = "solarize"
    threshold: Annotated[float, Field(ge=0, le=1, description="Share of white from which pixels are inverted.")] = 0.5
    probability: Probability = 0.5


class Equalize(Part):
    """Equalize: stretch each channel's histogram until all brightnesses are as frequent."""

    kind: Literal["equalize"] = "equalize"
    probability: Probability = 0.5


# --- policies of several operations -----------------------------------------------------------------------------------


class RandAugment(Part):
    """RandAugment (Cubuk et al., 2020): some operations of fourteen, all of one magnitude."""

    kind: Literal["rand_augment"] = "rand_augment"
    operations: Annotated[int, Field(ge=1, le=6, description="Operations an image, drawn with replacement.")] = 2
    magnitude: Annotated[float, Field(ge=0, le=30, description="Strength of each operation, of 30.")] = 9.0
    probability: Probability = 1.0


class TrivialAugment(Part):
    """TrivialAugment (Müller & Hutter, 2021): one operation of fourteen, of any magnitude up to a limit."""

    kind: Literal["trivial_augment"] = "trivial_augment"
    magnitude: Annotated[float, Field(gt=0, le=30, description="Largest strength, of 30; the paper's is 30.")] = 30.0
    probability: Probability = 1.0


class AugMix(Part):
    """AugMix (Hendrycks et al., 2020): three short chains of operations, mixed with the image itself."""

    kind: Literal["augmix"] = "augmix"
    severity: Annotated[float, Field(gt=0, le=10, description="Largest strength of an operation, of 10.")] = 3.0
    probability: Probability = 1.0


# --- images mixed with each other -------------------------------------------------------------------------------------

Alpha = Annotated[
    float, Field(gt=0, le=10, description="Of the Beta(α, α) that the share is drawn from: 1 is any share alike.")
]


class MixUp(Part):
    """MixUp (Zhang et al., 2018): a weighted mean of two images and of their labels."""

    kind: Literal["mixup"] = "mixup"
    alpha: Alpha = 0.2
    probability: Probability = 1.0


class CutMix(Part):
    """CutMix (Yun et al., 2019): a rectangle of another image; labels count by area."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: Alpha = 1.0
    probability: Probability = 0.5


Geometric = Flip | Shift | Rotate | Affine | Crop | ResizedCrop | Perspective
Photometric = Colour | Blur | Noise | Erase | Posterize | Solarize | Equalize
Several = RandAugment | TrivialAugment | AugMix
Mixing = MixUp | CutMix

GROUPS: dict[str, tuple[type[Part], ...]] = {
    "Where pixels go": get_args(Geometric),
    "What pixels show": get_args(Photometric),
    "Several at once": get_args(Several),
    "Images mixed": get_args(Mixing),
}
"""The family in the groups that a menu shows."""

Augment = Annotated[
    Flip
    | Shift
    | Rotate
    | Affine
    | Crop
    | ResizedCrop
    | Perspective
    | Colour
    | Blur
    | Noise
    | Erase
    | Posterize
    | Solarize
    | Equalize
    | RandAugment
    | TrivialAugment
    | AugMix
    | MixUp
    | CutMix,
    Field(discriminator="kind"),
    shorthand("kind"),
]


def misplaced(policy: Sequence[Part]) -> str | None:
    """What is wrong with the order of a policy, in words; None if nothing is."""
    mixing = [index for index, part in enumerate(policy) if isinstance(part, MixUp | CutMix)]
    if len(mixing) > 1:
        return f"a policy mixes images at most once, this one has {len(mixing)} mixing parts: keep one"
    if mixing and mixing[0] != len(policy) - 1:
        return f"`{policy[mixing[0]].kind}` mixes finished images: put it last"  # type: ignore[attr-defined]
    return None
