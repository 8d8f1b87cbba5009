"""The colors of charts, in the light and in the dark theme; `.streamlit/config.toml` has them."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st


def dark() -> bool:
    """Whether the current theme is dark."""
    return st.context.theme.type == "dark"


def _option(name: str) -> object:
    return st.get_option(f"theme.{'dark' if dark() else 'light'}.{name}")


def palette() -> list[str]:
    """The chart colors, as `#RRGGBB`; the last is a gray."""
    found = _option("chartCategoricalColors")
    assert isinstance(found, list)
    return found


def ink() -> str:
    """The color of text on the page."""
    return str(_option("textColor"))


def good() -> str:
    """The color of a significantly better result."""
    return palette()[2]


def bad() -> str:
    """The color of a significantly worse result."""
    return palette()[1]


def gray() -> str:
    """The color of a reference, and of a result that is neither good nor bad."""
    return palette()[-1]


def quiet(share: float = 0.8) -> str:
    """A gray for lines that is legible on both themes."""
    return f"rgba(128,140,152,{share})"


def faint(colour: str, share: float) -> str:
    """`#RRGGBB` with an opacity of `share`."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def colours(reference: str, others: Iterable[str]) -> dict[str, str]:
    """A color for each name, the same in every chart of a page; the reference is gray."""
    *chosen, last = palette()
    return {reference: last} | {name: chosen[place % len(chosen)] for place, name in enumerate(others)}
