"""The space of a search: networks of the catalogue at several widths, depths and input sizes, and recipes; and networks
that are given: pretrained ones, and finished ones that are pruned."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from pydantic import TypeAdapter

from smallalign_core.spec import AdamW, Augment, HintonKd, Loss, Muon, Network, RunSpec, Sgd, digest
from smallalign_core.spec.augment import Affine, Rotate
from smallalign_core.spec.parts import GivenNetwork, Shift
from smallalign_core.system import extras

Family = Literal["mlp", "cnn", "separable", "resnet"]
Strength = Literal["none", "light", "strong"]
OptimizerName = Literal["adamw", "muon", "sgd"]

OPTIMIZERS: dict[OptimizerName, type[AdamW | Muon | Sgd]] = {"adamw": AdamW, "muon": Muon, "sgd": Sgd}
"""What candidates are trained with: the two that did best in docs/results/2026-11-optimizers.md, and SGD."""


def installed() -> tuple[OptimizerName, ...]:
    """Those of `OPTIMIZERS` whose packages are installed."""
    return tuple(name for name, model in OPTIMIZERS.items() if model.package is None or extras.installed(model.package))


RATES = (0.3, 1.0, 3.0)
"""Learning rates, as multiples of the optimizer's own."""
SOFTNESSES = (0.5, 1.0, 2.0)
"""Distillation temperatures, as multiples of the one that suits the teacher."""

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
class Given:
    """A network of its own size, with weights to start from.

    Attributes:
        name: in a few words.
        start: id of the run whose strongest channels it keeps; None: pretrained weights.
        share: of the parameters of that run, that are kept.
    """

    name: str
    network: Network
    start: str | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A student before it has weights: a network and a recipe.

    Attributes:
        family: `given` (with width and depth 0) where `given` has the network.
        scale: divisor of the input side, of `SCALES`.
        taught: whether it is distilled from the teacher; else it learns from labels only.
        augment: strength of the augmentation.
        rate: learning rate, of `RATES`.
        softness: distillation temperature, of `SOFTNESSES`.
    """

    family: Family | Literal["given"]
    width: int
    depth: int
    scale: int = 1
    taught: bool = False
    augment: Strength = "none"
    optimizer: OptimizerName = "adamw"
    rate: float = 1.0
    softness: float = 1.0
    given: Given | None = None

    @classmethod
    def of(cls, written: dict[str, Any]) -> Self:
        """A candidate from `as_dict`."""
        network = written.get("given")
        if network is None:
            return cls(**written)
        found = TypeAdapter[Network](Network).validate_python(network["network"])
        return cls(**written | {"given": Given(**network | {"network": found})})

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        written = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.given is not None:
            known = {field.name: getattr(self.given, field.name) for field in fields(self.given)}
            written["given"] = known | {"network": self.given.network.model_dump(mode="json", exclude_defaults=True)}
            written["given"]["network"]["kind"] = self.given.network.kind
        return written

    @property
    def network(self) -> str:
        """Its network, in a few words."""
        if self.given is not None:
            return self.given.name
        return f"{self.family} {self.width}x{self.depth}" + (f" at 1/{self.scale} size" if self.scale > 1 else "")

    @property
    def label(self) -> str:
        """Network and recipe, in a few words."""
        parts = [self.network, "distilled" if self.taught else "labels only"]
        parts += [f"{self.augment} augmentation"] if self.augment != "none" else []
        parts += [self.optimizer] if self.optimizer != "adamw" else []
        parts += [f"{self.rate:g} x rate"] if self.rate != 1 else []
        parts += [f"{self.softness:g} x temperature"] if self.softness != 1 else []
        return ", ".join(parts)

    def differs(self, other: Candidate) -> str:
        """What is other than in another candidate, in a few words."""
        words = {
            "given": self.network,
            "family": self.network,
            "width": f"width {self.width} instead of {other.width}",
            "depth": f"depth {self.depth} instead of {other.depth}",
            "scale": "the full input size" if self.scale == 1 else f"1/{self.scale} of the input size",
            "taught": "distilled" if self.taught else "labels only",
            "augment": f"{self.augment if self.augment != 'none' else 'no'} augmentation",
            "optimizer": f"{OPTIMIZERS[self.optimizer].label} instead of {OPTIMIZERS[other.optimizer].label}",
            "rate": f"learning rate times {self.rate / other.rate:.2g}",
            "softness": f"distillation temperature times {self.softness / other.softness:.2g}",
        }
        return ", ".join(text for name, text in words.items() if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    Attributes:
        families: allowed network families.
        scales: allowed divisors of the input side.
        taught: whether there is a teacher.
        optimizers: allowed ones.
        softened: whether the loss of distillation has a temperature.
    """

    families: tuple[Family, ...]
    scales: tuple[int, ...]
    taught: bool
    optimizers: tuple[OptimizerName, ...] = ("adamw",)
    softened: bool = False

    def has(self, one: Candidate) -> bool:
        """Whether a candidate belongs to its grid, which those with a given network do not."""
        if one.family == "given":
            return False
        widths, depths = SIZES[one.family]
        return (
            one.family in self.families
            and one.width in widths
            and one.depth in depths
            and one.scale in self.scales
            and (self.taught or not one.taught)
            and one.optimizer in self.optimizers
            and one.rate in RATES
            and one.softness in (SOFTNESSES if self.softened and one.taught else (1.0,))
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
        if one.family == "given":
            return []
        widths, depths = SIZES[one.family]
        step = -1 if smaller else 1
        found = []
        for name, values, by in (("width", widths, step), ("depth", depths, step), ("scale", self.scales, -step)):
            value = _moved(values, getattr(one, name), by)
            if value is not None:
                found.append(replace(one, **{name: value}))
        return found

    def recipes(self, one: Candidate) -> list[Candidate]:
        """The same network with one part of its recipe changed: what most often helps first."""
        rates = [value for by in (1, -1) if (value := _moved(RATES, one.rate, by)) is not None]
        softer = SOFTNESSES if one.taught and self.softened else ()
        soft = [value for by in (1, -1) if softer and (value := _moved(softer, one.softness, by)) is not None]
        strengths = [other for other in reversed(STRENGTHS) if other != one.augment]
        found = [replace(one, rate=value) for value in rates[:1]]
        found += [replace(one, augment=value) for value in strengths[:1]]
        found += [replace(one, softness=value) for value in soft[:1]]
        found += [replace(one, optimizer=name, rate=1.0) for name in self.optimizers if name != one.optimizer]
        found += [replace(one, augment=value) for value in strengths[1:]]
        found += [replace(one, rate=value) for value in rates[1:]]
        found += [replace(one, softness=value) for value in soft[1:]]
        if self.taught:
            found.append(replace(one, taught=not one.taught, softness=1.0))
        return found


def _moved(values: tuple[Any, ...], now: Any, by: int) -> Any:
    """The value that many places further; None beyond the ends."""
    at = values.index(now) + by
    return values[at] if 0 <= at < len(values) else None


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
    if one.given is not None:
        network = one.given.network.model_dump()
    shared = base.model_dump() | {"network": network, "augment": policy(one.augment, side)}
    shared["optimizer"] = _optimizer(one)
    if one.taught:
        assert taught is not None, "a candidate that is distilled has a teacher"
        shared |= {"teacher": taught.teacher, "loss": softened(taught.loss, one.softness)}
    start = one.given.start if one.given else None
    found: list[RunSpec] = []
    for rung, epochs in enumerate(rungs):
        if found:
            start = digest(found[-1])
            shared["network"] = network | _unstarted(found[-1])
        found.append(RunSpec.model_validate(shared | {"epochs": epochs, "seed": seed + rung, "start": start}))
    return tuple(found)


def _optimizer(one: Candidate) -> dict[str, Any]:
    model = OPTIMIZERS[one.optimizer]
    lr = float(model.model_fields["lr"].default)
    return model(lr=lr if one.rate == 1 else round(lr * one.rate, 10)).model_dump()


def softened(loss: Loss, factor: float) -> Loss:
    """A loss with so many times its temperature, within what it accepts; another loss as it is."""
    if not isinstance(loss, HintonKd) or loss.temperature is None or factor == 1:
        return loss
    return loss.model_copy(update={"temperature": min(50.0, max(0.5, loss.temperature * factor))})


def _unstarted(run: RunSpec) -> dict[str, Any]:
    """Fields of a network that starts from the weights of another run, rather than from its own."""
    if not isinstance(run.network, GivenNetwork):
        return {}
    names = ("pretrained", "frozen", "head_rate", "weights", "weights_sha256")
    known = type(run.network).model_fields
    return {name: known[name].default for name in names if name in known}
