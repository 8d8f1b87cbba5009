"""How sure each is when it is right: scores and reliability, fitted, and at any temperature one wants to try."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.compare import Sides, charts
from smallalign_core.metrics import reliability, score

LOWEST, HIGHEST, STEPS = 0.05, 20.0, 120
"""The slider's ends, and its steps of equal ratio."""


@st.fragment
def panel(found: dict[str, Any], sides: Sides) -> None:
    """A table and two diagrams that follow two sliders; nothing is trained or asked again."""
    with context.show_errors():
        _draw(found, sides)


def _draw(found: dict[str, Any], sides: Sides) -> None:
    pair = sides.pair()
    fitted_on = "validation, which is what you see here" if sides.split == "val" else "validation"
    st.markdown(
        "Dividing a model's logits by a temperature makes it less sure (above 1) or surer (below 1), and changes no "
        f"answer. The temperature that suits best was fitted on {fitted_on} (Guo et al., 2017)."
    )
    columns = st.columns(2, gap="large")
    lines = []
    for who, logits, colour, column in zip(
        ("teacher", "student"), (pair.teacher, pair.student), sides.colours, columns, strict=False
    ):
        fitted = found[f"{who}_calibration"]
        with column:
            tried = _slider(who, fitted["temperature"], sides.key)
            before, after = reliability(logits, pair.labels), reliability(logits, pair.labels, tried)
            charts.reliability(before, after, tried, colour, key=f"reliability-{who}")
        here = score(logits, pair.labels, pair.classes, tried)
        lines += [
            (f"{who.capitalize()} as it is (T = 1)", found[who]),
            (f"{who.capitalize()} fitted (T = {fitted['temperature']:.2f})", fitted["scores"]),
            (f"{who.capitalize()} at T = {tried:.2f}", here.as_dict()),
        ]
    st.table(
        {
            "": [name for name, _ in lines],
            "NLL": [f"{scores['nll']:.4f}" for _, scores in lines],
            "ECE": [f"{scores['ece']:.2%}" for _, scores in lines],
            "Brier": [f"{scores['brier']:.4f}" for _, scores in lines],
            "Accuracy": [f"{scores['accuracy']:.2%}" for _, scores in lines],
        },
        width="content",
    )
    st.caption(
        "NLL: mean negative log-likelihood in nats. ECE: mean gap of confidence and accuracy over 15 bins, which is "
        "biased upwards where images are few. Brier: squared distance from the truth, 0 to 2. Lower is better for all. "
        "In the diagrams grey is T = 1, larger dots are more images, and bars are 95 % intervals."
    )


def _slider(who: str, fitted: float, key: str) -> float:
    """A temperature on a logarithmic scale; it begins at the fitted one."""
    widget = f"temperature-{who}-{key}"
    fitted = min(HIGHEST, max(LOWEST, fitted))
    values = [*(LOWEST * (HIGHEST / LOWEST) ** (place / STEPS) for place in range(STEPS + 1)), 1.0, fitted]
    steps = sorted({f"{value:.3g}": value for value in values}.values())  # Streamlit tells them apart by their text
    st.session_state.setdefault(widget, fitted)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tried = st.select_slider(
            f"{who.capitalize()}'s temperature", steps, key=widget, format_func=lambda value: f"{value:.3g}"
        )
        for name, value, help in (("1", 1.0, "As it was trained."), ("Fitted", fitted, "Best NLL on validation.")):
            st.button(
                name,
                key=f"{widget}-{name}",
                on_click=st.session_state.__setitem__,
                args=(widget, value),
                help=f"{help} Sets the {who}'s temperature.",
            )
    return float(tried)
