"""Work that is done in steps, so that whoever does it can answer others in between.

Such work is a generator: it yields the share that is done and returns what was asked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any, TypeVar

Made = TypeVar("Made")
Given = TypeVar("Given")
Taken = TypeVar("Taken")
Work = Generator[float, None, Made]


def worked(work: Work[Made], patience: float | None = None) -> tuple[Made | None, float]:
    """(what was asked for, 1), or (None, the share that is done) when `patience` seconds ran out."""
    until = time.monotonic() + (float("inf") if patience is None else patience)
    while True:
        try:
            done = next(work)
        except StopIteration as finished:
            return finished.value, 1.0
        if time.monotonic() > until:
            return None, done


class Unfinished:
    """Work that ran out of patience, kept for whoever asks the same again.

    Args:
        most: pieces of work that are kept; the one that was not asked about for longest goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, Work[Any]] = OrderedDict()

    def go_on(self, question: str, begin: Callable[[], Work[Any]], patience: float | None) -> tuple[Any, float]:
        """As `worked`, from where the same question stood; `begin` starts the work of a new one."""
        work = self._kept.pop(question, None) or begin()
        found, done = worked(work, patience)
        if found is None:
            self._kept[question] = work
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)[1].close()
        return found, done


class _Abandoned(BaseException):
    """The work was given up while it waited."""


def by_callback(
    run: Callable[[Callable[[Given], Taken]], Made], answer: Callable[[Given], Generator[None, None, Taken]]
) -> Generator[None, None, Made]:
    """Let a library that calls back be worked with in steps: it waits in a thread while its calls are answered here.

    Only one of the two ever works. Given up early, the thread ends.

    Args:
        run: calls the library with a function that it may call back.
        answer: what that function does; yields whenever it may be left.
    """
    asked: list[Given] = []
    told: list[Taken] = []
    ended: list[Made] = []
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
