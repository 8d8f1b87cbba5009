"""Atomic files with checksums, append-only lines that survive a kill, and locks that are released when a process dies.

Files of `write_json` and `append` carry a schema number and a checksum: a file of a newer version is rejected, and a
changed byte is detected as damage. Files of version 1 have no checksums and are read as they are.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from smallalign_core.errors import BadData, BadModel, Refused

SCHEMA = 2
"""Schema number of every file that the store writes. 1 had no checksums."""

CHECKED = b'{"crc": "'
UNCHECKED = (b'{"kind": ', b'{"data": ')
"""Prefixes of lines of the current version, and of version 1."""


def write(file: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary file, flushed to disk, then renamed.

    Raises:
        Refused: the disk is full; nothing was overwritten.
    """
    part = None
    try:
        # A unique name: several threads and processes may write the same file at once, and one of them wins.
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(file)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise _full(error, file) from error


def write_folder(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write several files, each atomically, into a folder that is created if necessary.

    Raises:
        Refused: the folder or a file of it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write(folder / name, content)
    except OSError as error:
        raise _full(error, folder) from error


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """As `write`, with a schema number and a checksum; NaN is rejected."""
    plain = {"schema": SCHEMA, **{name: one for name, one in value.items() if name not in ("schema", "seal")}}
    text = json.dumps(plain, indent=1, allow_nan=False)
    write(file, f'{text[:-2]},\n "seal": "{_seal(text)}"\n}}')


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_array(file: Path, array: NDArray[Any]) -> None:
    """As `write`, for an array: a .npy file followed by its SHA-256; its folder is created if necessary."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_sealed(file, content.getvalue())


def write_sealed(file: Path, content: bytes) -> None:
    """As `write`, for bytes followed by their SHA-256; the folder is created if necessary."""
    write_folder(file.parent, {file.name: content + hashlib.sha256(content).digest()})


def read_sealed(file: Path) -> bytes | None:
    """The bytes written by `write_sealed`; None if the file is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[:-32] if hashlib.sha256(content[:-32]).digest() == content[-32:] else None


def read_array(file: Path) -> NDArray[Any] | None:
    """The array written by `write_array`; None if the file is missing or damaged."""
    content = read_sealed(file)
    if content is None:
        return None
    found: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def append(file: Path, value: dict[str, object], *, sync: bool = False) -> None:
    """Append one line by a single `write` call to a file in append mode: a kill leaves all of it or nothing."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(0, size - 1), os.SEEK_SET)
        torn = size > 0 and os.read(descriptor, 1) != b"\n"  # the last line was cut by a power loss: start a new one
        text = json.dumps(value)[1:].encode()
        line = (b"\n" if torn else b"") + CHECKED + b'%08x", ' % zlib.crc32(text) + text + b"\n"
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fsync(descriptor)
    except OSError as error:
        raise _full(error, file) from error
    finally:
        os.close(descriptor)


def _full(error: OSError, file: Path) -> Refused:
    what = (
        "the disk is full"
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        else f"the file could not be written ({error.strerror})"
    )
    return Refused(
        what, given=file, do="free some space or check the folder's permissions, then resume; nothing was overwritten"
    )


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The values written by `append`, and the number of damaged lines; a missing file has no lines.

    Raises:
        Refused: a newer version wrote it.
    """
    found: list[dict[str, Any]] = []
    damaged = 0
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    for line in filter(None, lines):
        start = len(CHECKED) + 11  # eight digits and `", `
        whole = line[:start] == CHECKED + b'%08x", ' % zlib.crc32(line[start:])
        try:
            text = b"{" + line[start:] if whole else line if line.startswith(UNCHECKED) else b""
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):  # cut by a power loss, or damaged
            damaged += 1
            continue
        _refuse_newer(file, value)
        found.append(value)
    return found, damaged


def read_json(file: Path, **otherwise: Any) -> Any:
    """The value in a JSON file, without schema and checksum; `missing=...` is returned if there is no such file.

    Raises:
        BadModel: the file is damaged, or missing and no `missing` was given.
        Refused: it was written by a newer version.
    """
    try:
        value = json.loads(file.read_bytes())
        if isinstance(value, dict) and ("seal" in value or 1 < _schema(value) <= SCHEMA):
            seal = value.pop("seal", None)
            if seal != _seal(json.dumps(value, indent=1)):
                raise ValueError
        _refuse_newer(file, value)
        if isinstance(value, dict):
            value.pop("schema", None)
        return value
    except FileNotFoundError:
        if "missing" in otherwise:
            return otherwise["missing"]
        raise BadModel(
            "a file of this run is missing", given=file, do="delete the run and submit its spec again"
        ) from None
    except (ValueError, OSError, RecursionError):
        raise BadModel(
            "a file of this run is damaged", given=file, do="delete the run and submit its spec again"
        ) from None


def is_exact(file: Path) -> bool:
    """Whether a JSON file matches its checksum; files of version 1 have none and pass."""
    text = file.read_text()
    value = json.loads(text)
    if not isinstance(value, dict) or "seal" not in value:
        return True
    seal = value.pop("seal")
    return text == f'{json.dumps(value, indent=1)[:-2]},\n "seal": "{seal}"\n}}'


def _schema(value: object) -> int:
    number = value.get("schema", 1) if isinstance(value, dict) else 1
    return number if isinstance(number, int) else 1


def _refuse_newer(file: Path, value: object) -> None:
    if _schema(value) > SCHEMA:
        raise Refused(
            f"the file was written by a newer SmallAlign (schema {_schema(value)}, this one reads up to {SCHEMA})",
            given=file,
            do="update SmallAlign; the file was not changed",
        )


def check_regular(file: Path) -> None:
    """Check that a path, links followed, is a regular file: opening a pipe or a device may block forever.

    Raises:
        BadData: it is something else.
        OSError: it does not exist, or cannot be accessed.
    """
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
        kind = next((name for known, name in kinds if known(mode)), "a device")
        raise BadData(
            f"the path is {kind}, not a regular file", given=file, do="replace it by a file, or choose another path"
        )


def is_held(lock: Path) -> bool:
    """Whether a living process holds `lock`.

    Tests with a shared lock, for microseconds, so that any number of processes may test at once. A process that
    acquires the lock itself must use a timeout above zero.
    """
    try:
        import fcntl
    except ImportError:  # Windows: acquiring it briefly is the only test
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: any number of tests at once
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
