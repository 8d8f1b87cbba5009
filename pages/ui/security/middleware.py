"""Request checks and security headers for every connection and response of the dashboard.

They refuse foreign hosts (DNS rebinding: a foreign site that points its own name at this machine), other sites' sockets
and forms, remote clients where no login is required, and users without a login where it is. The headers isolate the
page (without which in-browser inference has one thread), allow scripts from this server only, and forbid framing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import re
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pages.ui import _compat, _compat_uvicorn
from pages.ui.security import auth
from pages.ui.security.upload_quota import ROUTE as UPLOADS, Quota
from smallalign_core.errors import Refused
from smallalign_core.service.users import Role

log = logging.getLogger("smallalign.dashboard")

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_GUARDED = re.compile(r".*/artifacts/.*")
_KEPT_DAYS = 30


ALWAYS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every response."""


def guard() -> None:
    """The same headers, and a policy that allows nothing, for responses made before the middleware runs."""
    _compat_uvicorn.guard({"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", **ALWAYS})


def middleware(hosts: Sequence[str] = ()) -> list[Middleware]:
    """The request checks, and the upload quota behind them.

    Args:
        hosts: allowed names or addresses, without port, besides the loopback ones; `*.` for any subdomain.
    """
    return [Middleware(Wall, hosts=tuple(hosts)), Middleware(Quota)]


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Wall:
    """ASGI middleware: request checks, and the security headers of every response."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app = app
        self.hosts = tuple(host.lower().strip("[]") for host in hosts)
        self.scripts = " ".join(f"'{digest}'" for digest in _inline_scripts())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        cookies = cookie_parser(headers.get("cookie", ""))
        began = False

        async def send_with_headers(message: Message) -> None:
            nonlocal began
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                began = True
                self._add(MutableHeaders(scope=message), host, new=auth.COOKIE not in cookies)
            await send(message)

        try:
            self._check(scope, headers, cookies)
            await self.app(scope, receive, send_with_headers)
        except _Refusal as refusal:
            await _refuse(scope, receive, send_with_headers, refusal.status, refusal.sentence)
        except Exception:
            if began or scope["type"] == "websocket":
                raise
            log.exception("a request failed: %s", ascii(scope["path"])[:200])
            sentence = "The request failed with an unexpected error. Reload the page; the log has the traceback."
            await _refuse(scope, receive, send_with_headers, 500, sentence)

    def _check(self, scope: Scope, headers: Headers, cookies: dict[str, str]) -> None:
        """Check that a request is allowed.

        Raises:
            _Refusal: it is not.
        """
        host, path = headers.get("host", ""), scope["path"]
        if not self._known(host):
            raise _Refusal(
                421,
                f"Host name not allowed. Given: {host[:80]!r}. "
                "Open the dashboard as localhost, or add this name to server.allowedHosts.",
            )
        if not auth.login_required() and not _arrived_here(scope):
            raise _Refusal(
                403,
                "The dashboard is reachable from other machines without a login. Bind it to 127.0.0.1, or add a login.",
            )
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and (origin is not None or scope["type"] == "websocket") and not _same(origin, host):
            # A browser always sends the origin of a socket; a client without one is a script that skips the login.
            raise _Refusal(403, "Cross-origin request refused. Open the dashboard itself.")
        if path.rstrip("/").endswith("/_stcore/metrics") and not _local(scope):
            raise _Refusal(
                403,
                "Metrics are available on this machine only. Given: a remote request. Read them on the machine itself.",
            )
        uploads = scope["type"] == "http" and scope["method"] == "PUT" and UPLOADS.fullmatch(path)
        if uploads or _GUARDED.fullmatch(path):
            user = auth.of_request(headers, cookies)
            try:
                if uploads:
                    user.require("upload files")
                elif user.role is Role.NOBODY:
                    raise _Refusal(403, "Log in to download this file.")
            except Refused as error:
                raise _Refusal(403, str(error)) from None

    def _add(self, headers: MutableHeaders, host: str, *, new: bool) -> None:
        if headers.get("content-encoding") == "identity":
            del headers["content-encoding"]
        headers["Content-Security-Policy"] = self._policy(host)
        for name, value in ALWAYS.items():
            headers[name] = value
        if new and headers.get("content-type", "").startswith("text/html"):
            kept = f"Max-Age={_KEPT_DAYS * 86_400}; Path=/; HttpOnly; SameSite=Lax"
            headers.append("Set-Cookie", f"{auth.COOKIE}={secrets.token_urlsafe(16)}; {kept}")

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match["name"].lower().strip("[]").rstrip(".")
        below = (one[1:] for one in self.hosts if one.startswith("*."))
        return auth.is_loopback(name) or name in self.hosts or any(name.endswith(end) for end in below)

    def _policy(self, host: str) -> str:
        # blob: is where Streamlit loads a component's inline code from; wasm-unsafe-eval compiles WebAssembly and
        # nothing else; inline styles are how Streamlit's own front end draws. The socket's address is spelled out
        # because older Safari does not count it as 'self'. data: is how Streamlit's camera reads its own photo.
        return (
            "default-src 'self'; "
            f"script-src 'self' {self.scripts} 'wasm-unsafe-eval' blob:; "
            "style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
            "img-src 'self' data: blob:; media-src 'self' data: blob:; "
            f"connect-src 'self' ws://{host} wss://{host} data:; "
            "worker-src 'self' blob:; frame-src 'self'; form-action 'self'; "
            "object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
        )


def _same(origin: str | None, host: str) -> bool:
    """Whether a request is from a page of this server: same name and port. Another port is another site."""
    try:
        found = urlsplit(origin or "")
    except ValueError:
        return False
    return found.scheme in ("http", "https") and found.netloc.lower() == host.lower()


def _arrived_here(scope: Scope) -> bool:
    """Whether a connection came in over the loopback interface (or a socket file), regardless of the settings."""
    server = scope.get("server")
    return server is None or server[1] is None or auth.is_loopback(str(server[0]))


def _local(scope: Scope) -> bool:
    # Behind a proxy on this machine every client looks local, so a forwarded request does not count as local.
    headers = Headers(scope=scope)
    client = scope.get("client")
    direct = "x-forwarded-for" not in headers and "forwarded" not in headers
    return direct and client is not None and auth.is_loopback(client[0])


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    # Starlette turns the response into the refusal of a handshake, with the message if the server can send one.
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    await PlainTextResponse(sentence, status_code=status)(scope, receive, send)


@functools.cache
def _inline_scripts() -> tuple[str, ...]:
    """The digests of the inline scripts in Streamlit's page, which change with its version."""
    scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", _compat.page_source(), flags=re.DOTALL)
    return tuple(f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}" for text in scripts)
