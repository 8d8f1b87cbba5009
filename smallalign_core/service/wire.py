"""Requests and answers: dataclasses in both processes, one line of JSON between them, converted only here.

A request is a frozen dataclass that inherits from `Request[Answer]`; `service.requests` lists them, `service.handlers`
has the function that answers each.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from smallalign_core.errors import SmallAlignError

A = TypeVar("A")
T = TypeVar("T")
MOST_WORDS = 3
"""Errors of one message that are put into words."""


@dataclasses.dataclass(frozen=True)
class Request(Generic[A]):
    """What is to be done, with an answer of type `A`.

    Attributes:
        seconds: how long the answer may take.
        shared: it changes nothing, so equal requests at the same time are answered once.
    """

    seconds: ClassVar[float] = 300.0
    shared: ClassVar[bool] = False

    @classmethod
    def verb(cls) -> str:
        """Its name on the line."""
        return cls.__name__

    @classmethod
    def answer(cls) -> type[A]:
        """The type of its answer."""
        for base in cls.__orig_bases__:  # type: ignore[attr-defined]
            if issubclass(get_origin(base) or base, Request):
                found: type[A] = get_args(base)[0]
                return found
        raise TypeError(cls)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The answer to a `LongRequest`; the other fields of subclasses have defaults, which stand for "not yet".

    Attributes:
        done: the finished share; 1 with the result.
    """

    done: float


P = TypeVar("P", bound=Progress)


@dataclasses.dataclass(frozen=True)
class LongRequest(Request[P]):
    """A request for work that is done in steps; repeated, it continues.

    Attributes:
        patience: seconds until the progress is answered; None: until the work is finished.
    """

    patience: float | None = dataclasses.field(default=None, kw_only=True)


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
    match found["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown field `{where}`"
        case "missing":
            return f"`{where}` is missing"
        case _:
            return f"`{where}`: {found['msg']}" if where else found["msg"]
