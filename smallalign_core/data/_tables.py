"""Labels in a table beside the images, as in competitions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence

from smallalign_core.data._files import Entry
from smallalign_core.data._names import shown
from smallalign_core.errors import BadData

NAMES = ("filename", "file_name", "file", "image", "image_id", "image_name", "img", "id", "path", "filepath", "name")
LABELS = ("label", "class", "category", "target", "species", "breed", "class_name", "label_name", "diagnosis", "y")
MATCHED = 0.5
"""Share of a column's values that must be images before it is the column of images."""


def rows(file: Entry) -> list[list[str]]:
    """The rows of a comma-, semicolon- or tab-separated table.

    Raises:
        BadData: it is no such table.
    """
    try:
        raw = file.file.read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("cp1252", errors="replace")
        first = text.split("\n", 1)[0]
        mark = max("\t;,", key=first.count)
        return [row for row in csv.reader(text.splitlines(), delimiter=mark) if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        raise BadData(
            f"the table cannot be read ({type(error).__name__})", given=file.name, do="save it as CSV"
        ) from None


def column(head: Sequence[str], names: Sequence[str]) -> int | None:
    """The first column that is called one of `names`."""
    plain = [cell.strip().casefold().replace(" ", "_") for cell in head]
    return next((plain.index(name) for name in names if name in plain), None)


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
    return shown(row[place].strip()) if place < len(row) else ""


Parts = dict[str, dict[str, list[Entry]]]


def labelled(
    tables: Sequence[Entry], pictures: Sequence[Entry], part_of: Callable[[Entry], str]
) -> tuple[Parts, Entry, list[str]] | None:
    """(images by part and class, the table, notes) of images without class folders; None if no table labels them.

    Raises:
        BadData: several tables do, or one gives an image two labels.
    """
    known = by_name(pictures)
    fitting = [found for table in tables if (found := _fitting(table, known)) is not None]
    if len(fitting) > 1:
        held = ", ".join(table.name for table, _ in fitting[:5])
        raise BadData("several tables hold labels", given=held, do="leave one beside the images")
    if not fitting:
        return None
    table, labels = fitting[0]
    parts: Parts = {"train": {label: [] for label in sorted(set(labels.values()))}}
    for entry in pictures:
        if (label := labels.get(entry.name)) is not None:
            parts.setdefault(part_of(entry), {}).setdefault(label, []).append(entry)
    notes = [f"Labels were read from {table.name}."]
    without = [entry.name for entry in pictures if entry.name not in labels]
    if without:
        notes.append(
            f"{len(without):,} images have no row in {table.name} and were left out: {', '.join(without[:3])}."
        )
    return parts, table, notes


def _fitting(table: Entry, known: dict[str, list[Entry]]) -> tuple[Entry, dict[str, str]] | None:
    """(table, label by image) if a table has a column of images and one of labels."""
    held = rows(table)
    if len(held) < 2:
        return None
    head, *body = held
    wide = max(map(len, held))

    def share(place: int) -> float:
        named = {image.name for row in body if (image := _meant(cell(row, place), known)) is not None}
        return len(named) / len(body)

    files = max(range(wide), key=lambda place: (share(place), -place))
    if share(files) < MATCHED:
        return None
    label = column(head, LABELS)
    if label is None and wide == 2:
        label = 1 - files
    if label is None or label == files:
        return None
    if _meant(cell(head, files), known) is not None:  # no head, only rows
        body = held
    labels: dict[str, str] = {}
    for row in body:
        image, text = _meant(cell(row, files), known), cell(row, label)
        if image is None or not text:
            continue
        if labels.setdefault(image.name, text) != text:
            raise BadData(
                "a table gives an image two labels",
                given=f"{table.name}: {image.name} is {labels[image.name]} and {text}",
                do="keep one",
            )
    return table, labels


def _meant(text: str, known: dict[str, list[Entry]]) -> Entry | None:
    """The one image that a cell names."""
    found = known.get(text.replace("\\", "/").removeprefix("./").lstrip("/"), [])
    return found[0] if len(found) == 1 else None
