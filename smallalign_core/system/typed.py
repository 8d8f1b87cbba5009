"""Dataclasses as JSON and back: what crosses processes, and what is kept in files."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from smallalign_core.errors import SmallAlignError

T = TypeVar("T")
MOST_WORDS = 3
"""Errors of one message that are put into words."""


def plain(value: Any) -> Any:
    """A dataclass or pydantic model as a dict with its fields in order; what they hold stays as it is."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"no JSON for {type(value).__name__}")


def encode(value: object) -> str:
    """One line of JSON for plain values and dataclasses."""
    return json.dumps(value, default=plain)


def flat(value: object) -> dict[str, Any]:
    """The plain values of a dataclass, as after JSON."""
    found: dict[str, Any] = json.loads(encode(value))
    return found


def decode(of: type[T], value: object, error: type[SmallAlignError], wrong: str, do: str) -> T:
    """The dataclass `of` from what JSON has made of it.

    Raises:
        SmallAlignError: `error`, naming the fields that are missing, unknown or of another type.
    """
    try:
        return cast(T, _adapter(cast(Hashable, of)).validate_python(value))
    except ValidationError as found:
        errors = sorted(found.errors(), key=lambda one: one["type"] == "missing")  # unknown fields first
        words = dict.fromkeys(map(_words, errors))
        raise error(wrong, given="; ".join(list(words)[:MOST_WORDS]), do=do) from None


@functools.cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    _forbid_unknown(of, set())
    return TypeAdapter(of)


def _forbid_unknown(of: Any, seen: set[Any]) -> None:
    """Have pydantic refuse fields that a dataclass below `of` does not have; it ignores them otherwise."""
    if of in seen:
        return
    seen.add(of)
    for part in get_args(of):
        if not isinstance(part, (str, int, bool, type(None), type(...))):
            _forbid_unknown(part, seen)
    kind = get_origin(of) or of
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
        for hint in get_type_hints(kind).values():
            _forbid_unknown(hint, seen)


def _words(found: ErrorDetails) -> str:
    """One error of pydantic in words."""
    where = ".".join(str(step) for step in found["loc"])
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown field `{where}`"
    if found["type"] == "missing":
        return f"`{where}` is missing"
    return f"`{where}`: {found['msg']}" if where else found["msg"]
