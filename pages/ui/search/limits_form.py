"""The form of a search: limits, budget and teacher, and the equivalent command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import streamlit as st

from pages.ui.studies import study_form
from pages.ui.studies.study_list import Kind
from pages.ui.widgets import run_table, url_state
from smallalign_core.runs.store import Store
from smallalign_core.search import SearchSpec, parse_study
from smallalign_core.service.requests import DatasetFacts

KIND = Kind("search", "shrink.py", ":material/compress:", "shrink", "Find the smallest model")
NO_LIMIT = "no limit"
UNITS = {"images": "of images", "teacher": "of the teacher's accuracy"}
AUTOMATIC, LABELS = "automatic", "none"


def form(source: str, facts: DatasetFacts, store: Store) -> dict[str, Any]:
    """Draw the form; returns the fields of the search. All are kept in the URL."""
    first, second, third = st.columns(3)
    with first:
        kb = _limit("Max. file size (kB)", 1e6, 5.0, key="kb", first=50.0)
    with second:
        ms = _limit(
            "Max. latency (ms)",
            1e5,
            0.5,
            key="ms",
            first=None,
            help="p50 for one image in ONNX Runtime, one thread, on the machine that trains.",
        )
    with third:
        accuracy = _limit("Min. accuracy (%)", 150.0, 1.0, key="accuracy", first=90.0)
    unit = url_state.switch("Accuracy in percent", UNITS, key="unit")
    teachers = {row.id: row.label for row in run_table.teachers(store, source, facts)}
    teacher = url_state.pick(
        "Teacher",
        {AUTOMATIC: "Automatic: the best of the store, or a new one", LABELS: "None (labels only)"} | teachers,
        key="teacher",
    )
    minutes = url_state.pick_number(
        st.number_input,
        "Budget (minutes)",
        1.0,
        10_000.0,
        5.0,
        key="minutes",
        first=30.0,
        format="%g",
        help="Compute time.",
    )
    limit = {"min_accuracy" if unit == "images" else "min_share": accuracy / 100} if accuracy else {}
    return {
        "data": {"source": source},
        "teacher": None if teacher == AUTOMATIC else teacher,
        "max_kb": kb or None,
        "max_ms": ms or None,
        "budget": {"seconds": 60 * minutes},
        **limit,
    }


def _limit(label: str, most: float, step: float, *, key: str, first: float | None, help: str | None = None) -> Any:
    """One limit; None where the field is empty."""
    return url_state.pick_number(
        st.number_input, label, 0.0, most, step, key=key, first=first, empty=NO_LIMIT, format="%g", help=help
    )


def begin(fields: Mapping[str, Any]) -> None:
    """The button and the command. A search of these limits that exists is opened, and goes on with this budget."""
    spec = parse_study(fields)
    if st.button(KIND.start, type="primary", icon=":material/play_arrow:"):
        study_form.start(KIND, spec)
    st.caption(
        "Candidates beyond a limit of size or latency are not trained. Limits that no network can meet are refused "
        "before training."
    )
    st.markdown("**Equivalent command line**")
    st.code(f"python -m smallalign_core {command(spec)}", language="bash", wrap_lines=True)


def command(spec: SearchSpec) -> str:
    """The command of a search."""
    words = [KIND.verb, shlex.quote(spec.data.source)]
    words += [f"--teacher {shlex.quote(spec.teacher)}"] if spec.teacher else []
    words += [f"--max-kb {spec.max_kb:g}"] if spec.max_kb else []
    words += [f"--max-ms {spec.max_ms:g}"] if spec.max_ms else []
    words += [f"--min-accuracy {100 * spec.min_accuracy:g}%"] if spec.min_accuracy else []
    words += [f'--min-accuracy "{100 * spec.min_share:g}% of teacher"'] if spec.min_share else []
    return " ".join([*words, f"--budget {str(spec.budget).replace(' ', '')}", "--to small.onnx"])


def address(spec: SearchSpec) -> dict[str, str]:
    """The URL parameters of the form, of a search."""
    found = {
        "data": spec.data.source,
        "kb": f"{spec.max_kb:g}" if spec.max_kb else "",
        "ms": f"{spec.max_ms:g}" if spec.max_ms else "",
        "accuracy": f"{100 * accuracy:g}" if (accuracy := spec.min_accuracy or spec.min_share) else "",
        "unit": "teacher" if spec.min_share else "images",
        "teacher": spec.teacher or AUTOMATIC,
    }
    return found | ({"minutes": f"{spec.budget.seconds / 60:g}"} if spec.budget.seconds else {})
