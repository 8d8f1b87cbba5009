"""Seconds of a device's own work: what a step costs, whoever else uses the machine."""

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
"""The latest laps, from which the median is."""


class Timer:
    """Sums laps of work on `device`; what happens while it stands is not in them.

    On a CPU these are seconds of this process's processor, all threads together: neighbours do not lengthen them. On
    CUDA they are the GPU's own, between events that are read when somebody asks, so that nobody waits for them. On
    other devices they are those of the wall clock.
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
        """One lap."""
        self._since = self._now()
        try:
            yield
        finally:
            self._lap.append((self._since, self._now()))
            self._unread.append(self._lap)
            self._lap, self._since = [], None

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, each made within a lap; what is done with them is not in it."""
        source = iter(items)
        while True:
            with self.measure():
                found = next(source, None)
            if found is None:
                return
            yield found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop within a lap; does nothing outside of one."""
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
        """Of all laps so far; on a GPU this waits until it has done them."""
        self._read()
        return self._seconds

    @property
    def median(self) -> float | None:
        """Seconds of the median lap, of the latest thousand; None before the first."""
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
