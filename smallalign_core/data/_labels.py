"""What a table says about images: which columns hold paths, classes and splits, and which images those are.

Columns are found by their usual names and by what they hold, unless the spec names them. Nothing is read outside of the
folder that holds the table, and whatever is left out is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smallalign_core.data import _tables
from smallalign_core.data._files import IMAGE_ENDINGS, Entry
from smallalign_core.data._named import Below, Images, Outside
from smallalign_core.data._tables import NAMES, Table, cell, plain_name
from smallalign_core.errors import BadData
from smallalign_core.spec import Columns

LABELS = (
    *("label", "class", "category", "target", "species", "breed", "class_name", "label_name", "diagnosis", "y"),
    *("labels", "classname", "labelname", "dx"),
)
SPLITS = ("split", "set", "subset", "part", "partition", "usage", "phase", "data_set", "dataset", "fold")

MATCHED = 0.5
"""Share of a column's values that must be images before it is the column of images."""

LOST = 0.01
"""Share of the rows that may name images that do not exist."""

LOOKED = 1000
"""Rows from which the column of images is found, spread over the table."""

TOLD = 3

Parts = dict[str, dict[str, list[Entry]]]
Role = Callable[[str], str | None]


@dataclass(frozen=True)
class Chosen:
    """The positions of the columns.

    Attributes:
        headed: whether the first row is the header.
        sure: whether the column of labels was named, has a usual name, or is the only one.
    """

    path: int
    label: int
    split: int | None
    headed: bool
    sure: bool = True

    def named(self, table: Table) -> dict[str, str]:
        """The columns by what they are for, as a spec would name them."""
        head = table.rows[0] if self.headed else []
        places = {"path": self.path, "label": self.label, "split": self.split}
        return {what: _title(head, place) for what, place in places.items() if place is not None}


def _title(head: Sequence[str], place: int) -> str:
    return cell(head, place) or str(place + 1)


@dataclass
class Labelled:
    """The images of a table by part and class, its columns, what to say about it, and the images without a row."""

    table: Table
    columns: dict[str, str]
    parts: Parts
    notes: list[str]
    missing: dict[str, str]
    without: list[str]


