"""Metadata and checksum of the files of other runtimes: two comments at the end.

OpenVINO reads XML, where these are comments; ExecuTorch's loader reads as many bytes as the file's header names, so
what follows is ignored. They are read and checked on the raw bytes, before anything parses the file. As for ONNX, the
checksum shows changes and does not authenticate the author.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from smallalign_core.export._file import padded

SEAL = re.compile(rb"<!-- smallalign-seal ([0-9a-f]{64}) -->\n\Z")
ENTRY = re.compile(rb"\n<!-- smallalign (\{[^\n]*\}) *-->\n\Z")
SEALED = len(b"<!-- smallalign-seal  -->\n") + 64


def with_trailer(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """A file with metadata and checksum at its end."""
    text = padded(metadata).replace("--", "-\\u002d")  # `--` ends comments of XML; in JSON it occurs in strings only
    whole = content + b"\n<!-- smallalign " + text.encode() + b" -->\n"
    return whole + b"<!-- smallalign-seal " + hashlib.sha256(whole).hexdigest().encode() + b" -->\n"


def read_trailer(content: bytes) -> str | None:
    """The metadata of a file, as JSON, if it ends in the checksum of the bytes before; None otherwise."""
    whole, end = content[:-SEALED], content[-SEALED:]
    seal = SEAL.fullmatch(end)
    if seal is None or hashlib.sha256(whole).hexdigest().encode() != seal[1]:
        return None
    start = whole.rfind(b"\n<!-- smallalign {")
    entry = ENTRY.fullmatch(whole[start:]) if start >= 0 else None
    return entry[1].decode("ascii", "replace") if entry else None
