"""A drawing pad with predictions of models that run in the browser or on the server: the Python side."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from pages.ui.browser._mount import missing, mount
from pages.ui.browser._urls import package_url


def draw(*, key: str, models: Mapping[str, str], classes: Sequence[str], size: tuple[int, int], channels: int) -> None:
    """Show a pad for mouse, touch and pen, with live predictions of every model.

    Nothing leaves the browser: neither the drawing nor an image that is dropped on the pad.

    Args:
        key: of the Streamlit component.
        models: name to address of an ONNX file, in the order of the rows.
        classes: the names of the classes, in the order of the logits.
        size: height and width of the images that the models were trained on, in pixels.
        channels: 1 gives white ink on black, and the option to center the drawing; 3 gives colored ink on white.
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


def sketch(*, key: str, size: tuple[int, int], channels: int) -> NDArray[np.uint8] | None:
    """Show the pad, and return the drawing as model input: uint8 [channels, *size]. None before that.

    Only the model input is sent to the server, after each stroke.
    """
    if missing("The drawing pad"):
        return None
    data = {"models": {}, "classes": [], "size": list(size), "channels": channels, "runtime": "", "sends": True}
    sent = mount("draw", key=key, data=data, on_picture_change=lambda: None).picture
    if not sent:
        return None
    try:
        return picture(sent, size, channels)
    except ValueError as error:
        st.error(str(error))
        return None


def picture(sent: object, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """The content sent by a browser as an image uint8 [channels, *size].

    Raises:
        ValueError: it is not such an image: a browser is not trusted.
    """
    try:
        content = base64.b64decode(sent if isinstance(sent, str) else "%", validate=True)
    except binascii.Error:
        content = b""
    if len(content) != size[0] * size[1] * channels:
        raise ValueError("The drawing could not be decoded. Clear the pad and draw again.")
    return np.frombuffer(content, np.uint8).reshape(*size, channels).transpose(2, 0, 1).copy()
