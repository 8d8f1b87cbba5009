"""Tables of labels: their rows, columns and cells, whatever their format (`_table_formats`).

What a table says about images is in `_labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smallalign_core.data._files import Entry, regular
from smallalign_core.data._names import shown
from smallalign_core.data._table_formats import FORMATS, Table as Table, as_text as as_text, text_of, unreadable
from smallalign_core.errors import SmallAlignError
from smallalign_core.system import limits

NAMES = (
    *("filename", "file_name", "file", "image", "image_id", "image_name", "img", "id", "path", "filepath", "name"),
    *("file_path", "image_path", "img_path"),
)
"""Usual names of the column of images, the most telling first."""


def is_table(file: Path) -> bool:
    """Whether a file is a table, by its name."""
    return file.suffix.lower() in FORMATS


def read(entry: Entry) -> Table:
    """The table in a file.

    Raises:
        BadData: it cannot be read, or is no table; the reason is given.
        Refused: it lies outside of the folders that may be read.
    """
    limits.check_path(entry.file, "the table")
    try:
        return FORMATS.get(entry.ending, FORMATS[".csv"])(entry.file, entry.name)
    except OSError as error:
        wrong = f"the table cannot be read: {(error.strerror or type(error).__name__).lower()}"
        raise unreadable(entry.name, wrong) from None


# --- for whoever needs rows and columns only --------------------------------------------------------------------------


def rows(entry: Entry) -> list[list[str]]:
    """The rows of a table, the header first.

    Raises:
        BadData: as `read`.
    """
    return read(entry).rows


def column(head: Sequence[str], names: Sequence[str]) -> int | None:
    """The first column that is called one of `names`."""
    plain = [plain_name(cell) for cell in head]
    return next((plain.index(name) for name in names if name in plain), None)


def plain_name(cell: str) -> str:
    """The name of a column without the accidents of writing."""
    return cell.strip().casefold().replace(" ", "_").replace("-", "_")


def by_name(pictures: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Images by what a table may call them: the path, the end of it, the file's name, with and without ending."""
    found: dict[str, list[Entry]] = {}
    for entry in pictures:
        ways = {"/".join(entry.path[at:]) for at in range(len(entry.path))}
        ways |= {way.rpartition(".")[0] for way in ways if "." in way}
        for way in ways:
            found.setdefault(way, []).append(entry)
    return found


def cell(row: Sequence[str], place: int) -> str:
    """One cell without the space around it; empty where the row ends before."""
    return shown(row[place].strip()) if place < len(row) else ""


def listed(file: Path) -> list[str]:
    """The lines of a file of class names, numbers before all of them (`0 cat`) taken off; none if it cannot be read."""
    if not regular(file) or file.stat().st_size > 1_000_000:
        return []
    try:
        limits.check_path(file, "a list of classes")
        text, _ = text_of(file, file.name)
    except (OSError, SmallAlignError):
        return []
    lines = [shown(line.strip()) for line in text.splitlines() if line.strip()]
    split = [line.partition(" ") for line in (line.replace("\t", " ") for line in lines)]
    numbers = [first.rstrip(":,.") for first, _, rest in split if rest]
    counted = [list(map(str, range(start, start + len(lines)))) for start in (0, 1)]
    return [rest.strip() for _, _, rest in split] if numbers in counted else lines
