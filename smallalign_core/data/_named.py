"""The images that the paths in a table name, none of them outside of one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from smallalign_core.data import _tables
from smallalign_core.data._files import IMAGE_ENDINGS, Entry
from smallalign_core.data._names import hidden, shown
from smallalign_core.system import limits


class Outside(Exception):
    """A path that leaves the folder of its table."""


class Images(Protocol):
    """The images that a table may speak of."""

    def find(self, text: str) -> Entry | None:
        """The one image that a cell names; None if there is none, or there are several.

        Raises:
            Outside: it lies outside of the folder.
        """

    def others(self, used: set[str]) -> list[str]:
        """The names of all others that lie there."""


def _inside(text: str, root: Path | None) -> list[str]:
    """The names of the folders and the file in a path, below `root`.

    Raises:
        Outside: it leaves `root`.
    """
    absolute = text.startswith("/") or re.match("[A-Za-z]:/", text) is not None
    if absolute and root is not None:
        if not Path(text).is_relative_to(root):
            raise Outside
        text, absolute = str(Path(text).relative_to(root)), False
    found: list[str] = []
    for part in text.split("/"):
        if part == "..":
            if not found:
                raise Outside
            found.pop()
        elif part not in ("", "."):
            found.append(part)
    if absolute:
        raise Outside
    return found


@dataclass
class Listed:
    """The images of a folder or zip that was walked: a table may name them by the end of their path, with or without
    ending."""

    pictures: Sequence[Entry]
    root: Path | None = None

    def __post_init__(self) -> None:
        self._known = _tables.by_name(self.pictures)

    def find(self, text: str) -> Entry | None:
        plain = text.replace("\\", "/")
        found = self._known.get(plain.removeprefix("./").lstrip("/"))
        if found is None:
            found = self._known.get("/".join(_inside(plain, self.root)), [])
        return found[0] if len(found) == 1 else None

    def others(self, used: set[str]) -> list[str]:
        return [entry.name for entry in self.pictures if entry.name not in used]


@dataclass
class Below:
    """The images below the folder of a table that was named itself; only folders that it speaks of are looked into."""

    root: Path
    _seen: dict[str, dict[str, str]] = field(default_factory=dict)

    def find(self, text: str) -> Entry | None:
        if "\0" in text:
            return None
        parts = _inside(text if "/" in text else text.replace("\\", "/"), self.root)
        if not parts:
            return None
        folder, name = "/".join(parts[:-1]), shown(parts[-1])
        file = self._names(folder).get(name)
        return None if file is None else Entry((*map(shown, parts[:-1]), name), Path(file))

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._seen:
            place = self.root / folder
            limits.check_path(place, "an image of the table")
            try:
                inside = [child for child in os.scandir(place) if not child.is_dir()]
            except OSError:  # there is no such folder, or it may not be read: its images are missing
                inside = []
            self._seen[folder] = {shown(child.name): child.path for child in inside}
        return self._seen[folder]

    def others(self, used: set[str]) -> list[str]:
        return [
            name
            for folder, names in self._seen.items()
            for last in sorted(names)
            if Path(last).suffix.lower() in IMAGE_ENDINGS and not hidden(last)
            if (name := f"{folder}/{last}" if folder else last) not in used
        ]

    def files(self) -> list[Path]:
        """All files in the folders that were looked into."""
        return [Path(file) for names in self._seen.values() for file in names.values()]
