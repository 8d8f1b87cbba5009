"""The base of every part of a spec: a frozen model whose field annotations hold ranges and help texts."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Part(BaseModel):
    """A frozen pydantic model. A field's annotation holds its range and its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def shorthand(key: str) -> BeforeValidator:
    """Let `digits` stand for `{source: digits}`, `cnn` for `{kind: cnn}`, `torchvision:NAME` for that network."""

    return BeforeValidator(lambda value: expanded(value, key) if isinstance(value, str) else value)


def expanded(value: str, key: str) -> dict[str, str]:
    """Expand a shorthand; `key` is `source` or `kind`."""
    kind, colon, name = value.partition(":")
    return {"kind": kind, "name": name} if key == "kind" and colon else {key: value}
