"""The checksum of exported files, which detects changes after export.

The last bytes of an exported file are one more entry of ONNX's metadata, `smallalign-seal`, whose value is the SHA-256
of all bytes before it: graph, weights and metadata alike. It is checked on the raw bytes, before anything parses them.

It proves, on any machine and with nothing else at hand, that the file is whole and that no tool or hand changed it and
left the seal. It does not prove who made the file: there is no secret in it, whoever changes a file may seal it anew.
Against that, compare the SHA-256 of the whole file with one that came by another way (the card, `parity.json`), or have
`verify` ask the run itself.
"""

from __future__ import annotations

import hashlib

import onnx

KEY = "smallalign-seal"


def with_checksum(content: bytes) -> bytes:
    """A serialised ONNX model with its seal. Protobuf reads what is appended as one more entry of a list."""
    return content + _seal(content)


def checksum_matches(content: bytes) -> bool:
    """Whether the bytes end in the seal of all that is before it."""
    length = len(_seal(b""))
    return content[-length:] == _seal(content[:-length])


def _seal(content: bytes) -> bytes:
    model = onnx.ModelProto()
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, hashlib.sha256(content).hexdigest()
    return bytes(model.SerializeToString())
