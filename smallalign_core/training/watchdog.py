"""Detection of hanging steps and out-of-memory errors during training."""

from __future__ import annotations

import contextlib
import faulthandler
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from smallalign_core.errors import SmallAlignError, WorkFailed
from smallalign_core.runs.writer import RunWriter

LEAST_SECONDS = 60.0
TIMES = 20.0
"""A step counts as hanging after the longer of a number of seconds and a multiple of the median step."""

LOOK_SECONDS = 1.0
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class Watched(Protocol):
    """A run in training."""

    @property
    def recording(self) -> RunWriter:
        """The writer of its folder."""

    @property
    def ended(self) -> object:
        """Its result or error; None while it trains."""


class HangDetector(threading.Thread):
    """Detects a hanging step, records it in the runs' folders, and lets the user stop a run that cannot react.

    The stacks of all threads are written to each run's log.txt. If the step still ends, the warning is withdrawn. Uses
    the monotonic clock.

    Args:
        group: runs that train in lockstep.
        give_up: ends this process once a user has stopped a hanging run, since another thread cannot end the step.
    """

    def __init__(self, group: Sequence[Watched], give_up: Callable[[], None] | None = None) -> None:
        super().__init__(daemon=True, name="watch")
        self._group, self._give_up = group, give_up
        self._over, self._took = threading.Event(), deque[float](maxlen=101)
        self._step, self._since, self._hangs = 0, time.monotonic(), False

    @property
    def limit(self) -> float:
        """Seconds after which a step counts as hanging."""
        return max(LEAST_SECONDS, TIMES * statistics.median(self._took)) if self._took else LEAST_SECONDS

    def seen(self, step: int) -> None:
        """Record progress: `step` steps are done."""
        now = time.monotonic()
        if step > self._step:
            self._took.append((now - self._since) / (step - self._step))
        self._step, self._since = step, now

    def __enter__(self) -> HangDetector:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Check periodically."""
        while not self._over.wait(min(LOOK_SECONDS, LEAST_SECONDS / 4)):
            silent = time.monotonic() - self._since
            if not self._hangs and silent > self.limit:
                self._hangs = True
                self._say(
                    f"No step has ended for {silent:.0f} seconds, after step {self._step}: a hang, a slow disk or "
                    "validation of many images. Stacks of all threads: see log.txt. Pause or cancel the run to stop it"
                )
                self._dump()
            elif self._hangs and silent <= self.limit:
                self._hangs = False
                self._say(None)
            if self._hangs and self._give_up:
                self._obey(self._give_up)

    def _present(self) -> list[RunWriter]:
        return [member.recording for member in self._group if member.ended is None]

    def _say(self, reason: str | None) -> None:
        for recording in self._present():
            with contextlib.suppress(SmallAlignError, OSError):
                recording.write_status(reason=reason)

    def _dump(self) -> None:
        for recording in self._present():
            with contextlib.suppress(OSError), (recording.run.folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"no step has ended for {time.monotonic() - self._since:.0f} s, after step {self._step}\n")
                log.flush()
                faulthandler.dump_traceback(log, all_threads=True)

    def _obey(self, give_up: Callable[[], None]) -> None:
        pending = [(recording, recording.run.pending_request) for recording in self._present()]
        for recording, what in pending:
            if what is not None:
                with contextlib.suppress(SmallAlignError, OSError):
                    reason = f"The run hung after step {self._step}: see its log. Resume it from its last checkpoint"
                    recording.write_status(ended="cancelled" if what == "cancel" else "paused", reason=reason)
                    (recording.run.folder / "request").unlink(missing_ok=True)
        if any(what is not None for _, what in pending):
            give_up()


def with_explanation(error: Exception) -> SmallAlignError | None:
    """The error for a lack of memory; None for other exceptions."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(sign in text.lower() for sign in NO_MEMORY):
        return None
    return WorkFailed(
        "out of memory",
        given=text[:160] or type(error).__name__,
        do="lower `batch` or the network's width, or free memory and resume from the last checkpoint",
    )
