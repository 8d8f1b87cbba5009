"""What visitors of the dashboard may ask for at most, in one place: `doctor` shows it.

Each number can be set by an environment variable of its name: `SMALLALIGN_WAITING_EACH=2`. The owner's command line is
held to none of the numbers about uploads and the queue, and to no folders.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from smallalign_core.errors import Refused

PREFIX = "SMALLALIGN_"
MB = 1024**2


def _limit(default: int, says: str) -> int:
    found: int = field(default=default, metadata={"says": says})
    return found


@dataclass(frozen=True)
class Limits:
    """All numbers. Sizes are in MB, times in seconds."""

    upload_mb: int = _limit(64, "one uploaded file, MB")
    uploads_each_mb: int = _limit(256, "uploaded files of one visitor's window in memory, MB")
    uploads_total_mb: int = _limit(1024, "uploaded files of all visitors in memory, MB")
    uploads_at_once: int = _limit(4, "uploads that arrive at the same time")
    upload_seconds: int = _limit(300, "time that one upload may take, s")
    kept_mb: int = _limit(4096, "uploaded datasets on the disk, MB")
    zip_entries: int = _limit(20_000, "files in an uploaded zip")
    zip_mb: int = _limit(2048, "an uploaded zip when unpacked, MB")
    zip_entry_mb: int = _limit(50, "one file of an uploaded zip, unpacked, MB")
    zip_ratio: int = _limit(100, "how many times its size an uploaded zip may unpack to")
    waiting_each: int = _limit(120, "runs of one visitor that wait")
    waiting_total: int = _limit(240, "runs of all visitors that wait")
    answers_at_once: int = _limit(6, "questions that are answered at the same time, each by a process")
    answers_each: int = _limit(2, "the same, of one visitor")
    long_at_once: int = _limit(4, "long questions under way besides, such as the risk, each in a process")
    starts_a_minute: int = _limit(60, "runs that one visitor may put into the queue in a minute")

    def said(self) -> list[tuple[str, int, str]]:
        """(variable, value, what it bounds) of every limit, in order."""
        return [(PREFIX + one.name.upper(), getattr(self, one.name), one.metadata["says"]) for one in fields(self)]


def current(environment: Mapping[str, str] | None = None) -> Limits:
    """The limits that hold here: the defaults, and what the environment sets.

    Raises:
        Refused: a variable is no whole number above zero.
    """
    given = os.environ if environment is None else environment
    return _read(tuple(given.get(PREFIX + one.name.upper(), "") for one in fields(Limits)))


@functools.lru_cache(maxsize=64)
def _read(texts: tuple[str, ...]) -> Limits:
    values = {}
    for one, text in zip(fields(Limits), texts, strict=True):
        if text.strip():
            try:
                values[one.name] = int(text)
                if values[one.name] < 1:
                    raise ValueError
            except ValueError:
                raise Refused(
                    f"{PREFIX}{one.name.upper()} is not a whole number above zero",
                    given=text,
                    do=f"set it to {one.metadata['says']}, or leave it out",
                ) from None
    return Limits(**values)


def check_disk(root: Path, needed: int = 50 * MB) -> None:
    """Refuse to start a run where even a small model's checkpoints would not fit."""
    there = next(path for path in (root, *root.resolve().parents) if path.exists())
    if shutil.disk_usage(there).free < needed:
        raise Refused("the disk is full: a run needs at least 50 MB", given=there, do="make room, then submit again")


# --- folders ----------------------------------------------------------------------------------------------------------

ROOTS = "SMALLALIGN_ROOTS"
"""The folders from which visitors may name datasets, separated as in PATH. Unset: any, where nobody has to log in."""

_confined: tuple[Path, ...] | None = None


def roots(environment: Mapping[str, str] | None = None) -> tuple[Path, ...] | None:
    """The folders that visitors may read from, real paths; None where no folders are set."""
    text = (os.environ if environment is None else environment).get(ROOTS)
    if text is None:
        return None
    return tuple(Path(one).expanduser().resolve() for one in text.split(os.pathsep) if one.strip())


def require_allowed(*always: Path) -> None:
    """From now on this process reads users' paths only below the allowed folders and below `always`.

    The dashboard's processes call it when they start: they act for visitors. Where no folders are set it changes
    nothing. It stands for the whole process, so that no caller can forget to ask.
    """
    global _confined
    found = roots()
    _confined = None if found is None else (*found, *(path.resolve() for path in always))


def check_path(path: Path, what: str) -> None:
    """Refuse a path that leads out of the allowed folders, through links too; says nothing of whether it exists.

    Raises:
        Refused: it does.
    """
    if _confined is None:
        return
    real = path.resolve()
    if not any(real == root or root in real.parents for root in _confined):
        raise Refused(
            f"{what} lies outside the folders that this dashboard may read",
            given=path,
            do=f"upload it on the Data page, or ask whoever runs the dashboard to allow its folder ({ROOTS})",
        )
