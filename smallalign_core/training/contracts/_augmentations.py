"""The contract of a user's transform: what keeps augmented images equal in preview, training, cache and resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from smallalign_core.augment import _python
from smallalign_core.spec import PythonAugment

Result = str | tuple[bool | None, str]
Shape = tuple[int, int, int]

IMAGES = 12
OWN_RANDOMNESS = (
    "draw from torch, numpy.random or random, which are seeded for each image; seed a generator of your own from them, "
    "inside the transform"
)


def checks(part: PythonAugment, shape: Shape) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    """Names, the words where they pass, and checks of a user's transform, in order.

    Args:
        shape: (channels, height, width) of the images.
    """
    images = _pictures(shape)
    yield "output", "uint8 or float images of the same shape", lambda: _output(part, images)
    yield "range", "values are from 0 to 255", lambda: _range(part, shape)
    yield "equal random numbers", "equal random numbers give equal images", lambda: _repeats(part, images)
    yield "no memory", "an image does not depend on the images before it", lambda: _no_memory(part, images)
    yield "again", "a transform that is made again gives equal images", lambda: _again(part, images)
    yield "random", "other random numbers give other images", lambda: _random(part, images)
    yield "strength", "strength 0 changes nothing", lambda: _strength(part, images)
    yield "speed", "", lambda: _speed(part, images)


def _pictures(shape: Shape) -> Tensor:
    """Smooth colours and noise: float32 [12, C, H, W] of whole numbers in 0..255."""
    draw = np.random.Generator(np.random.Philox(0))
    coarse = torch.from_numpy(draw.uniform(0, 255, (IMAGES, shape[0], 3, 3)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    noise = torch.from_numpy(draw.normal(0, 8, (IMAGES, *shape)).astype(np.float32))
    return (smooth + noise).round().clamp(0, 255)


def _draws(count: int, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.Generator(np.random.Philox(seed)).random(count)


def _output(part: PythonAugment, images: Tensor) -> Result:
    _python.transformed(part, images, _draws(len(images)))
    return ""


def _range(part: PythonAugment, shape: Shape) -> Result:
    _python.check(part, shape)
    return ""


def _repeats(part: PythonAugment, images: Tensor) -> Result:
    for place, draw in enumerate(_draws(len(images))):
        one = images[place : place + 1]
        first, second = (_python.transformed(part, one, np.array([draw])) for _ in range(2))
        if not torch.equal(first, second):
            return f"the same image with the same random numbers differs: {OWN_RANDOMNESS}"
    return ""


def _no_memory(part: PythonAugment, images: Tensor) -> Result:
    draws = _draws(len(images))
    forth = _python.transformed(part, images, draws)
    back = _python.transformed(part, images.flip(0), draws[::-1].copy()).flip(0)
    return "" if torch.equal(forth, back) else "in another order the images differ: keep nothing from call to call"


def _again(part: PythonAugment, images: Tensor) -> Result:
    draws = _draws(len(images))
    first = _python.transformed(part, images, draws)
    _python.forget()
    torch.rand(7), np.random.random(7)  # as in another process
    if torch.equal(first, _python.transformed(part, images, draws)):
        return ""
    return "a resumed run would see other images: draw nothing where the transform is made"


def _random(part: PythonAugment, images: Tensor) -> Result:
    first, second = (_python.transformed(part, images, _draws(len(images), seed)) for seed in (1, 2))
    if torch.equal(first, second):
        return None, "it is not random: each epoch sees the same images"
    return ""


def _strength(part: PythonAugment, images: Tensor) -> Result:
    if not _python.takes_strength(part):
        return None, "the function has no parameter `strength`: the strength multiplies the probability"
    off = part.model_copy(update={"strength": 0.0})
    change = (_python.transformed(off, images, _draws(len(images))) - images).abs().max().item()
    return "" if change <= 1 else f"at strength 0 a pixel changes by {change:.0f} of 255"


def _speed(part: PythonAugment, images: Tensor) -> Result:
    began, draws = time.perf_counter(), _draws(len(images))
    done = 0
    while (taken := time.perf_counter() - began) < 0.2 or not done:
        _python.transformed(part, images, draws)
        done += len(images)
    return True, f"{done / taken:,.0f} images/s of {images.shape[3]} x {images.shape[2]} pixels on one core"
