"""Zip files: what is refused before a byte is unpacked, and unpacking with a hard counter.

Python's zipfile tidies `..` and absolute names away, merges names that differ in case, does not notice entries that
overlap (CVE-2024-0450, before 3.11.8) and reads a directory of a million entries for seconds. So everything is checked
on the central directory first, its length before it is even parsed, and names are refused instead of tidied.
"""

from __future__ import annotations

import io
import lzma
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smallalign_core import limits
from smallalign_core.data._decode import IMAGE_ENDINGS, hidden
from smallalign_core.errors import BadData

MB = 1024**2
MOST_OF_NAME, MOST_OF_PATH = 120, 500
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".jar", ".whl", ".zst", ".lzma"}
ENTRY_BYTES = 400  # of the directory, on average: 46 and the name
NOTICED = MB  # an entry below this is no bomb, however well it packs: a blank bitmap does


@dataclass(frozen=True)
class Bounds:
    """What a zip may hold. Sizes in bytes.

    Attributes:
        strict: whether it comes from a visitor: then every entry must be harmless, not only the images.
    """

    entries: int
    total: int
    entry: int
    ratio: float = float("inf")
    strict: bool = False


DAMAGED = (  # what zipfile and the unpackers below it raise
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    IndexError,  # an entry without a name
)

OWNERS = Bounds(entries=200_000, total=8 * 1024 * MB, entry=100 * MB)
"""A zip that lies on this machine already."""


def of_visitors() -> Bounds:
    """What an uploaded zip may hold."""
    most = limits.current()
    return Bounds(most.zip_entries, most.zip_mb * MB, most.zip_entry_mb * MB, most.zip_ratio, strict=True)


def look(file: BinaryIO, bounds: Bounds) -> None:
    """Refuse a zip whose directory is too long to be read at all, by the few bytes at its end (APPNOTE 4.3.16).

    Raises:
        BadData: it is, or there is no directory.
    """
    size = file.seek(0, 2)
    tail_at = max(0, size - 22 - 65_535)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise BadData("the file is not a whole zip", given=f"{size:,} bytes", do="pack it again")
    count, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
    if count > bounds.entries or directory > bounds.entries * ENTRY_BYTES:
        given = f"{count:,} entries" if count < 0xFFFF else "65,535 or more"
        raise BadData(
            f"the zip has over {bounds.entries:,} entries", given=given, do="unpack it and give the folder's path"
        )


def check_upload(content: bytes) -> None:
    """Check a zip that a visitor sent; nothing of it is unpacked.

    Raises:
        BadData: it cannot be read, holds no images, or what `images` refuses.
    """
    bounds, file = of_visitors(), io.BytesIO(content)
    look(file, bounds)
    try:
        with zipfile.ZipFile(file) as archive:
            found = images(archive, bounds)
    except DAMAGED as error:
        raise BadData("the zip file cannot be read", given=str(error), do="pack it again") from None
    if not found:
        endings = ", ".join(sorted(ending[1:] for ending in IMAGE_ENDINGS))
        raise BadData("the zip holds no images", do=f"put images ({endings}) into one sub-folder per class")


def images(archive: zipfile.ZipFile, bounds: Bounds) -> list[zipfile.ZipInfo]:
    """The entries that are images; nothing is unpacked.

    Raises:
        BadData: names that leave the folder, cannot be files everywhere or meet; links, devices and encrypted entries;
            entries that share bytes; too many, too large, or packed too well; from visitors also archives inside.
    """
    listed = archive.infolist()
    found = [entry for entry in listed if _ending(entry) in IMAGE_ENDINGS]
    if len(listed if bounds.strict else found) > bounds.entries:
        what = "entries" if bounds.strict else "images"
        raise BadData(
            f"the zip has over {bounds.entries:,} {what}", given=len(found), do="unpack it and give the folder's path"
        )
    for entry in listed if bounds.strict else found:
        _check_entry(entry, bounds)
    found = [entry for entry in found if not any(map(hidden, entry.filename.split("/")))]
    _check_meeting(found)
    _check_sizes(archive, listed if bounds.strict else found, bounds)
    return found


