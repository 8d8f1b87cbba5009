"""When a user last opened the dashboard: what ended since is new."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from pathlib import Path

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.system.files import read_json, write_json

ONE = 30 * 60
"""Seconds without a page after which the next is another visit: reloading a page is none."""


def enter(store: Store, user: str) -> float | None:
    """Note a visit of a user; Unix time of the one before, None at the first, or where the store is read-only."""
    file = store.root / "cache" / "visits" / f"{hashlib.sha256(user.encode()).hexdigest()[:16]}.json"
    before: float | None = None
    last, now = -math.inf, time.time()
    with contextlib.suppress(SmallAlignError, OSError, ValueError, KeyError, TypeError):
        known = read_json(file)
        last = float(known["at"])
        before = last if now - last > ONE else known.get("before") and float(known["before"])
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"at": now, "before": before})
    return before


def ended(run: Run) -> float | None:
    """Unix time at which a run wrote its result; None before that."""
    return _changed(run.folder / "result.json")


def _changed(file: Path) -> float | None:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return None
