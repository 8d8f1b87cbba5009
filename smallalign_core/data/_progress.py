"""Progress of decoding: in the decoding process, and in a file for processes that wait for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from smallalign_core.system.files import write

EVERY = 0.5
"""Seconds between two updates of the file."""

Update = Callable[[int, int], None]


@dataclass
class _Work:
    file: Path
    update: Update | None
    last: float = field(default_factory=time.monotonic)


_listener: ContextVar[Update | None] = ContextVar("listener", default=None)
_work: ContextVar[_Work | None] = ContextVar("work", default=None)


@contextlib.contextmanager
def watching(update: Update) -> Iterator[None]:
    """Call `update` with (images done, images in all) while datasets are decoded in this context."""
    token = _listener.set(update)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def noted(file: Path) -> Iterator[None]:
    """Write the progress of decoding to `file`."""
    token = _work.set(_Work(file, _listener.get()))
    try:
        yield
    finally:
        _work.reset(token)
        file.unlink(missing_ok=True)


def advanced(done: int, total: int) -> None:
    """Note that `done` of `total` images are decoded."""
    work = _work.get()
    if work is None or (time.monotonic() - work.last < EVERY and done < total):
        return
    work.last = time.monotonic()
    with contextlib.suppress(OSError):
        write(work.file, f"{done} {total}")
    if work.update is not None:
        work.update(done, total)


def read(file: Path) -> tuple[int, int] | None:
    """(done, total) as noted in `file`; None where no process decodes."""
    try:
        done, total = file.read_text().split()
        return int(done), int(total)
    except (OSError, ValueError):
        return None
