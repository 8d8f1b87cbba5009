"""Moved datasets: located by the user, verified by fingerprint, and remembered."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from smallalign_core.errors import SmallAlignError
from smallalign_core.spec.data import REST
from smallalign_core.system.files import read_json, write_json

_named: ContextVar[str | None] = ContextVar("named", default=None)
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def found_at(source: str | None) -> Iterator[list[str]]:
    """Look for the images of runs in `source` in this context, instead of where each run found them; None changes
    nothing. Yields a list, into which notes come of what was found elsewhere."""
    notes: list[str] = []
    token, before = _named.set(source), _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(before)
        _named.reset(token)


def note(place: str, source: str) -> str:
    """The note about images that were found in `place`; also added to the list of `found_at`."""
    text = f"The images were found in {place}: their fingerprint is that of {source}."
    notes = _notes.get()
    if notes is not None and text not in notes:
        notes.append(text)
    return text


def places(source: str, fingerprint: str, cache: Path) -> list[str]:
    """Where to look for the images of that fingerprint, in order."""
    if (named := _named.get()) is not None:
        return [named]
    known = _known(cache).get(fingerprint)
    return [source, known] if isinstance(known, str) and known != source else [source]


def beside(folder: str, fingerprint: str, source: str, place: str, cache: Path) -> list[str]:
    """Where to look for the unlabeled images of that fingerprint, in order: where they were, where they are if they
    moved along with the labeled ones from `source` to `place`, and where they were found before."""
    if folder == REST:
        return [folder]
    with contextlib.suppress(ValueError):  # of another drive
        moved = os.path.normpath(Path(place) / os.path.relpath(folder, source))
        known = _known(cache).get(fingerprint)
        found = [folder, *([moved] if place != source else []), *([known] if isinstance(known, str) else [])]
        return list(dict.fromkeys(found))
    return [folder]


def remember(source: str, fingerprint: str, cache: Path) -> None:
    """The images of that fingerprint are in `source` now."""
    known = _known(cache)
    if known.get(fingerprint) != source:
        with contextlib.suppress(SmallAlignError, OSError):  # a cache: without it, they are named again
            write_json(_file(cache), {**known, fingerprint: source})


def _known(cache: Path) -> dict[str, object]:
    with contextlib.suppress(SmallAlignError):
        found = read_json(_file(cache), missing={})
        return found if isinstance(found, dict) else {}
    return {}


def _file(cache: Path) -> Path:
    return cache / "moved.json"
