"""All limits for users of the dashboard; `doctor` shows them.

Each can be set by an environment variable of its name: `SMALLALIGN_WAITING_EACH=2`. Limits on uploads, the queue and
folders do not apply to the owner's command line.
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
    """All limits. Sizes are in MB, times in seconds."""

    upload_mb: int = _limit(64, "size of one uploaded file, MB")
    uploads_each_mb: int = _limit(256, "uploaded files in memory per browser session, MB")
    uploads_total_mb: int = _limit(1024, "uploaded files in memory, all users, MB")
    upload_files: int = _limit(2_000, "uploaded files in memory per browser session")
    uploads_at_once: int = _limit(4, "concurrent uploads")
    upload_seconds: int = _limit(300, "duration of one upload, s")
    kept_mb: int = _limit(4096, "uploaded datasets on disk, MB")
    zip_entries: int = _limit(20_000, "files in an uploaded zip")
    zip_mb: int = _limit(2048, "unpacked size of an uploaded zip, MB")
    zip_entry_mb: int = _limit(50, "unpacked size of one file in an uploaded zip, MB")
    zip_ratio: int = _limit(100, "compression ratio of an uploaded zip")
    waiting_each: int = _limit(120, "waiting runs per user")
    waiting_total: int = _limit(240, "waiting runs, all users")
    answers_at_once: int = _limit(6, "concurrent backend requests, one process each")
    answers_each: int = _limit(2, "concurrent backend requests per user")
    long_at_once: int = _limit(4, "additional long-running requests (such as label preservation), one process each")
    starts_a_minute: int = _limit(60, "runs queued per user and minute")

    def said(self) -> list[tuple[str, int, str]]:
        """(variable, value, description) of every limit, in order."""
        return [(PREFIX + one.name.upper(), getattr(self, one.name), one.metadata["says"]) for one in fields(self)]


def current(environment: Mapping[str, str] | None = None) -> Limits:
    """The limits in effect: the defaults, overridden by the environment.

    Raises:
        Refused: a variable is not a positive integer.
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
                    f"{PREFIX}{one.name.upper()} is not a positive integer",
                    given=text,
                    do=f"set it to {one.metadata['says']}, or leave it out",
                ) from None
    return Limits(**values)


def check_disk(root: Path, needed: int = 50 * MB) -> None:
    """Check that the disk has room for the checkpoints of at least a small model."""
    there = next(path for path in (root, *root.resolve().parents) if path.exists())
    if shutil.disk_usage(there).free < needed:
        raise Refused(
            "the disk is full: a run needs at least 50 MB", given=there, do="free some space, then submit again"
        )


# --- folders ----------------------------------------------------------------------------------------------------------

ROOTS = "SMALLALIGN_ROOTS"
"""Environment variable: folders from which users may read datasets, separated as in PATH. Unset: any, if login is
off."""

_confined: tuple[Path, ...] | None = None


def roots(environment: Mapping[str, str] | None = None) -> tuple[Path, ...] | None:
    """The folders that users may read from, as real paths; None if not restricted."""
    text = (os.environ if environment is None else environment).get(ROOTS)
    if text is None:
        return None
    return tuple(Path(one).expanduser().resolve() for one in text.split(os.pathsep) if one.strip())


def require_allowed(*always: Path) -> None:
    """Restrict users' paths in this process to the allowed folders and `always`.

    The dashboard's processes call it at start, since they act for users. It has no effect where no folders are set.
    It is process-wide, so that no caller can omit the check.
    """
    global _confined
    found = roots()
    _confined = None if found is None else (*found, *(path.resolve() for path in always))


def confined() -> bool:
    """Whether this process acts for users who may read from some folders only."""
    return _confined is not None


def check_path(path: Path, what: str) -> None:
    """Check that a path, with links resolved, is in the allowed folders; does not reveal whether it exists.

    Raises:
        Refused: it is outside.
    """
    if _confined is None:
        return
    real = path.resolve()
    if not any(real == root or root in real.parents for root in _confined):
        raise Refused(
            f"{what} is outside the folders that this dashboard may read",
            given=path,
            do=f"upload it on the Data page, or have the administrator of the dashboard allow its folder ({ROOTS})",
        )
