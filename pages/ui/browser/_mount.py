"""How a browser module becomes a Streamlit component."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import streamlit as st

from pages.ui.browser._npm import INSTALL, PACKAGES
from pages.ui.browser._urls import MODULES, module_url

# Streamlit loads inline code from a blob: address, where relative imports do not work. So the inline part only fetches
# the real module from our own route.
_STUB = """
export default async function (component) {
  const module = await import(new URL(component.data.module, location.origin).href);
  return module.default(component);
}
"""


@functools.cache
def _component(name: str) -> Callable[..., Any]:
    html = (MODULES / f"{name}.html").read_text(encoding="utf-8")
    return st.components.v2.component(f"smallalign_{name}", html=html, js=_STUB)


def mount(name: str, *, key: str, data: dict[str, Any], **on_change: Callable[[], None]) -> Any:
    """Mount the component with the code `<name>.mjs` and the markup and style `<name>.html`."""
    return _component(name)(key=key, data={**data, "module": module_url(f"{name}.mjs")}, **on_change)


def missing(what: str) -> bool:
    """Show how to install the browser parts if they are missing; True if they are."""
    if PACKAGES.installed():
        return False
    st.info(
        f"{what} requires the browser parts, which are not installed yet. After the first start they are installed "
        f"automatically: reload the page in half a minute. To install them manually, run `{INSTALL}`."
    )
    return True
