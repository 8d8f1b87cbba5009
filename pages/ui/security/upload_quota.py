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
FILES_EACH = 64
"""Files of one session: an empty one has a cost, too."""


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
        self.under_way = 0

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
            if self.under_way >= most.uploads_at_once:
                raise _Stop(
                    429, f"Too many uploads at once. Given: {self.under_way} in progress. Try again in a moment."
                )
            self.under_way, entered = self.under_way + 1, True
            promised = Headers(scope=scope).get("content-length", "")
            self._check(session, int(promised) if promised.isdigit() else 0, most)
            async with asyncio.timeout(most.upload_seconds):
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
            self.under_way -= entered
            self.arriving[session] -= read
            if not self.arriving[session]:
                del self.arriving[session]

    def _check(self, session: str, size: int, most: limits.Limits) -> None:
        """Check an upload that is `size` bytes (or claims to be); received bytes are in `arriving` already."""
        if size > most.upload_mb * limits.MB + FRAMING:
            raise _Stop(
                413, f"The file is larger than {most.upload_mb} MB. For larger datasets, enter the path of a folder."
            )
        there = uploads_held()
        mine, files = there.get(session, (0, 0))
        if files >= FILES_EACH:
            raise _Stop(429, f"A session may hold {FILES_EACH} files. Reload the page to drop them.")
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
