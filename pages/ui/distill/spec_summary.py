"""A spec before training: its YAML, the equivalent command, and its cost."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.ui.app import context
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import Cost, Estimate
from smallalign_core.spec import RunSpec, to_yaml


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def estimate(spec: RunSpec) -> Cost:
    """The estimated cost of a spec's run; cached for a minute, since the machine's load changes."""
    return context.call(Estimate(spec), "Counting parameters and timing a few training steps")


def costs(cost: Cost, baselines: Sequence[Cost] = ()) -> None:
    """The estimate as metrics.

    Args:
        baselines: those of the runs that start with it.
    """
    seconds = cost.seconds + sum(one.seconds for one in baselines)
    with st.grid(min_column_width=130):
        st.metric("Parameters", f"{cost.params:,}", border=True)
        st.metric("MACs", formatting.count(cost.macs), border=True, help="Multiply-accumulate operations per image.")
        st.metric(
            "Training time",
            formatting.duration(seconds),
            border=True,
            help=f"{cost.steps:,} steps on {cost.device}, at the current load of this machine"
            + (f"; {len(baselines)} baselines included." if baselines else "."),
        )
    if cost.unexportable is not None:
        st.warning(formatting.plain(cost.unexportable), icon=":material/warning:")
        return
    names = " | ".join(cost.sizes)
    sizes = " | ".join(formatting.exact(size).removesuffix(" kB") for size in cost.sizes.values())
    line = "|".join("-:" for _ in cost.sizes)
    st.markdown(f"ONNX | {names}\n:-|{line}\n**kB** | {sizes}", help=formatting.sizes(cost.sizes))


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
