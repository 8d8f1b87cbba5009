"""OpenVINO: intermediate representation (.xml, .bin) from the ONNX graph, run on the CPU in single precision."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.system import extras

SINGLE = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
LENGTH = 8
"""Bytes of the length of the .xml, which precede it where both files go as one."""


def convert(source: Path, to: Path) -> None:
    """Write `to`.xml and `to`.bin from the ONNX file `source`, constants in single precision."""
    openvino = _load()
    openvino.save_model(openvino.Core().read_model(source), to.with_suffix(".xml"), compress_to_fp16=False)


def packed(files: dict[str, bytes]) -> bytes:
    """Both files as one, for `opener`."""
    return len(files[".xml"]).to_bytes(LENGTH, "big") + files[".xml"] + files[".bin"]


def opener() -> Callable[[bytes, int], Any]:
    """Load the runtime; returns a function of (the packed files, number of threads)."""
    openvino = _load()

    def opened(content: bytes, threads: int) -> _Session:
        end = LENGTH + int.from_bytes(content[:LENGTH], "big")
        model = openvino.Core().read_model(content[LENGTH:end], content[end:])
        return _Session(openvino.compile_model(model, "CPU", SINGLE | {"INFERENCE_NUM_THREADS": threads}))

    return opened


class _Session:
    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def run(self, outputs: list[str], given: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        found = self.compiled(given)
        return [np.array(found[name]) for name in outputs]


def _load() -> Any:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports every import to its maker
    return extras.load("openvino", "export to OpenVINO")
