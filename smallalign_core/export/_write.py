"""A run as a file in the format that its path's ending names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallalign_core.errors import BadInput
from smallalign_core.export._file import make
from smallalign_core.export.targets import export_target
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec
from smallalign_core.spec.precision import AUTOMATIC, FileOptions, Precision, variant_of
from smallalign_core.spec.target import Target, target_of
from smallalign_core.system.files import write


def check_precision(target: Target, precision: Precision, options: FileOptions = AUTOMATIC) -> None:
    """Check that a target has this precision.

    Raises:
        BadInput: it is not fp32.
    """
    variant = variant_of(precision, options)
    if variant != "fp32":
        raise BadInput(
            f"{target.title} files are written in fp32 only, without options",
            given=variant,
            do="leave precision and options out, or export an .onnx file",
        )


def export(
    run: Run,
    to: Path,
    store: Store | None = None,
    *,
    precision: Precision = "fp32",
    options: FileOptions = AUTOMATIC,
    elsewhere: DataSpec | None = None,
) -> dict[str, Any]:
    """Write a finished run to `to`: as ONNX, or by its ending for another runtime (.xml OpenVINO, .pte ExecuTorch).

    Returns path, size, digest and what the file loses against PyTorch, which for ONNX in fp32 is not measured.

    Args:
        options: of int8: calibration, and how much accuracy it may lose; of any ONNX file: coverage of the output
            `accepted`.
        elsewhere: images of another kind, to measure what that accepts of them.
        store: with the images for int8 calibration and for measuring both smaller precisions.

    Raises:
        BadInput: the path has another ending, or its folder is missing; or as `make`.
        BadModel: the weights cannot be read, or the runtime's converter refuses the network.
        MissingExtra: the runtime is not installed.
        WorkFailed: int8 does not meet its limit, or another runtime does not make PyTorch's predictions. Nothing is
            written then.
    """
    target = target_of(to)
    if target is not None:
        check_precision(target, precision, options)
        return export_target(run, to, store or Store(), target)
    if to.suffix != ".onnx" or not to.parent.is_dir():
        raise BadInput(
            "the export's path is not an .onnx, .xml or .pte file in an existing folder",
            given=to,
            do="write for example --to student.onnx",
        )
    made = make(run, store, precision, options, elsewhere=elsewhere)
    write(to, made.content)
    return {"file": str(to), **made.facts}
