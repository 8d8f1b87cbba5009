"""A small dataset from the camera: recordings into classes, kept by the session until they become an upload."""

from __future__ import annotations

import base64
import html

import streamlit as st

from pages.ui import browser
from pages.ui.app import context, keys
from smallalign_core.errors import Refused
from smallalign_core.system import limits

NAME = "camera"
"""Of the dataset."""
LAST = 6
"""Images shown of each class: the latest."""


def panel() -> list[tuple[str, bytes]]:
    """The camera, what was recorded of each class, and a button; once it is pressed, the files of the dataset."""
    held: dict[str, list[bytes]] = st.session_state.setdefault(keys.CAPTURED, {})
    with st.container(horizontal=True, gap="large"):
        with st.container(width=340):
            name = st.text_input("Class", key="capture-class", placeholder="Name of a class", max_chars=60).strip()
            with context.show_errors():
                if (sent := browser.camera(key="camera", name=name)) is not None:
                    _add(held, *sent)
        with st.container(width="stretch"):
            for one, images in held.items():
                _shown(one, images)
            if not held:
                st.caption(
                    "Enter a class, start the camera, and hold the button while you move the object. Then enter the "
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
    return [(f"{NAME}/{one}/{at:04}.jpg", image) for one, images in held.items() for at, image in enumerate(images)]


def clear() -> None:
    """Forget what was recorded."""
    st.session_state.pop(keys.CAPTURED, None)


def _add(held: dict[str, list[bytes]], name: str, images: list[bytes]) -> None:
    most = limits.current().uploads_each_mb
    size = sum(len(image) for some in (*held.values(), images) for image in some)
    if size > most * limits.MB:
        raise Refused(
            f"recordings may hold {most} MB",
            given=f"{size / limits.MB:.0f} MB",
            do="create the dataset or delete some",
        )
    if "/" in name or "\\" in name or name.startswith("."):
        raise Refused("this is not the name of a class", given=name, do="use a name without slashes")
    held.setdefault(name, []).extend(images)


def _shown(name: str, images: list[bytes]) -> None:
    """One class: number of images, the latest ones, and a button that deletes them."""
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
            on_click=st.session_state[keys.CAPTURED].pop,
            args=(name, None),
        )
