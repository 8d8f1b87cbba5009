"""The buttons that save a plot as PNG, SVG and CSV: the Python side."""

from __future__ import annotations

from pages.ui.browser._mount import mount


def save(*, key: str, name: str, alt: str, csv: str) -> None:
    """Show the buttons for the Plotly chart that stands in the same container, whose key begins with `plot-`.

    Images are made in the browser from its current state: zoom, visible lines and theme.

    Args:
        key: of the Streamlit component.
        name: of the files, without ending.
        alt: description of the chart: the SVG's title.
        csv: the numbers behind it.
    """
    mount("save", key=key, data={"name": name, "alt": alt, "csv": csv})