def unpack(archive: zipfile.ZipFile, room: Path, bounds: Bounds) -> int:
    """Unpack the images only, counting what is really written: an archive's own sizes may lie. Returns how many.

    Raises:
        BadData: as `images`; or there is more in it than it says.
    """
    entries, written = images(archive, bounds), 0
    for entry in entries:
        target = room.joinpath(*unicodedata.normalize("NFC", entry.filename).split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as sink:
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > bounds.total or sink.tell() + len(chunk) > bounds.entry:
                    raise _too_large(entry)
                sink.write(chunk)
    room.mkdir(parents=True, exist_ok=True)
    return len(entries)


def _ending(entry: zipfile.ZipInfo) -> str:
    """The ending of a file's name; none for a folder. (`ZipInfo.is_dir` fails for an empty name.)"""
    return "" if entry.filename.endswith("/") else Path(entry.filename).suffix.lower()


def _check_entry(entry: zipfile.ZipInfo, bounds: Bounds) -> None:
    wrong = _wrong_name(entry.orig_filename) or _wrong_name(entry.filename)
    do = "pack it again with plain names below the folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if wrong is None and kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        wrong, do = "a link or a device", "pack it again with the files themselves"
    if wrong is None and entry.flag_bits & 0x2041:  # encrypted, strongly, or its directory
        wrong, do = "an encrypted file", "pack it again without a password"
    if wrong is None and bounds.strict and _ending(entry) in ARCHIVES:
        wrong, do = "another archive, which is not opened", "unpack that one first"
    if wrong is None and bounds.strict and entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        wrong, do = "a file packed in an unusual way", "pack it again with an ordinary zip program"
    if wrong:
        raise BadData(f"the zip holds {wrong}", given=ascii(entry.orig_filename), do=do)


def _wrong_name(name: str) -> str | None:
    """What is wrong with an entry's name, as after "the zip holds"; None if nothing is."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or re.match("[A-Za-z]:", name):
        return "a name that leaves its folder"
    if any(unicodedata.category(letter) in ("Cc", "Cs") or letter in BIDI for letter in name):
        return "a name with characters that cannot be seen"
    if len(name) > MOST_OF_PATH or any(len(part) > MOST_OF_NAME or len(part.encode()) > 255 for part in parts):
        return "a name that is too long"
    if any(part in ("", ".") or part != part.rstrip(". ") or RESERVED.fullmatch(part) for part in parts):
        return "a name that cannot be a file everywhere"
    return None


BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the text around them, so that a name is not what it looks like."""

RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for devices."""


def _check_meeting(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Names that would be one file, or folders that would be one class, where case or composition does not count."""
    spelled: dict[str, str] = {}
    files: set[str] = set()
    for entry in entries:
        path = ""
        for part in unicodedata.normalize("NFC", entry.filename).split("/"):
            path += "/" + part
            known = spelled.setdefault(path.casefold(), path)
            if known != path:
                raise _meet(entry)
        if path in files:
            raise _meet(entry)
        files.add(path)
    if any(parent in files for path in files for parent in [path.rpartition("/")[0]]):
        raise BadData("the zip holds a file and a folder of one name", do="pack it again")


def _meet(entry: zipfile.ZipInfo) -> BadData:
    return BadData(
        "the zip holds two names that are one where upper and lower case are the same",
        given=ascii(entry.filename),
        do="rename one of them",
    )


def _check_sizes(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], bounds: Bounds) -> None:
    for entry in entries:
        well = entry.file_size > NOTICED and entry.file_size > bounds.ratio * max(1, entry.compress_size)
        if entry.file_size > bounds.entry or well:
            raise _too_large(entry)
    total, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if total > bounds.total or (total > 10 * NOTICED and total > bounds.ratio * max(1, packed)):
        raise BadData(
            "the zip unpacks to more than is allowed",
            given=f"{total / MB:,.0f} MB from {packed / MB:,.1f} MB",
            do="unpack it and give the folder's path",
        )
    end, file = 0, archive.fp
    assert file is not None
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)
        if entry.header_offset < end or len(lengths) < 4:
            raise BadData("the zip holds entries that share bytes", given=ascii(entry.filename), do="pack it again")
        end = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths)) + entry.compress_size
    if end > archive.start_dir:
        raise BadData("the zip holds entries that share bytes", given="its directory", do="pack it again")


def _too_large(entry: zipfile.ZipInfo) -> BadData:
    return BadData(
        "the zip unpacks to more than is allowed",
        given=ascii(entry.filename),
        do="unpack it and give the folder's path",
    )
