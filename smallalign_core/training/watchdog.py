"""What goes wrong while a run trains, in words: a step that hangs, memory that does not suffice."""

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
"""A step hangs after the longer of so many seconds and so many times the median step."""

LOOK_SECONDS = 1.0
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class Watched(Protocol):
    """A run that is trained."""

    @property
    def recording(self) -> RunWriter:
        """The right to write its folder."""

    @property
    def ended(self) -> object:
        """How it ended; None while it trains."""


class HangDetector(threading.Thread):
    """Notices that no step ends, says so in the runs' folders, and obeys whoever stops a run that cannot obey.

    The stacks of all threads go into each run's log.txt. A step may still end: then what was said is taken back. Time
    is that of the monotonic clock.

    Args:
        pupils: runs that train in lockstep.
        give_up: ends this process, once a person has asked a hanging run to stop. Another thread cannot end the step.
    """

    def __init__(self, pupils: Sequence[Watched], give_up: Callable[[], None] | None = None) -> None:
        super().__init__(daemon=True, name="watch")
        self._pupils, self._give_up = pupils, give_up
        self._over, self._took = threading.Event(), deque[float](maxlen=101)
        self._step, self._since, self._hangs = 0, time.monotonic(), False

    @property
    def limit(self) -> float:
        """Seconds after which a step hangs."""
        return max(LEAST_SECONDS, TIMES * statistics.median(self._took)) if self._took else LEAST_SECONDS

    def seen(self, step: int) -> None:
        """Something happened: so far, `step` steps were taken."""
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
        """Look from time to time."""
        while not self._over.wait(min(LOOK_SECONDS, LEAST_SECONDS / 4)):
            silent = time.monotonic() - self._since
            if not self._hangs and silent > self.limit:
                self._hangs = True
                self._say(
                    f"No step has ended for {silent:.0f} seconds, after step {self._step}: a hang, a slow disk or "
                    "validation of many images. What every thread does stands in log.txt. Pause or cancel it to stop it"
                )
                self._dump()
            elif self._hangs and silent <= self.limit:
                self._hangs = False
                self._say(None)
            if self._hangs and self._give_up:
                self._obey(self._give_up)

    def _present(self) -> list[RunWriter]:
        return [pupil.recording for pupil in self._pupils if pupil.ended is None]

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
        asked = [(recording, recording.run.pending_request) for recording in self._present()]
        for recording, what in asked:
            if what is not None:
                with contextlib.suppress(SmallAlignError, OSError):
                    reason = (
                        f"It hung after step {self._step}: its log shows where. It goes on from its last checkpoint"
                    )
                    recording.write_status(ended="cancelled" if what == "cancel" else "paused", reason=reason)
                    (recording.run.folder / "request").unlink(missing_ok=True)
        if any(what is not None for _, what in asked):
            give_up()


def with_explanation(error: Exception) -> SmallAlignError | None:
    """What a lack of memory means, in words; None for other errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(sign in text.lower() for sign in NO_MEMORY):
        return None
    return WorkFailed(
        "the memory did not suffice",
        given=text[:160] or type(error).__name__,
        do="lower `batch` or the network's width, or free memory and resume: it goes on from its last checkpoint",
    )
