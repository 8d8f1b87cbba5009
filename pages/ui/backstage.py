"""What all pages of one server share: the store, and the desk that answers whatever needs torch."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streamlit as st

from pages.ui import access
from smallalign_core.desk import Desk
from smallalign_core.errors import SmallAlignError
from smallalign_core.files import is_held
from smallalign_core.store import Store

BUNDLE_FILES = frozenset({"model.onnx", "images.bin", "logits.bin", "parity.json"})
"""What an export's folder offers to the browser; nothing else in it is served."""


def store() -> Store:
    """The store that this server shows, acting for whoever looks: the folder in SMALLALIGN_STORE, else `models`."""
    return Store(os.environ.get("SMALLALIGN_STORE") or "models", access.visitor())


@functools.cache
def _desk(root: Path) -> Desk:
    return Desk(Store(root), access.visitor)


def desk() -> Desk:
    """The one desk of this server process; it starts its own process when it is first asked."""
    return _desk(store().root)


def ask(verb: str, waiting: str, **values: Any) -> dict[str, Any]:
    """The desk's answer to one question, with a sentence on the page while it thinks."""
    with st.spinner(waiting, show_time=True):
        return desk().ask(verb, **values)


def worker_alive() -> bool:
    """Whether a worker serves this store."""
    return is_held(store().root / "worker-auto.lock")


def exported(run: str, name: str) -> Path | None:
    """The file `name` of a run's export, for the artifact route; None for any other name."""
    return store().root / "exports" / run / name if name in BUNDLE_FILES else None


@contextlib.contextmanager
def told(*, stop: bool = False) -> Iterator[None]:
    """Show an error as its sentence. The frame uses it, and so do fragments, which rerun without the frame.

    Args:
        stop: end the page there: what would follow costs, and a crowd of refused clicks should cost nothing.
    """
    try:
        yield
    except SmallAlignError as error:
        st.error(str(error), icon=":material/error:")
        if stop:
            st.stop()
