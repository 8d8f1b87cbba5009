"""The upload quota, in front of Streamlit's upload route, which keeps files in memory for a session.

Streamlit checks the size of one file and no more, so a script that never opens a page could fill the memory. The
bytes of a session are read from Streamlit's own storage, so no second count has to be kept in sync; the camera's
recordings lie there, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pages.ui._compat import uploads_held
from smallalign_core.errors import Refused
from smallalign_core.system import limits

ROUTE = re.compile(r".*/_stcore/upload_file/(?P<session>[^/]+)/(?P<file>[^/]+)/?")
FRAMING = limits.MB
"""What a form may add to the file in it: what Streamlit allows."""
MOST_WAITING, MOST_WAITING_TOTAL = 64, 1024
"""Uploads that wait for others to end, of a session and of all. A folder arrives as many files, of which a browser
sends some at once."""
MOST_NOTED = 10_000
"""Refusals that are remembered, of all sessions: a script can cause any number of them."""

_arriving: Counter[str] = Counter()
"""Bytes received by uploads in progress, by session."""
_under_way: Counter[str] = Counter()
"""Uploads in progress, by session."""
_refused: dict[tuple[str, str], Refused] = {}
"""What was refused, by session and id of the file, oldest first."""


class _Stop(Exception):
    """The upload that is being read has to end."""

    def __init__(self, status: int, wrong: str, do: str, given: str = "") -> None:
        self.status, self.refusal = status, Refused(wrong, given=given, do=do)
        super().__init__(str(self.refusal))


def refusals(session: str | None) -> dict[str, Refused]:
    """What was refused of a session's uploads since the last call, by the ids of the files."""
    files = [file for of, file in list(_refused) if of == session]
    return {file: found for file in files if (found := _refused.pop((str(session), file), None))}


def check(session: str | None, size: int, files: int) -> None:
    """Check that a session may hold `size` bytes in `files` files more than it does; all sessions share one limit.

    Raises:
        Refused: it may not.
    """
    try:
        _check(session or "", size, files)
    except _Stop as stop:
        raise stop.refusal from None


class Quota:
    """ASGI middleware: counts what arrives, whatever the headers promise, and ends an upload that is too much."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.places = asyncio.Semaphore(limits.current().uploads_at_once)
        self.waiting: Counter[str] = Counter()
        """Uploads that wait for a place, by session."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = ROUTE.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "PUT" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            if message["type"] == "http.response.start" and message["status"] >= 400:
                _note(route, Refused("a file was not accepted", do="upload it again, or enter a path"))
            await send(message)

        try:
            await self._enter(route["session"])
            try:
                await self._read(route["session"], scope, receive, noted)
            finally:
                self.places.release()
        except _Stop as stop:
            _note(route, stop.refusal)
            if not began:
                with contextlib.suppress(OSError):
                    # The connection is closed, since the rest is not read.
                    headers = {"Connection": "close"}
                    answer = PlainTextResponse(str(stop), status_code=stop.status, headers=headers)
                    await answer(scope, receive, send)

    async def _enter(self, session: str) -> None:
        """Wait until fewer uploads than allowed are in progress; nothing of the file is read before."""
        for waiting, most in ((self.waiting[session], MOST_WAITING), (self.waiting.total(), MOST_WAITING_TOTAL)):
            if waiting >= most:
                raise _Stop(429, "too many uploads at once", "try again in a moment", f"{waiting} waiting")
        self.waiting[session] += 1
        try:
            await self.places.acquire()
        finally:
            _less(self.waiting, session, 1)

    async def _read(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route read the file, in the time that one has."""
        most, read, counted = limits.current(), 0, True

        def forget() -> None:
            """From now on the file is in Streamlit's storage, or nowhere."""
            nonlocal counted
            if counted:
                counted = False
                _less(_arriving, session, read)
                _less(_under_way, session, 1)

        async def measured() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request" and counted:
                size = len(message.get("body", b""))
                read += size
                _arriving[session] += size
                _check_file(read, most)
                _check(session)
            return message

        async def answered(message: Message) -> None:
            forget()
            await send(message)

        _under_way[session] += 1
        try:
            async with asyncio.timeout(most.upload_seconds):
                promised = Headers(scope=scope).get("content-length", "")
                size = int(promised) if promised.isdigit() else 0
                _check_file(size, most)
                _check(session, size)
                await self.app(scope, measured, answered)
        except TimeoutError:
            raise _Stop(
                408,
                f"the upload timed out after {most.upload_seconds} seconds",
                "upload a smaller file, or enter a path",
            ) from None
        finally:
            forget()


def _less(counts: Counter[str], session: str, number: int) -> None:
    """Count down; what is zero takes no memory."""
    counts[session] -= number
    if not counts[session]:
        del counts[session]


def _note(route: re.Match[str], refusal: Refused) -> None:
    _refused[route["session"], route["file"]] = refusal
    while len(_refused) > MOST_NOTED:
        _refused.pop(next(iter(_refused)), None)


def _check_file(size: int, most: limits.Limits) -> None:
    if size > most.upload_mb * limits.MB + FRAMING:
        raise _Stop(
            413, f"the file is larger than {most.upload_mb} MB", "for larger datasets, enter the path of a folder"
        )


def _check(session: str, size: int = 0, files: int = 0) -> None:
    """Check a session with what arrives now and, if that is more, `size` bytes; and with `files` files more."""
    most, there, arriving = limits.current(), uploads_held(), _arriving.copy()
    mine, held = there.get(session, (0, 0))
    if held + _under_way[session] + files > most.upload_files:
        raise _Stop(
            429,
            f"a session may hold {most.upload_files:,} files",
            "upload a zip of a larger folder, or enter its path",
        )
    if mine + max(size, arriving[session]) > most.uploads_each_mb * limits.MB:
        raise _Stop(
            413, f"a session may hold {most.uploads_each_mb} MB of uploads", "enter the path of a larger folder"
        )
    if sum(held for held, _ in there.values()) + max(size, arriving.total()) > most.uploads_total_mb * limits.MB:
        raise _Stop(429, "the upload memory of this server is full", "try again later, or enter a path")
