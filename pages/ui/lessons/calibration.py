"""Whether the student's confidence is its accuracy, at any temperature."""

from __future__ import annotations

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from pages.ui import lessons
from pages.ui.compare import charts
from pages.ui.widgets import url_state
from smallalign_core.metrics import log_softmax, reliability, score
from smallalign_core.runs.store import Store
from smallalign_core.studies.statistics import paired

TITLE = "Calibration"
QUESTION = "At which temperature does the student's confidence equal its accuracy?"


def draw(store: Store) -> None:
    """The control, the reliability diagram, and NLL, ECE and accuracy."""
    pair, sides = lessons.predictions(store)
    tried = url_state.pick_number(st.slider, "Temperature T", 0.2, 5.0, 0.1, key="calibration_T", first=1.0)
    scores = score(pair.student, pair.labels, pair.classes, tried)
    change = paired(nll(pair.student, pair.labels, tried) - nll(pair.student, pair.labels))
    with st.grid(min_column_width=150):
        st.metric("NLL", f"{scores.nll:.3f} nats", border=True)
        st.metric("ECE", f"{scores.ece:.1%}", border=True)
        st.metric("Accuracy", f"{scores.accuracy:.1%}", border=True)
    charts.reliability(
        reliability(pair.student, pair.labels),
        reliability(pair.student, pair.labels, tried),
        tried,
        sides.colours[1],
        key="lesson-reliability",
    )
    st.caption(
        (
            ""
            if tried == 1
            else f"Change of NLL from T = 1: {change.mean:+.3f} (95% CI {change.low:+.3f} to {change.high:+.3f}). "
        )
        + f"{scores.images:,} validation images. Accuracy: 95% CI {scores.accuracy_low:.1%} to "
        f"{scores.accuracy_high:.1%}, the same at every T, since the order of the classes is. Dots below the diagonal "
        "are overconfident: raise T. Above it: lower T. NLL is lowest at the temperature that *Compare* fits "
        "(Guo et al., 2017). Bars are 95% CIs; dot area is the number of images."
    )


def nll(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Negative log-likelihood [N] in nats of logits [N, C] against labels [N]."""
    return np.asarray(-log_softmax(logits, temperature)[np.arange(len(labels)), labels])
