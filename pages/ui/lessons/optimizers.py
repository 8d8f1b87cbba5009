"""Which learning rates SGD and AdamW can train with."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from pages.ui import lessons
from pages.ui.lessons import trained
from pages.ui.widgets import url_state
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, parse

TITLE = "Optimizers"
QUESTION = "At which learning rates does SGD train, and at which AdamW?"
RATES = ("0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1")
SERIES: dict[str, Literal["sgd", "adamw"]] = {"SGD": "sgd", "AdamW": "adamw"}


def spec_of(kind: Literal["sgd", "adamw"], rate: str) -> RunSpec:
    """A network of the lesson."""
    optimizer = {"kind": kind, "lr": float(rate)}
    network = {"kind": "cnn", "width": 8}
    return parse({"data": "digits", "network": network, "epochs": 5, "seed": 0, "optimizer": optimizer})


def draw(store: Store) -> None:
    """The control, a network by each optimizer, and the accuracy of all trained so far."""
    lessons.predictions(store)
    rate = url_state.switch("Learning rate", {one: one for one in RATES}, key="rate")
    specs = {one: {name: spec_of(kind, one) for name, kind in SERIES.items()} for one in RATES}
    x = {one: float(one) for one in RATES}
    points = trained.draw(store, specs, rate, x=x, axis="learning rate", ticks=list(x.values()))
    st.caption(
        trained.caption(points)
        + "The same network, images and order each time, 5 epochs. SGD has Nesterov momentum 0.9. AdamW divides each "
        "step by the size of recent gradients (Loshchilov & Hutter, 2019), so its best rates are lower. A fair "
        "comparison tunes the rate of each optimizer first: see *Optimizers*."
    )
