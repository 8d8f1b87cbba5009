"""One number for the strength of a whole policy: 0 changes nothing, 1 is as written, 2 is twice as much."""

from __future__ import annotations

from typing import Any

from smallalign_core.errors import BadSpec
from smallalign_core.spec.augment import Augment, Blur, Crop, Posterize

STRONGEST = 2.0


def scaled(
    policy: tuple[Augment, ...], strength: float, shape: tuple[int, int, int] | None = None
) -> tuple[Augment, ...]:
    """`policy` at another strength: amounts grow with it and stop at their fields' limits.

    Where a part has no amount (a flip, equalize, CutMix) its probability grows instead. A part that would change
    nothing is left out, so strength 0 gives the empty policy; strength 1 gives the policy as written.

    Args:
        shape: (channels, height, width) of the images; amounts then stop at what these allow, too.

    Raises:
        BadSpec: the strength lies outside 0..2.
    """
    if not 0 <= strength <= STRONGEST:
        raise BadSpec("the strength must be between 0 and 2", given=strength, do="use 1 for the policy as written")
    if strength == 1:
        return policy
    stronger = (_scaled(part, strength) for part in policy)
    return tuple(part if shape is None else _within(part, min(shape[1:])) for part in stronger if part is not None)


def _within(part: Augment, side: int) -> Augment:
    """`part`, held to what an image of `side` pixels allows: see `check`."""
    if isinstance(part, Crop):
        return part.model_copy(update={"padding": min(part.padding, side - 1)})
    if isinstance(part, Blur):
        return part.model_copy(update={"sigma": min(part.sigma, (side - 1) // 3)})
    return part


def _scaled(part: Augment, strength: float) -> Augment | None:
    if strength == 0:
        return None
    changed: dict[str, Any] = dict(part.stronger(strength))
    for name, value in changed.items():
        rules = type(part).model_fields[name].metadata
        least = next((rule.ge for rule in rules if hasattr(rule, "ge")), None)
        most = next((rule.le for rule in rules if hasattr(rule, "le")), None)
        if isinstance(getattr(part, name), int):
            value = round(value)
            if least is not None and value < least and not isinstance(part, Posterize):
                return None  # less than one pixel
        value = value if most is None else min(value, most)
        changed[name] = value if least is None else max(value, least)
    return type(part).model_validate({**part.model_dump(), **changed})
