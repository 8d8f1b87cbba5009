"""Long work in short steps: what takes minutes is handed over share by share, and goes on when it is asked for again.

One process answers many visitors. A question that would take long is a generator that yields the share that is done;
when the patience of one call ends, it is put aside, and the next call with the same question goes on from there.

What was begun is never dropped for what comes later: that would be a livelock, in which more visitors than places take
each other's progress away for ever. `KEPT` questions are under way at a time, later ones wait in order of arrival, and
a place is free again when its question is answered, fails, or is not asked any more.
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

Answer = TypeVar("Answer")
Given = TypeVar("Given")
Taken = TypeVar("Taken")
Work = Generator[float, None, Answer]
"""Yields the share that is done, 0..1; returns the answer."""

KEPT = 6
"""Questions that may be under way in one process: each holds its images and networks in memory."""

ABANDONED = 25
"""Rounds in which a question was not asked, after which it gives way. In a round every question that is still asked is
asked once; so the count does not depend on how fast the machine is, or how long one step takes."""

REPLACED = 5
"""As `ABANDONED`, where the same visitor has a new question: a slider that is dragged leaves many behind."""

NEARLY = 0.999
"""The largest share of unfinished work: a share of 1 comes only with the answer."""


@dataclass
class Call:
    """One call for an answer.

    Attributes:
        visitor: on whose behalf; put_aside: whether some of the work is left, which only this process can go on with.
    """

    visitor: str = ""
    put_aside: bool = False


_asking: ContextVar[Call | None] = ContextVar("asking", default=None)


@contextlib.contextmanager
def on_behalf_of(visitor: str) -> Iterator[Call]:
    """Questions that are asked within the block are those of `visitor`."""
    asking = Call(visitor)
    token = _asking.set(asking)
    try:
        yield asking
    finally:
        _asking.reset(token)


@dataclass
class _Table:
    """The questions of this process.

    Attributes:
        begun: work that was put aside; waiting: questions without a place, in order of arrival.
        last: the round in which each of them was asked last; asked: those that were asked in this round.
        visitors: on whose behalf each of them was asked last.
    """

    begun: dict[str, Work[Any]] = field(default_factory=dict)
    waiting: OrderedDict[str, None] = field(default_factory=OrderedDict)
    last: dict[str, int] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    visitors: dict[str, str] = field(default_factory=dict)
    round: int = 0

    def place(self, question: str) -> bool:
        """Whether `question` is under way, or may begin now; if not, it waits."""
        if question in self.asked:
            self.round, self.asked = self.round + 1, set()
        self.asked.add(question)
        self.last[question], self.visitors[question] = self.round, (_asking.get() or Call()).visitor
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
        """Whether `one` is not asked any more, so that it gives way to `other`."""
        most = REPLACED if self.visitors[one] == self.visitors[other] != "" else ABANDONED
        return one != other and self.round - self.last[one] > most

    def forget(self, question: str) -> None:
        """Let go of what is known of a question."""
        self.begun.pop(question, None)
        self.waiting.pop(question, None)
        self.last.pop(question, None)
        self.visitors.pop(question, None)
        self.asked.discard(question)


_table = _Table()


def advance(question: str, begin: Callable[[], Work[Answer]], patience: float | None) -> tuple[Answer | None, float]:
    """(the answer, 1), or (None, the share that is done) when `patience` seconds ran out.

    Without patience (None) it is worked on to the end at once; else a question may have to wait for a place, and its
    share stays 0 until then.

    Args:
        question: equal for equal questions.
        begin: starts the work, if that was not done before.
    """
    asking = _asking.get() or Call()
    if not _table.place(question) and patience is not None:
        asking.put_aside = True
        return None, 0.0
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
    """The answer of `work`, waited for; `told` hears the share that is done."""
    while True:
        try:
            told(next(work))
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer


def part_of(work: Work[Answer], place: int, of: int) -> Work[Answer]:
    """`work` as one of several equal parts: its share becomes a share of the whole."""
    while True:
        try:
            done = next(work)
        except StopIteration as finished:
            answer: Answer = finished.value
            return answer
        yield (place + done) / of


class _Abandoned(BaseException):
    """The work was given up while it waited."""


def by_callback(
    run: Callable[[Callable[[Given], Taken]], Answer], answer: Callable[[Given], Generator[None, None, Taken]]
) -> Generator[None, None, Answer]:
    """Let a library that calls back be worked with in steps: it waits in a thread while its calls are answered here.

    Only one of the two ever works. Given up early, the thread ends.

    Args:
        run: calls the library with a function that it may call back.
        answer: what that function does; yields whenever it may be left.
    """
    asked: list[Given] = []
    told: list[Taken] = []
    ended: list[Answer] = []
    failed: list[BaseException] = []
    here, there = threading.Semaphore(0), threading.Semaphore(0)

    def call(given: Given) -> Taken:
        asked.append(given)
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
            if not asked:
                break
            told.append((yield from answer(asked.pop())))
            there.release()
    finally:
        there.release()  # whoever still waits finds nothing told
        thread.join()
    if failed:
        raise failed[0]
    return ended[0]
