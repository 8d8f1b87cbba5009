"""Many small images as one: a single PNG holds them all and the browser cuts it into tiles, enlarged without blur."""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from PIL import Image

from pages.ui import browser
from smallalign_core import data
from smallalign_core.data import ImageSet, Splits
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec
from smallalign_core.system import usercode

ACROSS = 12
SMALL = 64
"""Images are shown at least so many CSS pixels wide."""


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept(
    wanted: str,
    root: str,  # noqa: ARG001  # part of the cache's key
    _store: Store,
) -> Splits:
    with usercode.forbidden():  # a dataset that was decoded before needs none
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


def labelled(box: str, name: str) -> str:
    """The HTML of a box with a name for screen readers, which is HTML already."""
    return box.replace("<span ", f'<span role="img" aria-label="{name}" ', 1)


def gallery(images: ImageSet, split: str, rows: NDArray[np.int64], *, key: str) -> None:
    """Images `rows` of a split, with class and file under each; a click opens one with its metadata."""
    some = images.take(rows)
    height, width = some.shape[1:]
    browser.gallery(
        [_picture(some, at, split, int(row)) for at, row in enumerate(rows)],
        sprite(some.images[:]),
        key=key,
        size=(height, width),
        shown=shown_size(height, width),
        across=ACROSS,
    )


def _picture(images: ImageSet, at: int, split: str, row: int) -> browser.Picture:
    """The image `at` of some, which is `row` of its split."""
    name, file = images.classes[images.labels[at]], images.path(at)
    channels, height, width = images.shape
    facts = {"File": file} if file else {}
    facts |= {"Class": name, "Split and row": f"{split}, {row:,}"}
    if images.sizes is not None:
        facts["Size of the file's image"] = f"{images.sizes[at][1]} × {images.sizes[at][0]} pixels"
    facts["Size in the dataset"] = f"{width} × {height} pixels, {'grayscale' if channels == 1 else 'RGB'}"
    facts["ID"] = f"{images.ids[at]:016x}"
    return browser.Picture(name, file, facts)
