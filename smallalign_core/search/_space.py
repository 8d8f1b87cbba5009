"""The space of a search: networks of the catalogue at several widths, depths and input sizes, and recipes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from smallalign_core.spec import Augment, Loss, RunSpec, digest
from smallalign_core.spec.augment import Affine, Rotate
from smallalign_core.spec.parts import Shift

Family = Literal["mlp", "cnn", "separable", "resnet"]
Strength = Literal["none", "light", "strong"]

SIZES: dict[Family, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mlp": ((4, 8, 16, 32, 64, 128), (1, 2)),
    "cnn": ((2, 4, 6, 8, 12, 16, 24, 32), (2, 3, 4)),
    "separable": ((4, 8, 12, 16, 24, 32, 48), (2, 3, 4)),
    "resnet": ((2, 4, 6, 8, 12, 16, 24), (1, 2)),
}
"""Widths and depths of each family, ascending."""
STRENGTHS: tuple[Strength, ...] = get_args(Strength)
SCALES = (1, 2, 4)
"""Divisors of the input side."""
LEAST_SIDE = 8
"""Smallest input side in pixels, unless the images are smaller."""
SHIFT = 16
"""`light` shifts by up to 1/16 of the side."""


@dataclass(frozen=True)
class Candidate:
    """A student before it has weights: a network and a recipe.

    Attributes:
        scale: divisor of the input side, of `SCALES`.
        taught: whether it is distilled from the teacher; else it learns from labels only.
        augment: strength of the augmentation.
    """

    family: Family
    width: int
    depth: int
    scale: int = 1
    taught: bool = False
    augment: Strength = "none"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def network(self) -> str:
        """Its network, in a few words."""
        return f"{self.family} {self.width}x{self.depth}" + (f" at 1/{self.scale} size" if self.scale > 1 else "")

    @property
    def label(self) -> str:
        """Network and recipe, in a few words."""
        recipe = "distilled" if self.taught else "labels only"
        return f"{self.network}, {recipe}" + (f", {self.augment} augmentation" if self.augment != "none" else "")


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    Attributes:
        families: allowed network families.
        scales: allowed divisors of the input side.
        taught: whether there is a teacher.
    """

    families: tuple[Family, ...]
    scales: tuple[int, ...]
    taught: bool

    def has(self, one: Candidate) -> bool:
        """Whether a candidate belongs to it."""
        widths, depths = SIZES[one.family]
        return (
            one.family in self.families
            and one.width in widths
            and one.depth in depths
            and one.scale in self.scales
            and (self.taught or not one.taught)
        )

    def smallest(self) -> list[Candidate]:
        """The smallest network of each family, at the smallest input."""
        scale = self.scales[-1]
        return [Candidate(family, SIZES[family][0][0], SIZES[family][1][0], scale) for family in self.families]

    def networks(self) -> Iterator[Candidate]:
        """All networks with the plain recipe of this space: distilled if there is a teacher, light augmentation."""
        for family in self.families:
            widths, depths = SIZES[family]
            for depth in depths:
                for scale in self.scales:
                    for width in widths:
                        yield Candidate(family, width, depth, scale, self.taught, "light")

    def neighbours(self, one: Candidate, *, smaller: bool) -> list[Candidate]:
        """Candidates one step smaller (or larger) in one of width, depth and input size; the recipe stays."""
        widths, depths = SIZES[one.family]
        step = -1 if smaller else 1

        def moved(values: tuple[int, ...], now: int, by: int) -> int | None:
            at = values.index(now) + by
            return values[at] if 0 <= at < len(values) else None

        found = []
        for name, values, by in (("width", widths, step), ("depth", depths, step), ("scale", self.scales, -step)):
            value = moved(values, getattr(one, name), by)
            if value is not None:
                found.append(Candidate(**one.as_dict() | {name: value}))
        return found

    def recipes(self, one: Candidate) -> list[Candidate]:
        """The same network with one part of its recipe changed."""
        found = [Candidate(**one.as_dict() | {"augment": other}) for other in STRENGTHS if other != one.augment]
        if self.taught:
            found.append(Candidate(**one.as_dict() | {"taught": not one.taught}))
        return found


def scales_for(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The divisors of the input side that leave at least `LEAST_SIDE` pixels; `shape` is (channels, height, width)."""
    return tuple(scale for scale in SCALES if scale == 1 or min(shape[1:]) // scale >= LEAST_SIDE)


def policy(strength: Strength, side: int) -> tuple[Augment, ...]:
    """The augmentation of a strength. No flips: what they do to a class depends on the class."""
    if strength == "none":
        return ()
    shift = Shift(pixels=max(1, min(64, round(side / SHIFT))))
    return (shift,) if strength == "light" else (shift, Rotate(), Affine())


@dataclass(frozen=True)
class Taught:
    """What distilled candidates learn from: the id of a finished run, and the loss."""

    teacher: str
    loss: Loss


@functools.lru_cache(maxsize=2048)
def chain(
    base: RunSpec, one: Candidate, rungs: tuple[int, ...], side: int, taught: Taught | None, seed: int
) -> tuple[RunSpec, ...]:
    """The runs of a candidate, one for each rung, each starting from the weights of the one before.

    Every rung has a learning-rate schedule of its own (warm restarts: Loshchilov & Hutter, 2017), and a seed of its
    own, so that no rung repeats the order and the augmentations of the one before.

    Args:
        base: images, batch and precision, resolved; labels only.
        side: pixels of the images' shorter side.
        taught: for candidates that are distilled.
        seed: of the first rung; the next have the next ones.
    """
    network: dict[str, Any] = {"kind": one.family, "width": one.width, "depth": one.depth}
    if one.scale > 1:
        network["size"] = side // one.scale
    fields = base.model_dump() | {"network": network, "augment": policy(one.augment, side)}
    if one.taught:
        assert taught is not None, "a candidate that is distilled has a teacher"
        fields |= {"teacher": taught.teacher, "loss": taught.loss}
    found: list[RunSpec] = []
    for rung, epochs in enumerate(rungs):
        start = digest(found[-1]) if found else None
        found.append(RunSpec.model_validate(fields | {"epochs": epochs, "seed": seed + rung, "start": start}))
    return tuple(found)
