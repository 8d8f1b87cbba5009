"""What the pages use of Streamlit beyond its documented interface, each with what is done where it is gone.

Streamlit may move or change these with any release; then the documented way below is taken, or, where there is none,
the one that gives fewer rights. `tests/test_compat.py` notices a change.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

try:
    from streamlit.runtime.scriptrunner import add_script_run_ctx as _attach, get_script_run_ctx as _context
except ImportError:
    _attach = _context = None  # type: ignore[assignment]
try:
    from streamlit.auth_util import get_secrets_auth_section as _auth_section
except ImportError:
    _auth_section = None  # type: ignore[assignment]
try:
    from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME as _COOKIE
    from streamlit.web.server.starlette.starlette_websocket import _get_signed_cookie_with_chunks as _signed
except ImportError:
    _COOKIE, _signed = "", None  # type: ignore[assignment, misc]
_Uploads: Any
_Upload: Any
try:
    from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager as _Uploads
    from streamlit.runtime.uploaded_file_manager import UploadedFileRec as _Upload
except ImportError:
    _Uploads = _Upload = None


def session() -> str | None:
    """The id of the session of the page drawn in this thread; None outside of a page."""
    if _context is None:
        return documented_session()
    context = _context(suppress_warning=True)
    return None if context is None else context.session_id


def join_visit(thread: threading.Thread) -> None:
    """Give a thread the session of the page drawn in this one; without a session, it has a guest's rights."""
    if _attach is not None and _context is not None:
        _attach(thread, _context(suppress_warning=True))


def documented_session() -> str | None:
    """As `session`; it does not distinguish sessions without our cookie."""
    return "a visit" if st.context.headers else None


def login_section() -> Mapping[str, Any]:
    """The section [auth] of Streamlit's secrets; empty where no login is required."""
    return documented_login_section() if _auth_section is None else _auth_section()


def documented_login_section() -> Mapping[str, Any]:
    """As `login_section`."""
    try:
        found = st.secrets.get("auth", {})
    except FileNotFoundError:
        return {}
    return found if isinstance(found, Mapping) else {}


def claims_of_cookies(cookies: Mapping[str, str]) -> dict[str, Any]:
    """Claims in the cookie that Streamlit signs at login.

    Empty where there is none, where it was not signed here, and where Streamlit's way to read it is gone: such a
    request has no rights.
    """
    signed = None if _signed is None else _signed(dict(cookies), _COOKIE)
    try:
        found = json.loads(signed) if signed else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def set_upload_limit(megabytes: int) -> None:
    """Let Streamlit refuse larger uploads, too; our own quota stands in front of it."""
    from streamlit import config

    if hasattr(config, "set_option"):
        config.set_option("server.maxUploadSize", megabytes)


def uploads_held() -> dict[str, tuple[int, int]]:
    """(bytes, files) that Streamlit keeps for each session; empty where unavailable: then arriving bytes count."""
    runtime = _runtime()
    storage = getattr(getattr(runtime, "uploaded_file_mgr", None), "file_storage", {})
    copied = {session: list(files.values()) for session, files in list(storage.items())}
    return {session: (sum(len(file.data) for file in files), len(files)) for session, files in copied.items()}


def count_announced() -> None:
    """Have the id of each file of an upload say which upload it is part of and how many files that has.

    A browser announces all files of an upload before it sends the first. Without this, files that never arrive are
    not missed.
    """
    if _Uploads is None or not hasattr(_Uploads, "get_upload_urls") or hasattr(_Uploads, "_smallalign"):
        return
    given = _Uploads.get_upload_urls

    def get_upload_urls(self: Any, session_id: str, file_names: Sequence[str]) -> list[Any]:
        urls, upload = given(self, session_id, file_names), uuid.uuid4().hex
        ids = [f"{upload}.{len(urls)}.{at}" for at in range(len(urls))]
        return [
            one._replace(
                file_id=new,
                upload_url=one.upload_url.replace(one.file_id, new),
                delete_url=one.delete_url.replace(one.file_id, new),
            )
            for one, new in zip(urls, ids, strict=True)
        ]

    _Uploads.get_upload_urls = get_upload_urls
    _Uploads._smallalign = True


def announced(file_id: str) -> tuple[str, int]:
    """(upload, files that it was to have) of the id of a file; ("", 0) if unknown."""
    found = re.fullmatch(r"([0-9a-f]{32})\.([0-9]+)\.[0-9]+", file_id)
    return (found[1], int(found[2])) if found else ("", 0)


def hold_upload(content: bytes) -> str:
    """Have Streamlit keep bytes as it keeps an upload, until `drop_upload` or the end of the session; their id."""
    files: Any = getattr(_runtime(), "uploaded_file_mgr", None)
    visit, file_id = session(), uuid.uuid4().hex
    if visit is not None and _Upload is not None and hasattr(files, "add_file"):
        files.add_file(visit, _Upload(file_id, "", "", content))
    return file_id


def drop_upload(file_id: str) -> None:
    """Free the memory that Streamlit keeps of an upload; where that is not possible the end of the session does."""
    files: Any = getattr(_runtime(), "uploaded_file_mgr", None)
    visit = session()
    if visit is not None and hasattr(files, "remove_file"):
        files.remove_file(visit, file_id)


def visits() -> int | None:
    """Number of open sessions; None where Streamlit does not provide it."""
    sessions: Any = getattr(_runtime(), "_session_mgr", None)
    return len(sessions.list_active_sessions()) if hasattr(sessions, "list_active_sessions") else None


def page_source() -> str:
    """Streamlit's own HTML page; empty where it is not found: its inline script is not allowed to run then."""
    spec = importlib.util.find_spec("streamlit")
    try:
        return (Path(str(spec and spec.origin)).parent / "static" / "index.html").read_text(encoding="utf-8")
    except OSError:
        return ""


def _runtime() -> Any:
    """Streamlit's running server; None in tests and scripts."""
    runtime = getattr(st, "runtime", None)
    return runtime.get_instance() if runtime is not None and runtime.exists() else None
