"""Size, latency, accuracy and calibration of all runs, against given limits."""

from __future__ import annotations

import streamlit as st

from pages.ui.compare import Sides, charts, in_steps
from pages.ui.widgets import formatting, url_state
from smallalign_core.analysis import pareto
from smallalign_core.analysis.pareto import Limits, ParetoFront
from smallalign_core.service.requests import FindParetoFront
from smallalign_core.spec.precision import PRECISIONS

NAMES: dict[str, str] = {name: name for name in PRECISIONS}
LIMITS = {
    "kb": (
        "Max. file size (kB)",
        "Of the ONNX file in the selected precision; 1 kB is 1,000 bytes.",
        1e7,
        10.0,
        "%.4g",
    ),
    "ms": ("Max. latency (ms)", "Median latency at batch size 1 in ONNX Runtime on this machine.", 1e5, 0.1, "%.4g"),
    "accuracy": ("Min. accuracy (%)", "On the selected split.", 100.0, 0.5, "%.4g"),
}


EXCEEDED = {"kb": "exceeds size limit", "ms": "exceeds latency limit", "accuracy": "below min. accuracy"}


def limits() -> Limits:
    """Limits of the target device and application; empty fields are no limit."""
    given: dict[str, float | None] = {}
    first, *others = st.columns([1.3, 1, 1, 1], vertical_alignment="bottom")
    with first:
        precision = url_state.switch("Precision", NAMES, key="file")
    for column, (name, (label, help, most, step, form)) in zip(others, LIMITS.items(), strict=True):
        with column:
            value = st.number_input(
                label,
                min_value=0.0,
                max_value=most,
                value=None,
                step=step,
                format=form,
                key=f"limit-{name}",
                bind="query-params",
                persist_state="session",
                placeholder="no limit",
                help=help,
            )
        given[name] = _share(name, value)
    return Limits(**given, precision=precision)


def kept() -> Limits:
    """The current limits, where their fields are not drawn."""
    found = {name: _share(name, st.session_state.get(f"limit-{name}")) for name in LIMITS}
    return Limits(**found, precision=url_state.kept("file", NAMES, "fp32"))


def _share(name: str, value: float | None) -> float | None:
    """A field's value in the library's unit; nothing, and 0, are no limit."""
    return None if not value else float(value) / (100 if name == "accuracy" else 1)


def panel(sides: Sides) -> None:
    """Limits, the result as text, two Pareto plots and the table."""
    allowed = limits()
    found = pareto.limited(in_steps(FindParetoFront(sides.ids, sides.split), sides, "Measuring latency"), allowed)
    passing = [one for one in found.candidates if not one.fails]
    box = st.info if not any((allowed.kb, allowed.ms, allowed.accuracy)) else st.success if passing else st.warning
    box(pareto.words(found))
    left, right = st.columns(2, gap="large")
    with left:
        charts.pareto(found, sides, "bytes", key="pareto-bytes")
    with right:
        charts.pareto(found, sides, "p50_ms", key="pareto-ms")
    _table(found)
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    busy = [one.name for one in found.candidates if not one.steady]
    st.caption(
        "Sizes are those of exported files, 1 kB is 1,000 bytes; accuracy and latency are those of fp32. "
        f"Latency: ONNX Runtime {found.runtime}, batch size 1, {threads}, after warm-up, on {found.processor}; "
        f"measured once per run and machine, including preprocessing for runs trained here. Accuracy: "
        f"{found.images:,} {'test' if found.split == 'test' else 'validation'} images, bars are 95% CIs. "
        "Gray: dominated by another run."
        + (f" Latency was unstable (busy machine) for {', '.join(busy)}." if busy else "")
    )


def _table(found: ParetoFront) -> None:
    runs = found.candidates
    st.dataframe(
        {
            "Run": [f"{place + 1}. {one.name}" for place, one in enumerate(runs)],
            "Parameters": [one.params for one in runs],
            "MACs": [one.macs for one in runs],
            **{f"{name} (kB)": [pareto.kilobytes(pareto.size_in(one, name)) for one in runs] for name in PRECISIONS},
            "Latency p50": [f"{one.p50_ms:.3g} ms" for one in runs],
            "Latency p95": [f"{one.p95_ms:.3g} ms" for one in runs],
            "Accuracy": [one.accuracy for one in runs],
            "95% CI": [formatting.interval(one.accuracy_low, one.accuracy_high) for one in runs],
            "ECE": [one.ece for one in runs],
            "Limits": [", ".join(EXCEEDED[name] for name in one.fails) or "met" for one in runs],
            "Dominated": ["yes" if one.dominated_by else "no" for one in runs],
        },
        column_config={
            "Run": st.column_config.TextColumn(width="medium"),
            "Parameters": st.column_config.NumberColumn(format="localized"),
            "MACs": st.column_config.NumberColumn(format="localized", help="Multiply-accumulate operations per image."),
            "Accuracy": st.column_config.NumberColumn(format="percent"),
            "ECE": st.column_config.NumberColumn(format="percent"),
        },
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="All runs: parameters, MACs, size, latency, accuracy, calibration, and the limits they exceed.",
    )
