"""Real browsers for tests: find Chromium, start the application on a free port, stop it, keep what a failure shows."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import processes

ROOT = Path(__file__).resolve().parent.parent

# Nothing that calls home, nothing that needs a graphics card or a user namespace.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


PATIENCE = 120_000
"""Milliseconds that a page may take for anything, on a busy machine."""
RUNNING: list[Path] = []
"""The logs of the dashboards that run; beside each lies the folder `stacks`."""


def executable() -> str | None:
    """Chromium's path: $CHROMIUM if set, else the first one on PATH, else None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def dashboard(
    log: Path,
    *,
    app: Path = ROOT / "app.py",
    environment: Mapping[str, str] | None = None,
    seconds: float = 90,
    port: int | None = None,
) -> Iterator[str]:
    """Run `streamlit run app.py` and yield its address, such as `http://127.0.0.1:40123`.

    Args:
        log: file that receives what the server prints; its end is part of the error if the server dies.
        app: the application file.
        environment: what to set besides the present environment, for instance the folder of the store.
        seconds: how long it may take to answer.
        port: where it listens; without one, on a free port.
    """
    port = port or free_port()
    command = processes.python("-m", "streamlit", "run", app, "--server.port", port)
    command += ["--server.address", "127.0.0.1", "--server.headless", "true"]
    command += ["--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false"]
    mark = f"{os.environ.get(processes.MARK, '')}/{uuid.uuid4().hex}"
    given = {**processes.with_stacks(log.parent / "stacks"), **(environment or {}), processes.MARK: mark}
    with (
        log.open("wb") as output,
        processes.started(command, cwd=app.parent, environment=given, stdout=output, stderr=output) as process,
    ):
        RUNNING.append(log)
        try:
            _wait(f"http://127.0.0.1:{port}/_stcore/health", process, log, seconds)
            yield f"http://127.0.0.1:{port}"
        finally:
            RUNNING.remove(log)
            processes.end(*processes.marked(mark))  # its worker and its backend too


def launched(playwright: Any, executable: str | None, *flags: str) -> Any:
    """A browser whose pages wait as long as a busy machine may need, unless a call says otherwise."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    browser = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *flags])
    browser.new_page, browser.new_context = map(_patient, (browser.new_page, browser.new_context))
    return browser


def _patient(make: Callable[..., Any]) -> Callable[..., Any]:
    def opened(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        made.set_default_timeout(PATIENCE)
        return made

    return opened


def keep_evidence(browser: Any, folder: Path) -> None:
    """What a failed browser test looked like: text and picture of each page, logs and stacks of each dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, log in enumerate(RUNNING):
        shutil.copy(log, folder / f"server-{number}.log")
        (folder / f"stacks-{number}.txt").write_text(processes.stacks(log.parent / "stacks"))
    pages = [page for context in (browser.contexts if browser else ()) for page in context.pages]
    for number, page in enumerate(pages):
        with contextlib.suppress(Exception):  # it may be what failed
            page.set_default_timeout(10_000)
            (folder / f"page-{number}.txt").write_text(f"{page.url}\n\n{page.locator('body').inner_text()}")
            page.screenshot(path=folder / f"page-{number}.png", full_page=True)


def _wait(address: str, process: subprocess.Popen[Any], log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    told = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"The application did not answer at {address} within {seconds:.0f} s. Its last words:\n{told}")
