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
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smallalign_core.data._files import (
    CLASS_LISTS,
    IMAGE_ENDINGS,
    MAX_TABLE,
    NO_PICTURES,
    READ,
    SNIFFED,
    TABLES,
    Entry,
    Listing,
    kind_of,
    left_note,
    sorted_out,
    zip_names,
)
from smallalign_core.data._names import hidden, page_note, shown, unseen
from smallalign_core.errors import BadData
from smallalign_core.system import limits

MB = 1024**2
MOST_OF_NAME, MOST_OF_PATH = 120, 500
ENTRY_BYTES = 400  # of the directory, on average: 46 and the name
NOTICED = MB  # an entry below this is no bomb, however well it packs: a blank bitmap does


@dataclass(frozen=True)
class Bounds:
    """What a zip may hold. Sizes in bytes.

    Attributes:
        strict: whether it was uploaded by a user: then names must be harmless wherever it is unpacked.
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


def of_uploads() -> Bounds:
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
    """Check an uploaded zip; nothing of it is unpacked.

    Raises:
        BadData: it cannot be read, holds no images, or what `images` refuses.
    """
    bounds, file = of_uploads(), io.BytesIO(content)
    look(file, bounds)
    try:
        with zipfile.ZipFile(file) as archive:
            found = [name for _, name in images(archive, bounds) if not _tells(name)]
    except DAMAGED as error:
        raise BadData("the zip file cannot be read", given=str(error), do="pack it again") from None
    if not found:
        raise BadData("the zip holds no images", do="put images into one sub-folder per class")


Named = tuple[zipfile.ZipInfo, str]
"""An entry and its name as it is read, with `/` between folders."""


def images(archive: zipfile.ZipFile, bounds: Bounds) -> list[Named]:
    """The entries that may be images, or tables of labels; nothing is unpacked.

    Raises:
        BadData: names that leave the folder, or from users cannot be files everywhere or meet; links, devices and
            encrypted entries; entries that share bytes; too many, too large, or packed too well.
    """
    return _sorted(archive, bounds)[0]


def _sorted(archive: zipfile.ZipFile, bounds: Bounds) -> tuple[list[Named], list[Named], list[str]]:
    """(what `images` gives, all other files but what systems leave behind, notes about names)."""
    listed = archive.infolist()
    names, page = zip_names(listed)
    left: Counter[str] = Counter()
    found: list[Named] = []
    others: list[Named] = []
    for entry, name in zip(listed, names, strict=True):
        parts = name.split("/")
        if "\\" not in name and any(hidden(part) for part in parts if part not in (".", "..")):
            left.update(shown(one) for one in parts[:-1] if hidden(one) and not one.startswith("."))
        elif not name.endswith("/"):
            (found if _wanted(archive, entry, name) else others).append((entry, name))
    if len(listed if bounds.strict else found) > bounds.entries:
        what = "entries" if bounds.strict else "images"
        raise BadData(
            f"the zip has over {bounds.entries:,} {what}", given=len(found), do="unpack it and give the folder's path"
        )
    for entry, name in found:
        _check_entry(entry, name, bounds)
    _check_meeting(found, bounds)
    chosen = [entry for entry, _ in found]
    _check_sizes(archive, chosen, listed if bounds.strict else chosen, bounds)
    notes = left_note(Counter(dict.fromkeys(left, 1)))
    return found, others, [*page_note(page, "the zip"), *notes]


def _wanted(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bool:
    """Whether an entry is unpacked: by its ending, or else by its first bytes."""
    ending = Path(name).suffix.lower()
    if ending in IMAGE_ENDINGS:
        return True
    if _tells(name):
        return entry.file_size <= MAX_TABLE
    if ending in NO_PICTURES or entry.flag_bits & 0x2041 or entry.compress_type not in PLAIN:
        return False
    try:
        with archive.open(entry) as stream:
            return kind_of(stream.read(SNIFFED)) in READ
    except DAMAGED:
        return False


def _tells(name: str) -> bool:
    """Whether a file may hold labels or the names of classes."""
    return Path(name).suffix.lower() in TABLES or Path(name).name.lower() in CLASS_LISTS


def unpack(archive: zipfile.ZipFile, room: Path, bounds: Bounds) -> Listing:
    """Unpack what may be an image under numbers, counting what is really written: an archive's own sizes may lie.

    Raises:
        BadData: as `images`; or it holds more data than it declares.
    """
    entries, others, notes = _sorted(archive, bounds)
    written, unpacked = 0, []
    room.mkdir(parents=True, exist_ok=True)
    for number, (entry, name) in enumerate(entries):
        ending = re.sub("[^a-z0-9]", "", Path(name).suffix.lower())[:8]
        target = room / (f"{number:06d}.{ending}" if ending else f"{number:06d}")
        with archive.open(entry) as source, target.open("xb") as sink:
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > bounds.total or sink.tell() + len(chunk) > bounds.entry:
                    raise _too_large(entry)
                sink.write(chunk)
        unpacked.append(Entry(_parts(name), target))
    rest = [Entry(_parts(name), Path(archive.filename or room)) for _, name in others if _parts(name)]
    return sorted_out([*unpacked, *rest], notes=notes)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(shown(part) for part in name.split("/") if part not in ("", "."))


def _check_entry(entry: zipfile.ZipInfo, name: str, bounds: Bounds) -> None:
    wrong = _wrong_name(name, bounds)
    if wrong is None and bounds.strict and unseen(entry.orig_filename):
        wrong = UNSEEN
    do = "pack it again with plain names below the folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if wrong is None and kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        wrong, do = "a link or a device", "pack it again with the files themselves"
    if wrong is None and entry.flag_bits & 0x2041:  # encrypted, strongly, or its directory
        wrong, do = "an encrypted file", "pack it again without a password"
    if wrong is None and bounds.strict and entry.compress_type not in PLAIN:
        wrong, do = "a file packed in an unusual way", "pack it again with an ordinary zip program"
    if wrong:
        raise BadData(f"the zip holds {wrong}", given=ascii(entry.orig_filename), do=do)


PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UNSEEN = "a name with characters that cannot be seen"


def _wrong_name(name: str, bounds: Bounds) -> str | None:
    """What is wrong with an entry's name, as after "the zip holds"; None if nothing is.

    No name becomes a file here. An upload is stored, though, and may be unpacked elsewhere by other programs.
    """
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
        return "a name that leaves its folder"
    if not _parts(name):
        return "a file without a name"
    if not bounds.strict:
        return None
    if "\\" in name:
        return "a name with backslashes beside names with slashes"
    if unseen(name):
        return UNSEEN
    if len(name) > MOST_OF_PATH or any(len(part) > MOST_OF_NAME or len(part.encode()) > 255 for part in parts):
        return "a name that is too long"
    if any(part in ("", ".") or part != part.rstrip(". ") or RESERVED.fullmatch(part) for part in parts):
        return "a name that cannot be a file everywhere"
    return None


RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for devices."""


def _check_meeting(entries: Sequence[Named], bounds: Bounds) -> None:
    """Names that would be one file; from users also where case does not count, and folders that would be one."""
    spelled: dict[str, str] = {}
    files: set[str] = set()
    for entry, name in entries:
        path = ""
        for part in _parts(name):
            path += "/" + part
            known = spelled.setdefault(path.casefold() if bounds.strict else path, path)
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


def _check_sizes(
    archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], apart: Sequence[zipfile.ZipInfo], bounds: Bounds
) -> None:
    """Sizes of `entries`, which are unpacked, and that those of `apart` share no bytes."""
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
    for entry in sorted(apart, key=lambda entry: entry.header_offset):
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
