"""A Python file in a form: shown, and allowed to run by a click, since a link could have named it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import streamlit as st

from pages.ui.security import auth
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Run
from smallalign_core.spec import Code, Part, each_code, with_code
from smallalign_core.system import usercode

Kind = TypeVar("Kind", bound=Part)

MOST = 20_000
"""Characters of a file that are shown."""


def allow(spec: Kind) -> Kind:
    """Stop the page at a Python file that may not run yet, with its text and a button that allows it.

    Returns:
        `spec` with the digests of its files: what was computed with an edited file is computed again.

    Raises:
        Refused: the user is not the owner of this machine.
        BadInput: the file cannot be read.
    """

    def digested(one: Code) -> Code:
        auth.current_user().require_code()
        if one.file is None:
            return one
        file = Path(one.file).expanduser().resolve()
        content, sha256 = usercode.read(file)
        if usercode.is_trusted(sha256):
            return one.model_copy(update={"file": str(file), "sha256": sha256})
        st.warning(
            f"{formatting.plain(file.name)} has not been allowed to run on this machine. It can do whatever you can: "
            "read it first.",
            icon=":material/shield:",
        )
        st.code(content.decode()[:MOST], language="python", height=280)
        if not st.button("Allow this file", icon=":material/check:", key=f"allow-{sha256[:16]}"):
            st.stop()
        usercode.trust(sha256, file.name)
        return st.rerun()

    return with_code(spec, digested)


def show(run: Run) -> None:
    """The Python files of a run, as text."""
    for one in each_code(run.spec):
        if one.file is None or one.sha256 is None:
            st.caption(f"Entry point {formatting.plain(one.shown)} of {formatting.plain(one.package or 'a package')}.")
            continue
        allowed = "allowed" if usercode.is_trusted(one.sha256) else "not allowed"
        st.caption(
            f"{formatting.plain(one.shown)}, SHA-256 {one.sha256[:16]}; {allowed} to run on this machine. "
            "The copy beside the run:"
        )
        if (kept := usercode.copy_in(run.folder, one.sha256)) is None:
            st.warning("The copy is missing or damaged.")
        else:
            st.code(usercode.read(kept)[0].decode()[:MOST], language="python")
