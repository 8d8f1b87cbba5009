"""Long work in short steps: what takes minutes is handed over share by share, and goes on when it is asked for again.

One desk answers everybody. A question that would take long is a generator that yields the share that is done; when the
asker's patience ends, it is put aside, and the next time the same question is asked it goes on from there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any, TypeVar

Answer = TypeVar("Answer")
Given = TypeVar("Given")
Taken = TypeVar("Taken")
Work = Generator[float, None, Answer]
"""Yields the share that is done, 0..1; returns the answer."""

KEPT = 6
"""Unfinished questions that this process keeps for the next time; the one asked longest ago is dropped first."""

NEARLY = 0.999
"""The largest share of unfinished work: who sees 1 may take the answer for granted."""

_unfinished: OrderedDict[str, Work[Any]] = OrderedDict()


def advance(question: str, begin: Callable[[], Work[Answer]], patience: float | None) -> tuple[Answer | None, float]:
    """(the answer, 1), or (None, the share that is done) when `patience` seconds ran out; None waits to the end.

    Args:
        question: equal for equal questions.
        begin: starts the work, if it was not put aside before.
    """
    work = _unfinished.pop(question, None) or begin()
    until = time.monotonic() + (float("inf") if patience is None else patience)
    while True:
        try:
            done = next(work)
        except StopIteration as finished:
            return finished.value, 1.0
        if time.monotonic() > until:
            _unfinished[question] = work
            while len(_unfinished) > KEPT:
                _unfinished.popitem(last=False)[1].close()
            return None, min(done, NEARLY)


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
