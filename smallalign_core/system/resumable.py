"""Resumable computations: work that takes minutes is done in time slices, and continues when it is requested again.

One process serves many users. A long request is a generator that yields its progress; when the time slice of a call
ends, it is suspended, and the next call with the same key resumes it.

Work in progress is never dropped for later requests: with more users than slots that would be a livelock. `KEPT`
requests are in progress at a time, later ones wait in order of arrival, and a slot becomes free when its request
finishes, fails, or is no longer polled.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from smallalign_core.system.priority import at_low_priority

Answer = TypeVar("Answer")
Given = TypeVar("Given")
Taken = TypeVar("Taken")
Work = Generator[float, None, Answer]
"""Yields progress in 0..1; returns the result."""

KEPT = 6
"""Requests in progress per process: each holds its images and networks in memory."""

ABANDONED = 25
"""Polling rounds after which a request that was not polled counts as abandoned. In a round every active request is
polled once, so the count does not depend on the speed of the machine or the length of a step."""

REPLACED = 5
"""As `ABANDONED`, if the same user has a new request: dragging a slider leaves many behind."""

NEARLY = 0.999
"""The largest progress of unfinished work: 1 is reported only with the result."""


@dataclass
class Call:
    """One call for a result.

    Attributes:
        user: the user it is for; put_aside: whether unfinished work remains, which only this process can resume.
    """

    user: str = ""
    put_aside: bool = False


_asking: ContextVar[Call | None] = ContextVar("asking", default=None)


@contextlib.contextmanager
def on_behalf_of(user: str) -> Iterator[Call]:
    """Requests within the block are on behalf of `user`."""
    asking = Call(user)
    token = _asking.set(asking)
    try:
        yield asking
    finally:
        _asking.reset(token)


@dataclass
class _Table:
    """The long requests of this process.

    Attributes:
        begun: suspended work; waiting: requests without a slot, in order of arrival.
        last: the round in which each was last polled; polled: those polled in this round.
        users: the user of the last poll of each.
    """

    begun: dict[str, Work[Any]] = field(default_factory=dict)
    waiting: OrderedDict[str, None] = field(default_factory=OrderedDict)
    last: dict[str, int] = field(default_factory=dict)
    polled: set[str] = field(default_factory=set)
    users: dict[str, str] = field(default_factory=dict)
    round: int = 0

    def place(self, question: str) -> bool:
        """Whether `question` is in progress, or may begin now; if not, it waits."""
        if question in self.polled:
            self.round, self.polled = self.round + 1, set()
        self.polled.add(question)
        self.last[question], self.users[question] = self.round, (_asking.get() or Call()).user
        if question in self.begun:
            return True
        for gone in [one for one in self.waiting if self._left(one, question)]:
            self.forget(gone)
        before = list(self.waiting).index(question) if question in self.waiting else len(self.waiting)
        if before >= KEPT - len(self.begun):
            left = [one for one in self.begun if self._left(one, question)]
            if before or not left:
                self.waiting[question] = None
                return False
            longest = min(left, key=self.last.__getitem__)
            self.begun[longest].close()
            self.forget(longest)
        self.waiting.pop(question, None)
        return True

    def _left(self, one: str, other: str) -> bool:
        """Whether `one` is no longer polled, so that its slot goes to `other`."""
        most = REPLACED if self.users[one] == self.users[other] != "" else ABANDONED
        return one != other and self.round - self.last[one] > most

    def forget(self, question: str) -> None:
        """Drop all state of a request."""
        self.begun.pop(question, None)
        self.waiting.pop(question, None)
        self.last.pop(question, None)
        self.users.pop(question, None)
        self.polled.discard(question)


_table = _Table()


def advance(
    question: str, begin: Callable[[], Work[Answer]], patience: float | None, *, background: bool = False
) -> tuple[Answer | None, float]:
    """(result, 1), or (None, progress) after `patience` seconds.

    With `patience` None it runs to completion at once; otherwise a request may have to wait for a slot, with progress 0
    until then.

    Args:
        question: the key of the request.
        begin: creates the generator, if it does not exist yet.
        background: at low priority.
    """
    asking = _asking.get() or Call()
    if not _table.place(question) and patience is not None:
        asking.put_aside = True
        return None, 0.0
    if background:
        return at_low_priority(lambda: _continued(question, begin, patience, asking))
    return _continued(question, begin, patience, asking)


def _continued(
    question: str, begin: Callable[[], Work[Answer]], patience: float | None, asking: Call
) -> tuple[Answer | None, float]:
    """As `advance`, for a request that has a slot."""
    work = _table.begun.pop(question, None)
    try:
        if work is None:
            work = begin()
        until = time.monotonic() + (float("inf") if patience is None else patience)
        while True:
            done = next(work)
            if time.monotonic() > until:
                _table.begun[question], asking.put_aside = work, True
                return None, min(done, NEARLY)
    except StopIteration as finished:
        return finished.value, 1.0
    finally:
        if question not in _table.begun:
            _table.forget(question)


def finish(work: Work[Answer], told: Callable[[float], None] = lambda _: None) -> Answer:
    """Run `work` to completion and return its result; `told` is called with the progress."""
    while True:
        try:
            told(next(work))
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer


def part_of(work: Work[Answer], place: int, of: int) -> Work[Answer]:
    """`work` as one of several equal parts: its progress is scaled to that of the whole."""
    while True:
        try:
            done = next(work)
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer
        yield (place + done) / of


class _Abandoned(BaseException):
    """The work was cancelled while it was suspended."""


def by_callback(
    run: Callable[[Callable[[Given], Taken]], Answer], answer: Callable[[Given], Generator[None, None, Taken]]
) -> Generator[None, None, Answer]:
    """Run a library that uses callbacks as a generator: it runs in a thread, and its callbacks are evaluated here.

    Only one of the two runs at a time. If the generator is closed early, the thread ends.

    Args:
        run: calls the library with the callback.
        answer: the callback's work; yields wherever it may be suspended.
    """
    questions: list[Given] = []
    told: list[Taken] = []
    ended: list[Answer] = []
    failed: list[BaseException] = []
    here, there = threading.Semaphore(0), threading.Semaphore(0)

    def call(given: Given) -> Taken:
        questions.append(given)
        here.release()
        there.acquire()
        if not told:
            raise _Abandoned
        return told.pop()

    def work() -> None:
        try:
            ended.append(run(call))
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again where somebody waits for the result
            failed.append(error)
        here.release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            here.acquire()
            if not questions:
                break
            told.append((yield from answer(questions.pop())))
            there.release()
    finally:
        there.release()  # a thread that still waits gets no value
        thread.join()
    if failed:
        raise failed[0]
    return ended[0]
