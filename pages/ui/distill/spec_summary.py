"""A spec before training: its YAML, the equivalent command, and its cost."""

from __future__ import annotations

import streamlit as st

from pages.ui.app import context
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import Cost, Estimate
from smallalign_core.spec import RunSpec, to_yaml


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def estimate(asked: RunSpec) -> Cost:
    """The estimated cost of a spec's run; cached for a minute, since the machine's load changes."""
    return context.call(Estimate(asked), "Counting parameters and timing a few training steps")


def costs(cost: Cost) -> None:
    """The estimate as metrics."""
    cells = st.columns(2)
    cells[0].metric("Parameters", f"{cost.params:,}", border=True)
    cells[1].metric(
        "Training time",
        formatting.duration(cost.seconds),
        border=True,
        help=f"{cost.steps:,} steps on {cost.device}.",
    )
    cells[0].metric("MACs", formatting.count(cost.macs), border=True, help="Multiply-accumulate operations per image.")
    exact = cost.unexportable is None
    cells[1].metric(
        "ONNX file",
        formatting.exact(cost.onnx_bytes) if exact else "not known",
        border=True,
        help=formatting.sizes(cost.sizes) if exact else None,
    )
    if cost.unexportable is not None:
        st.warning(formatting.plain(cost.unexportable), icon=":material/warning:")


def command(
    spec: RunSpec,
    store: Store,
    *,
    verb: str = "train spec.yaml",
    does: str = "this command trains it (identical specs reuse the cached run)",
) -> None:
    """A spec as YAML, and the equivalent command."""
    yaml = to_yaml(store.named(spec))
    st.code(yaml, language="yaml", wrap_lines=True)
    st.caption(f"Save as spec.yaml; {does}:")
    st.code(f"python -m smallalign_core {verb}", language="bash", wrap_lines=True)
