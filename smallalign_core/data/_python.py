"""Readers of the user's own Python: a function that yields images with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _layout, _order
from smallalign_core.data._files import Entry
from smallalign_core.data._layout import Layout
from smallalign_core.data._names import shown
from smallalign_core.errors import BadData
from smallalign_core.spec.data import PythonReader
from smallalign_core.system import limits, usercode

MOST = 10_000_000
"""Images after which a reader is taken for endless."""
END = object()
KEPT = "unzipped"
"""The folder for images that a reader yields as pixels; it is deleted when they are decoded."""
DO = (
    "yield (image, label) or (image, label, part): the path of an image or its pixels, uint8 [height, width] or "
    "[height, width, 3]; a label as text or whole number; train, validation or test"
)


def digest(reader: PythonReader) -> str:
    """What identifies a reader in the key of the cache.

    Raises:
        BadInput: the file cannot be read, or no package has the entry point.
    """
    if reader.file is None:
        return f"{reader.entry} {reader.package or usercode.entry_of(reader.group, reader.entry or '', None)[1]}"
    return reader.sha256 or usercode.read(Path(reader.file))[1]


def layout(reader: PythonReader, source: Path, into: Path) -> Layout:
    """Parts and classes as a user's reader yields them; images that it yields as pixels are written below `into`.

    Classes are in natural order. Files are in the order of their names, pixels in the order in which they come.

    Raises:
        BadInput: the file cannot be read or imported, cannot be called, or raised an exception.
        BadData: it yields something else than images with labels, or none.
        Refused: it may not run on this machine, or in this process.
    """
    found: dict[str, dict[str, list[Entry]]] = {"train": {}}
    for number, (image, label, part) in enumerate(rows(reader, source)):
        if number >= MOST:
            raise BadData(f"the reader yields more than {MOST:,} images", given=reader.shown, do="end its loop")
        entry = _entry(image, source, into, number)
        found.setdefault(part, {}).setdefault(label, []).append(entry)
    if not found["train"]:
        raise BadData("the reader yields no images for training", given=f"{reader.shown} of {source}", do=DO)
    _layout.refuse_strangers(found)
    order = _order.arranged(tuple(sorted(found["train"])), ())
    parts = {
        part: {name: sorted(classes.get(name, []), key=lambda one: one.order) for name in sorted(found["train"])}
        for part, classes in found.items()
    }
    return Layout(parts, notes=[f"Read by {reader.shown}."], names=order.names, order=order.places)


def rows(reader: PythonReader, source: Path) -> Iterator[tuple[Path | NDArray[np.uint8], str, str]]:
    """The images, labels and parts that a reader yields, checked.

    Raises:
        BadInput, BadData, Refused: as `layout`.
    """
    if reader.file is not None:
        function = usercode.function_of(Path(reader.file), reader.call, reader.sha256)
    else:
        function, _ = usercode.entry_of(reader.group, reader.entry or "", reader.package)
    made = usercode.called(function, {}, {"source": source, **reader.arguments}, reader.shown)
    if not isinstance(made, Iterable) or isinstance(made, str | bytes):
        raise BadData(f"the reader returns {_kind(made)}, not rows", given=reader.shown, do=DO)
    number, each = 0, iter(made)
    while True:
        with usercode.explained():
            row = next(each, END)
        if row is END:
            return
        number += 1
        yield _checked(row, reader, number, source)


def _checked(row: Any, reader: PythonReader, number: int, source: Path) -> tuple[Path | NDArray[np.uint8], str, str]:
    def refuse(wrong: str) -> NoReturn:
        raise BadData(f"row {number:,} of the reader {wrong}", given=reader.shown, do=DO)

    if not isinstance(row, tuple | list) or len(row) not in (2, 3):
        refuse(f"is {_kind(row)}" + (f" of length {len(row)}" if isinstance(row, tuple | list) else ""))
    image, label, part = (*row, None)[:3]
    if isinstance(label, bool) or not isinstance(label, str | int | np.integer) or not str(label).strip():
        refuse(f"has the label {label!r:.40}")
    if part is not None and (not isinstance(part, str) or _layout.role(part) is None):
        refuse(f"has the part {part!r:.40}")
    split = "train" if part is None else str(_layout.role(part))
    if isinstance(image, str | Path):
        place = (source if source.is_dir() else source.parent) / image
        return place, shown(str(label).strip()), split
    if not isinstance(image, np.ndarray):  # an image of PIL may hold numbers of a palette
        refuse(f"has an image {_kind(image)}: give numpy.asarray(image.convert('RGB')) of one of PIL")
    pixels = image
    whole = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))
    if pixels.dtype != np.uint8 or not whole or not pixels.size:
        refuse(f"has an image of shape {list(pixels.shape)} and dtype {pixels.dtype}")
    return pixels, shown(str(label).strip()), split


def _entry(image: Path | NDArray[np.uint8], source: Path, into: Path, number: int) -> Entry:
    if isinstance(image, Path):
        limits.check_path(image, "an image of the reader")
        names = image.relative_to(source).parts if image.is_relative_to(source) else image.parts
        return Entry(tuple(shown(name) for name in names), image)
    from PIL import Image

    file = into / KEPT / f"{number:08}.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(file, compress_level=1)
    return Entry((f"image {number:08}",), file)


def _kind(made: object) -> str:
    return "None" if made is None else f"of type {type(made).__name__}"
