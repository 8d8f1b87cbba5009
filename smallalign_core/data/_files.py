"""The files of a folder or a zip as one uniform list."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smallalign_core.data._names import as_text, hidden, of_system, page_note, shown
from smallalign_core.data._table_formats import FORMATS

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"} | {
    *(".jfif", ".jpe", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
}
OLD_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
"""What was read before 2026-12: runs of that time are made from these alone."""

TABLES = set(FORMATS)
MAX_TABLE = 20 * 1024**2

CLASS_LISTS = ("classes.txt", "class_names.txt", "labels.txt", "names.txt")
"""Files that may hold the names of the classes in their order, one a line."""

NO_PICTURES = TABLES | {
    *(".txt", ".md", ".rst", ".xml", ".json", ".yaml", ".yml", ".html", ".htm", ".css", ".js"),
    *(".py", ".pyc", ".ipynb", ".log", ".ini", ".cfg", ".toml", ".sh", ".bat", ".m", ".r", ".doc", ".docx", ".xls"),
    *(".xlsx", ".pdf", ".pkl", ".pth", ".pt", ".onnx", ".names", ".cache", ".lock", ".url", ".lnk", ".bib"),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".db", ".sqlite"),
}
"""What a folder may hold without having been a class: texts, tables, programs, archives."""

SNIFFED = 160
SIGNATURES = (
    *((b"\x89PNG\r\n\x1a\n", 0, "PNG"), (b"\xff\xd8\xff", 0, "JPEG"), (b"GIF87a", 0, "GIF"), (b"GIF89a", 0, "GIF")),
    *((b"II*\0", 0, "TIFF"), (b"MM\0*", 0, "TIFF"), (b"WEBP", 8, "WEBP"), (b"\0\0\0\x0cjP  \r\n\x87\n", 0, "JPEG2000")),
    *((b"ftypavif", 4, "AVIF"), (b"ftypavis", 4, "AVIF"), (b"ftypheic", 4, "HEIF"), (b"ftypheix", 4, "HEIF")),
    *((b"ftypmif1", 4, "HEIF"), (b"ftyphevc", 4, "HEIF"), (b"DICM", 128, "DICOM"), (b"%PDF", 0, "PDF")),
    *((b"PK\x03\x04", 0, "zip"), (b"%!PS", 0, "PostScript"), (b"8BPS", 0, "Photoshop"), (b"<svg", 0, "SVG")),
    *((b"<!DOCTYPE", 0, "HTML"), (b"<html", 0, "HTML"), (b"<?xml", 0, "XML"), (b"BM", 0, "BMP")),
)
READ = {"PNG", "JPEG", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF"}
"""Signatures that are long enough to identify a file without a known ending."""


@dataclass(frozen=True)
class Entry:
    """One file: its names below the source as they are shown, and where its bytes lie."""

    path: tuple[str, ...]
    file: Path

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def ending(self) -> str:
        return Path(self.path[-1]).suffix.lower()

    @property
    def order(self) -> tuple[tuple[bool, str], ...]:
        """The files of a folder come before its folders, each by name: part of the fingerprint."""
        last = len(self.path) - 1
        return tuple((place < last, name) for place, name in enumerate(self.path))


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        pictures: files that are read as images, in order.
        tables: comma- or tab-separated text, which may hold labels.
        others: all else but what systems leave behind.
        empty: folders that hold nothing, by their names.
        notes: what was done to the names.
    """

    pictures: tuple[Entry, ...]
    tables: tuple[Entry, ...]
    others: tuple[Entry, ...]
    empty: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def signature(file: Path) -> str | None:
    """What the first bytes of a file say that it is; None if that is not known."""
    try:
        with file.open("rb") as stream:
            return kind_of(stream.read(SNIFFED))
    except OSError:
        return None


def kind_of(head: bytes) -> str | None:
    """What a file is that begins with these bytes; None if that is not known."""
    begin = head.lstrip()[:20].lower()
    for magic, at, kind in SIGNATURES:
        if head[at : at + len(magic)] == magic or (magic.startswith(b"<") and begin.startswith(magic.lower())):
            return kind
    return None


