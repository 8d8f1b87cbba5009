"""The schedule family: how the learning rate moves over a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand

Warmup = Annotated[
    float, Field(ge=0, le=0.5, description="Share of the steps in which the learning rate rises from zero.")
]


class Cosine(Part):
    """Warm-up, then half a cosine down to zero (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05


class Constant(Part):
    """Warm-up, then the same learning rate to the end."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05


Schedule = Annotated[Cosine | Constant, Field(discriminator="kind"), shorthand("kind")]
