"""The precisions of exports: how a file stores its weights. Command line, pages and measurements read this list."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CALIBRATED: tuple[Precision, ...] = ("int8",)
"""Those that take the ranges of their activations from training images."""


def file_name(file: str, precision: str) -> str:
    """What a file of an export is called in another precision than fp32, such as `model-int8.onnx`."""
    stem, _, kind = file.rpartition(".")
    return file if precision == "fp32" else f"{stem}-{precision}.{kind}"
