"""The formats of tables of labels: each is a function from a file to rows of text, and its line in `FORMATS`.

Nothing else lists them, so a format that is added here is read alone, in folders, in zips and from the hub.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core.data import _parquet
from smallalign_core.errors import BadData
from smallalign_core.system.files import check_regular

MARKS = "\t,;|"
"""What separates columns; where several would do, the first."""

SAMPLE = 20
"""Rows from which the separator is found."""

MOST_BYTES = 512 * 1024**2
MOST_CELL = 131_072


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: of its file, as shown.
        rows: the cells of each row, blank rows left out; the header is the first, if there is one.
        numbers: the numbers of the rows as spreadsheets count them.
        headed: whether the first row certainly holds names; None where only its content can tell.
        notes: what to say about how it was read.
    """

    name: str
    rows: list[list[str]]
    numbers: Sequence[int]
    headed: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of columns."""
        return max(map(len, self.rows), default=0)


def _of_text(file: Path, name: str) -> Table:
    """CSV, with any of the usual separators."""
    text, notes = text_of(file, name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_mark(text), strict=True)
    rows, numbers = [], []
    try:
        for number, row in enumerate(reader, 1):
            while row and not row[-1].strip():
                row.pop()
            if row:
                rows.append(row)
                numbers.append(number)
    except csv.Error as error:
        at = f"{name}, line {reader.line_num:,}"
        if "limit" in str(error):
            raise BadData(f"a cell of the table has over {MOST_CELL:,} characters", given=at, do=SAVE) from None
        raise BadData(
            "the table has a quotation mark that is not closed, or text behind one", given=at, do=SAVE
        ) from None
    return Table(name, rows, numbers, None, notes)


SAVE = "save it again as CSV, with quotation marks around cells that hold separators, quotation marks or line breaks"


def text_of(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """(the text of a file, what to say about its encoding): UTF-8, UTF-16, else Windows-1252, which holds Latin-1.

    Raises:
        BadData: it is no text, no regular file, or too large.
        OSError: it cannot be read.
    """
    check_regular(file)
    if (size := file.stat().st_size) > MOST_BYTES:
        raise unreadable(name, f"the table is larger than {MOST_BYTES // 1024**2} MB", f"{size:,} bytes")
    raw = file.read_bytes()
    encoding = "utf-8-sig"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif (head := raw[:4096]).count(0) * 50 > len(
        head
    ):  # a mark is missing where a program wrote only half of the format
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) * 4 < len(head) or min(odd, even) * 8 > max(odd, even):
            raise unreadable(name, "the table holds zero bytes, so it is no text")
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    try:
        return raw.decode(encoding), ()
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise unreadable(name, "the table begins as UTF-16 and does not go on so") from None
    note = (
        f"{name} is not UTF-8 and was read as Latin-1 (Windows-1252): where class names look wrong, save it as UTF-8."
    )
    return raw.decode("cp1252", errors="replace"), (note,)


def _mark(text: str) -> str:
    """The character that separates the columns: the one by which most of the first rows have equally many."""
    head = text[:65_536]
    head = head[: head.rfind("\n") + 1] or head

    def fit(mark: str) -> tuple[float, int]:
        widths: list[int] = []
        try:
            for row in csv.reader(io.StringIO(head, newline=""), delimiter=mark):
                if row:
                    widths.append(len(row))
                if len(widths) == SAMPLE:
                    break
        except csv.Error:
            return (0.0, 0)
        usual = max(set(widths), key=widths.count, default=0)
        return (widths.count(usual) / len(widths), usual) if usual > 1 else (0.0, 0)

    return max(MARKS, key=fit)


def _of_lines(file: Path, name: str) -> Table:
    """JSON Lines: one object a line; its columns are the keys of all."""
    text, notes = text_of(file, name)
    held: list[dict[str, Any]] = []
    numbers = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError
        except (ValueError, RecursionError):
            given = f"{name}, line {number:,}"
            raise BadData("a line of the table is no JSON object", given=given, do="write one object a line") from None
        held.append(found)
        numbers.append(number)
    names = list(dict.fromkeys(key for one in held for key in one))
    rows = [names, *([_cell(one.get(key)) for key in names] for one in held)]
    return Table(name, rows, [0, *numbers], True, notes)


def _of_parquet(file: Path, name: str) -> Table:
    """The columns of a Parquet file that hold text or numbers."""
    facts = _parquet.schema(file, name)
    names = [column.name for column in facts.columns if column.kind in ("text", "number", "list")]
    columns = _parquet.cells(file, name, names)
    classes = {column.name: column.classes for column in facts.columns}
    texts = [as_text(cells, classes[key]) for key, cells in zip(names, columns, strict=True)]
    rows = [names, *map(list, zip(*texts, strict=True))] if texts else []
    return Table(name, rows, range(1, len(rows) + 1), True)


def as_text(cells: Iterable[Any], classes: tuple[str, ...]) -> list[str]:
    """Cells as text; positions in `classes` as these, -1 as nothing."""
    if not classes:
        return [_cell(one) for one in cells]
    return [classes[one] if isinstance(one, int) and 0 <= one < len(classes) else "" for one in cells]


def _cell(value: Any) -> str:
    """A plain value as a cell: lists keep their brackets."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unreadable(name: str, wrong: str, more: str = "") -> BadData:
    """The error for a table called `name` that cannot be read."""
    return BadData(wrong, given=f"{name}, {more}" if more else name, do="save it as CSV in UTF-8")


Format = Callable[[Path, str], Table]
"""From a file, and its name as shown, to its rows. It raises BadData where the file is no such table."""

FORMATS: dict[str, Format] = {
    ".csv": _of_text,
    ".tsv": _of_text,
    ".jsonl": _of_lines,
    ".parquet": _of_parquet,
    ".arrow": _of_parquet,
}
"""By the ending of a file's name. Whatever takes tables (folders, zips, datasets of the hub, errors) reads this."""
