"""What all pages of one server share: the store, and the backend for everything that needs torch."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import streamlit as st

from pages.ui import _compat, browser
from pages.ui.security import auth
from pages.ui.widgets import formatting
from smallalign_core import data
from smallalign_core.errors import SmallAlignError, of_system
from smallalign_core.runs.store import Store
from smallalign_core.service.client import BackendClient
from smallalign_core.service.requests import DatasetFacts, Inspect
from smallalign_core.service.wire import Request
from smallalign_core.spec import DataSpec
from smallalign_core.spec.precision import file_name, plain_name
from smallalign_core.spec.target import TARGETS
from smallalign_core.system.files import write

A = TypeVar("A")
PATIENCE = 0.5
"""Seconds between two progress updates while a dataset is read."""
CROWD = 20
"""Number of sessions above which each polls less often."""
BUNDLE_FILES = frozenset({"model.onnx", "model.zip", "logits.bin", "parity.json"})
TARGET_FILES = frozenset(f"model-{one.name}{end}" for one in TARGETS.values() for end in (*one.endings, ".zip"))
"""Files of an export's folder that the browser may fetch in each precision, besides the images and the demo."""


def store() -> Store:
    """The store of this server, with the rights of the current user: the folder in SMALLALIGN_STORE, else `models`."""
    return Store(user=auth.current_user())


@functools.cache
def _backend(root: Path) -> BackendClient:
    return BackendClient(Store(root), auth.current_user, still_there)


def still_there() -> None:
    """End the script that runs in this thread if its page is no longer needed: a click, or a closed tab.

    Called while waiting for a response; else a page would block until the response arrives.
    """
    if _compat.session() is not None:
        "anything" in st.session_state  # noqa: B015  # Streamlit looks for such a request at each access


def client() -> BackendClient:
    """The backend client of this server process; backend processes are started on demand."""
    return _backend(store().root)


def call(request: Request[A], waiting: str) -> A:
    """The backend's answer to one request, with a spinner on the page while it runs."""
    with st.spinner(waiting, show_time=True):
        return client().call(request)


def read(spec: DataSpec) -> DatasetFacts:
    """Summary of a dataset, with a progress bar on the page while any process decodes its images."""
    answers: list[DatasetFacts] = []
    errors: list[BaseException] = []
    place = store()

    def asking() -> None:
        try:
            answers.append(client().call(Inspect(spec)))
        except BaseException as error:  # noqa: BLE001  # raised again below, in the page's own thread
            errors.append(error)

    thread = threading.Thread(target=asking, daemon=True)
    _compat.join_visit(thread)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        with st.spinner(f"Reading {spec.source}", show_time=True):
            bar = st.empty()
            while thread.is_alive():
                with contextlib.suppress(SmallAlignError):
                    if (found := data.decoding(spec, place.data_cache)) is not None:
                        done, total = found
                        bar.progress(done / max(1, total), f"{done:,} of {total:,} images decoded")
                thread.join(PATIENCE)
            bar.empty()
    if errors:
        raise errors[0]
    return answers[0]


def pace(seconds: float) -> float:
    """Polling interval of a page that usually polls every `seconds`; longer with many sessions.

    Many sessions then cost no more than `CROWD` do. A page keeps its interval until it is redrawn.
    """
    return seconds * max(1.0, (_compat.visits() or 0) / CROWD)


def worker_alive() -> bool:
    """Whether a worker serves this store, on any device."""
    return bool(store().workers())


def exported(run: str, name: str) -> Path | None:
    """The file `name` of a run's export, for the artifact route; None for any other name."""
    folder = store().root / "exports" / run
    plain, variant = plain_name(name)
    if plain == "demo.zip":
        return _demo(folder, variant)
    return folder / name if plain in BUNDLE_FILES or name in TARGET_FILES or name == "images.bin" else None


def _demo(folder: Path, variant: str) -> Path | None:
    """The demo of an export, made on first request: it holds 14 MB of the runtime."""
    model, proof, made = (folder / file_name(file, variant) for file in ("model.onnx", "parity.json", "demo.zip"))
    try:
        if not made.is_file() or made.stat().st_mtime_ns < model.stat().st_mtime_ns:
            report = json.loads(proof.read_text())
            title = f"{report['run'][:6]} {variant}"
            with contextlib.suppress(SmallAlignError):
                title = f"{store().run(report['run']).title} {variant}"
            write(made, browser.demo_zip(model.read_bytes(), report, title))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SmallAlignError, browser.InstallError):
        return None
    return made


@contextlib.contextmanager
def show_errors(*, stop: bool = False) -> Iterator[None]:
    """Show an error as its message. The frame uses it, and so do fragments, which rerun without the frame.

    Args:
        stop: end the page there: what follows is expensive, and refused clicks should cost nothing.
    """
    try:
        yield
    except (SmallAlignError, OSError, RuntimeError, ValueError) as error:
        shown = error if isinstance(error, SmallAlignError) else of_system(error)
        if shown is None:
            raise
        st.error(formatting.plain(str(shown)), icon=":material/error:")
        if bad := shown.details.get("unreadable"):
            with st.expander(f"All {len(bad):,} files", icon=":material/list:"):
                st.code("\n".join(f"{one['path']}: {one['reason']}" for one in bad[:2000]), language=None)
        if stop:
            st.stop()
