"""Every error that is shown to a user, as a tree.

SmallAlignError
├── BadInput            unusable input (exit code 2)
│   ├── BadSpec         a field of a spec or study
│   ├── BadData         a dataset, or a file of one
│   ├── BadModel        a model file, checkpoint or export
│   ├── UnknownRun      no run, or more than one, matches a reference
│   ├── MissingExtra    a feature whose packages are not installed; see `smallalign_core.system.extras`
│   └── Refused         the request is well-formed but not possible now (a second worker, a full disk, ...)
└── WorkFailed          the work itself went wrong (exit code 1)
    └── Diverged        the loss became NaN or infinite

A message has three parts: what is wrong, what was given, what to do. Only the entry points (command line, worker,
dashboard frame) catch these.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control, bidirectional and unassigned characters, except tab and line feed."""


def printable(text: str) -> str:
    """`text` safe to show in a terminal or page: control characters are escaped as `\\x1b`."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class SmallAlignError(Exception):
    """Base of all errors that are shown to a user without a traceback.

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
        # On one line, even where a user's names contain line feeds.
        lines = (" ".join(part.split()) for part in parts)
        super().__init__(printable(" ".join(line[:1].upper() + line[1:].rstrip(".") + "." for line in lines)))


def _short(text: str, limit: int = 200) -> str:
    """One line of at most `limit` characters: the given value may be a whole file."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class BadInput(SmallAlignError):
    """Unusable input."""

    exit_code = 2


class BadSpec(BadInput):
    """A field of a spec is missing, unknown, of the wrong type or out of range."""


class BadData(BadInput):
    """A dataset, or a file of one, cannot be used."""


class BadModel(BadInput):
    """A model file, checkpoint or export cannot be used."""


class UnknownRun(BadInput):
    """No run matches the reference, or more than one does."""


class MissingExtra(BadInput):
    """A feature needs a package that is not installed; an extra of SmallAlign installs it."""


class Refused(BadInput):
    """The request is well-formed but not possible now."""


class WorkFailed(SmallAlignError):
    """The work itself went wrong."""


class Diverged(WorkFailed):
    """The loss became NaN or infinite."""


SYSTEM = {
    errno.ENOSPC: ("the disk is full", "free some space, then try again"),
    errno.EDQUOT: ("the disk quota is exhausted", "free some space, then try again"),
    errno.EROFS: ("the file system is read-only", "choose a writable folder (--store)"),
    errno.EACCES: ("permission denied", "check the permissions of the path, or choose another"),
    errno.EPERM: ("permission denied", "check the permissions of the path, or choose another"),
    errno.ELOOP: ("the path contains a loop of symbolic links", "choose another path"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter one"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
    errno.ENOENT: ("the file or folder does not exist and cannot be created", "choose another path"),
    errno.ENOLCK: ("the file system does not support locks", "choose a folder on a local disk (--store)"),
    errno.ENOSYS: ("the file system does not support locks", "choose a folder on a local disk (--store)"),
    errno.ENOTSUP: ("the file system does not support locks", "choose a folder on a local disk (--store)"),
    errno.EMFILE: ("too many files are open", "close some programs, or raise `ulimit -n`"),
    errno.ENFILE: ("too many files are open", "close some programs, or raise `ulimit -n`"),
    errno.EIO: ("the disk cannot be read or written", "check the disk"),
    errno.ESTALE: ("the file server has lost the file", "mount the folder again"),
}
"""The operating system's errors for file operations, and what to do about each."""


def of_system(error: Exception) -> Refused | None:
    """The error to show for an OSError or a file-system error; None for any other exception."""
    if isinstance(error, NotImplementedError) and "flock" in str(error):  # filelock's form of ENOSYS
        wrong, do = SYSTEM[errno.ENOLCK]
        return Refused(wrong, do=do)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's form of ELOOP
        wrong, do = SYSTEM[errno.ELOOP]
        return Refused(wrong, given=str(error).partition("from ")[2].strip("'"), do=do)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return Refused("a path contains a zero byte", do="choose another path")
    if not isinstance(error, OSError):
        return None
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    wrong, do = SYSTEM.get(error.errno or 0, (f"the operating system reports: {reason}", "check the path"))
    return Refused(wrong, given=error.filename or "", do=do)
