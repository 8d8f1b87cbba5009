"""Tables of labels: reading CSV, TSV, JSON Lines and Parquet into rows of text.

What a table says about images is in `_labels`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core.data import _parquet
from smallalign_core.data._files import Entry, regular
from smallalign_core.data._names import shown
from smallalign_core.errors import BadData, SmallAlignError
from smallalign_core.system import limits
from smallalign_core.system.files import check_regular

NAMES = (
    *("filename", "file_name", "file", "image", "image_id", "image_name", "img", "id", "path", "filepath", "name"),
    *("file_path", "image_path", "img_path"),
)
"""Usual names of the column of images, the most telling first."""

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


def is_table(file: Path) -> bool:
    """Whether a file is a table, by its name."""
    return file.suffix.lower() in ENDINGS


ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def read(entry: Entry) -> Table:
    """The table in a file.

    Raises:
        BadData: it cannot be read, or is no table; the reason is given.
        Refused: it lies outside of the folders that may be read.
    """
    limits.check_path(entry.file, "the table")
    try:
        if entry.ending == ".parquet":
            return _of_parquet(entry)
        check_regular(entry.file)
        if (size := entry.file.stat().st_size) > MOST_BYTES:
            raise _bad(entry, f"the table is larger than {MOST_BYTES // 1024**2} MB", f"{size:,} bytes")
        text, notes = _text(entry)
    except OSError as error:
        raise _bad(entry, f"the table cannot be read: {(error.strerror or type(error).__name__).lower()}") from None
    if entry.ending == ".jsonl":
        return _of_lines(entry, text, notes)
    return _of_text(entry, text, notes)


def _of_text(entry: Entry, text: str, notes: tuple[str, ...]) -> Table:
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
        at = f"{entry.name}, line {reader.line_num:,}"
        if "limit" in str(error):
            raise BadData(f"a cell of the table has over {MOST_CELL:,} characters", given=at, do=SAVE) from None
        raise BadData(
            "the table has a quotation mark that is not closed, or text behind one", given=at, do=SAVE
        ) from None
    return Table(entry.name, rows, numbers, None, notes)


SAVE = "save it again as CSV, with quotation marks around cells that hold separators, quotation marks or line breaks"


def _text(entry: Entry) -> tuple[str, tuple[str, ...]]:
    """(the text of a file, what to say about its encoding): UTF-8, UTF-16, else Windows-1252, which holds Latin-1.

    Raises:
        BadData: it is no text.
    """
    raw = entry.file.read_bytes()
    encoding = "utf-8-sig"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif (head := raw[:4096]).count(0) * 50 > len(
        head
    ):  # a mark is missing where a program wrote only half of the format
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) * 4 < len(head) or min(odd, even) * 8 > max(odd, even):
            raise _bad(entry, "the table holds zero bytes, so it is no text")
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    try:
        return raw.decode(encoding), ()
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise _bad(entry, "the table begins as UTF-16 and does not go on so") from None
    note = (
        f"{entry.name} is not UTF-8 and was read as Latin-1 (Windows-1252): where class names look wrong, save it as "
        "UTF-8."
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


def _of_lines(entry: Entry, text: str, notes: tuple[str, ...]) -> Table:
    """JSON Lines: one object a line; its columns are the keys of all."""
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
            given = f"{entry.name}, line {number:,}"
            raise BadData("a line of the table is no JSON object", given=given, do="write one object a line") from None
        held.append(found)
        numbers.append(number)
    names = list(dict.fromkeys(name for one in held for name in one))
    rows = [names, *([_cell(one.get(name)) for name in names] for one in held)]
    return Table(entry.name, rows, [0, *numbers], True, notes)


def _of_parquet(entry: Entry) -> Table:
    """The columns of a Parquet file that hold text or numbers."""
    facts = _parquet.schema(entry.file, entry.name)
    names = [column.name for column in facts.columns if column.kind in ("text", "number", "list")]
    columns = _parquet.cells(entry.file, entry.name, names)
    classes = {column.name: column.classes for column in facts.columns}
    texts = [as_text(cells, classes[name]) for name, cells in zip(names, columns, strict=True)]
    rows = [names, *map(list, zip(*texts, strict=True))] if texts else []
    return Table(entry.name, rows, range(1, len(rows) + 1), True)


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


def _bad(entry: Entry, wrong: str, more: str = "") -> BadData:
    return BadData(wrong, given=f"{entry.name}, {more}" if more else entry.name, do="save it as CSV in UTF-8")


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
        text, _ = _text(Entry((file.name,), file))
    except (OSError, SmallAlignError):
        return []
    lines = [shown(line.strip()) for line in text.splitlines() if line.strip()]
    split = [line.partition(" ") for line in (line.replace("\t", " ") for line in lines)]
    numbers = [first.rstrip(":,.") for first, _, rest in split if rest]
    counted = [list(map(str, range(start, start + len(lines)))) for start in (0, 1)]
    return [rest.strip() for _, _, rest in split] if numbers in counted else lines
