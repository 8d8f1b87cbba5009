"""The contract of a user's reader: labels, images that can be decoded, and the same rows each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _python, decode_one
from smallalign_core.errors import SmallAlignError
from smallalign_core.spec.data import PythonReader

Result = str | tuple[bool | None, str]
Row = tuple[Path | NDArray[np.uint8], str, str]

LOOKED = 200
"""Images that are decoded."""


def checks(part: PythonReader, source: Path) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    """Names, the words where they pass, and checks of a user's reader, in order.

    Args:
        source: the folder or file that it reads.
    """

    @cache
    def rows() -> list[Row]:
        return list(islice(_python.rows(part, source), _python.MOST))

    yield "rows", "", lambda: _rows(rows())
    yield "classes", "", lambda: _classes(rows())
    yield "files", "every path is a file", lambda: _files(rows())
    yield "decodable", "", lambda: _decodable(rows())
    yield "twice", "it yields the same rows in the same order each time", lambda: _again(rows(), part, source)
    yield "images named once", "no file is yielded twice", lambda: _once(rows())


def _rows(rows: list[Row]) -> Result:
    if not rows:
        return "it yields nothing"
    parts = Counter(part for _, _, part in rows)
    return True, f"{len(rows):,} images: " + ", ".join(f"{part} {count:,}" for part, count in parts.items())


def _classes(rows: list[Row]) -> Result:
    counts = Counter(label for _, label, part in rows if part == "train")
    strange = sorted({label for _, label, part in rows if part != "train"} - set(counts))
    if strange:
        return f"classes without training images: {', '.join(strange[:5])}"
    if len(counts) < 2:
        return f"the training images have {len(counts)} class{'es' * (len(counts) != 1)}, and two are needed"
    rare, common = min(counts.values()), max(counts.values())
    return True, f"{len(counts):,} classes of {rare:,} to {common:,} training images"


def _files(rows: list[Row]) -> Result:
    lost = [image for image, _, _ in rows if isinstance(image, Path) and not image.is_file()]
    return f"{len(lost):,} paths are no files, such as {lost[0]}" if lost else ""


def _decodable(rows: list[Row]) -> Result:
    some = [rows[place][0] for place in np.unique(np.linspace(0, len(rows) - 1, min(LOOKED, len(rows))).astype(int))]
    for image in some:
        if isinstance(image, Path):
            try:
                decode_one(image.read_bytes(), (3, 32, 32))
            except (OSError, SmallAlignError) as error:
                return f"{image} cannot be decoded: {error}"
    return True, f"{len(some):,} of {len(rows):,} images were decoded"


def _again(rows: list[Row], part: PythonReader, source: Path) -> Result:
    again = islice(_python.rows(part, source), _python.MOST)
    for number, (one, other) in enumerate(zip_longest(rows, again, fillvalue=("", "", "")), 1):
        if one[1:] != other[1:] or not np.array_equal(one[0], other[0]):  # type: ignore[arg-type]
            return f"row {number:,} differs when it reads again: sort what the operating system lists"
    return ""


def _once(rows: list[Row]) -> Result:
    counts = Counter(image for image, _, _ in rows if isinstance(image, Path))
    twice = [image for image, count in counts.items() if count > 1]
    return f"{len(twice):,} files are yielded more than once, such as {twice[0]}" if twice else ""
