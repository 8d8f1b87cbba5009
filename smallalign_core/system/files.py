"""Files that arrive whole and notice damage, lines that survive a kill, and locks that die with their holder.

What `write_json` and `append` write carries a schema number and a checksum: a file of a newer version is refused, one
with a changed byte is damaged, never another value. Files of version 1 had no checksums and are read as they are.
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
"""Of every file that the store writes. 1 had no checksums."""

CHECKED = b'{"crc": "'
UNCHECKED = (b'{"kind": ', b'{"data": ')
"""How lines begin now, and how those of version 1 did."""


def write(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: aside, flushed to the disk, renamed.

    Raises:
        Refused: the disk is full; nothing was overwritten.
    """
    part = None
    try:
        # A name of its own: several threads and processes may write the same file at once, and one of them wins.
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
    """Write several files, each whole, into a folder that is made if it is not there.

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
    """As `write`, with a schema number and a seal; NaN is refused."""
    plain = {"schema": SCHEMA, **{name: one for name, one in value.items() if name not in ("schema", "seal")}}
    text = json.dumps(plain, indent=1, allow_nan=False)
    write(file, f'{text[:-2]},\n "seal": "{_seal(text)}"\n}}')


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_array(file: Path, array: NDArray[Any]) -> None:
    """As `write`, an array that notices damage: a .npy file with its SHA-256 behind it; its folder is made."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_sealed(file, content.getvalue())


def write_sealed(file: Path, content: bytes) -> None:
    """As `write`, bytes with their SHA-256 behind them; the folder is made."""
    write_folder(file.parent, {file.name: content + hashlib.sha256(content).digest()})


def read_sealed(file: Path) -> bytes | None:
    """What `write_sealed` wrote; None if there is no such file, or a byte of it changed."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[:-32] if hashlib.sha256(content[:-32]).digest() == content[-32:] else None


def read_array(file: Path) -> NDArray[Any] | None:
    """What `write_array` wrote; None if there is no such file, or a byte of it changed."""
    content = read_sealed(file)
    if content is None:
        return None
    found: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def append(file: Path, value: dict[str, object], *, sync: bool = False) -> None:
    """Add one whole line. One `write` call to a file opened for appending: a kill leaves all of it or nothing."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(0, size - 1), os.SEEK_SET)
        torn = size > 0 and os.read(descriptor, 1) != b"\n"  # power loss cut the last line: start a new one
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
    return Refused(what, given=file, do="make room or check the folder's rights, then resume; nothing was overwritten")


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The values that `append` wrote, and how many lines are not what was written; no file is no lines.

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
        if not isinstance(value, dict):  # power loss cut it short, or a byte changed
            damaged += 1
            continue
        _refuse_newer(file, value)
        found.append(value)
    return found, damaged


def read_json(file: Path, **otherwise: Any) -> Any:
    """The value in a JSON file, without schema and seal; `missing=...` is returned where there is no such file.

    Raises:
        BadModel: the file is damaged, or missing and no `missing` was given.
        Refused: a newer version wrote it: it may be read there, and is left alone here.
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
    """Whether every byte of a JSON file is as `write_json` wrote it; one of version 1 was not sealed, and passes."""
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
            f"the file was written by a newer SmallAlign (schema {_schema(value)}, this one knows {SCHEMA})",
            given=file,
            do="update SmallAlign; until then it is left as it is",
        )


def check_regular(file: Path) -> None:
    """Refuse what is no file, links followed: opening a pipe or a device may wait for ever.

    Raises:
        BadData: it is something else.
        OSError: it is not there, or may not be looked at.
    """
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
        kind = next((name for known, name in kinds if known(mode)), "a device")
        raise BadData(f"this is {kind} and not a file", given=file, do="remove it, or put a file there")


def is_held(lock: Path) -> bool:
    """Whether a living process holds `lock`.

    Looks with a shared lock, for microseconds, so that any number may look at once. Whoever wants the lock itself must
    be patient for a moment (a timeout above zero).
    """
    try:
        import fcntl
    except ImportError:  # Windows: taking it for a moment is the only way to look
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
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: any number of lookers at once
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
