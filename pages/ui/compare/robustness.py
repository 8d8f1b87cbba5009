"""Robustness of all runs to image corruptions: means, curves over severity, and one small chart per corruption."""

from __future__ import annotations

import streamlit as st

from pages.ui.compare import Sides, charts, in_steps, wanted
from pages.ui.widgets import formatting
from smallalign_core.analysis.robustness import CORRUPTIONS, MOST, SEVERITIES, kept
from smallalign_core.service.requests import AssessRobustness

AUTOMATIC, UNKNOWN = 2e11, 1e8
"""Multiply-accumulates that run without a click, a few seconds on one CPU core; and those assumed of an import."""


def panel(sides: Sides) -> None:
    """Evaluate corrupted images in short steps, and show the results."""
    images = min(MOST, len(sides.images()))
    views = 1 + len(CORRUPTIONS) * len(SEVERITIES)
    st.markdown(
        f"**SmallAlign corruption suite** (not ImageNet-C): 12 augmentation transforms at 5 severities, on {images:,} "
        "images. Magnitudes are drawn once per image; all runs are evaluated on the same pixels."
    )
    splits = sides.splits()
    missing = [run for run in map(sides.store.run, sides.ids) if kept(run, splits, sides.split, sides.store) is None]
    much = sum((run.result or {}).get("macs") or UNKNOWN for run in missing) * images * views > AUTOMATIC
    about = f"Evaluates every run on {images * views:,} corrupted images, which is slow for these networks."
    if much and not wanted("robustness-wanted", sides.key, "Evaluate robustness", about, icon=":material/blur_on:"):
        return
    found = in_steps(AssessRobustness(sides.ids, sides.split), sides, "Evaluating corrupted images")
    with st.grid(min_column_width=210):
        for name, run in zip(sides.names, found.runs, strict=True):
            change, mean = run.change, run.mean
            st.metric(
                f"{name}, corrupted",
                formatting.percent(mean.value),
                None if change is None else f"{100 * change.value:+.1f} points",
                delta_arrow="off",
                delta_color="off",
                border=True,
                height="stretch",
                help=f"Mean accuracy over all corruptions and severities, 95% CI "
                f"{formatting.interval(mean.low, mean.high)}; clean "
                f"{formatting.percent(run.clean.value)}."
                + (
                    ""
                    if change is None
                    else f" The difference to {sides.names[0]} is paired by image, 95% CI "
                    f"{100 * change.low:+.1f} to {100 * change.high:+.1f} points."
                ),
            )
    charts.robustness(found, sides, key="robustness-mean")
    charts.corruptions(found, sides, key="robustness-each")
    st.caption(
        f"{found.images:,} of {found.of:,} images, seed {found.seed}. Bars are 95% CIs over images. "
        "Severities scale with the range of each transform (rotation up to 9 to 45 degrees, noise with a standard "
        "deviation of 6 to 30% of white), so compare runs, not corruptions."
    )
