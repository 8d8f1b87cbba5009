"""The dashboard's client of the backend processes: sends a request, returns the answer or raises its error."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import from_json

from smallalign_core.errors import BadInput, WorkFailed
from smallalign_core.runs.store import Store
from smallalign_core.service.backends import PULSE, Backend, Died, Full, Late, Pool, Starter
from smallalign_core.service.users import OWNER, User
from smallalign_core.service.wire import Request
from smallalign_core.system import limits, typed
from smallalign_core.system.extras import PACKAGE

A = TypeVar("A")


@dataclass
class _Shared:
    """A question that several wait for; `line` is empty where it has to be asked again."""

    line: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class BackendClient:
    """Client of the backend processes, which are started when they are needed.

    Args:
        store: the store that questions are about.
        user: the user it acts for, looked up for each request in its own thread.
        pulse: called now and then in that thread while it waits; what it raises ends the waiting.
    """

    def __init__(
        self,
        store: Store,
        user: Callable[[], User] = lambda: OWNER,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self._user, self._pulse = store, user, pulse
        self._start = Starter(
            [sys.executable, "-m", "smallalign_core", "backend", "--store", str(store.root.resolve())],
            store.root / "backend.log",
            os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _import_path()},
        )
        most = limits.current()
        self.pool = Pool(
            lambda: self._start(), most=most.answers_at_once, long=most.long_at_once, each=most.answers_each
        )
        self._shared: dict[str, _Shared] = {}

    def call(self, request: Request[A], *, timeout: float | None = None) -> A:
        """The answer to one request. Those of different users do not wait for each other.

        Raises:
            BadInput: the request is invalid.
            WorkFailed: it went wrong, took longer than `timeout` seconds, its process died twice, or its answer cannot
                be read.
        """
        user = self._user()
        question = {"verb": request.verb(), "values": request, "user": user.name, "role": user.role}
        line = self._exchange(typed.encode(question) + "\n", request, timeout or request.seconds)
        if not line:
            reason = f"the reason may stand in {self.store.root / 'backend.log'}"
            raise WorkFailed("the answer stopped short twice", given=request.verb(), do=f"try again; {reason}")
        return self._told(request, line)

    def _told(self, request: Request[A], line: str) -> A:
        """The answer on a line, or the error."""
        wrong, do = f"the answer to {request.verb()} cannot be read", "try again; if that fails, restart the dashboard"
        try:
            reply = from_json(line)
        except ValueError as error:
            raise WorkFailed(wrong, given=error, do=do) from None
        if "ok" in reply:
            return typed.decode(request.answer(), reply["ok"], WorkFailed, wrong, do)
        told = _Told(reply["error"]) if reply["bad_input"] else _ToldFailed(reply["error"])
        told.details = reply.get("details", {})
        raise told

    def _exchange(self, question: str, request: Request[Any], timeout: float) -> str:
        """The line that answers `question`; empty if its process died before it could, twice."""
        message = json.loads(question)
        for _ in range(2):  # every question may be asked twice, so a process that died costs a start and no error
            try:
                if message["values"].get("patience") is not None:
                    return self._in_steps(question, message, timeout)
                if request.shared:
                    return self._once(question, message, timeout)
                return self._at_once(question, message["user"], time.monotonic() + timeout)
            except Died:
                continue
            except Late:
                raise WorkFailed(
                    f"there was no answer in {timeout:.0f} seconds", given=request.verb(), do="try again with less"
                ) from None
        return ""

    def _at_once(self, question: str, user: str, until: float, heard: Callable[[str], None] = lambda _: None) -> str:
        """The answer of any process; `heard` gets it too, also when nobody here waits for it any more."""
        try:
            backend = self.pool.short(user, self._pulse)
        except BaseException:
            heard("")
            raise
        line = self._answered(backend, question, until, heard)
        self.pool.release(backend)
        heard(line)
        return line

    def _in_steps(self, question: str, message: dict[str, Any], timeout: float) -> str:
        """The answer of the process that holds what was done so far; how much that is, if it has no time now."""
        values = dict(message["values"])
        patience = float(values.pop("patience"))
        key = json.dumps([message["verb"], values], sort_keys=True)
        try:
            backend = self.pool.steady(key, message["user"], patience, self._pulse)
        except Full as full:
            return json.dumps({"ok": {"done": full.share}})
        line = self._answered(backend, question, time.monotonic() + timeout, lambda _: None)
        reply = json.loads(line)
        share = float(reply["ok"].get("done", 0.0)) if reply.get("unfinished") else None
        self.pool.release(backend, key, share)
        return line

    def _answered(self, backend: Backend, question: str, until: float, heard: Callable[[str], None]) -> str:
        try:
            return backend.ask(question, until, self._pulse)
        except (Died, Late):
            self.pool.drop(backend)
            heard("")
            raise
        except BaseException:  # the asker is gone, to another page perhaps
            self.pool.give_up(backend, until, heard)
            raise

    def _once(self, question: str, message: dict[str, Any], timeout: float) -> str:
        """As `_at_once`; equal requests at the same time share one answer."""
        key = json.dumps([message["verb"], message["values"], message["role"]], sort_keys=True)
        until = time.monotonic() + timeout
        while True:
            shared = _Shared()
            known = self._shared.setdefault(key, shared)
            if known is shared:
                break
            while not known.done.wait(PULSE):
                self._pulse()
                if time.monotonic() > until:
                    raise Late
            if known.line:
                return known.line
            # whoever asked it first has failed or never began: ask it oneself

        def heard(line: str) -> None:
            shared.line = line
            self._shared.pop(key, None)
            shared.done.set()

        return self._at_once(question, message["user"], until, heard)

    def warm(self) -> None:
        """Start a process now, so that the first question does not wait for it."""
        self.pool.warm()

    def close(self) -> None:
        """End the processes."""
        self.pool.close()
        self._start.close()


def _import_path() -> str:
    """Where the backend finds this library. It works in the caller's folder: paths may be relative."""
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))


class _Told(BadInput):
    """An error with a message for users already."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class _ToldFailed(WorkFailed):
    """As `_Told`, for work that failed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
