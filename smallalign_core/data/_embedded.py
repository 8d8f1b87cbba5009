"""Parquet and Arrow files that hold the images themselves, as Hugging Face writes datasets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from smallalign_core.data import _labels, _order, _parquet, _tables
from smallalign_core.data._decode import Entries
from smallalign_core.data._files import Entry, Listing
from smallalign_core.data._hub import Card, files_of
from smallalign_core.data._layout import role
from smallalign_core.data._names import shown
from smallalign_core.data._zips import OWNERS
from smallalign_core.errors import BadData, Refused
from smallalign_core.spec import Columns, DataSpec

SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")


@dataclass
class Found:
    """Images that were written to files, by part; see `Decoded` for the rest."""

    entries: Entries
    classes: tuple[str, ...]
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class _File:
    entry: Entry
    part: str
    schema: _parquet.Schema


def holds_images(entry: Entry) -> bool:
    """Whether a file has a column of images."""
    return _parquet.schema(entry.file, entry.name).image is not None


def extracted(listing: Listing, spec: DataSpec, into: Path, told: Card, config: str | None = None) -> Found | None:
    """The images in the Parquet or Arrow files of a listing, each in a file of its own; None if none holds any.

    Raises:
        BadData: a file is damaged; the configuration or the column of labels is not clear; nothing has a label.
        Refused: they are too large.
    """
    left = [entry for entry in listing.tables if _is_cache(entry)]
    listing = replace(listing, tables=tuple(entry for entry in listing.tables if entry not in left))
    chosen, splits = files_of(listing, told, config, spec.source)
    files, strange = [], Counter[str]()
    for entry in listing.tables:
        if entry.name not in splits:
            continue
        split = splits[entry.name] or _split_of(entry)
        if split is not None and role(split) is None:
            strange[split] += 1
            continue
        schema = _parquet.schema(entry.file, entry.name)
        if schema.image is not None or spec.columns.path is not None:
            files.append(_File(entry, role(split) or "train" if split else "train", schema))
    if not files:
        return None
    classes = told.classes.get(str(chosen), {}) or (next(iter(told.classes.values())) if len(told.classes) == 1 else {})
    found = _written(files, spec, into, classes)
    if left:
        names = shown(left[0].name)
        found.notes.append(f"{len(left):,} cached results of `datasets` were left out, the first of them {names}.")
    if strange:
        found.notes.append(f"Splits that are neither train, validation nor test were left out: {', '.join(strange)}.")
    return found


def _is_cache(entry: Entry) -> bool:
    """Whether an Arrow file is what `map` or `filter` left in a folder of `save_to_disk`: `state.json` beside it lists
    the files of the dataset, else their names say it."""
    if entry.ending != ".arrow":
        return False
    try:
        listed = json.loads((entry.file.parent / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return entry.path[-1] not in {one["filename"] for one in listed}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return entry.path[-1].startswith("cache-")


def _split_of(entry: Entry) -> str | None:
    """The split that the name of a file, or that of its folder, speaks of."""
    if (shard := SHARD.fullmatch(entry.path[-1])) is not None:
        return shard["split"]
    stem = Path(entry.path[-1]).stem
    return stem if role(stem) else next((name for name in reversed(entry.path[:-1]) if role(name)), None)


def _written(files: list[_File], spec: DataSpec, into: Path, readme: Mapping[str, tuple[str, ...]]) -> Found:
    room = into / "unzipped"
    room.mkdir(parents=True, exist_ok=True)
    first = files[0]
    image = _image_column(first, spec.columns)
    label, named = _label_column(first, spec.columns, readme)
    odd: Counter[str] = Counter()
    held: list[tuple[str, str, str, Path]] = []  # part, class, name, file
    written, called = 0, Counter[str]()
    for one in files:
        labels = _labels_of(one, label, named)
        rows = _parquet.images(one.entry.file, one.entry.name, image, one.schema.groups)
        for row, ((content, name), text) in enumerate(zip(rows, labels, strict=True)):
            if not content or not text:
                odd["without a label" if content else "without an image"] += 1
                continue
            written += len(content)
            if written > OWNERS.total or len(content) > OWNERS.entry:
                raise Refused(
                    "the images in the files are larger than is allowed",
                    given=f"{written / 1024**3:,.1f} GB",
                    do="use fewer files, or give the images as a folder",
                )
            file = room / f"{len(held):07d}"
            file.write_bytes(content)
            plain = "/".join(shown(part) for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
            called[plain] += 1
            held.append((one.part, text, f"{one.entry.name}\0{row}\0{plain}", file))
    unique = all(plain and count == 1 for plain, count in called.items())
    notes = [
        f"Images and labels were read from {len(files):,} {_parquet.title(first.entry.name)}"
        f"{'' if len(files) == 1 else 's'}: images "
        f"from column {image}, labels from {label}."
    ]
    notes += [f"{count:,} rows {what} were left out." for what, count in odd.items()]
    if not any(part == "train" for part, *_ in held):
        given = f"{spec.source}, column {label}, {sum(odd.values()):,} rows"
        raise BadData("no image for training has a label", given=given, do="name another column with `data.columns`")
    found = _in_parts(held, unique, named)
    return Found(
        found.entries, found.classes, {"path": image, "label": label}, [*notes, *found.notes], found.names, found.order
    )


def _in_parts(held: list[tuple[str, str, str, Path]], unique: bool, named: tuple[str, ...]) -> Found:
    present = {text for part, text, *_ in held if part == "train"}
    strangers = sorted({text for _, text, *_ in held} - present)
    if strangers:
        raise BadData(
            "classes in val/ or test/ are missing from train/",
            given=", ".join(strangers[:5]),
            do="name another column with `data.columns`",
        )
    notes: list[str] = []
    names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    if named:
        classes = tuple(name for name in dict.fromkeys(named) if name in present)
        if len(classes) < len(named):
            notes.append(f"{len(named) - len(classes):,} classes of the dataset have no images and were left out.")
    else:
        classes = tuple(sorted(present))
        arranged = _order.arranged(classes, [])
        names, order = arranged.names, arranged.places
    label_of = {name: at for at, name in enumerate(classes)}
    entries: Entries = {"train": []}
    for part, text, name, file in held:
        parquet, row, plain = name.split("\0")
        path = plain.split("/") if unique else [*parquet.split("/"), row, *([plain.split("/")[-1]] if plain else [])]
        entries.setdefault(part, []).append((Entry(tuple(path), file), label_of[text]))
    return Found(entries, classes, {}, notes, names, order)


def _image_column(one: _File, columns: Columns) -> str:
    images = [column.name for column in one.schema.columns if column.kind == "image"]
    if columns.path is None:
        return images[0]
    if columns.path not in images:
        raise BadData(
            f"the {_parquet.title(one.entry.name)} has no column {columns.path} of images",
            given=f"{one.entry.name} has {', '.join(images) or 'none'}",
            do="correct `data.columns`, or leave it out",
        )
    return columns.path


def _label_column(one: _File, columns: Columns, readme: Mapping[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """(the column of labels, the names of its values 0, 1, … where the dataset tells them)."""
    table = _tables.read(one.entry)
    names = {column.name: column.classes or readme.get(column.name, ()) for column in one.schema.columns}
    if columns.label is not None:
        place: int | None = _labels.place_of(table, columns.label)
    else:
        told = [name for name in names if names[name] and name in (table.rows or [[]])[0]]
        place = table.rows[0].index(told[0]) if len(told) == 1 else None
        if place is None and table.rows:
            place = _labels.label_column(table, table.rows[0], table.rows[1:], set())
    if place is None:
        head = ", ".join(column.name for column in one.schema.columns)
        raise BadData(
            f"the {_parquet.title(one.entry.name)} has no column of labels",
            given=f"{one.entry.name} has {head}",
            do="name it: data.columns.label=NAME",
        )
    name = table.rows[0][place]
    return name, names[name]


def _labels_of(one: _File, label: str, named: tuple[str, ...]) -> list[str]:
    kinds = {column.name: column.kind for column in one.schema.columns}
    if kinds.get(label) == "list":
        raise BadData(
            "the table has several labels in one cell, which is not supported",
            given=f"{one.entry.name}, column {label}",
            do="keep one class an image",
        )
    if label not in kinds:
        raise BadData(f"a file has no column {label}", given=one.entry.name, do="name another in `data.columns`")
    (cells,) = _parquet.cells(one.entry.file, one.entry.name, [label])
    return [shown(text.strip()) for text in _tables.as_text(cells, named)]
