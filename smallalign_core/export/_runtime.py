"""New exports run by ONNX Runtime on one CPU thread; users' files are run in the sandbox only."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import TypeAdapter

from smallalign_core.data import ImageSet
from smallalign_core.errors import BadModel
from smallalign_core.runs.export_report import Acceptance
from smallalign_core.spec import DataSpec
from smallalign_core.system.batching import by_pixels

METADATA = "smallalign"
BATCH = 256
SIDE = re.compile(r"\bsize: (\d{1,3})\b")
RUN = re.compile("[0-9a-f]{4,64}")


class OnnxClassifier:
    """An ONNX classifier of ours, run by ONNX Runtime on one CPU thread, from bytes (no external data can be read).

    Raises:
        BadModel: it is not an ONNX file, or not one with our input and outputs.
    """

    def __init__(self, content: bytes, name: str = "the file") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions share no base class
            raise BadModel(
                "the file is not an ONNX model that ONNX Runtime can open",
                given=f"{name}: {str(error)[:120]}",
                do="export it again",
            ) from None
        check_doors(
            [(one.name, one.type) for one in self.session.get_inputs()],
            {one.name for one in self.session.get_outputs()},
            name,
        )
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map.get(METADATA), name)

    def logits(self, images: NDArray[np.uint8], batch: int | None = None) -> NDArray[np.float32]:
        """Logits [N, C] of uint8 images [N, H, W, C], so many at once; without `batch`, `at_once`."""
        step = batch or at_once(self.metadata, *images.shape[1:3])
        parts = [self.session.run(["logits"], {"images": images[i : i + step]})[0] for i in range(0, len(images), step)]
        return np.concatenate(parts)

    def logits_of(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of all images of a split, which may be larger than the memory."""
        rows = np.arange(len(images))
        return np.concatenate([self.logits(nhwc(images.take(part))) for part in np.split(rows, rows[BATCH::BATCH])])

    def outputs_of(self, images: ImageSet, names: Sequence[str]) -> tuple[NDArray[Any], ...]:
        """Some outputs for all images of a split, each [N, ...]."""
        step = at_once(self.metadata, *images.images.shape[2:])
        rows = np.arange(len(images))
        parts = [
            self.session.run(list(names), {"images": nhwc(images.take(part))})
            for part in np.split(rows, rows[step::step])
        ]
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def latency(self, image: NDArray[np.uint8], seconds: float = 0.5) -> tuple[float, float]:
        """(p50, p95) milliseconds for one image, after as long a warm-up."""
        return timed(lambda: self.session.run(["logits"], {"images": image[None]}), seconds)


def at_once(metadata: Mapping[str, Any], height: int, width: int) -> int:
    """How many images of this size an export gets at once: a network of timm or torchvision resizes them inside, to
    the size in its metadata."""
    inside = [int(side) for side in SIDE.findall(str(metadata.get("spec", "")))]
    return by_pixels((max(height, *inside, 1), max(width, *inside, 1)), BATCH)


def timed(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """(p50, p95) milliseconds of `work`, repeated for `seconds` after as long a warm-up."""
    times: list[float] = []
    for phase in ("warm-up", "measured"):
        times, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until or len(times) < 20:
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) * 1000)
            if phase == "measured" and len(times) >= 5000:
                break
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def check_doors(inputs: list[tuple[str, str]], outputs: set[str], name: str) -> None:
    """Check the input and the two outputs of an export."""
    if inputs != [("images", "tensor(uint8)")] or not {"logits", "probabilities"} <= outputs:
        raise BadModel(
            "the model does not have the input `images` (uint8) and the outputs `logits` and `probabilities`",
            given=f"{name}: {inputs} -> {sorted(outputs)}",
            do="give a file that SmallAlign exported",
        )


def read_metadata(kept: str | None, name: str) -> dict[str, Any]:
    """The validated metadata of an export."""
    known = {
        "data": dict,
        "data_spec": dict,
        "scores": dict,
        "loss": dict,
        "acceptance": dict,
        "classes": list,
        "precision": str,
        "run": str,
    }
    try:
        metadata = json.loads(kept) if kept else {}
        if not isinstance(metadata, dict) or any(not isinstance(metadata.get(k, t()), t) for k, t in known.items()):
            raise ValueError
        test = metadata.get("scores", {}).get("test", {})
        inner = [test, *metadata.get("loss", {}).values()]
        if not all(isinstance(one, dict) for one in inner) or not isinstance(test.get("accuracy", 0.0), float | int):
            raise ValueError
        if not RUN.fullmatch(metadata.get("run", "0000")):  # an id: a file names no folder of this machine
            raise ValueError
        if not isinstance(metadata.get("temperature", 1.0), float | int):
            raise ValueError
        acceptance_in(metadata)
        DataSpec.model_validate({"source": "-", **metadata.get("data_spec", {})})
    except (ValueError, RecursionError):
        raise BadModel("the model's metadata is damaged", given=name, do="export it again") from None
    return metadata


def acceptance_in(metadata: Mapping[str, Any]) -> Acceptance | None:
    """What the metadata of an export states of its output `accepted`; None without one.

    Raises:
        ValueError: it is damaged.
    """
    written = metadata.get("acceptance")
    return TypeAdapter(Acceptance).validate_python(written) if written else None


def nhwc(images: ImageSet, count: int | None = None) -> NDArray[np.uint8]:
    """The first `count` images as an exported file takes them: uint8 [N, H, W, C]."""
    return np.ascontiguousarray(images.images[:count].transpose(0, 2, 3, 1))
