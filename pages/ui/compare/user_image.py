"""The user's image: uploaded, drawn, or from the camera, with predictions and saliency maps of all runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from pages.ui import browser
from pages.ui.app import context
from pages.ui.augment import augmented_images
from pages.ui.charts import basic
from pages.ui.compare import Sides
from pages.ui.widgets import image_grid
from smallalign_core import data
from smallalign_core.service import augmentation_api
from smallalign_core.service.requests import Explain, Explained, Pixels

WAYS = {"upload": "Upload", "draw": "Draw", "camera": "Camera"}
OWN = -1
"""In place of a class: each run explains its own prediction."""
MAPS = ("Grad-CAM (if available)", "Occlusion")
SIDE = 168
"""CSS pixels of the longer side of an image."""


@st.fragment
def panel(sides: Sides, classes: Sequence[str]) -> None:
    """An image input, and below it every run's prediction with its saliency map."""
    with context.show_errors():
        _draw(sides, classes)


def _draw(sides: Sides, classes: Sequence[str]) -> None:
    shape = sides.images().shape
    way = st.segmented_control(
        "Image source", list(WAYS), default="upload", required=True, format_func=WAYS.__getitem__, key="way"
    )
    own = _given(str(way), shape)
    if own is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.selectbox(
            "Explained class",
            [OWN, *range(len(classes))],
            format_func=lambda place: "Predicted class of each run" if place == OWN else classes[place],
            key="explain",
            width=260,
        )
        how = st.segmented_control("Saliency method", list(MAPS), default=MAPS[0], required=True, key="map")
    target = None if place == OWN else classes[int(place)]
    found = _looked(sides.ids, own, target, how == MAPS[1], str(sides.store.root.resolve()))
    image = augmentation_api.decoded(own, shape)
    height, width = _size(*shape[1:])
    cells = [_figure(image_grid.png(image), "Model input", f"{shape[2]} × {shape[1]} pixels", height, width)]
    longest = max(map(len, classes))
    for name, colour, one in zip(sides.names, sides.colours, found, strict=True):
        heat = np.frombuffer(base64.b64decode(one.heat), np.uint8).reshape(shape[1:])
        about = f"{one.method} for <b>{basic.safe(one.target)}</b>"
        if not one.anything:
            about = f"No evidence for <b>{basic.safe(one.target)}</b> ({one.method})"
        bars = basic.answers(one.top[:3], "", colour, longest=longest)
        cells.append(_figure(image_grid.png(warmed(image, heat)), basic.safe(name), about + bars, height, width))
    st.html(f'<div class="sa-own">{"".join(cells)}</div>')
    st.caption(
        "Orange marks regions that support the class. Grad-CAM has the resolution of the last convolution's feature "
        "maps; occlusion shows where covering a square lowers the probability. Both are heuristics. The image is kept "
        "in memory only."
    )


def _given(way: str, shape: tuple[int, int, int]) -> Pixels | None:
    """The image in the dataset's size and channels; None before there is one."""
    if way == "upload":
        return augmented_images.drop(shape)
    if way == "camera":
        photo = st.camera_input("Take a photo", help="Kept in the memory of this server only.", width=480)
        return None if photo is None else Pixels.of(data.decode_one(photo.getvalue(), shape))
    drawn = browser.sketch(key="sketch", size=shape[1:], channels=shape[0])
    return None if drawn is None else Pixels.of(drawn)


@st.cache_data(max_entries=16, show_spinner=False)
def _looked(
    ids: tuple[str, ...],
    own: Pixels,
    target: str | None,
    occluding: bool,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[Explained, ...]:
    request = Explain(ids, own, target, occluding)
    return context.call(request, "Computing predictions and saliency maps").answers


def warmed(image: NDArray[np.uint8], heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image uint8 [C, H, W] in muted gray with heat uint8 [H, W] over it, in orange: uint8 [3, H, W]."""
    grey = np.repeat(image.mean(0, keepdims=True), 3, axis=0) * 0.75 + 20
    share = 0.8 * heat.astype(np.float64)[None] / 255
    orange = np.array([243.0, 140.0, 40.0])[:, None, None]
    return np.asarray((grey * (1 - share) + orange * share).round().clip(0, 255), np.uint8)


def _size(height: int, width: int) -> tuple[int, int]:
    scale = SIDE / max(height, width)
    return round(height * scale), round(width * scale)


def _figure(address: str, name: str, about: str, height: int, width: int) -> str:
    return (
        f'<figure><img src="{address}" width="{width}" height="{height}" alt="{name}">'
        f"<figcaption><b>{name}</b><br>{about}</figcaption></figure>"
    )
