"""Datasets uploaded by users: validated, stored by content hash, used by their path like any other.

    <root>/uploads/<name>-<16 hex digits of its SHA-256>.zip

The name is the user's file name reduced to a-z, 0-9 and -; it is informative only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from smallalign_core.data import check_upload
from smallalign_core.errors import BadData, Refused
from smallalign_core.runs.store import Store
from smallalign_core.system import limits
from smallalign_core.system.files import write

MAGIC = {b"PK\x03\x04": "zip"}
"""How files that are accepted begin. What a file is called does not count."""

LONGEST = 4096
"""Characters of a path."""

SPARE = 200 * limits.MB


def folder(store: Store) -> Path:
    """Where uploads are kept; made when the first is."""
    return store.root.resolve() / "uploads"


def kept(store: Store) -> list[Path]:
    """All that is kept, newest first."""
    there = folder(store)
    aged = []
    for file in there.glob("*.zip"):
        with contextlib.suppress(FileNotFoundError):  # another user's upload was refused at this moment
            aged += [] if file.name.startswith(".") else [(file.stat().st_mtime, file)]
    return [file for _, file in sorted(aged, reverse=True)]


def packed(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Files of a folder, by their paths below it, as a zip for `keep`: equal files give equal bytes.

    Raises:
        Refused: together they are larger than the uploads of a session may be, or a path is none that a zip can hold.
    """
    most, size, target = limits.current().uploads_each_mb, 0, io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files):
            size += len(content)
            if size > most * limits.MB:
                raise Refused(
                    f"an uploaded folder must be at most {most} MB",
                    given=f"more than {size / limits.MB:.0f} MB",
                    do="enter the path of a larger folder",
                )
            if len(name) > LONGEST or "\0" in name or name.encode(errors="replace").decode() != name:
                raise Refused("the name of a file cannot be stored", given=ascii(name[:60]), do="rename the file")
            archive.writestr(zipfile.ZipInfo(name), content)
    return target.getvalue()


def keep(store: Store, name: str, content: bytes, *, most_mb: int | None = None) -> tuple[Path, bool]:
    """Check an uploaded zip of images, and store it.

    Args:
        store: where it is kept.
        name: of the user's file.
        content: the zip.
        most_mb: its largest size; that of one uploaded file if not given.

    Returns:
        Its path, which can be used as `data`, and whether it is new. Nothing was decoded yet: whoever does that and
        finds it useless calls `drop`.

    Raises:
        Refused: read-only user, or not enough space.
        BadData: it is no zip, or one that `data` would not unpack. Nothing of it is left behind.
    """
    store.user.require("upload datasets")
    most = limits.current()
    most_mb = most_mb or most.upload_mb
    if len(content) > most_mb * limits.MB:
        raise Refused(f"an upload must be at most {most_mb} MB", given=f"{len(content) / limits.MB:.1f} MB", do=HOW)
    if not content.startswith(tuple(MAGIC)):
        raise BadData("the file is not a zip archive", given=_beginning(content), do=HOW)
    check_upload(content)
    digest = hashlib.sha256(content).hexdigest()[:16]
    there = folder(store)
    if known := next(there.glob(f"*-{digest}.zip"), None):
        return known, False
    there.mkdir(parents=True, exist_ok=True)
    size = 0
    for file in there.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    if size + len(content) > most.kept_mb * limits.MB:
        do = f"the administrator of this dashboard can delete old ones from {there}"
        raise Refused("the storage for uploads is full", given=f"{size / limits.MB:,.0f} MB are stored", do=do)
    if shutil.disk_usage(there).free < len(content) + SPARE:
        raise Refused("the disk is nearly full", given=there, do="free some space, then upload again")
    file = there / f"{_plain(name)}-{digest}.zip"
    write(file, content)
    return file, True


def discard(store: Store, file: Path) -> None:
    """Forget an upload that turned out to be useless; any other file is left alone."""
    if file.parent == folder(store) and file.suffix == ".zip":
        file.unlink(missing_ok=True)


HOW = (
    "upload a zip of a folder with one sub-folder of images per class, or with a CSV of labels; give larger "
    "datasets by path"
)


def _plain(name: str) -> str:
    text = re.sub("[^a-z0-9]+", "-", Path(name).stem.lower()[:200]).strip("-")[:40].strip("-")
    return text or "images"


def _beginning(content: bytes) -> str:
    return f"{len(content):,} bytes that begin with {content[:8]!r}" if content else "an empty file"
