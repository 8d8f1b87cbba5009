"""Processes of other runtimes: one converts, with limited memory and time; one runs a file, in the sandbox."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import ImageSet
from smallalign_core.errors import BadInput, BadModel, WorkFailed
from smallalign_core.export._runtime import at_once, nhwc
from smallalign_core.runs import imported
from smallalign_core.spec.target import Target
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.machine import memory

WALL = 1800.0
"""Seconds that a conversion may take."""
LEAST = 4 * 1024**3
"""Bytes of memory that it gets on any machine."""


def module_of(target: Target) -> Any:
    """The module of a target: `convert(source, to)`, `packed(files)`, `opener()`."""
    return importlib.import_module(f"smallalign_core.export.targets._{target.name}")


def convert(target: Target, source: bytes) -> dict[str, bytes]:
    """The target's files by ending, from the ONNX graph or the exported program `source`.

    Raises:
        BadModel: the converter refuses the network.
        WorkFailed: it crashed, or exceeded its memory or time.
    """
    with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
        given, to = Path(folder) / ("source.onnx" if target.source == "graph" else "source.pt2"), Path(folder) / "model"
        given.write_bytes(source)
        call = {"target": target.name, "source": str(given), "to": str(to), "memory": max(LEAST, memory() // 2)}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-B", "-m", "smallalign_core.export.targets", json.dumps(call)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "TMPDIR": folder},
                cwd=folder,
                start_new_session=True,
                timeout=WALL,
            )
        except subprocess.TimeoutExpired:
            raise _broke(target, f"more than {WALL:.0f} seconds") from None
        try:
            reply = json.loads(done.stdout)
        except ValueError:
            raise _broke(target, f"exit code {done.returncode}") from None
        if "refused" in reply:
            wrong, why, do = reply["refused"]
            raise BadModel(wrong, given=why, do=do)
        return {ending: to.with_suffix(ending).read_bytes() for ending in target.endings}


def _broke(target: Target, why: str) -> WorkFailed:
    return WorkFailed(
        f"the process that converts to {target.title} crashed or exceeded its limits", given=why, do="export ONNX"
    )


class TargetClassifier:
    """A file of another runtime, run by it in a sandbox on one CPU thread.

    Args:
        files: by ending.
        metadata: of the file.

    Raises:
        BadModel: the runtime cannot open it.
    """

    def __init__(self, target: Target, files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> None:
        self.target, self.metadata = target, metadata
        module = module_of(target)
        self.session = imported.open_sandboxed(module.packed(files), threads=1, engine=Path(module.__file__))

    def logits_of(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of all images of a split.

        Raises:
            BadInput: the images do not have the one size that the file takes.
        """
        _, height, width = self.metadata["input_shape"]
        if not self.target.any_size and tuple(images.shape[1:]) != (height, width):
            raise BadInput(
                f"a file of {self.target.title} takes images of one size",
                given=f"{images.shape[1]} x {images.shape[2]}, not {height} x {width}",
                do="give images of that size, or export ONNX",
            )
        step = at_once(self.metadata, *images.shape[1:])
        parts = []
        for at in range(0, len(images), step):
            pixels = nhwc(images.take(np.arange(at, min(at + step, len(images)))))
            parts.append(self.session.run("logits", "images", pixels))
            if parts[-1].ndim != 2 or len(parts[-1]) != len(pixels):
                raise BadModel(
                    "the model does not output one row per image",
                    given=f"{parts[-1].shape} for {len(pixels)} images",
                    do="give a file that SmallAlign exported",
                )
        return np.concatenate(parts)

    def latency(self, images: ImageSet) -> tuple[float, float]:
        """(p50, p95) milliseconds for one image, after a warm-up."""
        return self.session.latency("logits", "images", nhwc(images, 1))
