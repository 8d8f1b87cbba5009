"""Calibration: metrics and reliability diagrams, temperature-scaled, and at any other temperature."""

from __future__ import annotations

import streamlit as st

from pages.ui.app import context
from pages.ui.compare import Sides, charts
from smallalign_core.analysis.compare import Comparison
from smallalign_core.metrics import reliability, score

LOWEST, HIGHEST, STEPS = 0.05, 20.0, 120
"""The slider's ends, and its steps of equal ratio."""


@st.fragment
def panel(found: Comparison, sides: Sides) -> None:
    """A table and two diagrams that follow two sliders; nothing is recomputed on the backend."""
    with context.show_errors():
        _draw(found, sides)


def _draw(found: Comparison, sides: Sides) -> None:
    pair = sides.pair()
    fitted_on = "the validation split, which is shown here" if sides.split == "val" else "the validation split"
    st.markdown(
        "Temperature scaling divides the logits by T: less confident above 1, more confident below, predictions "
        f"unchanged. The fitted temperature minimizes NLL on {fitted_on} (Guo et al., 2017)."
    )
    columns = st.columns(2, gap="large")
    lines = []
    for (side, scores, fitted), logits, colour, column in zip(
        found.sides, (pair.teacher, pair.student), sides.colours, columns, strict=False
    ):
        with column:
            tried = _slider(side, fitted.temperature, sides.key)
            before, after = reliability(logits, pair.labels), reliability(logits, pair.labels, tried)
            charts.reliability(before, after, tried, colour, key=f"reliability-{side}")
        here = score(logits, pair.labels, pair.classes, tried)
        lines += [
            (f"{side.capitalize()}, uncalibrated (T = 1)", scores),
            (f"{side.capitalize()}, temperature-scaled (T = {fitted.temperature:.2f})", fitted.scores),
            (f"{side.capitalize()} at T = {tried:.2f}", here),
        ]
    st.table(
        {
            "": [name for name, _ in lines],
            "NLL": [f"{scores.nll:.4f}" for _, scores in lines],
            "ECE": [f"{scores.ece:.2%}" for _, scores in lines],
            "Brier": [f"{scores.brier:.4f}" for _, scores in lines],
            "Accuracy": [f"{scores.accuracy:.2%}" for _, scores in lines],
        },
        width="content",
    )
    st.caption(
        "NLL: mean negative log-likelihood in nats. ECE: expected calibration error over 15 bins, biased upward for "
        "few images. Brier: squared distance from the one-hot label, 0 to 2. Lower is better for all. In the diagrams "
        "gray circles are T = 1, dot area is the number of images, and bars are 95% CIs."
    )


def _slider(side: str, fitted: float, key: str) -> float:
    """A temperature on a logarithmic scale, initially the fitted one."""
    widget = f"temperature-{side}-{key}"
    fitted = min(HIGHEST, max(LOWEST, fitted))
    values = [*(LOWEST * (HIGHEST / LOWEST) ** (place / STEPS) for place in range(STEPS + 1)), 1.0, fitted]
    steps = sorted({f"{value:.3g}": value for value in values}.values())  # Streamlit identifies them by their text
    st.session_state.setdefault(widget, fitted)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tried = st.select_slider(
            f"{side.capitalize()} temperature",
            steps,
            st.session_state[widget],
            key=widget,
            format_func=lambda value: f"{value:.3g}",
        )
        for name, value, help in (("1", 1.0, "Uncalibrated."), ("Fitted", fitted, "Lowest validation NLL.")):
            st.button(
                name,
                key=f"{widget}-{name}",
                on_click=st.session_state.__setitem__,
                args=(widget, value),
                help=f"{help} Sets the {side} temperature.",
            )
    return float(tried)
