"""The upload quota, in front of Streamlit's upload route, which keeps files in memory for a session.

Streamlit checks the size of one file and no more, so a script that never opens a page could fill the memory. The
bytes of a session are read from Streamlit's own storage, so no second count has to be kept in sync.
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
from smallalign_core.system import limits

ROUTE = re.compile(r".*/_stcore/upload_file/(?P<session>[^/]+)/(?P<file>[^/]+)/?")
FRAMING = limits.MB
"""What a form may add to the file in it: what Streamlit allows."""
MOST_WAITING = 64
"""Uploads that wait for others to end. A folder arrives as many files, of which a browser sends some at once."""


class _Stop(Exception):
    """The upload that is being read has to end."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Quota:
    """ASGI middleware: counts what arrives, whatever the headers promise, and ends an upload that is too much."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.arriving: Counter[str] = Counter()
        """Bytes received by uploads in progress, by session."""
        self.under_way, self.waiting = 0, 0
        self.ended = asyncio.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = ROUTE.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "PUT" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        most, session, began, read = limits.current(), route["session"], False, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                read += size
                self.arriving[session] += size
                self._check(session, read, most)
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        entered = False
        try:
            async with asyncio.timeout(most.upload_seconds):
                await self._enter(most)
                entered = True
                promised = Headers(scope=scope).get("content-length", "")
                self._check(session, int(promised) if promised.isdigit() else 0, most)
                await self.app(scope, counted, noted)
        except TimeoutError:
            await _answer(
                scope,
                receive,
                send,
                began,
                408,
                f"The upload timed out after {most.upload_seconds} seconds. Upload a smaller file, or give a path.",
            )
        except _Stop as stop:
            await _answer(scope, receive, send, began, stop.status, stop.sentence)
        finally:
            self.arriving[session] -= read
            if not self.arriving[session]:
                del self.arriving[session]
            if entered:
                self.under_way -= 1
                async with self.ended:
                    self.ended.notify()

    async def _enter(self, most: limits.Limits) -> None:
        """Wait until fewer uploads than allowed are in progress; nothing of the file is read before."""
        if self.waiting >= MOST_WAITING:
            raise _Stop(429, f"Too many uploads at once. Given: {self.waiting} waiting. Try again in a moment.")
        self.waiting += 1
        try:
            async with self.ended:
                await self.ended.wait_for(lambda: self.under_way < most.uploads_at_once)
                self.under_way += 1
        finally:
            self.waiting -= 1

    def _check(self, session: str, size: int, most: limits.Limits) -> None:
        """Check an upload that is `size` bytes (or claims to be); received bytes are in `arriving` already."""
        if size > most.upload_mb * limits.MB + FRAMING:
            raise _Stop(
                413, f"The file is larger than {most.upload_mb} MB. For larger datasets, enter the path of a folder."
            )
        there = uploads_held()
        mine, files = there.get(session, (0, 0))
        if files >= most.upload_files:
            raise _Stop(
                429,
                f"A session may hold {most.upload_files:,} files. Reload the page to drop them; upload a zip of a "
                "larger folder, or enter its path.",
            )
        own = mine + max(size, self.arriving[session])
        if own > most.uploads_each_mb * limits.MB:
            raise _Stop(413, f"A session may hold {most.uploads_each_mb} MB of uploads. Reload the page to drop them.")
        everything = sum(size for size, _ in there.values()) + max(size, self.arriving.total())
        if everything > most.uploads_total_mb * limits.MB:
            raise _Stop(429, "The upload memory of this server is full. Try again later.")


async def _answer(scope: Scope, receive: Receive, send: Send, began: bool, status: int, sentence: str) -> None:
    """The refusal, unless a response has started; the connection is closed, since the rest is not read."""
    if not began:
        with contextlib.suppress(OSError):
            answer = PlainTextResponse(sentence, status_code=status, headers={"Connection": "close"})
            await answer(scope, receive, send)
