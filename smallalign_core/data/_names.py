"""Names of files and folders: encodings, system files to skip, and natural sorting."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypeVar

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the text around them, so that a name is not what it looks like."""

LEFT_BEHIND = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db"),
}
"""Folders and files that systems and network storage put beside a user's own; their thumbnails are copies."""


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images: what systems, Jupyter and editors leave."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def natural(name: str, *, cased: bool = False) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names as people do: 2 before 10; with `cased`, upper case before lower, as words are sorted."""
    parts = re.split("([0-9]+)", name if cased else name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


Kept = TypeVar("Kept")


def in_order(by_name: Mapping[str, Kept]) -> dict[str, Kept]:
    """The same by name as people sort names."""
    return {name: by_name[name] for name in sorted(by_name, key=natural)}


def unseen(name: str) -> bool:
    """Whether a name holds characters that cannot be seen, or that turn the text around them."""
    return any(unicodedata.category(letter) in ("Cc", "Cs") or letter in BIDI for letter in name)


def shown(name: str) -> str:
    """A name in composed characters (NFC), as a Mac and others write it alike; what cannot be seen becomes U+FFFD."""
    if name.isascii() and name.isprintable():
        return name
    plain = unicodedata.normalize("NFC", name)
    return "".join("\ufffd" if unseen(letter) else letter for letter in plain)


def as_text(names: Sequence[bytes]) -> tuple[list[str], str | None]:
    """Names that one system wrote, as text, and the code page that they were read as; None where all are UTF-8.

    A zip or file system does not say which code page it is, so the first one counts in which all names read as words
    of one script: UTF-8, Chinese (GBK), Japanese (Shift JIS), Cyrillic (866, 1251), else Western (437).
    """
    try:
        return [name.decode() for name in names], None
    except UnicodeDecodeError:
        pass
    odd = [name for name in names if not name.isascii()]
    for page, likely in PAGES.items():
        try:
            found = [name.decode(page) for name in odd]
        except UnicodeDecodeError:
            continue
        letters = [letter for name in found for letter in name if ord(letter) > 127]
        if sum(map(likely, letters)) >= LIKELY * len(letters) and (page == "gb18030" or not any(map(_mixed, found))):
            return [name.decode(page) for name in names], page
    return [name.decode("cp437") for name in names], "cp437"


LIKELY = 0.8
"""Share of the letters that must be common ones of a script before names are taken to be in it."""


def _common_hanzi(letter: str) -> bool:
    """Among the 3,755 that GB 2312 lists as common."""
    try:
        first, *rest = letter.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return 0xB0 <= first <= 0xD7 and len(rest) == 1


def _japanese(letter: str) -> bool:
    return "\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff"


def _cyrillic(letter: str) -> bool:
    return "\u0400" <= letter <= "\u04ff"


def _mixed(name: str) -> bool:
    """Whether a word of a name has Latin letters among others, without kana: then it was neither."""
    words = re.findall(r"\w+", name)
    return any(
        re.search("[A-Za-z]", word) and re.search("[\u0400-\u04ff\u4e00-\u9fff]", word) for word in words
    ) and not re.search("[\u3040-\u30ff]", name)


PAGES = {"gb18030": _common_hanzi, "cp932": _japanese, "cp866": _cyrillic, "cp1251": _cyrillic}

PAGE_NAMES = {"gb18030": "GBK", "cp932": "Shift JIS"}


def page_note(page: str | None, what: str) -> list[str]:
    """What to say where names are not UTF-8."""
    if page is None:
        return []
    return [
        f"Names in {what} are not UTF-8 and were read as {PAGE_NAMES.get(page, page)}: where class names look wrong, "
        "rename them, or pack again with UTF-8 names."
    ]


def of_system(names: Sequence[str]) -> tuple[list[str], str | None]:
    """As `as_text`, names as Python reads them from a folder."""
    if all(letter < "\udc80" or letter > "\udcff" for name in names for letter in name):
        return list(names), None
    return as_text([os.fsencode(name) for name in names])
