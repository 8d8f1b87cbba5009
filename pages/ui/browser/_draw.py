"""A pad to draw on, answered by models that run in the visitor's browser: the Python side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._mount import missing, mount
from ._urls import package_url


def draw(*, key: str, models: Mapping[str, str], classes: Sequence[str], size: tuple[int, int], channels: int) -> None:
    """Show a pad for mouse, touch and pen; while the visitor draws, every model says what it sees.

    Nothing leaves the browser: neither the drawing nor a picture that is dropped on the pad.

    Args:
        key: of the Streamlit component.
        models: name to address of an ONNX file, in the order of the rows.
        classes: the names of the classes, in the order of the logits.
        size: height and width of the images that the models were trained on, in pixels.
        channels: 1 gives white ink on black, and the choice to centre the drawing; 3 gives coloured ink on white.
    """
    if missing("The drawing pad"):
        return
    mount(
        "draw",
        key=key,
        data={
            "models": dict(models),
            "classes": list(classes),
            "size": list(size),
            "channels": channels,
            "runtime": package_url("onnxruntime-web", "dist/"),
        },
    )
