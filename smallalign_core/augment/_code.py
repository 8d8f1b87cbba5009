"""A policy as torchvision v2 code, to copy into another project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import assert_never

from smallalign_core.spec.augment import (
    Affine,
    Augment,
    AugMix,
    Blur,
    Colour,
    Crop,
    CutMix,
    Equalize,
    Erase,
    Flip,
    Mixing,
    MixUp,
    Noise,
    Perspective,
    Posterize,
    PythonAugment,
    RandAugment,
    ResizedCrop,
    Rotate,
    Shift,
    Solarize,
    TrivialAugment,
)
from smallalign_core.spec.python import on_one_line

PADDING = {"black": "constant", "edge": "edge", "mirror": "reflect"}


def as_code(policy: tuple[Augment, ...], *, size: tuple[int, int], classes: int) -> str:
    """Python that defines `augment` (one uint8 image [C, H, W] to another) and, if images are mixed, `mix` (a batch).

    The distribution is the same up to the notes in the text; single draws are not, torchvision has its own generator.

    Args:
        size: (height, width) of the images.
        classes: number of classes, which torchvision's mixing needs.
    """
    lines = [line for part in policy if not isinstance(part, Mixing) for line in _lines(part, size)]
    own = [part for part in policy if isinstance(part, PythonAugment)]
    text = "from importlib import import_module\n" if any(part.file for part in own) else ""
    text += "from importlib.metadata import entry_points\n" if any(part.entry for part in own) else ""
    text += "import torch\nfrom torchvision.transforms import v2\n\n"
    text += "# One uint8 image [C, H, W] at a time: on a batch torchvision samples once for all of its images.\n"
    text += "augment = v2.Compose([\n" + "".join(f"    {line}\n" for line in lines or ["v2.Identity(),"]) + "])\n"
    for part in policy:
        if isinstance(part, Mixing):
            given = f"(alpha={float(part.alpha)!r}, num_classes={classes})"
            match part:
                case MixUp():  # torchvision mixes in place, which uint8 cannot hold
                    mixing = f"v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.MixUp{given}])"
                case CutMix():
                    mixing = f"v2.CutMix{given}"
                case _:
                    assert_never(part)
            text += "\n# images, labels = mix(images, labels) after collating: uint8 [B, C, H, W] and int64 [B].\n"
            text += "# torchvision samples one ratio per batch, SmallAlign one per image.\n"
            if part.probability < 1:
                text += "# Labels stay int64 where it is not applied: make them one-hot yourself.\n"
            text += "mix = " + (mixing if part.probability == 1 else _sometimes(mixing, part.probability)) + "\n"
    return text


def _sometimes(code: str, probability: float) -> str:
    return code if probability == 1 else f"v2.RandomApply([{code}], p={probability:g})"


def _lines(part: Augment, size: tuple[int, int]) -> list[str]:
    """The lines of one part: comments, then the transform with its comma."""
    code, *notes = _transform(part, size)
    own = bool(re.search(r"\bp=", code))  # it has a probability itself
    return [*(f"# {note}" for note in notes), (code if own else _sometimes(code, part.probability)) + ","]


def _transform(part: Augment, size: tuple[int, int]) -> list[str]:  # noqa: C901  # one line a kind
    """A transform, and what should be known about it."""
    straight = "interpolation=v2.InterpolationMode.BILINEAR"
    match part:
        case Flip():
            return [f"v2.Random{part.axis.capitalize()}Flip(p={part.probability:g})"]
        case Shift():
            return [f"v2.RandomCrop({size}, padding={part.pixels})"]
        case Rotate():
            return [f"v2.RandomRotation({part.degrees:g}, {straight})"]
        case Affine():
            scale, shear = f"({1 - part.scale:g}, {1 + part.scale:g})", f"{part.shear:g}"
            return [
                f"v2.RandomAffine(0, translate=({part.translate:g}, {part.translate:g}), scale={scale}, "
                f"shear=(-{shear}, {shear}, -{shear}, {shear}), {straight})"
            ]
        case Crop():
            return [f'v2.RandomCrop({size}, padding={part.padding}, padding_mode="{PADDING[part.fill]}")']
        case ResizedCrop():
            ratio = f"({1 / part.aspect:g}, {part.aspect:g})"
            return [f"v2.RandomResizedCrop({size}, scale=({part.smallest:g}, 1), ratio={ratio}, antialias=False)"]
        case Perspective():
            return [f"v2.RandomPerspective({part.distortion:g}, p={part.probability:g})"]
        case Colour():
            values = {name: getattr(part, name) for name in ("brightness", "contrast", "saturation", "hue")}
            given = ", ".join(f"{name}={value:g}" for name, value in values.items() if value)
            return [f"v2.ColorJitter({given})", "torchvision takes these in random order"]
        case Blur():
            return [f"v2.GaussianBlur({2 * -(-int(30 * part.sigma) // 10) + 1}, sigma=(0.1, {part.sigma:g}))"]
        case Noise():
            return [f"v2.GaussianNoise(sigma={part.amount:g})"]
        case Erase():
            return [f"v2.RandomErasing(p={part.probability:g}, scale=(0.02, {part.largest:g}), ratio=(0.303, 3.3))"]
        case Posterize():
            return [f"v2.RandomPosterize({part.bits}, p={part.probability:g})"]
        case Solarize():
            return [f"v2.RandomSolarize({part.threshold * 255:g}, p={part.probability:g})"]
        case Equalize():
            return [f"v2.RandomEqualize(p={part.probability:g})"]
        case RandAugment():
            return [f"v2.RandAugment({part.operations}, {round(part.magnitude)}, {straight})"]
        case TrivialAugment():
            note = "" if part.magnitude == 30 else f"; SmallAlign's magnitudes end at {part.magnitude:g} of 30"
            return [f"v2.TrivialAugmentWide({straight})", f"torchvision moves by up to 32 pixels on any size{note}"]
        case AugMix():
            return [f"v2.AugMix(severity={max(1, round(part.severity))}, all_ops=False)"]
        case PythonAugment():
            given = f"({on_one_line(part.arguments)})"
            note = "it needs `channels`, `size` and `strength` too, if it takes them"
            if part.file is None:
                return [f'entry_points(group="{part.group}")["{part.entry}"].load(){given}', f"Your own; {note}"]
            return [f'import_module("{Path(part.file_name).stem}").{part.call}{given}', f"{part.file_name}; {note}"]
        case MixUp() | CutMix():
            return []
        case _:
            assert_never(part)
