"""Every error that a person may see, drawn as a tree.

SmallAlignError
├── BadInput            the user gave something that cannot be used (exit code 2)
│   ├── BadSpec         a field of a spec or study
│   ├── BadData         a dataset, or a file of one
│   ├── BadModel        a model file, checkpoint or export
│   ├── UnknownRun      no run, or more than one, goes by that name
│   └── Refused         the request is well-formed but not possible now (a second worker, a full disk, ...)
└── WorkFailed          the work itself went wrong (exit code 1)
    └── Diverged        the loss became NaN or infinite

A message has three parts: what is wrong, what was given, what to do. Only the doors (command line, worker, dashboard
frame) catch these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SmallAlignError(Exception):
    """Base of all errors that are shown to a person without a traceback.

    Args:
        wrong: what is wrong, one clause without a full stop.
        given: what was given; shown in parentheses when it is not empty.
        do: what to do about it, one sentence without a full stop.
        details: more than a sentence can hold, JSON-able: printed with --json, and listed on pages.
    """

    exit_code = 1

    def __init__(
        self, wrong: str, *, given: object = "", do: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        self.wrong, self.given, self.do, self.details = wrong, str(given), do, dict(details or {})
        parts = [wrong + (f" (given: {_short(self.given)})" if self.given else "")]
        if do:
            parts.append(do)
        # On one line, whatever names of a user's are in it.
        lines = (" ".join(part.split()) for part in parts)
        super().__init__(" ".join(line[:1].upper() + line[1:].rstrip(".") + "." for line in lines))


def _short(text: str, limit: int = 200) -> str:
    """One line of at most `limit` characters: what a user gave may be a whole file."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class BadInput(SmallAlignError):
    """The user gave something that cannot be used."""

    exit_code = 2


class BadSpec(BadInput):
    """A field of a spec is missing, unknown, of the wrong type or out of range."""


class BadData(BadInput):
    """A dataset, or a file of one, cannot be used."""


class BadModel(BadInput):
    """A model file, checkpoint or export cannot be used."""


class UnknownRun(BadInput):
    """No run goes by that name, or more than one does."""


class Refused(BadInput):
    """The request is well-formed but not possible now."""


class WorkFailed(SmallAlignError):
    """The work itself went wrong."""


class Diverged(WorkFailed):
    """The loss became NaN or infinite."""
