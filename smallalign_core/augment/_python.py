"""Transforms of the user's own Python: one image at a time, with random numbers that depend on that image alone."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from smallalign_core.augment._canvas import Numbers
from smallalign_core.errors import BadModel
from smallalign_core.spec.augment import PythonAugment
from smallalign_core.system import usercode

Transform = Callable[[Tensor], Any]
DO = "return a tensor of the shape of the image: uint8, or float from 0 to 255"
DIM = 2.0
"""A bright image with no float value above this is taken for one from 0 to 1."""


def _function(part: PythonAugment) -> Callable[..., Any]:
    """The user's function or class.

    Raises:
        BadInput: the file cannot be read or imported, or has no such function.
        Refused: it may not run on this machine.
    """
    if part.file is not None:
        return usercode.function_of(Path(part.file), part.call, part.sha256)
    return usercode.entry_of(part.group, part.entry or "", part.package)[0]


def takes_strength(part: PythonAugment) -> bool:
    """Whether the user's function has a parameter `strength`."""
    return bool(usercode.accepted(_function(part), {"strength": part.strength}))


@functools.lru_cache(maxsize=64)
def chance(part: PythonAugment) -> float:
    """The probability of being applied to an image: times its strength, if the function takes no strength."""
    return part.probability if takes_strength(part) else min(1.0, part.probability * part.strength)


def forget() -> None:
    """Make transforms again when they are needed next."""
    _made.cache_clear()


@functools.lru_cache(maxsize=16)
def _made(part: PythonAugment, shape: tuple[int, int, int]) -> Transform:
    """What the user's function returns for images of `shape` (channels, height, width).

    Raises:
        BadInput: as `_function`; it cannot be called with these arguments, or raised an exception.
        BadModel: it returned nothing that can be called.
    """
    channels, height, width = shape
    size: int | tuple[int, int] = height if height == width else (height, width)
    offered = {"channels": channels, "size": size, "strength": part.strength}
    made: Transform = usercode.called(_function(part), offered, part.arguments, part.shown)
    if not callable(made):
        raise BadModel(
            f"the function gives no transform: the return value is {_kind(made)}, which cannot be called",
            given=part.shown,
            do="return a function of one image, or a module such as those of torchvision.transforms.v2",
        )
    return made


def transformed(part: PythonAugment, images: Tensor, draws: Numbers) -> Tensor:
    """Each image as the user's transform returns it.

    The transform runs on the CPU and gets one uint8 image [C, H, W] at a time. Before each call the global random
    numbers of PyTorch, NumPy and `random` are seeded from the image's own draw, and afterwards they are as before: an
    augmented image depends on (seed, view, image), whatever else is in the batch and on any device.

    Args:
        images: float32 [N, C, H, W] in 0..255.
        draws: uniform [N].

    Returns:
        float32 [N, C, H, W] in 0..255.

    Raises:
        BadInput: the file cannot be used, or raised an exception.
        BadModel: the transform returned something else than an image of the same shape.
    """
    transform = _made(part, (images.shape[1], images.shape[2], images.shape[3]))
    found = torch.empty(images.shape, dtype=torch.float32)
    with torch.no_grad(), _own_randomness(), running(part, images.shape[1:]):
        # each a tensor of its own: a transform may write to its image
        for place, (image, draw) in enumerate(zip(images.cpu().round().to(torch.uint8), draws, strict=True)):
            seed(draw)
            found[place] = _image(part, transform(image.clone()), image)
    return found.to(images.device)


def check(part: PythonAugment, shape: tuple[int, int, int]) -> None:
    """Try a transform on two images of noise of `shape` (channels, height, width).

    Raises:
        BadInput, BadModel, Refused: as `transformed`; its values are from 0 to 1.
    """
    transform, noise = _made(part, shape), np.random.Generator(np.random.Philox(0))
    with torch.no_grad(), _own_randomness(), running(part, shape):
        for draw in (0.25, 0.75):
            image = torch.from_numpy(noise.integers(0, 256, shape, np.uint8))
            seed(draw)
            made = transform(image.clone())
            _image(part, made, image)
            if made.is_floating_point() and 0 < made.max() <= DIM:
                _refuse(part, f"its values are at most {made.max():.3g}, so from 0 to 1")


def seed(draw: float) -> None:
    """Seed the global random numbers that a transform may use from a uniform draw."""
    number = int(draw * 2**53)
    torch.default_generator.manual_seed(number)
    np.random.seed(number >> 21)  # what users' transforms draw from
    random.seed(number)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave the global random numbers as they were."""
    held = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(held[0])
        np.random.set_state(held[1])
        random.setstate(held[2])


@contextlib.contextmanager
def running(part: PythonAugment, shape: Any) -> Iterator[None]:
    """Raise exceptions of a transform as errors with the user's line, or with the transform's own words.

    Raises:
        BadInput, BadModel: there was one.
    """
    try:
        with usercode.explained():
            yield
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        if isinstance(error, BadModel):
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BadModel(
            f"the transform does not run on a uint8 image of shape {list(shape)}: {words}",
            given=part.shown,
            do="correct its arguments, or wrap it in a function that prepares the image",
        ) from None


def _image(part: PythonAugment, made: Any, image: Tensor) -> Tensor:
    """A transform's output as float32 in 0..255, of the shape of its image."""
    if not isinstance(made, Tensor):
        _refuse(part, f"it is {_kind(made)}")
    if made.shape != image.shape:
        _refuse(part, f"for an image of shape {list(image.shape)} it has shape {list(made.shape)}")
    if made.dtype == torch.uint8:
        return made.float()
    if not made.is_floating_point():
        _refuse(part, f"it has dtype {made.dtype}")
    if not made.isfinite().all():
        _refuse(part, "it has values that are not finite")
    return made.float().clamp(0, 255)


def _refuse(part: PythonAugment, wrong: str) -> NoReturn:
    raise BadModel(f"the transform's output is not an image: {wrong}", given=part.shown, do=DO)


def _kind(made: object) -> str:
    return "None" if made is None else f"of type {type(made).__name__}"
