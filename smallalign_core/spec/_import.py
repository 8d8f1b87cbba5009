"""What is known of an imported classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from smallalign_core.spec.parts import DataSpec, Part

Triple = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class Import(Part):
    """An imported ONNX classifier: all facts about a model that was not trained by SmallAlign.

    Images reach it as uint8, or as floats: (pixel / 255 * white - mean) / std.
    """

    file: Annotated[str, Field(max_length=255, description="Original file name.")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file.")]
    classes: Annotated[tuple[str, ...], Field(min_length=2, description="Classes in output order.")]
    data: Annotated[DataSpec, Field(description="The dataset it was evaluated on at import.")]
    input: str
    dtype: Literal["uint8", "float32", "float16"]
    layout: Literal["nchw", "nhwc"]
    channels: Literal[1, 3]
    size: Annotated[tuple[int, int] | None, Field(description="Input (height, width); empty: any.")] = None
    batch: Annotated[int | None, Field(ge=1, description="Fixed batch size; empty: any.")] = None
    output: str
    answers: Annotated[
        Literal["logits", "probabilities", "sigmoid", "one_logit", "one_probability"],
        Field(description="Output type: probabilities are converted by log, sigmoids by logit; one_: two classes."),
    ] = "logits"
    stored: Annotated[Literal["float", "uint8", "int8"], Field(description="Data type of the outputs.")] = "float"
    floor: Annotated[float, Field(gt=0, lt=0.5, description="Smallest probability that the outputs can represent.")] = (
        1e-8
    )
    white: Annotated[float, Field(gt=0, description="Value of a white pixel before mean and std: 1 or 255.")] = 1.0
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    order: Annotated[Literal["rgb", "bgr"], Field(description="Channel order, also of mean and std.")] = "rgb"
