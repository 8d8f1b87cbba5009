"""Name, notes and tags of a run: text for people, beside the run, and no part of its spec or id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from smallalign_core.errors import BadInput, BadModel, SmallAlignError, printable
from smallalign_core.system.files import read_json, write_json

FILE = "notes.json"
LOCK = "notes.lock"
"""In the store's folder: held while such files are changed. A run's own lock is its worker's for hours."""
NAME_LENGTH, TEXT_LENGTH, TAGS = 80, 10_000, 20
"""Most characters of a name and of notes, and most tags of a run."""
TAG = re.compile(r"\w[\w.-]{0,31}")
ID = re.compile("[0-9a-f]{4,16}")
"""What looks like the id of a run, or a prefix of one."""


@dataclass(frozen=True)
class Notes:
    """What people wrote about a run.

    Attributes:
        name: what it is called in lists; empty without one.
        text: notes.
        tags: in alphabetical order.
    """

    name: str = ""
    text: str = ""
    tags: tuple[str, ...] = ()


def read(folder: Path) -> Notes:
    """The notes in a run's folder; empty without any.

    Raises:
        BadModel: the file is damaged.
        Refused: a newer version wrote it.
    """
    try:
        found = read_json(folder / FILE, missing={})
        if not isinstance(found, Mapping) or not isinstance(found.get("tags", []), list):
            raise BadModel("not notes")
        name, text, tags = found.get("name", ""), found.get("text", ""), found.get("tags", [])
        return Notes(str(name), str(text), tuple(map(str, tags)))
    except BadModel:
        raise BadModel(
            "the file with the name, notes and tags of the run is damaged",
            given=folder / FILE,
            do="delete that file; nothing else of the run is lost",
        ) from None


def or_empty(folder: Path) -> Notes:
    """As `read`, and empty where the file cannot be read: lists of runs go on without it, and `doctor` reports it."""
    try:
        return read(folder)
    except (SmallAlignError, OSError):
        return Notes()


def write(folder: Path, notes: Notes) -> None:
    """Replace the notes in a run's folder."""
    if notes == Notes():
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_json(folder / FILE, {**asdict(notes), "tags": list(notes.tags)})


def checked_name(name: str) -> str:
    """A name without spaces around it.

    Raises:
        BadInput: it is too long, has control characters, or looks like an id.
    """
    name = name.strip()
    if len(name) > NAME_LENGTH or printable(name) != name or "\n" in name or "\t" in name or ID.fullmatch(name):
        raise BadInput(
            f"a name of a run is one line of at most {NAME_LENGTH} characters that does not look like an id",
            given=name,
            do="choose another name",
        )
    return name


def checked_text(text: str) -> str:
    """Notes without spaces around them.

    Raises:
        BadInput: they are too long, or not text.
    """
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        given = printable(text[:60])
        raise BadInput("notes hold bytes that are no text", given=given, do="write them in UTF-8") from None
    if len(text) > TEXT_LENGTH:
        raise BadInput(
            f"notes have at most {TEXT_LENGTH:,} characters", given=f"{len(text):,} characters", do="shorten them"
        )
    return text


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags, each once.

    Raises:
        BadInput: one is not a tag.
    """
    tags = tuple(dict.fromkeys(tags))
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise BadInput(
                "a tag is 1 to 32 letters, digits, dots, hyphens and underscores",
                given=tag or "an empty text",
                do="choose another tag",
            )
    return tags


def retagged(before: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
    """`before` with tags added, then removed.

    Raises:
        BadInput: they are too many.
    """
    tags = sorted({*before, *add} - set(remove))
    if len(tags) > TAGS:
        raise BadInput(f"a run has at most {TAGS} tags", given=f"{len(tags)} tags", do="remove some tags first")
    return tuple(tags)
