"""Decisions in progress: `<store>/decisions/<fingerprint of the undecided data>.json`, and their history beside it.

Several users may work at once: each change is applied under a lock to the current state. The history is append-only:
a line for each change with the previous value, and a line for each undo.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smallalign_core.data import Decision, Decisions, read_decisions
from smallalign_core.errors import BadInput, Refused
from smallalign_core.runs.store import Store
from smallalign_core.system.files import append, read_lines

Change = tuple[int, Decision | None]
"""An image's id and its decision; None removes a decision."""

RIGHT = "decide about images"
PATIENCE = 10.0


def file_of(store: Store, fingerprint: str) -> Path:
    """The decisions file of those images, for a spec's `data.decisions`.

    Raises:
        BadInput: not a fingerprint.
    """
    if not re.fullmatch("[0-9a-f]{16}", fingerprint):
        raise BadInput("not a fingerprint", given=fingerprint, do="give 16 hexadecimal characters")
    return store.root / "decisions" / f"{fingerprint}.json"


def decisions(store: Store, fingerprint: str, source: str = "") -> Decisions:
    """The decisions about the images of that fingerprint; empty if there are none.

    Raises:
        BadData: the file is damaged.
    """
    file = file_of(store, fingerprint)
    return read_decisions(file) if file.is_file() else Decisions(source)


def decide(store: Store, fingerprint: str, source: str, changes: Sequence[Change]) -> Decisions:
    """Add decisions about some images, as one step for `undo`.

    Returns:
        All decisions, including those of other users.

    Raises:
        Refused: read-only user; the disk is full.
        BadInput: invalid id or decision.
        BadData: the file is damaged; it is left as it is.
    """
    store.user.require(RIGHT)
    for image, made in changes:
        if not 0 <= image < 2**64:
            raise BadInput("not an image id", given=image, do="give an id of the report")
        if made is not None and (made.what == "relabel") != bool(made.label):
            raise BadInput("only `relabel` takes a label, and it needs one", given=made, do="correct the decision")
    with _held(store, fingerprint):
        found = decisions(store, fingerprint, source)
        before = [(image, found.by_image.get(image)) for image, _ in changes]
        after = _changed(found, changes)
        if after != found:  # the history first: if killed in between, undo restores the current state
            who = {"by": store.user.name, "step": secrets.token_hex(8)}
            append(_history(store, fingerprint), {**who, "before": _plain(before), "made": _plain(changes)}, sync=True)
            after.write(file_of(store, fingerprint))
        return after


def undo(store: Store, fingerprint: str) -> tuple[Decisions, list[Change]]:
    """Undo this user's last step that was not undone yet; later decisions of other users are kept.

    Returns:
        (all decisions, the current value for each image of that step); no changes if there is nothing to undo.

        Raises:
            Refused: read-only user.
    """
    store.user.require(RIGHT)
    with _held(store, fingerprint):
        found, steps = decisions(store, fingerprint), _steps(store, fingerprint)
        mine = [step for step in steps if step["by"] == store.user.name]
        if not mine:
            return found, []
        made = dict(map(_read, mine[-1]["made"]))
        restored = [
            (image, earlier)
            for image, earlier in map(_read, mine[-1]["before"])
            if found.by_image.get(image) == made[image]
        ]
        after = _changed(found, restored)
        after.write(file_of(store, fingerprint))
        append(_history(store, fingerprint), {"by": store.user.name, "undid": mine[-1]["step"]}, sync=True)
        return after, restored


def undoable(store: Store, fingerprint: str) -> int:
    """Number of steps that this user can undo."""
    return sum(step["by"] == store.user.name for step in _steps(store, fingerprint))


@contextlib.contextmanager
def _held(store: Store, fingerprint: str) -> Iterator[None]:
    file = file_of(store, fingerprint)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(file.with_suffix(".lock"), timeout=PATIENCE).acquire()
    except Timeout:
        raise Refused("another user is saving decisions about these images", given=file, do="try again") from None
    with lock:
        yield


def _history(store: Store, fingerprint: str) -> Path:
    return file_of(store, fingerprint).with_suffix(".history.jsonl")


def _steps(store: Store, fingerprint: str) -> list[dict[str, Any]]:
    """The steps that were not undone, oldest first; damaged lines are skipped."""
    standing: dict[str, dict[str, Any]] = {}
    for line in read_lines(_history(store, fingerprint))[0]:
        if "undid" in line:
            standing.pop(line["undid"], None)
        else:
            standing[line["step"]] = line
    return list(standing.values())


def _changed(found: Decisions, changes: Sequence[Change]) -> Decisions:
    by_image = dict(found.by_image)
    for image, made in changes:
        by_image.pop(image, None)
        if made is not None:
            by_image[image] = made
    return Decisions(found.source, by_image)


def _plain(changes: Sequence[Change]) -> list[list[str | None]]:
    return [
        [f"{image:016x}", *((made.what, made.label, made.path) if made is not None else (None, None))]
        for image, made in changes
    ]


def _read(line: list[Any]) -> Change:
    image, what, label, *path = line
    return int(image, 16), Decision(what, label, *path) if what else None
