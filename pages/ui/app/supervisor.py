"""What runs beside the pages while the server does: worker, backend, and installation of the browser parts."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import streamlit as st

from pages.ui import browser
from pages.ui.app import context
from pages.ui.widgets import formatting
from smallalign_core.errors import of_system
from smallalign_core.runs.recovery import requeue_crashed
from smallalign_core.runs.store import Store
from smallalign_core.studies import lifecycle

log = logging.getLogger("smallalign.dashboard")

CHECK_SECONDS = 2.0
LONGEST_WAIT = 60.0


@contextlib.asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[None]:
    """Start what the pages rely on, and release it when the server stops. Running training is never affected."""
    stop = threading.Event()
    for work in (lambda: keep_worker(context.store(), stop), warm_up, get_browser_parts):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        context.client().close()


def keep_worker(store: Store, stop: threading.Event) -> None:
    """Keep one worker on the queue: one from the start, another if it dies while there is work."""
    process: subprocess.Popen[bytes] | None = None
    handled: subprocess.Popen[bytes] | None = None
    started, wait = 0.0, CHECK_SECONDS
    while not stop.is_set():
        if process is not None and process.poll() not in (None, 0) and process is not handled:
            handled = process  # its run is queued again, or has failed permanently
            with contextlib.suppress(OSError):
                requeue_crashed(store, _cause(process.returncode))
        here = bool(store.workers()) or (process is not None and process.poll() is None)
        if (
            not here
            and (process is None or store.queue() or lifecycle.any_active(store))
            and time.monotonic() - started >= wait
        ):
            # A worker that dies at once would do so again: retry less and less often.
            wait = CHECK_SECONDS if time.monotonic() - started > LONGEST_WAIT else min(LONGEST_WAIT, 2 * wait)
            started = time.monotonic()
            with contextlib.suppress(OSError):
                process = start_worker(store)
        stop.wait(CHECK_SECONDS)


def _cause(code: int) -> str:
    """How a process ended, as text."""
    if code >= 0:
        return f"the process exited with code {code}"
    name = signal.Signals(-code).name
    hint = " (manually, or by the system when out of memory)" if name == "SIGKILL" else ""
    return f"the process was terminated by {name}{hint}"


def start_worker(store: Store) -> subprocess.Popen[bytes]:
    """A worker in a session of its own: neither Ctrl-C nor the server's death reaches it in the middle of a run."""
    store.root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "smallalign_core", "worker", "--store", str(store.root.resolve())]
    with (store.root / "worker.log").open("ab") as output:
        return subprocess.Popen(
            [*command, "--while-pid", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[3],
        )


def warm_up() -> None:
    """Import what pages use and start the backend before the first session needs them.

    Streamlit collects garbage after every rerun; freezing what was imported makes a live tick about ten times cheaper.
    """
    import pandas  # noqa: F401
    import plotly.graph_objects
    import plotly.io  # noqa: F401

    from pages.ui import compare  # noqa: F401

    with contextlib.suppress(OSError):
        context.client().warm()
    gc.collect()
    gc.freeze()


def get_browser_parts() -> None:
    """Install the npm packages if they are missing; pages show a notice until then."""
    if not browser.installed():
        try:
            browser.install(log.info)
        except browser.InstallError as error:
            log.warning("%s", error)


def on_script_error(error: Exception) -> bool:
    """Show an unexpected error on the page; its details stay in the log."""
    log.error("a page failed", exc_info=error)
    if (known := of_system(error)) is not None:
        st.error(formatting.plain(str(known)), icon=":material/error:")
        return True
    st.error(
        f"This page failed with an unexpected error. Given: {type(error).__name__}. Runs are not affected. "
        "Reload the page; if it happens again, see the traceback in the terminal of the dashboard.",
        icon=":material/error:",
    )
    return True
