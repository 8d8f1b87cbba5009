"""The pool of backends, and the assignment of requests to them."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

IDLE = 60.0
"""Seconds after which an idle backend ends, except for the last one."""

LEFT = 30.0
"""Seconds without a poll after which unfinished work is abandoned if another request waits for its slot."""

PULSE = 0.2
"""Seconds between checks whether the caller still waits."""


class Died(Exception):
    """The backend ended before it replied."""


class Late(Exception):
    """The reply took too long; the backend was ended."""


class Full(Exception):
    """Long work has to wait.

    Attributes:
        share: how much of it is done.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share


# --- one backend ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Backend:
    """One backend process and its state.

    Attributes:
        line: the socket for requests and replies.
        kill: ends the process unconditionally.
        busy: whether it is processing a request; counted: the user whose limit that request counts against.
        holds: unfinished long requests in it, each with its progress.
        user: the user of its last request; since: when it became idle.
    """

    pid: int
    line: socket.socket
    kill: Callable[[], None]
    busy: bool = True
    counted: str | None = None
    holds: dict[str, float] = field(default_factory=dict)
    user: str = ""
    since: float = 0.0
    _rest: bytearray = field(default_factory=bytearray)

    def ask(self, question: str, until: float, pulse: Callable[[], None]) -> str:
        """The reply to `question`; `pulse` is called now and then, and may raise to give up.

        Raises:
            Died, Late: there is none.
        """
        try:
            self.line.sendall(question.encode())
        except OSError:
            raise Died from None
        return self.answer(until, pulse)

    def answer(self, until: float, pulse: Callable[[], None] = lambda: None) -> str:
        """The next line.

        Raises:
            Died, Late: there is none.
        """
        ready = select.poll()
        ready.register(self.line, select.POLLIN)
        while not self._rest.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0:
                raise Late
            if not ready.poll(1000 * min(PULSE, left)):
                pulse()
                continue
            try:
                some = self.line.recv(1 << 20)
            except OSError:
                some = b""
            if not some:
                raise Died
            self._rest += some
        found, self._rest = self._rest.decode(), bytearray()
        return found


# --- which backend ----------------------------------------------------------------------------------------------------


