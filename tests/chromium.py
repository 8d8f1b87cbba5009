"""Real browsers for tests: find Chromium, start the application on a free port, stop it by its process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

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
    command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.port", str(port)]
    command += ["--server.address", "127.0.0.1", "--server.headless", "true"]
    command += ["--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=app.parent, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", process, log, seconds)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    told = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"The application did not answer at {address} within {seconds:.0f} s. Its last words:\n{told}")
