"""Work of low priority: it takes the processor time that training and the pages leave."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
NICE = 10
"""How much nicer: Linux gives such a thread about a tenth of the time of a usual one that wants the same core."""


def at_low_priority(do: Callable[[], T]) -> T:
    """The result of `do`, or what it raises.

    It runs in a thread of its own, since a process may not take its priority back. On Linux that thread, and those that
    it starts for matrix products, have a low priority; other systems know priorities of whole processes only.
    """
    with ThreadPoolExecutor(1, initializer=_lower) as pool:
        return pool.submit(contextvars.copy_context().run, do).result()


def _lower() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))
