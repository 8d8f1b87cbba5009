"""Datasets of the user: a path on the server, or an uploaded folder, zip or recording of the camera.

An upload is validated, kept in the store, read once, and then available like any other dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import streamlit as st

from pages.ui import _compat
from pages.ui.app import context, keys
from pages.ui.data import capture
from pages.ui.security import auth, upload_quota
from pages.ui.widgets import formatting
from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.service.users import Role
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits

FOLDER, ZIP, CAMERA = "Folder", "Zip file", "Camera"
ANY_MB = 1024**2
"""Larger than any file."""


def panel(store: Store) -> None:
    """The ways to a new dataset; once it is read, it is the page's. Draw it above the dataset menu."""
    st.text_input(
        "Path of your dataset",
        key=keys.ENTERED_PATH,
        placeholder="/home/ada/photos, and Enter",
        help="On the machine that runs SmallAlign: a folder with one sub-folder of images per class, a zip of one, "
        "or a table of labels. Nothing is copied or changed.",
        on_change=_enter,
    )
    if auth.current_user().role is Role.VIEWER:
        return
    with st.expander("Upload a folder or zip, or use the camera", icon=":material/upload:"):
        if failed := st.session_state.get(keys.UPLOAD_FAILED):
            st.error(formatting.plain(failed), icon=":material/block:")
        way = st.segmented_control(
            "From",
            [FOLDER, ZIP, CAMERA],
            default=FOLDER,
            required=True,
            key="upload-from",
            on_change=st.session_state.pop,
            args=(keys.UPLOAD_FAILED, None),
        )
        files, name, content = [], "", b""
        with st.container(key="uploading"):
            if way == CAMERA:
                made = capture.panel()
            else:
                files = _uploader(str(way))
                made = []
    if not made and not files:
        return
    try:
        made = made or _arrived(files)
        if way == ZIP:
            [(name, content)] = made
            source = receive(store, name, content)
        else:
            name = capture.NAME if way == CAMERA else (PurePosixPath(made[0][0]).parts or (FOLDER,))[0]
            source = receive_folder(store, name, made)
    except SmallAlignError as error:
        st.session_state[keys.UPLOAD_FAILED] = str(error)
    else:
        st.session_state.pop(keys.UPLOAD_FAILED, None)
        st.session_state[keys.DATA] = source
        if way == CAMERA:
            capture.clear()
    for file in files:
        _compat.drop_upload(file.file_id)
    st.session_state[keys.UPLOAD_ROUND] += 1  # an empty place for the next one
    st.rerun()


def _enter() -> None:
    """Make the entered path the dataset in hand; a callback."""
    if entered := str(st.session_state[keys.ENTERED_PATH] or "").strip():
        st.session_state[keys.DATA] = entered
    st.session_state[keys.ENTERED_PATH] = ""


def _uploader(way: str) -> list[Any]:
    """A place to drop files; those that have arrived."""
    most = limits.current()
    key = f"upload-{way}-{st.session_state.setdefault(keys.UPLOAD_ROUND, 0)}"
    if way == ZIP:
        file = st.file_uploader(
            "Zip of a folder with one sub-folder of images per class, or of images and a table of labels",
            type="zip",
            max_upload_size=most.upload_mb,
            key=key,
        )
        files = [file] if file else []
        bounds = f"up to {most.upload_mb} MB and {most.zip_entries:,} files, {most.zip_mb // 1024} GB unpacked"
    else:
        # No check in the browser: it would leave files out, and nothing here could notice. The quota refuses them, and
        # the reader counts files of other kinds.
        files = st.file_uploader(
            "Folder with one sub-folder of images per class",
            accept_multiple_files="directory",
            max_upload_size=ANY_MB,
            key=key,
        )
        bounds = f"up to {most.upload_files:,} files, {most.upload_mb} MB each, {most.uploads_each_mb} MB together"
    st.caption(
        f"PNG, JPEG, WebP, TIFF, GIF, HEIC, AVIF or BMP; {bounds}. Validated, then stored on this server by content "
        "hash. For larger datasets, enter a path."
    )
    return list(files)


def _arrived(files: list[Any]) -> list[tuple[str, bytes]]:
    """Names and contents of an upload.

    Raises:
        Refused: a file of it was refused or did not arrive, so the rest is not what was meant.
    """
    uploads = dict(_compat.announced(file.file_id) for file in files)
    refused = upload_quota.refusals(_compat.session())
    reasons = [error for file, error in refused.items() if _compat.announced(file)[0] in uploads]
    arrived = [file for file in files if hasattr(file, "getvalue")]  # else it was deleted since
    wanted = sum(uploads.values()) or len(files) + len(reasons)
    if len(arrived) < wanted:
        first = reasons[0] if reasons else Refused("files did not arrive", do="upload again, or enter a path")
        lost = f"{wanted - len(arrived):,} of {wanted:,} files were not accepted, so none was kept"
        raise Refused(first.wrong, given=lost, do=first.do)
    return [(file.name, file.getvalue()) for file in arrived]


def receive(store: Store, name: str, content: bytes) -> str:
    """Store an uploaded zip and read it; returns its name as a dataset. An unusable upload is removed.

    Raises:
        SmallAlignError: it was refused; the message gives the reason.
    """
    return _read(store, *uploads.keep(store, name, content))


def receive_folder(store: Store, name: str, files: Iterable[tuple[str, bytes]]) -> str:
    """As `receive`, for the files of a folder by their paths.

    Raises:
        SmallAlignError: it was refused; the message gives the reason.
    """
    most = limits.current().uploads_each_mb
    # The names of its files and the zip's directory come on top of the files.
    return _read(store, *uploads.keep(store, name, uploads.packed(files), most_mb=most + most // 8))


def _read(store: Store, file: Path, new: bool) -> str:
    source = shown(file)
    try:
        context.read(DataSpec(source=source))
    except SmallAlignError as error:
        if "columns" in error.details:  # nothing is wrong with it: its columns must be chosen on the page
            return source
        if new:
            uploads.discard(store, file)
        raise
    return source


def shown(file: Path) -> str:
    """The path of an upload in menus and links: relative to the working directory, if below it."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
