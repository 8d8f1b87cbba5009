"""What uvicorn does before our middleware gets a request: the headers of all other responses, and a deadline.

uvicorn offers no settings for either, so two of its private classes are patched; `test_web.py` connects to the real
server and would notice a change in a newer version. It responds to invalid HTTP and invalid handshakes by itself,
without our headers; and it waits forever for the rest of a request's head, so that a few thousand sockets which send
a byte a minute block all others (slowloris).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_SECONDS = 20.0
"""How long the head of a request may take to arrive, from the connection or from the end of the last answer; the same
for the rest of an unread body."""

TOO_SLOW = b"The request took too long to arrive. Reload the page."


def guard(headers: Mapping[str, str], seconds: float = HEAD_SECONDS) -> None:
    """Add `headers` to every response that uvicorn makes by itself, and a deadline to every request's head."""
    _answer_with(headers)
    _hurry(headers, seconds)


def _answer_with(headers: Mapping[str, str]) -> None:
    def send_400_response(self: H11Protocol, msg: str) -> None:
        # Written by hand: h11 may be in a state in which it sends nothing.
        self.transport.write(_plain("400 Bad Request", headers, msg.encode("ascii", "replace")))
        self.transport.close()

    begin = WebSocketsSansIOProtocol.__init__

    def begin_with_headers(self: WebSocketsSansIOProtocol, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        send = self.conn.send_response

        def send_response(response: Any) -> None:
            if response.status_code != 101:
                for name, value in headers.items():
                    if name not in response.headers:
                        response.headers[name] = value
            send(response)

        self.conn.send_response = send_response  # type: ignore[method-assign]

    H11Protocol.send_400_response = send_400_response  # type: ignore[method-assign]
    WebSocketsSansIOProtocol.__init__ = begin_with_headers  # type: ignore[method-assign]


def _hurry(headers: Mapping[str, str], seconds: float) -> None:
    made, received, lost = H11Protocol.connection_made, H11Protocol.data_received, H11Protocol.connection_lost
    timers: dict[H11Protocol, asyncio.TimerHandle] = {}

    def stop(self: H11Protocol) -> None:
        timer = timers.pop(self, None)
        if timer is not None:
            timer.cancel()

    def start(self: H11Protocol) -> None:
        if self not in timers:
            timers[self] = self.loop.call_later(seconds, late, self)

    def late(self: H11Protocol) -> None:
        timers.pop(self, None)
        # Browsers open connections in advance, and must not find a response there.
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self.transport.write(_plain("408 Request Timeout", headers, TOO_SLOW))
        self.transport.close()

    def connection_made(self: H11Protocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        start(self)

    def data_received(self: H11Protocol, data: bytes) -> None:
        if _waits(self):  # the next request of a connection that was kept
            start(self)
        received(self, data)
        if not _waits(self):
            stop(self)

    def connection_lost(self: H11Protocol, exc: Exception | None) -> None:
        stop(self)
        lost(self, exc)

    H11Protocol.connection_made = connection_made  # type: ignore[method-assign]
    H11Protocol.data_received = data_received  # type: ignore[method-assign]
    H11Protocol.connection_lost = connection_lost  # type: ignore[method-assign]


def _waits(connection: H11Protocol) -> bool:
    """Whether nothing is done for a connection until more of it arrives."""
    if connection.transport.get_protocol() is not connection:  # it has become a WebSocket
        return False
    return connection.conn.their_state is h11.IDLE or (
        connection.conn.our_state is h11.DONE and connection.conn.their_state is h11.SEND_BODY
    )


def _plain(status: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("ascii") + body
