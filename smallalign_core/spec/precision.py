"""The precisions of exports: how a file stores its weights. Command line, pages and measurements read this list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from smallalign_core.errors import BadInput

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CALIBRATED: tuple[Precision, ...] = ("int8",)
"""Those that take the ranges of their activations from training images."""

Calibration = Literal["minmax", "percentile", "mse"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
"""How the range of an activation follows from its values."""

QUANTIZER = 2
"""Changes whenever the integers of an equal network would: cached logits of int8 teachers depend on it."""

MOST_DROP = 50.0
LEAST_COVERAGE, MOST_COVERAGE = 0.5, 0.999
VARIANT = re.compile(
    r"(fp32|fp16|int8)(?:-drop(\d{1,2}(?:\.\d{1,6})?))?(?:-(minmax|percentile|mse))?(?:-accept(0\.\d{1,6}))?"
)


@dataclass(frozen=True)
class FileOptions:
    """What a file of a precision is besides: how int8 is made, and whether it has the output `accepted`.

    Attributes:
        calibration: None: the one with the best top-1 agreement with fp32 on validation images.
        max_drop: limit, in percentage points, of the upper end of the interval of the accuracy drop against fp32 on
            validation images; layers that cost more are left in float. None: all layers are in integers.
        coverage: share of images like the validation images that the output `accepted` is true for, at least; None:
            there is no such output.
    """

    calibration: Calibration | None = None
    max_drop: float | None = None
    coverage: float | None = None


AUTOMATIC = FileOptions()


def variant_of(precision: str, how: FileOptions = AUTOMATIC) -> str:
    """The name of a kind of file, such as `int8-drop0.5-mse`, for `file_name`.

    Raises:
        BadInput: these options do not go with each other, or the drop is not a number of points above 0.
    """
    if precision not in CALIBRATED and (how.calibration, how.max_drop) != (None, None):
        raise BadInput(
            "calibration and accuracy limits are for int8", given=precision, do="choose int8, or leave the options out"
        )
    drop = ""
    if how.max_drop is not None:
        if not 0.001 <= how.max_drop <= MOST_DROP:
            raise BadInput(
                "the largest accuracy drop is out of range",
                given=f"{how.max_drop:g}",
                do=f"give 0.001 to {MOST_DROP:g} percentage points, such as 0.5",
            )
        drop = f"-drop{round(how.max_drop, 6):.6f}".rstrip("0").rstrip(".")
    accepted = ""
    if how.coverage is not None:
        if not LEAST_COVERAGE <= how.coverage <= MOST_COVERAGE:
            raise BadInput(
                "the coverage is out of range",
                given=f"{how.coverage:g}",
                do=f"give {LEAST_COVERAGE:g} to {MOST_COVERAGE:g}, such as 0.9",
            )
        accepted = f"-accept{round(how.coverage, 6):.6f}".rstrip("0").rstrip(".")
    return f"{precision}{drop}{f'-{how.calibration}' if how.calibration else ''}{accepted}"


def parse_variant(name: str) -> tuple[Precision, FileOptions]:
    """The precision and its options of a name of `variant_of`.

    Raises:
        BadInput: it is none.
    """
    found = VARIANT.fullmatch(name)
    precision = next((one for one in PRECISIONS if found and found[1] == one), None)
    if found is None or precision is None:
        raise BadInput("unknown precision", given=name, do=f"choose {', '.join(PRECISIONS)}")
    calibration = next((one for one in CALIBRATIONS if found[3] == one), None)
    how = FileOptions(calibration, *(float(found[at]) if found[at] else None for at in (2, 4)))
    if variant_of(precision, how) != name:
        raise BadInput("unknown precision", given=name, do=f"choose {', '.join(PRECISIONS)}")
    return precision, how


def plain_name(file: str) -> tuple[str, str]:
    """The fp32 name of a file of an export, such as `model.onnx`, and the name of its kind, such as `int8-mse`."""
    stem, _, kind = file.rpartition(".")
    first, _, variant = stem.partition("-")
    known = variant != "fp32" and VARIANT.fullmatch(variant)
    return (f"{first}.{kind}", variant) if known else (file, "fp32")


def file_name(file: str, precision: str) -> str:
    """What a file of an export is called in another precision than fp32, such as `model-int8.onnx`."""
    stem, _, kind = file.rpartition(".")
    return file if precision == "fp32" else f"{stem}-{precision}.{kind}"
