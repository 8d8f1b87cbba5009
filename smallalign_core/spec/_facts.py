"""Facts of an optimizer besides its fields: class variables, which are no part of a digest."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from smallalign_core.spec._part import Part
from smallalign_core.spec.schedule import Schedule

Closure = Literal["gradient", "excess", "losses"]
"""The closure that a step needs besides the gradient: a second gradient at moved weights (SAM), or the excess loss over
the teacher's (Polyak). `losses`: no gradient at all, but the losses of candidates."""
Menu = Literal["tuned", "more", "hands-off"]
"""Where an optimizer study offers an optimizer: among those to tune, below "More", or to use as it is."""
EVALUATIONS = 3
"""Forward-only evaluations that cost as much as one gradient: a backward pass takes twice the forward pass."""


class OptimizerFacts(Part):
    """The base of all optimizers. What has no value here, each class must give: see `tests/test_families.py`.

    Attributes:
        label: its name as papers write it.
        menus: where an optimizer study offers it; the form that builds any optimizer always has it.
        copies: numbers kept for each weight, beside the weight and its gradient; one less with a momentum of 0.
        library_rate: the learning rate in its library's signature, where a search begins; None: it is not tuned.
        untuned: then, why.
        package: of an extra; None for those of torch and SmallAlign.
        closure: what a step needs besides a gradient.
        distributed: whether several processes can share it.
        head_rate: whether the last layer can have a learning rate of its own.
        schedule: the only schedule that it works with, with `warmup` 0 where `warms_up` is false; None: any.
        not_inside: the error for a wrapper that cannot wrap it.
        wrong_schedule, without_teacher, with_layers, when_fast: the error for a spec with another schedule, without a
            teacher, with a loss of layers, with the field `{fast}` set; None: it works.
    """

    label: ClassVar[str]
    menus: ClassVar[tuple[Menu, ...]]
    copies: ClassVar[int]
    library_rate: ClassVar[float | None]
    untuned: ClassVar[str | None] = None
    package: ClassVar[str | None] = None
    closure: ClassVar[Closure | None] = None
    distributed: ClassVar[bool] = True
    head_rate: ClassVar[bool] = True
    schedule: ClassVar[Schedule | None] = None
    warms_up: ClassVar[bool] = True
    not_inside: ClassVar[str] = "{outer} cannot wrap `{kind}`"
    wrong_schedule: ClassVar[str | None] = None
    without_teacher: ClassVar[str | None] = None
    with_layers: ClassVar[str | None] = None
    when_fast: ClassVar[str | None] = None

    @property
    def gradients(self) -> int:
        """The cost of a step in gradients."""
        return 1

    def kept(self, shape: tuple[int, ...], last: bool) -> int:  # noqa: ARG002  # Muon's last layer
        """Numbers kept for a weight of this shape; `last`: it is of the last layer."""
        return (self.copies - (getattr(self, "momentum", 1) == 0)) * math.prod(shape)

    def unfit(self, schedule: Schedule, *, taught: bool, layers: bool, fast: str | None) -> str | None:
        """The reason that it does not work with the rest of a spec: see `incompatibility`."""
        if self.schedule is not None:
            moves = schedule.warmup and not self.warms_up
            if moves or not isinstance(schedule, type(self.schedule)):
                return self.wrong_schedule
        if not taught and self.without_teacher:
            return self.without_teacher
        if layers and self.with_layers:
            return self.with_layers
        return self.when_fast.format(fast=fast) if fast and self.when_fast else None
