"""Compute time of a device: the cost of a step independent of other load on the machine."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
LAPS = 1_000
"""Number of latest measurements for the median."""


class Timer:
    """Sums compute time on `device`; paused intervals are excluded.

    On a CPU it is the CPU time of this process, all threads together, unaffected by other processes. On CUDA it is GPU
    time between events, which are read lazily and cause no synchronisation. On other devices it is wall-clock time.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._tick = time.process_time if device.type == "cpu" else time.perf_counter
        self._seconds, self._since = 0.0, None
        self._lap: list[tuple[Any, Any]] = []
        self._unread: list[list[tuple[Any, Any]]] = []
        self._laps: deque[float] = deque(maxlen=LAPS)

    def _now(self) -> Any:
        if not self._cuda:
            return self._tick()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the block."""
        self._since = self._now()
        try:
            yield
        finally:
            self._lap.append((self._since, self._now()))
            self._unread.append(self._lap)
            self._lap, self._since = [], None

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over `items`, measuring the production of each but not its use."""
        source = iter(items)
        while True:
            with self.measure():
                found = next(source, None)
            if found is None:
                return
            yield found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the measurement; no effect outside of one."""
        running = self._since is not None
        if running:
            self._lap.append((self._since, self._now()))
        try:
            yield
        finally:
            if running:
                self._since = self._now()

    @property
    def seconds(self) -> float:
        """Total seconds so far; synchronises on a GPU."""
        self._read()
        return self._seconds

    @property
    def median(self) -> float | None:
        """Median in seconds of the latest thousand measurements; None before the first."""
        self._read()
        return statistics.median(self._laps) if self._laps else None

    def _read(self) -> None:
        if self._cuda and self._unread:
            torch.cuda.synchronize()
        for lap in self._unread:
            taken = sum(start.elapsed_time(end) / 1000 if self._cuda else end - start for start, end in lap)
            self._seconds += taken
            self._laps.append(taken)
        self._unread = []
