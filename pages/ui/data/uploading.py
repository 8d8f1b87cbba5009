"""Dataset upload: a zip is validated, kept in the store, read once, and then available like any other dataset."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from pages.ui import _compat
from pages.ui.app import context, keys
from pages.ui.security import auth
from pages.ui.widgets import formatting
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.service.users import Role
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits


def panel(store: Store) -> None:
    """An uploader for a zip; once it is read, the page's dataset is the upload. Draw it above the dataset menu."""
    if auth.current_user().role is Role.VIEWER:
        return
    most, failed = limits.current(), st.session_state.get(keys.UPLOAD_FAILED)
    with st.expander("Upload a dataset", icon=":material/upload:", expanded=failed is not None):
        if failed:
            st.error(formatting.plain(failed), icon=":material/block:")
        file = st.file_uploader(
            "Zip of a folder with one sub-folder of images per class, or of images and a CSV of labels",
            type="zip",
            max_upload_size=most.upload_mb,
            key=f"upload-{st.session_state.setdefault(keys.UPLOAD_ROUND, 0)}",
        )
        st.caption(
            "PNG, JPEG, WebP, TIFF, GIF, HEIC, AVIF or BMP; "
            f"up to {most.zip_entries:,} files, {most.zip_mb // 1024} GB unpacked. Validated, then stored on this "
            "server by content hash. For larger datasets, enter the path of a folder below."
        )
    if file is None:
        return
    try:
        source = receive(store, file.name, file.getvalue())
    except SmallAlignError as error:
        st.session_state[keys.UPLOAD_FAILED] = str(error)
    else:
        st.session_state.pop(keys.UPLOAD_FAILED, None)
        st.session_state[keys.DATA] = source
    _compat.drop_upload(file)
    st.session_state[keys.UPLOAD_ROUND] += 1  # an empty place for the next one
    st.rerun()


def receive(store: Store, name: str, content: bytes) -> str:
    """Store an uploaded zip and read it; returns its name as a dataset. An unusable upload is removed.

    Raises:
        SmallAlignError: it was refused; the message gives the reason.
    """
    file, new = uploads.keep(store, name, content)
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
