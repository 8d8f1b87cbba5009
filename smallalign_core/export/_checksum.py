"""The checksum of exported files, which detects changes after export.

The last bytes of an exported file are one more entry of ONNX's metadata, `smallalign-seal`, whose value is the SHA-256
of all bytes before it: graph, weights and metadata alike. It is checked on the raw bytes, before anything parses them.

It proves, on any machine and with nothing else at hand, that the file is whole and that no tool or hand changed it and
left the checksum. It does not prove who made the file: it has no secret, and a changed file can get a new checksum.
Against that, compare the SHA-256 of the whole file with one that came by another way (the card, `parity.json`), or have
`verify` compare it with the run.
"""

from __future__ import annotations

import hashlib

import onnx

KEY = "smallalign-seal"


def with_checksum(content: bytes) -> bytes:
    """A serialised ONNX model with its checksum. Protobuf reads what is appended as one more entry of a list."""
    return content + _entry(content)


def checksum_matches(content: bytes) -> bool:
    """Whether the bytes end in the checksum of all bytes before it."""
    length = len(_entry(b""))
    return content[-length:] == _entry(content[:-length])


def _entry(content: bytes) -> bytes:
    model = onnx.ModelProto()
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, hashlib.sha256(content).hexdigest()
    return bytes(model.SerializeToString())
