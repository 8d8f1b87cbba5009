"""A spec before it is trained: how it reads, the command that does the same, and what it would cost."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from pages.ui.app import context
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, to_yaml


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def estimate(asked: str) -> dict[str, Any]:
    """What the run that a spec's JSON describes would cost; kept for a minute, since the machine's load changes."""
    return context.call("estimate", "Counting parameters and timing a few real steps", spec=json.loads(asked))


def command(
    spec: RunSpec,
    store: Store,
    *,
    verb: str = "train spec.yaml",
    does: str = "this trains it, and an equal spec is never trained twice",
) -> None:
    """A spec as YAML, and the command that does the same without the dashboard."""
    yaml = to_yaml(store.named(spec))
    st.code(yaml, language="yaml", wrap_lines=True)
    st.caption(f"Save it as spec.yaml; {does}:")
    st.code(f"python -m smallalign_core {verb}", language="bash", wrap_lines=True)
