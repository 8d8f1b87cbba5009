"""A chart of curves that grows while a run trains and keeps the zoom: the Python side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from pages.ui.browser._mount import mount
from pages.ui.browser._npm import INSTALL, PACKAGES
from pages.ui.browser._urls import package_url

MOST_POINTS = 2_000
"""A longer series is drawn as the minima and maxima of half as many buckets, with a note below the chart."""


@dataclass(frozen=True)
class Curve:
    """One line: `y` over `x`. A value that is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    """The role's mark: teachers are dashed, students solid."""
    colour: int = 0
    """An index into the theme's chart colors; a run keeps its color in every chart."""


def curves(
    *,
    key: str,
    series: Sequence[Curve],
    x_label: str,
    y_label: str,
    alt: str,
) -> None:
    """Show the curves; a later call with longer series keeps zoom and hidden lines.

    Smoothing and log scale are those of `smoothing`, which a page draws once.

    Args:
        key: of the Streamlit component; keep it the same while the curves grow.
        series: the lines, each with a name of its own.
        x_label: for instance `epoch`.
        y_label: with its unit, for instance `loss (nats)`.
        alt: a description for screen readers, in a sentence.
    """
    lines = [(curve, *_points(curve)) for curve in series]
    if not PACKAGES.installed():
        table = {
            "x": [at for _, x, _ in lines for at in x],
            "y": [value for _, _, y in lines for value in y],
            "line": [curve.name for curve, x, _ in lines for _ in x],
        }
        st.line_chart(table, x="x", y="y", color="line", x_label=x_label, y_label=y_label, height=280)
        st.caption(f"Static chart: the interactive one is not installed. To install it, run `{INSTALL}`.")
        return
    cut = [
        f"{curve.name}: {len(curve.x):,} points, drawn as {len(x):,} minima and maxima"
        for curve, x, _ in lines
        if _long(curve)
    ]
    mount(
        "curves",
        key=f"curves-{key}",
        data={
            "series": [
                {"name": curve.name, "x": x, "y": y, "dashed": curve.dashed, "colour": curve.colour}
                for curve, x, y in lines
            ],
            "x_label": x_label,
            "y_label": y_label,
            "alt": alt,
            "name": f"smallalign-{key}",
            "note": "; ".join(cut),
            "library": package_url("uplot", "dist/uPlot.esm.js"),
            "style": package_url("uplot", "dist/uPlot.min.css"),
        },
    )


def smoothing() -> None:
    """Show the controls of all charts of curves on the page: smoothing and log scale, kept while the tab is open."""
    if PACKAGES.installed():
        mount("smoothing", key="browser-smoothing", data={})


def _long(curve: Curve) -> bool:
    return len(curve.x) > MOST_POINTS


def _points(curve: Curve) -> tuple[list[float], list[float | None]]:
    """The points to draw: sorted by x, the last of equal x, six digits, None for what is not finite."""
    if len(curve.x) != len(curve.y):
        raise ValueError(
            f"A curve needs x and y of equal length. Given: {curve.name!r} with {len(curve.x)} x and {len(curve.y)} y. "
            "Pass equal lengths."
        )
    latest = {float(x): float(y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x)}
    pairs = sorted(latest.items())
    if len(pairs) > MOST_POINTS:
        pairs = _extremes(pairs, MOST_POINTS // 2)
    return [_short(x) for x, _ in pairs], [_short(y) if math.isfinite(y) else None for _, y in pairs]


def _short(value: float) -> float:
    # Six digits are more than a screen shows, and a third less to send on every rerun.
    return float(f"{value:.6g}") if abs(value) < 1e6 or not value.is_integer() else value


def _extremes(pairs: list[tuple[float, float]], buckets: int) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for bucket in range(buckets):
        inside = pairs[bucket * len(pairs) // buckets : (bucket + 1) * len(pairs) // buckets]
        finite = [pair for pair in inside if math.isfinite(pair[1])] or inside
        extremes = {min(finite, key=lambda pair: pair[1]), max(finite, key=lambda pair: pair[1])}
        # A value that is not finite is kept: the gap shows that the run diverged.
        extremes.update(pair for pair in inside if not math.isfinite(pair[1]))
        kept.extend(sorted(extremes))
    return kept
