"""Many small images as one: a single PNG holds them all and the browser cuts it into tiles, enlarged without blur."""

from __future__ import annotations

import base64
import hashlib
import html
import io

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from PIL import Image

from smallalign_core import data
from smallalign_core.data import ImageSet, Splits
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec

ACROSS = 12
SMALL = 64
"""Images are shown at least so many CSS pixels wide."""


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept(
    wanted: str,
    root: str,  # noqa: ARG001  # part of the cache's key
    _store: Store,
) -> Splits:
    return data.load(DataSpec.model_validate_json(wanted), _store.data_cache, ram_budget=0)


def splits(spec: DataSpec, store: Store) -> Splits:
    """The images of a decoded dataset, left on the disk: only those that are shown are read.

    Raises:
        BadData: they are not those that `spec` remembers, or cannot be read.
    """
    return _kept(spec.model_dump_json(), str(store.root.resolve()), store)


def sprite(images: NDArray[np.uint8]) -> str:
    """Images uint8 [N, C, H, W] side by side, twelve a line, as the address of one PNG."""
    count, channels, height, width = images.shape
    lines = -(-count // ACROSS)
    sheet = np.zeros((lines * ACROSS, channels, height, width), np.uint8)
    sheet[:count] = images
    sheet = (
        sheet.reshape(lines, ACROSS, channels, height, width)
        .transpose(0, 3, 1, 4, 2)
        .reshape(lines * height, ACROSS * width, channels)
    )
    return _address(sheet)


def png(image: NDArray[np.uint8]) -> str:
    """One image uint8 [C, H, W] as the address of a PNG."""
    return _address(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _address(pixels: NDArray[np.uint8]) -> str:
    """Pixels uint8 [H, W, C]."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def named_sprite(images: NDArray[np.uint8]) -> tuple[str, str]:
    """A class name that is a sprite's own, and the sprite's address."""
    address = sprite(images)
    return "sprite-" + hashlib.sha256(address.encode()).hexdigest()[:10], address


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in CSS pixels: a whole multiple of the image, so that pixels stay square."""
    times = max(1, -(-SMALL // max(height, width)))
    shrink = min(1.0, 2 * SMALL / max(height, width))
    return round(height * times * shrink), round(width * times * shrink)


def tiles(images: NDArray[np.uint8]) -> tuple[str, list[str]]:
    """The style that loads the sprite, and the HTML of a box for each image; both belong into one `st.html`."""
    height, width = shown_size(*images.shape[2:])
    name, address = named_sprite(images)
    lines = -(-len(images) // ACROSS)
    style = (
        f"<style>.{name}{{width:{width}px;height:{height}px;background-image:url({address});"
        f"background-size:{ACROSS * width}px {lines * height}px}}</style>"
    )
    places = [(index % ACROSS * width, index // ACROSS * height) for index in range(len(images))]
    box = '<span class="sa-tile {}" style="background-position:-{}px -{}px"></span>'
    return style, [box.format(name, x, y) for x, y in places]


def gallery(images: ImageSet) -> None:
    """All of `images` with the class under each, and the file where the pointer rests."""
    style, boxes = tiles(images.images[:])
    width = shown_size(*images.images.shape[2:])[1]
    names = [html.escape(images.classes[label]) for label in images.labels]
    files = [html.escape(images.path(row) or name) for row, name in enumerate(names)]
    cells = [
        f'<figure style="width:{width}px" title="{file}">{box}<figcaption>{name}</figcaption></figure>'
        for box, name, file in zip(boxes, names, files, strict=True)
    ]
    st.html(f'{style}<div class="sa-gallery">{"".join(cells)}</div>')
