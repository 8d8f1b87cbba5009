"""Requests and answers: dataclasses in both processes, one line of JSON between them (`system.typed` converts them).

A request is a frozen dataclass that inherits from `Request[Answer]`; `service.requests` lists them, `service.handlers`
has the function that answers each.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Generic, TypeVar, get_args, get_origin

A = TypeVar("A", covariant=True)
R = TypeVar("R", covariant=True)


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
class Progress(Generic[R]):
    """The answer to a `LongRequest`; what subclasses add has defaults.

    Attributes:
        done: the finished share; 1 with the result.
        report: the result; None until then.
    """

    done: float
    report: R | None = None


P = TypeVar("P", bound=Progress[object], covariant=True)


@dataclasses.dataclass(frozen=True)
class LongRequest(Request[P]):
    """A request for work that is done in steps; repeated, it continues.

    Attributes:
        patience: seconds until the progress is answered; None: until the work is finished.
    """

    patience: float | None = dataclasses.field(default=None, kw_only=True)
