"""What every part of a spec is: a frozen group of knobs whose field annotations hold their ranges and help."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Part(BaseModel):
    """A frozen group of knobs. A field's annotation holds its range and its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def shorthand(key: str) -> BeforeValidator:
    """Let `digits` stand for `{source: digits}`, `cnn` for `{kind: cnn}`, `torchvision:NAME` for that network."""

    return BeforeValidator(lambda value: expanded(value, key) if isinstance(value, str) else value)


def expanded(value: str, key: str) -> dict[str, str]:
    """What a shorthand stands for; `key` is `source` or `kind`."""
    kind, colon, name = value.partition(":")
    return {"kind": kind, "name": name} if key == "kind" and colon else {key: value}
