"""Export targets: runtimes other than ONNX Runtime that a run is written for. Command line and pages read this list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Name = Literal["openvino", "executorch"]


@dataclass(frozen=True)
class Target:
    """A runtime, and what its files can and cannot do.

    Attributes:
        name: in file names and requests; title: for users.
        endings: of its files; the first is the one that `--to` names, the others are written beside it.
        package: the Python package that converts and runs it, of the extra with the same name.
        source: what its converter reads: the ONNX graph, or the program of `torch.export`.
        any_size: whether a file takes any batch, height and width; otherwise one image of the training size at a time.
        limits: what it does not do, each with the alternative; shown before the conversion.
    """

    name: Name
    title: str
    endings: tuple[str, ...]
    package: str
    source: Literal["graph", "program"]
    any_size: bool
    limits: tuple[str, ...]


TARGETS: dict[str, Target] = {
    one.name: one
    for one in (
        Target(
            name="openvino",
            title="OpenVINO",
            endings=(".xml", ".bin"),
            package="openvino",
            source="graph",
            any_size=True,
            limits=(
                "Two files: the graph (.xml) and its weights (.bin), which stay together under one name.",
                "fp32 only; for fp16 and int8 export ONNX.",
                "On processors with bfloat16, OpenVINO computes in it unless INFERENCE_PRECISION_HINT is f32, as in "
                "the sample code.",
            ),
        ),
        Target(
            name="executorch",
            title="ExecuTorch",
            endings=(".pte",),
            package="executorch",
            source="program",
            any_size=False,
            limits=(
                "One image at a time, of the size of the training images; to have other sizes resized inside, or for "
                "batches, export ONNX or OpenVINO.",
                "fp32 only; for fp16 and int8 export ONNX.",
            ),
        ),
    )
}


def target_of(file: Path) -> Target | None:
    """The target with files of this ending; None for ONNX and all others."""
    return next((one for one in TARGETS.values() if file.suffix == one.endings[0]), None)