def files_named(table: Table, root: Path) -> list[Path] | None:
    """All files in the folders that a table speaks of; None where it names its images in another way."""
    below, some = Below(root), table.rows[:: max(1, len(table.rows) // LOOKED)]
    held = {_folder_of(cell(row, place)) for row in table.rows for place in range(len(row))}
    found = sum(any(_is_image(cell(row, place), below) for place in range(len(row))) for row in some)
    if found < MATCHED * len(some):
        return None
    for folder in sorted(held):
        _is_image(f"{folder}/x", below)  # looks into it
    return below.files()


def _folder_of(text: str) -> str:
    return text.replace("\\", "/").rpartition("/")[0]


# --- which column is which --------------------------------------------------------------------------------------------


def choose(table: Table, images: Images, wanted: Columns, role: Role, *, exist: bool = True) -> Chosen | None:
    """The columns of a table; None where none holds images, or none labels.

    Args:
        exist: whether the images must exist; without, what looks like the name of one is enough.

    Raises:
        BadData: a named column is not there; the labels may stand in several columns; the paths leave the folder.
    """
    rows = table.rows
    if len(rows) < 2:
        return None
    named = {what: place_of(table, name) for what, name in wanted if name is not None}
    path = named["path"] if "path" in named else _path_column(table, images, exist)
    if path is None:
        return None
    headed = table.headed
    if headed is None:
        first = cell(rows[0], path)
        headed = not (_is_image(first, images) or Path(first).suffix.lower() in IMAGE_ENDINGS)
    body, head = rows[1:] if headed else rows, rows[0] if headed else []
    if not body:
        return None
    split = named.get("split")
    if split is None:
        split = _split_column(head, body, table.width, {path, named.get("label")}, role)
    label = named.get("label")
    if label is None:
        label = label_column(table, head, body, {path, split})
    if label is None:
        return None
    if len({path, label, split}) < 3:
        raise BadData(
            "`data.columns` names one column twice",
            given=", ".join(f"{what}: {name}" for what, name in wanted if name is not None),
            do="name three different columns",
        )
    sure = "label" in named or plain_name(_title(head, label)) in LABELS or table.width == 2
    return Chosen(path, label, split, bool(headed), sure)


def place_of(table: Table, name: str) -> int:
    """The position of a column by its name, or by its number where no column is called so."""
    head = [cell(table.rows[0], place) for place in range(table.width)]
    for ways in (lambda text: text, plain_name):
        found = [place for place, title in enumerate(head) if ways(title) == ways(name)]
        if found:
            return found[0]
    if name.isdecimal() and 1 <= int(name) <= table.width:
        return int(name) - 1
    raise BadData(
        f"the table has no column {name}",
        given=f"{table.name} has {_list(head)}",
        do="correct `data.columns`, or leave it out",
    )


def _path_column(table: Table, images: Images, exist: bool) -> int | None:
    """The column most of whose values name different images, or look like it."""
    rows = table.rows
    some = [rows[at] for at in range(0, len(rows), max(1, len(rows) // LOOKED))]

    def share(place: int, test: Callable[[str], str | None]) -> float:
        return len({name for row in some if (name := test(cell(row, place))) is not None}) / len(some)

    def named(text: str) -> str | None:
        try:
            found = images.find(text) if text else None
        except Outside:
            return None
        return None if found is None else found.name

    def looks(text: str) -> str | None:
        return text if Path(text).suffix.lower() in IMAGE_ENDINGS else None

    title = [plain_name(cell(rows[0], place)) for place in range(table.width)]
    order = [NAMES.index(name) if name in NAMES else len(NAMES) for name in title]
    shares = {place: share(place, named if exist else looks) for place in range(table.width)}
    best = max(shares, key=lambda place: (shares[place], -order[place], -place))
    return best if shares[best] >= MATCHED else None


def _is_image(text: str, images: Images) -> bool:
    try:
        return bool(text) and images.find(text) is not None
    except Outside:
        return True


def _split_column(
    head: Sequence[str], body: Sequence[Sequence[str]], width: int, taken: set[int | None], role: Role
) -> int | None:
    """The column all of whose values name a part of the data, `train` among them; one of a usual name whatever else it
    holds.
    """
    fitting = []
    for place in range(width):
        values = {cell(row, place) for row in body}
        named = plain_name(cell(head, place)) in SPLITS
        roles = {role(value) for value in values}
        every = None not in roles and "train" in roles and len(roles) > 1
        if place not in taken and (every or (named and roles != {None})):
            fitting.append((not named, place))
    return min(fitting)[1] if fitting else None


def label_column(
    table: Table, head: Sequence[str], body: Sequence[Sequence[str]], taken: set[int | None]
) -> int | None:
    """The column with a usual name, else the only one with few different values, each several times.

    Raises:
        BadData: there are several.
    """
    free = [place for place in range(table.width) if place not in taken]
    usual = _tables.column([cell(head, place) if place in free else "" for place in range(table.width)], LABELS)
    if usual is not None:
        return usual
    if len(free) == 1 and table.width == 2:
        return free[0]
    values = {place: [cell(row, place) for row in body] for place in free}
    few = [place for place, held in values.items() if 2 <= len(set(held) - {""}) <= len(held) / 2]
    for place in list(few):  # a number and a name of the same classes are one choice: the name
        twins = [
            other
            for other in few
            if other != place
            and len(set(zip(values[place], values[other], strict=True)))
            == len(set(values[place]))
            == len(set(values[other]))
        ]
        if any(_is_number(values[place]) and not _is_number(values[other]) for other in twins):
            few.remove(place)
    if len(few) < 2:
        return few[0] if few else None
    each = [f"{_title(head, place)} ({len(set(values[place]) - {''}):,} different)" for place in few]
    flags = sum(set(values[place]) <= {"0", "1", "0.0", "1.0", "True", "False"} for place in few)
    if flags == len(few):
        raise BadData(
            "the table has one column of 0 and 1 per class, as for several labels an image, which is not supported",
            given=f"{table.name}: {_list(each)}",
            do="write one column with the one class of each image",
        )
    raise BadData(
        "several columns of the table may hold the labels",
        given=f"{table.name}: {_list(each)}",
        do=f"name one: data.columns.label={_title(head, few[0])}",
        details={"columns": [_title(head, place) for place in few]},
    )


def _is_number(values: Iterable[str]) -> bool:
    return all(re.fullmatch(r"[-+]?[0-9.]*", value) for value in values)


# --- what the rows say ------------------------------------------------------------------------------------------------


@dataclass
class _Odd:
    """Rows that say nothing that can be used, by what is wrong: how many, and the first few."""

    table: Table
    count: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, number: int, text: str) -> None:
        self.count[what] += 1
        told = self.first.setdefault(what, [])
        if len(told) < TOLD:
            told.append(f"row {number:,}: {text[:120]}")

    def some(self, what: str) -> str:
        more = self.count[what] - len(self.first.get(what, []))
        return "; ".join(self.first.get(what, [])) + (f"; and {more:,} more" if more > 0 else "")

    def refuse(self, what: str, wrong: str, do: str) -> None:
        """Raise if there is any such row."""
        if self.count[what]:
            wrong = wrong.format(f"{self.count[what]:,} row{'' if self.count[what] == 1 else 's'}")
            raise BadData(wrong, given=f"{self.table.name}: {self.some(what)}", do=do)


def labelled(
    table: Table, chosen: Chosen, images: Images, role: Role, part_of: Callable[[Entry], str], *, skip: bool
) -> Labelled:
    """The images of a table by part and class.

    Args:
        part_of: the part of an image where no column says it.
        skip: leave out rows of missing images, however many.

    Raises:
        BadData: an image has two labels or two parts, or several at once; paths leave the folder; too many images are
            missing; a split is not understood.
    """
    odd, missing = _Odd(table), {}
    found: dict[str, tuple[Entry, str, str]] = {}
    begin = 1 if chosen.headed else 0
    width = len(table.rows[0])
    for number, row in zip(table.numbers[begin:], table.rows[begin:], strict=True):
        path, label = cell(row, chosen.path), cell(row, chosen.label)
        if len(row) > width:
            odd.add("long", number, f"{len(row)} cells where the first row has {width}")
            continue
        if not path or not label:
            odd.add("label" if path else "path", number, path or "no path")
            continue
        try:
            entry = images.find(path)
        except Outside:
            odd.add("outside", number, path)
            continue
        if entry is None:
            odd.add("missing", number, path)
            missing[path] = f"named in row {number:,} of {table.name}, and there is no such file"
            continue
        where = part_of(entry) if chosen.split is None else role(cell(row, chosen.split))
        if where is None:
            odd.add("split", number, cell(row, chosen.split or 0) or "empty")
            continue
        if (known := found.get(entry.name)) is None:
            found[entry.name] = (entry, label, where)
        elif known[1] != label:
            odd.add("labels", number, f"{entry.name} is {known[1]} and {label}")
        elif known[2] != where:
            odd.add("splits", number, f"{entry.name} is in {known[2]} and in {where}")
        else:
            odd.add("twice", number, entry.name)
    _refuse(table, chosen, odd, len(table.rows) - begin, {label for _, label, _ in found.values()}, skip)
    parts: Parts = {"train": {label: [] for label in sorted({label for _, label, _ in found.values()})}}
    for entry, label, where in sorted(found.values(), key=lambda one: one[0].order):
        parts.setdefault(where, {}).setdefault(label, []).append(entry)
    columns = chosen.named(table)
    return Labelled(table, columns, parts, _notes(table, columns, odd), missing, images.others(set(found)))


def _refuse(table: Table, chosen: Chosen, odd: _Odd, rows: int, labels: set[str], skip: bool) -> None:
    odd.refuse(
        "long",
        "{} with more cells than the first: a separator in a name would cut it",
        "put quotation marks around cells that hold a separator",
    )
    odd.refuse(
        "outside",
        "{} with paths outside of the folder of the table, which are not read",
        f"put {table.name} into a folder that holds all images, and write paths relative to it",
    )
    odd.refuse("labels", "a table gives an image two labels ({})", "keep one")
    odd.refuse("splits", "a table puts an image into two splits ({})", "keep one")
    odd.refuse(
        "split",
        "{} with a split that is not understood",
        "write train, validation or test, or name another column with `data.columns`",
    )
    if odd.count["missing"] > LOST * rows and not skip:
        odd.refuse(
            "missing",
            f"{{}} of {rows:,} with images that do not exist (more than {LOST:.0%})",
            "correct the paths, which are relative to the table, or leave those rows out with `data.skip_unreadable`",
        )
    if several := _several(labels):
        raise BadData(
            "the table has several labels in one cell, which is not supported",
            given=f"{table.name}: {_list(sorted(several))}",
            do="keep one class an image",
        )
    if not labels:
        column = chosen.named(table)["label"]
        raise BadData("no row of the table has an image and a label", given=f"{table.name}, column {column}")


def _several(labels: set[str]) -> set[str]:
    """Labels that are lists of others, however they are written."""
    lists = {label for label in labels if re.fullmatch(r"\[.*\]|\{.*\}", label)}
    if lists and (lists == labels or any("," in label for label in lists)):
        return lists
    for mark in ("|", ";", ",", " "):
        joined = {label: [piece.strip() for piece in label.split(mark)] for label in labels if mark in label}
        pieces = Counter(piece for held in joined.values() for piece in held)
        alone = labels - joined.keys()
        known = {
            label
            for label, held in joined.items()
            if all(piece in alone or (mark != " " and pieces[piece] > 1) for piece in held)
        }
        if known and (mark in "|;" or (len(known) > 1 and 2 * len(known) >= len(joined))):
            return known
    return set()


def _notes(table: Table, columns: dict[str, str], odd: _Odd) -> list[str]:
    said = "; ".join(f"{what} is column {name}" for what, name in columns.items())
    notes = [f"Labels were read from {table.name}: {said} (`data.columns` names others).", *table.notes]
    for what, words in (
        ("missing", "with an image that does not exist"),
        ("label", "without a label"),
        ("path", "without a path"),
        ("twice", "with an image that was named before, with the same label"),
    ):
        if count := odd.count[what]:
            notes.append(
                f"{count:,} row{'' if count == 1 else 's'} of {table.name} {words}: left out ({odd.some(what)})."
            )
    return notes


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")
