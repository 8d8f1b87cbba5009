"""Shared part of the setup forms of studies: cost, start, the study as a file, and the equivalent command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st
import yaml

from pages.ui.app import context
from pages.ui.studies.study_list import Kind
from pages.ui.widgets import formatting
from smallalign_core.runs.store import Store
from smallalign_core.search import SearchSpec
from smallalign_core.service.requests import EstimateStudy, StartStudy, StudyCost
from smallalign_core.spec import RunSpec, canonical, shortest
from smallalign_core.studies import power as estimates
from smallalign_core.studies.base import study_id
from smallalign_core.studies.kinds import AnyStudySpec


def begin(
    kind: Kind,
    spec: AnyStudySpec,
    file: str,
    *,
    runs: Callable[[StudyCost], tuple[int, str]],
    time: str,
    warning: str = "",
) -> None:
    """The cost, the button, the command. An existing study is opened instead.

    Args:
        file: the study as YAML.
        runs: from its cost: how many runs the study has, and how that number comes about.
        time: what the estimated time includes.
        warning: that the study is too small.
    """
    costs = st.container()
    if st.button("Start study", type="primary", icon=":material/play_arrow:"):
        start(kind, spec)
    if warning:
        st.caption(warning)
    st.markdown("**Equivalent command line**")
    command(kind, file)
    with costs:  # requested last: nothing else on the page waits for it
        _cost(spec, runs, time)


def power(fingerprint: str, store: Store, *, seeds: int, tests: int) -> None:
    """The smallest difference that such a study is expected to decide, from finished runs on these images."""
    if found := estimates.expected(store, fingerprint, seeds=seeds, tests=tests):
        st.caption(f":material/straighten: {found.words()}")


def start(kind: Kind, spec: AnyStudySpec | SearchSpec) -> None:
    """Start the study, or continue it, and open it."""
    started = context.call(StartStudy(spec), "Preparing the study")
    st.switch_page(kind.page, query_params={"study": started.id})


def command(kind: Kind, file: str) -> None:
    """A study as YAML, and the equivalent command."""
    st.code(file, language="yaml", wrap_lines=True)
    st.caption("Save as study.yaml; this command trains missing runs and prints the same results:")
    st.code(f"python -m smallalign_core {kind.verb} study.yaml", language="bash", wrap_lines=True)


def as_yaml(fields: Mapping[str, Any]) -> str:
    """Fields of a study as YAML, short values on one line."""
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def student_address(student: RunSpec, *, without: tuple[str, ...], **more: Any) -> str:
    """The URL parameter of a study's student; data are reduced to the number of images, as the form has them.

    Args:
        without: fields that the form has elsewhere, or not.
        more: fields that are written even if they are defaults.
    """
    fields = {name: value for name, value in shortest(student).items() if name not in (*without, "seed")}
    fields["data"] = {key: value for key, value in canonical(student.data).items() if key == "images"}
    return json.dumps(fields | more, separators=(",", ":"))


def _cost(spec: AnyStudySpec, runs: Callable[[StudyCost], tuple[int, str]], time: str) -> None:
    cost = _estimated(study_id(spec), spec)
    total, comes_from = runs(cost)
    cells = st.columns(2)
    cells[0].metric("Runs", f"{total:,}", border=True, help=comes_from)
    cells[1].metric("Estimated time", formatting.duration(cost.seconds), border=True, help=time)
    if cost.done:
        words = f"{cost.done:,} of these runs are finished and will be reused."
        st.caption(words if cost.missing else f"All {cost.done:,} runs of this study are finished.")


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def _estimated(name: str, _spec: AnyStudySpec) -> StudyCost:  # noqa: ARG001  # the name is the cache's key
    """The cost of a study; raises for an invalid one."""
    return context.call(EstimateStudy(_spec), "Counting runs and timing a few training steps")
