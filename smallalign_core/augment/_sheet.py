"""A contact sheet: originals beside their views, as one PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

READABLE = 64  # pixels a side; smaller images are enlarged by whole factors, so that their pixels stay pixels
GAP, PAPER = 2, 128


def sheet(images: NDArray[np.uint8]) -> bytes:
    """PNG of a grid of images.

    Args:
        images: uint8 [rows, columns, C, H, W]; C is 1 or 3.
    """
    from PIL import Image

    rows, columns, _, height, width = images.shape
    zoom = max(1, -(-READABLE // min(height, width)))
    cell = np.repeat(np.repeat(images, zoom, 3), zoom, 4)
    room = ((0, 0), (0, 0), (0, 0), (0, GAP), (0, GAP))
    paper = np.pad(cell, room, constant_values=PAPER).transpose(0, 3, 1, 4, 2)
    flat = paper.reshape(rows * (zoom * height + GAP), columns * (zoom * width + GAP), -1)[:-GAP, :-GAP]
    stream = io.BytesIO()
    Image.fromarray(flat[:, :, 0] if flat.shape[2] == 1 else flat).save(stream, "PNG")
    return stream.getvalue()
