"""What a student learns from at temperature T: the teacher's softened probabilities."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from pages.ui import lessons
from pages.ui.charts import plotting, theme
from pages.ui.widgets import image_grid, url_state
from smallalign_core.metrics import log_softmax
from smallalign_core.runs.store import Store
from smallalign_core.studies.statistics import paired

TITLE = "Temperature"
QUESTION = "What does a student see of the classes that its teacher does not predict?"
LARGE = 160
"""CSS pixels of the image."""


def draw(store: Store) -> None:
    """The control, the teacher's probabilities for one image, and their entropy over all."""
    pair, sides = lessons.predictions(store)
    tried = url_state.pick_number(st.slider, "Temperature T", 0.5, 20.0, 0.5, key="T", first=1.0)
    log_p = log_softmax(pair.teacher, tried)
    row = typical(pair.teacher)
    with st.container(horizontal=True, gap="large", vertical_alignment="center"):
        address = image_grid.png(sides.images().images[row])
        label = pair.classes[pair.labels[row]]
        st.html(
            f'<div class="sa-reviewed"><figure><img src="{address}" width="{LARGE}" height="{LARGE}" '
            f'alt="Validation image {row}, label {label}"/><figcaption>Label: {label}</figcaption></figure></div>',
            width=LARGE + 20,
        )
        with st.container(width="stretch"):
            _bars(log_p[row], pair.classes, tried)
    found = paired(entropy(log_p))
    st.metric("Entropy of the teacher, mean", f"{found.mean:.3f} nats", border=True)
    st.caption(
        f"95% CI {found.low:.3f} to {found.high:.3f}, over {len(log_p):,} validation images. All on one "
        f"class: 0; all classes equal: {np.log(len(pair.classes)):.3f}. The logits are divided by T before the softmax "
        "(Hinton et al., 2015): the "
        "predicted class stays the same, and the ratios of the others become visible to the loss. The image is the one "
        "with the median entropy at T = 1."
    )


def entropy(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy [N] in nats of log-probabilities [N, C]."""
    return np.asarray(-(np.exp(log_p) * log_p).sum(1))


def typical(logits: NDArray[np.float32]) -> int:
    """The row with the median entropy at T = 1."""
    return int(np.argsort(entropy(log_softmax(logits)), kind="stable")[len(logits) // 2])


def _bars(log_p: NDArray[np.float64], classes: tuple[str, ...], temperature: float) -> None:
    share = np.exp(log_p)
    figure = go.Figure()
    figure.add_bar(
        x=list(classes), y=share, text=[f"{one:.1%}" for one in share], textposition="outside", cliponaxis=False,
        marker_color=theme.palette()[1],
    )  # fmt: skip
    figure.update_layout(
        xaxis={"title": "class", "type": "category"},
        yaxis={"title": "teacher's probability", "range": [0, 1.08], "tickformat": ".0%"},
    )
    plotting.plot(
        figure, alt=f"The teacher's probability of each class at T = {temperature:g}.", key="lesson-bars", height=300
    )
