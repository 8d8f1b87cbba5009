"""Size, speed, accuracy and calibration of all runs, against the limits that one has."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.compare import Sides, charts, in_steps
from pages.ui.widgets import formatting, url_state
from smallalign_core.analysis import pareto
from smallalign_core.spec.precision import PRECISIONS

NAMES: dict[str, str] = {name: name for name in PRECISIONS}
LIMITS = {
    "kb": ("At most kB", "Of the ONNX file in the precision chosen here; 1 kB is 1,000 bytes.", 1e7, 10.0, "%.4g"),
    "ms": ("At most ms", "Median time for one image in ONNX Runtime on this machine.", 1e5, 0.1, "%.4g"),
    "accuracy": ("At least % accuracy", "Share of the images shown here that it gets right.", 100.0, 0.5, "%.4g"),
}


def limits() -> dict[str, Any]:
    """What one's device allows and one's users need; empty fields are no limit."""
    given: dict[str, Any] = {}
    first, *others = st.columns([1.3, 1, 1, 1], vertical_alignment="bottom")
    with first:
        given["precision"] = url_state.switch("File", NAMES, key="file")
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
    return given


def kept() -> dict[str, Any]:
    """The limits as they stand, where their fields are not drawn."""
    precision = {"precision": url_state.kept("file", NAMES, "fp32")}
    found = {name: st.session_state.get(f"limit-{name}") for name in LIMITS}
    return {name: _share(name, value) for name, value in found.items()} | precision


def _share(name: str, value: float | None) -> float | None:
    """A field's value as the library counts it; nothing, and 0, are no limit."""
    return None if not value else float(value) / (100 if name == "accuracy" else 1)


def panel(sides: Sides) -> None:
    """Limits, the verdict in words, two Pareto plots and the table."""
    allowed = limits()
    found = in_steps("frontier", sides, "Measuring the latency of each run, one after the other")
    found = judged(found, allowed)
    passing = [one for one in found["candidates"] if not one["fails"]]
    told = st.info if not any(allowed[name] for name in LIMITS) else st.success if passing else st.warning
    told(pareto.words(found))
    left, right = st.columns(2, gap="large")
    with left:
        charts.pareto(found, sides, "bytes", key="pareto-bytes")
    with right:
        charts.pareto(found, sides, "p50_ms", key="pareto-ms")
    _table(found)
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    busy = [one["name"] for one in found["candidates"] if not one["steady"]]
    st.caption(
        "Sizes are of the files that an export writes, 1 kB is 1,000 bytes; accuracy and latency are of fp32. "
        f"Latency: ONNX Runtime {found['runtime']}, one image, {threads}, after a warm-up, on {found['processor']}; "
        f"measured once for each run and machine, preprocessing included for runs trained here. Accuracy: "
        f"{found['images']:,} {'test' if found['split'] == 'test' else 'validation'} images, bars are 95 % intervals. "
        "Grey: another run is no larger, no slower and no less accurate."
        + (f" The machine was busy while measuring {', '.join(busy)}." if busy else "")
    )


def judged(found: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
    """The same runs against other limits, with the sizes of another precision; nothing is measured again."""
    runs = [one | {"bytes": pareto.size_in(one, allowed["precision"]) or one["bytes"]} for one in found["candidates"]]
    marked = [one | {"fails": pareto.failed(one, allowed), "dominated_by": pareto.dominated(one, runs)} for one in runs]
    return found | {"limits": allowed, "candidates": marked}


def _table(found: dict[str, Any]) -> None:
    runs = found["candidates"]
    st.dataframe(
        {
            "Run": [f"{place + 1}. {one['name']}" for place, one in enumerate(runs)],
            "Parameters": [one["params"] for one in runs],
            "MACs": [one["macs"] for one in runs],
            **{f"{name} (kB)": [pareto.kilobytes(pareto.size_in(one, name)) for one in runs] for name in PRECISIONS},
            "p50": [f"{one['p50_ms']:.3g} ms" for one in runs],
            "p95": [f"{one['p95_ms']:.3g} ms" for one in runs],
            "Accuracy": [one["accuracy"] for one in runs],
            "95 % interval": [formatting.interval(one["accuracy_low"], one["accuracy_high"]) for one in runs],
            "ECE": [one["ece"] for one in runs],
            "Within limits": ["yes" if not one["fails"] else "no: " + ", ".join(one["fails"]) for one in runs],
            "Dominated": ["yes" if one["dominated_by"] else "no" for one in runs],
        },
        column_config={
            "Run": st.column_config.TextColumn(width="medium"),
            "Parameters": st.column_config.NumberColumn(format="localized"),
            "MACs": st.column_config.NumberColumn(format="localized", help="Multiply-accumulates for one image."),
            "Accuracy": st.column_config.NumberColumn(format="percent"),
            "ECE": st.column_config.NumberColumn(format="percent"),
        },
        hide_index=True,
        lazy=False,
        alt="All runs: parameters, MACs, size, latency, accuracy, calibration, and whether they pass the limits.",
    )
