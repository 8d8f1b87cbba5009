"""A gallery of images that opens each as large as the window, with its metadata: the Python side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pages.ui.browser._mount import mount


@dataclass(frozen=True)
class Picture:
    """One image of a gallery: the class under it, its file if it has one, and its metadata by name."""

    name: str
    file: str | None
    facts: Mapping[str, str]


def gallery(
    pictures: Sequence[Picture],
    sprite: str,
    *,
    key: str,
    size: tuple[int, int],
    shown: tuple[int, int],
    across: int,
) -> None:
    """Show `pictures`; Left and Right, + and - work in the large view.

    Args:
        pictures: in the order of the sprite.
        sprite: the address of one PNG with all images, `across` in each row.
        key: of the Streamlit component.
        size: (height, width) of each image in pixels.
        shown: (height, width) of each tile in CSS pixels.
        across: images in a row of the sprite.
    """
    mount(
        "gallery",
        key=key,
        data={
            "items": [{"name": one.name, "file": one.file, "facts": dict(one.facts)} for one in pictures],
            "sprite": sprite,
            "size": list(size),
            "shown": list(shown),
            "across": across,
        },
    )
