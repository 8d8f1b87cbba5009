"""A small dataset from the camera: recordings into classes, kept by the session until they become an upload."""

from __future__ import annotations

import base64
import html

import streamlit as st

from pages.ui import _compat, browser
from pages.ui.app import context, keys
from pages.ui.security import upload_quota
from smallalign_core.errors import Refused
from smallalign_core.system import limits

NAME = "camera"
"""Of the dataset."""
Recordings = dict[str, dict[str, bytes]]
"""JPEG images by class and by id: the server counts them as uploads."""
LAST = 6
"""Images shown of each class: the latest."""


def panel() -> list[tuple[str, bytes]]:
    """The camera, what was recorded of each class, and a button; once it is pressed, the files of the dataset."""
    held: Recordings = st.session_state.setdefault(keys.CAPTURED, {})
    with st.container(horizontal=True, gap="large"):
        with st.container(width=340), context.show_errors():
            if (sent := browser.camera(key="camera")) is not None:
                _add(held, *sent)
        with st.container(width="stretch"):
            for one in held:
                _shown(held, one)
            if not held:
                st.caption(
                    "Start the camera, enter a class, and hold the button while you move the object. Then enter the "
                    "next class."
                )
    ready = len(held) > 1
    if not st.button("Create dataset", type="primary", icon=":material/add:", disabled=not ready):
        st.caption(
            ("" if ready else "A dataset needs at least two classes. ")
            + "Images of one recording are much alike: test accuracy will be too high for objects, rooms and light "
            "that were not recorded."
        )
        return []
    return [
        (f"{NAME}/{one}/{at:04}.jpg", image) for one, images in held.items() for at, image in enumerate(images.values())
    ]


def clear() -> None:
    """Forget what was recorded."""
    held: Recordings = st.session_state.get(keys.CAPTURED, {})
    for name in list(held):
        _delete(held, name)


def _delete(held: Recordings, name: str) -> None:
    for file in held.pop(name, {}):
        _compat.drop_upload(file)


def _add(held: Recordings, name: str, images: list[bytes]) -> None:
    if "/" in name or "\\" in name or name.startswith("."):
        raise Refused("this is not the name of a class", given=name, do="use a name without slashes")
    size = sum(map(len, images))
    try:
        upload_quota.check(_compat.session(), size, len(images))
    except Refused as error:
        raise Refused(
            f"the recording was not kept: {error.wrong}",
            given=f"{len(images)} images, {size / limits.MB:.1f} MB",
            do="create the dataset or delete a class, then record again",
        ) from None
    held.setdefault(name, {}).update((_compat.hold_upload(image), image) for image in images)


def _shown(held: Recordings, name: str) -> None:
    """One class: number of images, the latest ones, and a button that deletes them."""
    images = list(held[name].values())
    with st.container(horizontal=True, vertical_alignment="center"):
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode(one).decode()}" width="48" height="48" alt=""/>'
            for one in images[-LAST:]
        )
        st.html(f"<b>{html.escape(name)}</b>: {len(images):,}<br/>{pictures}", width="stretch")
        st.button(
            "Delete",
            key=f"capture-delete-{name}",
            icon=":material/delete:",
            on_click=_delete,
            args=(held, name),
        )
