"""What `app.py` plugs into `st.App`: the routes for browser parts and exported files, and the wall around everything.

    st.App("pages/frame.py", routes=routes(locate), middleware=middleware())

The headers isolate the page (without which in-browser inference has one thread), allow scripts from this server only,
and forbid framing. The host check stops DNS rebinding: a foreign site that points its own name at this machine.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .browser._npm import PACKAGES, Packages, compressed
from .browser._urls import MODULES, base_path

Locate = Callable[[str, str], Path | None]
"""From the name of a run and of a file to the exported file's path, or None."""

_RUN = re.compile(r"[a-z0-9-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODULE = re.compile(r"[a-z_]{1,64}\.mjs")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".md": "text/markdown",
    ".txt": "text/plain",
}


def routes(locate: Locate, packages: Packages = PACKAGES) -> list[Route]:
    """The routes of the browser parts.

    `/assets/<module>.mjs` is one of our modules, `/assets/<package>/<version>/<file>` an allowed file of an npm
    package, and `/artifacts/<run>/<name>` a file that a run exported; with `?download=1` the browser saves it.

    Args:
        locate: finds an exported file. It is asked only for names that are safe to join to a path.
        packages: where the npm packages are.
    """

    def module(request: Request) -> Response:
        name = request.path_params["name"]
        path = MODULES / name
        if not _MODULE.fullmatch(name) or not path.is_file():
            return _missing(f"There is no browser module of this name. Given: {name[:80]!r}. Reload the page.")
        return _file(request, path, cache="no-cache", etag=_digest(path))

    def package(request: Request) -> Response:
        wanted = request.path_params
        path = packages.file(wanted["package"], wanted["version"], wanted["name"])
        if path is None:
            return _missing("This file is not served or not installed. Given: its name or version. Reload the page.")
        return _file(request, path, cache="public, max-age=31536000, immutable")

    def artifact(request: Request) -> Response:
        run, name = request.path_params["run"], request.path_params["name"]
        safe = _RUN.fullmatch(run) and _NAME.fullmatch(name) and name.strip(".")
        path = locate(run, name) if safe else None
        # A link inside the folder may not lead out of it; that the folder itself is one is the owner's choice.
        if path is None or not path.is_file() or path.resolve() != path.parent.resolve() / name:
            return _missing(
                "This run exported no file of this name. Given: the address. Open the run's Export page for its files."
            )
        saved = f"{run}-{name}" if request.query_params.get("download") == "1" else None
        return _file(request, path, cache="no-cache", etag=_digest(path), saved_as=saved)

    base = base_path()
    return [
        Route(f"{base}assets/{{name}}", module),
        Route(f"{base}assets/{{package}}/{{version}}/{{name:path}}", package),
        Route(f"{base}artifacts/{{run}}/{{name}}", artifact),
    ]


def _missing(sentence: str) -> Response:
    return PlainTextResponse(sentence, status_code=404, headers={"Cache-Control": "no-store"})


def _file(
    request: Request, path: Path, *, cache: str, etag: str | None = None, saved_as: str | None = None
) -> Response:
    headers = {"Cache-Control": cache, "Vary": "Accept-Encoding"}
    if etag:
        headers["ETag"] = etag
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known:
            return Response(status_code=304, headers=headers)
    media_type = _TYPES.get(path.suffix, "application/octet-stream")
    packed = compressed(path)
    if "range" not in request.headers and _accepts_gzip(request.headers) and packed.is_file():
        headers["Content-Encoding"] = "gzip"
        path = packed
    else:
        # For Streamlit's compression layer only, which would compress a 45 MB model anew on every request (seconds);
        # `Wall` takes it away again.
        headers["Content-Encoding"] = "identity"
    return FileResponse(path, headers=headers, media_type=media_type, filename=saved_as)


def _accepts_gzip(headers: Headers) -> bool:
    for item in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() in ("gzip", "*") and quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return True
    return False


def _digest(path: Path) -> str:
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return f'"{hashlib.file_digest(file, "sha256").hexdigest()}"'


def middleware(hosts: Sequence[str] = ()) -> list[Middleware]:
    """The wall around every response and every connection.

    Args:
        hosts: names or addresses, without port, that visitors may use besides the loopback ones.
    """
    return [Middleware(Wall, hosts=tuple(hosts))]


class Wall:
    """ASGI middleware: refuses foreign hosts, keeps metrics local, and adds the security headers."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app = app
        self.hosts = {host.lower().strip("[]") for host in hosts}
        self.scripts = " ".join(f"'{digest}'" for digest in _inline_scripts())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if not self._known(host):
            await _refuse(
                scope, receive, send, 421,
                f"This application does not answer to that host name. Given: {host[:80]!r}. "
                "Open it as localhost, or start it with this name among its allowed hosts.",
            )  # fmt: skip
            return
        if scope["path"].rstrip("/").endswith("/_stcore/metrics") and not _local(scope):
            await _refuse(
                scope, receive, send, 403,
                "Metrics are for this machine only. Given: a request from elsewhere. Read them on the machine itself.",
            )  # fmt: skip
            return

        policy = self._policy(host)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-encoding") == "identity":
                    del headers["content-encoding"]
                headers["Content-Security-Policy"] = policy
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Embedder-Policy"] = "require-corp"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match["name"].lower().strip("[]")
        return name == "localhost" or name in self.hosts or _is_loopback(name)

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


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _local(scope: Scope) -> bool:
    # Behind a proxy on this machine every client looks local, so a forwarded request does not count as local.
    headers = Headers(scope=scope)
    client = scope.get("client")
    direct = "x-forwarded-for" not in headers and "forwarded" not in headers
    return direct and client is not None and _is_loopback(client[0])


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    # Starlette turns the response into the refusal of a handshake, with the sentence if the server can send one.
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": "host not allowed"})
        return
    await PlainTextResponse(sentence, status_code=status)(scope, receive, send)


@functools.cache
def _inline_scripts() -> tuple[str, ...]:
    """The digests of the inline scripts in Streamlit's page, which change with its version."""
    spec = importlib.util.find_spec("streamlit")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Streamlit is not installed. Run: pip install -r requirements.txt")
    page = (Path(spec.origin).parent / "static" / "index.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    return tuple(f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}" for text in scripts)
