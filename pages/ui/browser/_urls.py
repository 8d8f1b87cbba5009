"""URLs of our own modules, the npm packages and a run's files on this server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import streamlit as st

from pages.ui.browser._npm import PACKAGES

MODULES = Path(__file__).parent
"""The folder whose `.mjs` files are served as they are."""


def base_path() -> str:
    """The path that the application is served under: `/`, or `/name/` when Streamlit's `server.baseUrlPath` is set."""
    inner = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{inner}/" if inner else "/"


def module_url(name: str) -> str:
    """The URL of one of our own browser modules, such as `parity.mjs`."""
    return f"{base_path()}assets/{name}"


def package_url(package: str, name: str = "") -> str:
    """The URL of a file (or folder, with a trailing slash) of an npm package; it changes with the version."""
    return f"{base_path()}assets/{package}/{PACKAGES.versions[package]}/{name}"


def artifact_url(run: str, name: str, *, download: bool = False) -> str:
    """The URL of an exported file of a run; with `download` the browser saves it instead of showing it."""
    return f"{base_path()}artifacts/{quote(run)}/{quote(name)}" + ("?download=1" if download else "")
