"""Parquet and Arrow files: their columns, and the images in them. Each file is parsed in the guarded process of
`_guarded`.

Hugging Face writes images as a struct of `bytes` and `path`, and the names of classes into the schema's metadata:
Parquet on its hub, Arrow by `save_to_disk`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smallalign_core.data import _guarded
from smallalign_core.errors import BadData, SmallAlignError
from smallalign_core.system import extras

Kind = Literal["image", "text", "number", "list", "other"]

WHAT = "a Parquet or Arrow file"
ENDINGS = (".parquet", ".arrow")

AT_ONCE = 128 * 1024**2
"""Bytes of one answer of the guarded process."""


@dataclass(frozen=True)
class Column:
    """One column; `classes` are the names of its values 0, 1, … where the schema has them."""

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """What a file holds; `groups` are (rows, bytes) of its row groups; an Arrow file is one."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[int, int], ...]

    @property
    def image(self) -> Column | None:
        """The first column of images."""
        return next((column for column in self.columns if column.kind == "image"), None)


def schema(file: Path, name: str) -> Schema:
    """The columns of a file that is shown as `name`.

    Raises:
        BadData: it is neither a Parquet nor an Arrow file, or damaged.
        MissingExtra: pyarrow is not installed.
    """
    extras.require("pyarrow", WHAT)
    stat = file.stat()
    return _schema(file, name, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _schema(file: Path, name: str, _changed: int, _size: int) -> Schema:
    columns, groups = _in_process(name, schema_of, file)
    return Schema(tuple(Column(one[0], one[1], tuple(one[2])) for one in columns), tuple(groups))


def cells(file: Path, name: str, columns: list[str]) -> list[list[Any]]:
    """The values of some columns, in order.

    Raises:
        BadData: as `schema`.
    """
    return [list(one) for one in _in_process(name, cells_of, file, columns)]


def images(file: Path, name: str, column: str, groups: tuple[tuple[int, int], ...]) -> Iterator[tuple[bytes, str]]:
    """(content, file name or "") of each image, in order; an empty content where there is none.

    Raises:
        BadData: as `schema`.
    """
    for group, (count, size) in enumerate(groups):
        some = max(1, min(count, count * AT_ONCE // max(1, size)))
        for first in range(0, count, some):
            lengths, names, content = _in_process(name, images_of, file, column, group, first, some)
            at = 0
            held = content.tobytes()
            for length, called in zip(lengths, names, strict=True):
                yield held[at : at + length], called
                at += length


def _in_process(name: str, work: Any, *given: Any) -> Any:
    try:
        return _guarded.call(work, *given)
    except _guarded.OverLimit as error:
        raise BadData(f"the {title(name)} takes too long to read", given=f"{name}: {error.given}", do=SMALLER) from None
    except SmallAlignError:
        raise
    except Exception as error:  # noqa: BLE001  # Arrow raises errors of its own
        words = " ".join(str(error).split())[:100]
        raise BadData(f"the {title(name)} cannot be read", given=f"{name}: {words}", do="write it again") from None


def title(name: str) -> str:
    """What a file is called in a message."""
    return "Arrow file" if name.lower().endswith(".arrow") else "Parquet file"


SMALLER = "write it again, in row groups of at most a few thousand rows"


# --- in the guarded process -------------------------------------------------------------------------------------------


def schema_of(file: Path) -> tuple[Any, ...]:
    """((name, kind, class names) of each column, (rows, bytes) of each row group)."""
    with closing(_opened(file)) as opened:
        held = opened.schema
        features = _features((held.metadata or {}).get(b"huggingface", b""))
        columns = tuple((one.name, _kind(one.type), _classes(features.get(one.name))) for one in held)
        return columns, tuple(opened.groups())


def cells_of(file: Path, columns: list[str]) -> tuple[Any, ...]:
    """The values of each column as plain ones."""
    with closing(_opened(file)) as opened:
        groups = range(len(opened.groups()))
        read = [batch for group in groups for batch in opened.batches(group, columns)]
        return tuple(
            tuple(_plain(value) for batch in read for value in batch.column(name).to_pylist()) for name in columns
        )


def images_of(file: Path, column: str, group: int, first: int, count: int) -> tuple[Any, ...]:
    """(lengths, file names, contents behind one another) of `count` images of a row group from `first` on."""
    arrow = extras.load("pyarrow", WHAT)
    contents: list[bytes] = []
    names: list[str] = []
    skip = first
    with closing(_opened(file)) as opened:
        for batch in opened.batches(group, [column]):
            here = batch.slice(skip, count - len(contents))
            skip = max(0, skip - len(batch))
            held = here.column(0)
            if arrow.types.is_struct(held.type):
                fields = {field.name for field in held.type}
                called = held.field("path").to_pylist() if "path" in fields else [None] * len(held)
                valid, bytes_ = held.is_valid().to_pylist(), held.field("bytes").to_pylist()
                contents += [one if one and good else b"" for one, good in zip(bytes_, valid, strict=True)]
            else:
                called = [None] * len(held)
                contents += [one or b"" for one in held.to_pylist()]
            names += [str(one or "") for one in called]
            if len(contents) >= count:
                break
    return tuple(map(len, contents)), tuple(names), np.frombuffer(b"".join(contents), np.uint8)


class _Parquet:
    """A Parquet file by row groups."""

    def __init__(self, file: Path) -> None:
        self._file = extras.load("pyarrow.parquet", WHAT).ParquetFile(file)
        self.schema = self._file.schema_arrow

    def groups(self) -> list[tuple[int, int]]:
        meta = self._file.metadata
        found = (meta.row_group(place) for place in range(meta.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in found]

    def batches(self, group: int, columns: list[str]) -> Iterator[Any]:
        return iter(self._file.iter_batches(256, row_groups=[group], columns=columns, use_threads=False))

    def close(self) -> None:
        self._file.close()


class _Arrow:
    """An Arrow file as one group: a stream, as `datasets` writes it, or the random-access format (Feather).

    A stream is read from its start each time, so its record batches are no groups: each would read all before it.
    """

    def __init__(self, file: Path) -> None:
        self._ipc = extras.load("pyarrow.ipc", WHAT)
        self._map = extras.load("pyarrow", WHAT).memory_map(str(file))
        self._indexed = self._map.read(6) == b"ARROW1"
        self.schema = self._reader().schema

    def _reader(self) -> Any:
        self._map.seek(0)
        return self._ipc.open_file(self._map) if self._indexed else self._ipc.open_stream(self._map)

    def _all(self) -> Iterator[Any]:
        reader = self._reader()
        return map(reader.get_batch, range(reader.num_record_batches)) if self._indexed else iter(reader)

    def groups(self) -> list[tuple[int, int]]:
        sizes = [(batch.num_rows, batch.nbytes) for batch in self._all()]
        return [(sum(rows for rows, _ in sizes), sum(size for _, size in sizes))]

    def batches(self, _group: int, columns: list[str]) -> Iterator[Any]:
        return (batch.select(columns) for batch in self._all())

    def close(self) -> None:
        self._map.close()


def _opened(file: Path) -> _Parquet | _Arrow:
    with file.open("rb") as raw:
        return _Parquet(file) if raw.read(4) == b"PAR1" else _Arrow(file)


def _kind(held: Any) -> Kind:
    types = extras.load("pyarrow", WHAT).types
    if types.is_dictionary(held):
        held = held.value_type
    if types.is_struct(held):
        inner = {field.name: field.type for field in held}
        return "image" if "bytes" in inner and _binary(inner["bytes"]) else "other"
    if _binary(held):
        return "image"
    if types.is_string(held) or types.is_large_string(held) or types.is_string_view(held):
        return "text"
    if types.is_integer(held) or types.is_floating(held) or types.is_boolean(held):
        return "number"
    return "list" if types.is_list(held) or types.is_large_list(held) else "other"


def _binary(held: Any) -> bool:
    types = extras.load("pyarrow", WHAT).types
    return bool(types.is_binary(held) or types.is_large_binary(held) or types.is_binary_view(held))


def _features(text: bytes) -> dict[str, Any]:
    """The features by name in the metadata that Hugging Face's `datasets` writes."""
    try:
        found = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _classes(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return ()


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) or value is None else str(value)
