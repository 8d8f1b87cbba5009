"""The schedule family: the learning rate over a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand

Warmup = Annotated[float, Field(ge=0, le=0.5, description="Share of the steps with linear warm-up from zero.")]


class Cosine(Part):
    """Warm-up, then cosine decay to zero (Loshchilov & Hutter, 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05


class Constant(Part):
    """Warm-up, then a constant learning rate."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05


Schedule = Annotated[Cosine | Constant, Field(discriminator="kind"), shorthand("kind")]