def sorted_out(found: Iterable[Entry], empty: Iterable[tuple[str, ...]] = (), notes: Iterable[str] = ()) -> Listing:
    """Files by what they are for. Files without a known ending are read: an image may have any name."""
    pictures, tables, others = [], [], []
    for entry in sorted(found, key=lambda entry: entry.order):
        if entry.ending in IMAGE_ENDINGS:  # one that is no file is refused in words where it is decoded
            pictures.append(entry)
        elif not regular(entry.file):  # a pipe would never end, and a link may lead nowhere
            others.append(entry)
        elif entry.ending in TABLES:
            tables.append(entry)
        elif entry.ending not in NO_PICTURES and signature(entry.file) in READ:
            pictures.append(entry)
        else:
            others.append(entry)
    return Listing(tuple(pictures), tuple(tables), tuple(others), tuple(empty), tuple(notes))


def of_folder(root: Path) -> Listing:
    """Everything below `root`, through links.

    Raises:
        OSError: a folder may not be read.
    """
    left = Counter[str]()
    every = list(_walk(root, (), (), left))
    found, empty = [one for one in every if one[1] is not None], [one for one in every if one[1] is None]
    raw = sorted({name for names, _ in (*found, *empty) for name in names})
    texts, page = of_system(raw)
    say = {name: shown(text) for name, text in zip(raw, texts, strict=True)}
    entries = [Entry(tuple(say[name] for name in names), file) for names, file in found if file is not None]
    folders = [tuple(say[name] for name in names) for names, _ in empty]
    return sorted_out(entries, folders, [*page_note(page, "the folder"), *left_note(left)])


def files_below(root: Path) -> tuple[list[Path], Counter[str]]:
    """(all files that `of_folder` finds, in an order that does not depend on the file system; folders left out)."""
    left = Counter[str]()
    return [file for _, file in _walk(root, (), (), left) if file is not None and regular(file)], left


def left_note(left: Counter[str]) -> list[str]:
    """What to say of folders that systems left behind."""
    if not left:
        return []
    told = ", ".join(f"{count:,} x {name}" if count > 1 else name for name, count in sorted(left.items()))
    return [f"System folders were left out: {told}."]


def _walk(
    folder: Path, names: tuple[str, ...], above: tuple[str, ...], left: Counter[str]
) -> Iterator[tuple[tuple[str, ...], Path | None]]:
    """(names, file) of all regular files and other things; (names, None) of folders without any."""
    here = os.path.realpath(folder)
    if here in above:
        return  # a link to a folder that holds it
    inside = sorted(os.scandir(folder), key=lambda child: child.name)
    if not inside and names:
        yield names, None
    for child in inside:
        is_folder = child.is_dir()
        if hidden(child.name):
            if is_folder and not child.name.startswith("."):
                left[shown(child.name)] += 1
        elif is_folder:
            yield from _walk(Path(child.path), (*names, child.name), (*above, here), left)
        else:
            yield (*names, child.name), Path(child.path)


def regular(file: Path) -> bool:
    """Whether it is a regular file: no pipe, device or broken link."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def old_walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All images and IDX files below `folder` as they were found before 2026-12, in the order of that time."""
    here = os.path.realpath(folder)
    if here in above:
        return
    children = sorted(child for child in folder.iterdir() if not child.name.startswith((".", "__MACOSX")))
    folders = [child for child in children if child.is_dir()]
    for child in children:
        if (child.suffix.lower() in OLD_ENDINGS or "ubyte" in child.name) and child not in folders:
            yield child
    for child in folders:
        yield from old_walk(child, (*above, here))


def zip_names(entries: list[zipfile.ZipInfo]) -> tuple[list[str], str | None]:
    """The names in a zip, with `/` between folders, and the code page that they were read as (None: UTF-8).

    zipfile reads names that are not marked as UTF-8 in code page 437. PowerShell 5 and old .NET separate folders by
    backslashes; where no name has a slash, they are meant.
    """
    names = [entry.filename for entry in entries]
    unmarked = [row for row, entry in enumerate(entries) if not entry.flag_bits & 0x800 and not names[row].isascii()]
    page = None
    if unmarked:
        try:
            texts, page = as_text([entries[row].filename.encode("cp437") for row in unmarked])
            for row, text in zip(unmarked, texts, strict=True):
                names[row] = text
        except UnicodeEncodeError:  # the file was written by zipfile's own hand
            pass
    if any("\\" in name for name in names) and not any("/" in name for name in names):
        names = [name.replace("\\", "/") for name in names]
    return names, page
