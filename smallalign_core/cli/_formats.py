"""Options that describe an ONNX file made elsewhere, shared by `import` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smallalign_core.errors import BadInput
from smallalign_core.runs import class_names

SizeOption = Annotated[str | None, typer.Option("--size", help="HEIGHTxWIDTH to resize to, such as 224x224.")]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", help="Class names in output order: a,b,c, or a file of names.")
]
OutputOption = Annotated[str | None, typer.Option("--output", help="Name of the output with the predictions.")]
LayoutOption = Annotated[
    Literal["nchw", "nhwc"] | None, typer.Option("--layout", help="Axis order, where the file does not fix it.")
]
WhiteOption = Annotated[
    float | None, typer.Option("--white", help="Value of a white pixel before mean and std: 1 (default) or 255.")
]
MeanOption = Annotated[str | None, typer.Option("--mean", help="One number per channel; default: ImageNet's.")]
StdOption = Annotated[str | None, typer.Option("--std", help="One number per channel; default: ImageNet's.")]
OrderOption = Annotated[Literal["rgb", "bgr"] | None, typer.Option("--order", help="Channel order.")]
AnswersOption = Annotated[
    Literal["logits", "probabilities", "sigmoid"] | None,
    typer.Option("--answers", help="What the output values are; default: inferred from the values."),
]


def format_options(
    classes: str | None,
    output: str | None,
    layout: str | None,
    size: str | None,
    white: float | None,
    mean: str | None,
    std: str | None,
    order: str | None,
    answers: str | None,
) -> dict[str, Any]:
    """The options that describe an ONNX file made elsewhere, as keyword arguments of `imported.import_onnx`."""
    return {
        "classes": _names(classes) if classes else None,
        "output": output,
        "layout": layout,
        "size": _size(size) if size else None,
        "white": white,
        "mean": _numbers(mean) if mean else None,
        "std": _numbers(std) if std else None,
        "order": order,
        "answers": answers,
    }


def _names(text: str) -> list[str]:
    """Class names from `a,b,c`, or from a file of them."""
    if text.lower().endswith(class_names.ENDINGS):
        return class_names.in_file(Path(text))
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise BadInput("not a list of numbers", given=text, do="write for example 0.5,0.5,0.5") from None


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 4 <= int(side) <= 4096 for side in sides):
        raise BadInput("a size is HEIGHTxWIDTH, 4 to 4096 each", given=text, do="write for example 224x224")
    return int(sides[0]), int(sides[-1])
