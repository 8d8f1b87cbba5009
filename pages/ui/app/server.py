"""The routes that `app.py` plugs into `st.App`: the parts of the pages that run in the browser, and exported files.

st.App("pages/frame.py", routes=routes(locate), middleware=middleware())
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from pages.ui.browser._npm import PACKAGES, Packages, compressed
from pages.ui.browser._urls import MODULES, base_path

Locate = Callable[[str, str], Path | None]
"""From the name of a run and of a file to the exported file's path, or None."""

_RUN = re.compile(r"[a-z0-9-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODULE = re.compile(r"[a-z_]{1,64}\.mjs")

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
        locate: finds an exported file. It is called only with names that are safe to join to a path.
        packages: where the npm packages are.
    """

    def module(request: Request) -> Response:
        name = request.path_params["name"]
        path = MODULES / name
        if not _MODULE.fullmatch(name) or not path.is_file():
            return _missing(f"Browser module not found. Given: {name[:80]!r}. Reload the page.")
        return _file(request, path, cache="no-cache", etag=_digest(path))

    def package(request: Request) -> Response:
        wanted = request.path_params
        path = packages.file(wanted["package"], wanted["version"], wanted["name"])
        if path is None:
            return _missing("Package file not found. Given: the name or version in the URL. Reload the page.")
        return _file(request, path, cache="public, max-age=31536000, immutable")

    def artifact(request: Request) -> Response:
        run, name = request.path_params["run"], request.path_params["name"]
        safe = _RUN.fullmatch(run) and _NAME.fullmatch(name) and name.strip(".")
        path = locate(run, name) if safe else None
        # A link inside the folder may not lead out of it; that the folder itself is one is the owner's choice.
        if path is None or not path.is_file() or path.resolve() != path.parent.resolve() / name:
            return _missing("Exported file not found. Given: the URL. Open the Export page of the run for its files.")
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
        # For Streamlit's compression layer only, which would compress a 45 MB model on every request (seconds);
        # `Wall` removes the header again.
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