class Pool:
    """The backends of one store.

    Args:
        start: starts one; called outside of any lock.
        most: max. concurrent requests; long: max. additional backends with unfinished work; each: max. concurrent
            requests per user.
    """

    def __init__(self, start: Callable[[], Backend], *, most: int, long: int, each: int) -> None:
        self.most, self.long, self.each = most, long, each
        self._start = start
        self._all: list[Backend] = []
        self._changed = threading.Condition()
        self._starting = 0  # for long work
        self._line: OrderedDict[object, str] = OrderedDict()  # callers waiting for a backend, in order of arrival
        self._waiting: OrderedDict[str, float] = OrderedDict()  # long requests without a slot, and their last poll
        self._answering: dict[str, int] = {}
        self._timer: threading.Timer | None = None

    def backends(self) -> list[Backend]:
        """The backends believed to be alive."""
        with self._changed:
            return list(self._all)

    def short(self, user: str, pulse: Callable[[], None]) -> Backend:
        """Acquire a backend for one request of `user`; returned by `release`, `give_up` or `drop`."""
        ticket = object()
        with self._changed:
            self._line[ticket] = user
            try:
                while not self._turn(ticket):
                    self._wait(pulse)
                self._answering[user] = self._answering.get(user, 0) + 1
                found = self._idle(user)
                if found is not None:
                    found.busy, found.user, found.counted = True, user, user
                    return found
            finally:
                del self._line[ticket]
                self._changed.notify_all()
        try:
            return self._started(user, counted=user)
        except BaseException:
            with self._changed:
                self._uncount(user)
            raise

    def _uncount(self, user: str | None) -> None:
        if user is not None:
            self._answering[user] -= 1
            if not self._answering[user]:
                del self._answering[user]

    def _turn(self, ticket: object) -> bool:
        """Whether a request may start: its user is within the limit, there is room, and no earlier request could
        start.
        """
        if sum(self._answering.values()) >= self.most:
            return False
        free = [one for one, whose in self._line.items() if self._answering.get(whose, 0) < self.each]
        return bool(free) and free[0] is ticket

    def _idle(self, user: str) -> Backend | None:
        """An idle backend without unfinished work, preferably the last one used for `user`."""
        found = [one for one in self._all if not one.busy and not one.holds]
        return max(found, key=lambda one: (one.user == user, one.since), default=None)

    def steady(self, question: str, user: str, patience: float, pulse: Callable[[], None]) -> Backend:
        """The backend where long work continues or may begin.

        Raises:
            Full: within `patience` seconds there was none.
        """
        until = time.monotonic() + patience
        with self._changed:
            while True:
                found = self._place(question, user)
                if isinstance(found, Backend):
                    found.busy, found.user = True, user
                    found.holds.setdefault(question, 0.0)
                    self._waiting.pop(question, None)
                    return found
                if found:
                    self._starting += 1
                    self._waiting.pop(question, None)
                    break
                if time.monotonic() >= until:
                    raise Full(next((one.holds[question] for one in self._all if question in one.holds), 0.0))
                self._wait(pulse, until)
        try:
            return self._started(user, question=question)
        finally:
            with self._changed:
                self._starting -= 1

    def _place(self, question: str, user: str) -> Backend | bool:
        """A backend for long work; True: one may be started; False: not now."""
        now = time.monotonic()
        holding = [one for one in self._all if one.holds]
        known = next((one for one in holding if question in one.holds), None) or next(
            (one for one in holding if one.user == user), None
        )
        if known is not None:
            return False if known.busy else known
        for gone in [one for one, since in self._waiting.items() if now - since > LEFT]:
            del self._waiting[gone]
        self._waiting.setdefault(question, now)
        self._waiting[question] = now
        before = list(self._waiting).index(question)
        if before >= self.long - len(holding) - self._starting:
            left = [one for one in holding if not one.busy and now - one.since > LEFT]
            if before or not left:
                return False
            self._drop(min(left, key=lambda one: one.since))
        return self._idle(user) or True

    def _wait(self, pulse: Callable[[], None], until: float = float("inf")) -> None:
        """Wait for a change; the lock is released while checking whether the caller still waits."""
        self._changed.wait(max(0.0, min(PULSE, until - time.monotonic())))
        self._changed.release()
        try:
            pulse()
        finally:
            self._changed.acquire()

    def _started(self, user: str, counted: str | None = None, question: str | None = None) -> Backend:
        found = self._start()
        found.user, found.counted = user, counted
        if question is not None:
            found.holds[question] = 0.0
        with self._changed:
            self._all.append(found)
        return found

    def warm(self) -> None:
        """Start one, if there is none."""
        if not self.backends():
            self.release(self._started(""))

    def release(self, backend: Backend, question: str = "", share: float | None = None) -> None:
        """Return a backend after its reply; `share`: the progress of the long `question`, if that continues there."""
        with self._changed:
            self._uncount(backend.counted)
            backend.busy, backend.counted, backend.since = False, None, time.monotonic()
            backend.holds.pop(question, None)
            if share is not None:
                backend.holds[question] = share
            self._changed.notify_all()
            if self._timer is None or not self._timer.is_alive():
                self._timer = threading.Timer(IDLE + 1, self.rest)
                self._timer.daemon = True
                self._timer.start()

    def give_up(self, backend: Backend, until: float, heard: Callable[[str], None] = lambda _: None) -> None:
        """The caller no longer waits: `heard` gets the reply when it arrives, and the backend stays in use."""

        def drain() -> None:
            line = ""
            try:
                line = backend.answer(until)
                self.release(backend)
            except (Died, Late):
                self.drop(backend)
            finally:
                heard(line)

        threading.Thread(target=drain, daemon=True).start()

    def rest(self) -> None:
        """End backends that were idle for a while; the last one stays."""
        with self._changed:
            self._timer, now = None, time.monotonic()
            for one in list(self._all):
                idle = not one.busy and now - one.since > (IDLE if not one.holds else 10 * IDLE)
                if idle and len(self._all) > 1:
                    self._drop(one)
            if len(self._all) > 1:
                self._timer = threading.Timer(IDLE, self.rest)
                self._timer.daemon = True
                self._timer.start()

    def drop(self, backend: Backend) -> None:
        """End a backend: it died, or took too long."""
        with self._changed:
            self._drop(backend)

    def _drop(self, backend: Backend) -> None:
        self._uncount(backend.counted)
        backend.counted = None
        if backend in self._all:
            self._all.remove(backend)
        backend.kill()
        backend.line.close()
        self._changed.notify_all()

    def close(self) -> None:
        """End them all."""
        for one in self.backends():
            self.drop(one)
        if self._timer is not None:
            self._timer.cancel()
