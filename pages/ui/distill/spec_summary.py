"""A spec before training: its YAML, the equivalent command, and its cost."""

from __future__ import annotations

import streamlit as st

from pages.ui.app import context
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import Cost, Estimate
from smallalign_core.spec import RunSpec, to_yaml


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def estimate(asked: RunSpec) -> Cost:
    """The estimated cost of a spec's run; cached for a minute, since the machine's load changes."""
    return context.call(Estimate(asked), "Counting parameters and timing a few training steps")


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
