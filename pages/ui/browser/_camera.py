"""Images of one class from the visitor's camera: the Python side."""

from __future__ import annotations

import base64
import binascii

from pages.ui.browser._mount import mount
from smallalign_core.errors import BadData

MOST_IMAGES, MOST_BYTES = 100, 200_000
"""Of one recording, and of one image: square, 224 pixels a side."""
MOST_NAME = 60
"""Characters of a class."""
JPEG = b"\xff\xd8\xff"


def camera(*, key: str) -> tuple[str, list[bytes]] | None:
    """Show the camera, a field for the class and a button to hold; after each recording, its class and JPEG images,
    once.

    Args:
        key: of the Streamlit component.

    Raises:
        BadData: what came is no recording.
    """
    sent = mount("camera", key=key, data={}, on_images_change=lambda: None).images
    return recording(sent) if sent else None


def recording(sent: object) -> tuple[str, list[bytes]]:
    """The class and the images that a browser sent.

    Raises:
        BadData: it is no recording: a browser is not trusted.
    """
    try:
        name, content = sent["name"], sent["content"]  # type: ignore[index]
        if (
            not isinstance(name, str)
            or not 0 < len(name.strip()) <= MOST_NAME
            or not isinstance(content, list)
            or len(content) > MOST_IMAGES
        ):
            raise TypeError
        images = [base64.b64decode(one, validate=True) for one in content]
        if not all(one.startswith(JPEG) and len(one) <= MOST_BYTES for one in images):
            raise ValueError
    except (TypeError, KeyError, ValueError, binascii.Error):
        raise BadData("the images of the camera cannot be read", given=type(sent), do="record them again") from None
    return name.strip(), images
