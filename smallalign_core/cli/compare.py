"""The verb that judges: several runs side by side on the same held-out images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smallalign_core.cli._shared import MODELS, JsonOption, MovedOption, StoreOption, answer, found_at, progress
from smallalign_core.runs.store import Store
from smallalign_core.service import comparison_api
from smallalign_core.system.machine import set_threads

PATIENCE = 1.0
"""Seconds between two looks at how far the work is."""


def compare(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER")],
    students: Annotated[list[str], typer.Argument(metavar="STUDENT...")],
    split: Annotated[Literal["test", "val"], typer.Option("--split", help="Held-out images to use.")] = "test",
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also under 12 corruptions at 5 severities.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Also size, MACs, latency here, and who dominates whom.")
    ] = False,
    kb: Annotated[float | None, typer.Option("--max-kb", help="Largest ONNX file, in kB; with --table.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="Of the file that --max-kb is for.")] = "fp32",
    ms: Annotated[float | None, typer.Option("--max-ms", help="Longest p50 of one image; with --table.")] = None,
    accuracy: Annotated[float | None, typer.Option("--min-accuracy", help="0 to 1; with --table.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write all of it as one HTML file, and JSON.")] = None,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Agreement, who is right where, calibration, and McNemar's test, for two or more runs on the same images."""
    set_threads()
    with found_at(data_source):
        _compare(
            Store(store), [teacher, *students], split, robustness, table, kb, ms, accuracy, precision, report, json
        )


def _compare(
    place: Store,
    runs: list[str],
    split: Literal["test", "val"],
    robustness: bool,
    table: bool,
    kb: float | None,
    ms: float | None,
    accuracy: float | None,
    precision: str,
    report: Path | None,
    json: bool,
) -> None:
    from smallalign_core.analysis import (
        compare as comparing,
        html_report as reporting,
        pareto as fronts,
        robustness as bearing,
    )

    teacher, *students = runs
    numbers = {"kb": kb, "ms": ms, "accuracy": accuracy}
    limits: dict[str, Any] = {**numbers, "precision": precision}
    fronts.Limits(**limits).check()
    if report is not None:
        reporting.target(report)  # before the work, not after it
    found = comparison_api.compare(place, teacher, students, split)
    pairs = [found, *found["others"]]
    lines = [comparing.verdict(pair, teacher, student) for pair, student in zip(pairs, students, strict=True)]
    if robustness:
        held = _waited("Corrupting images", lambda: comparison_api.robustness(place, runs, split, PATIENCE))
        found["robustness"] = held["report"]
        lines.append(bearing.words(held["report"], runs))
    if table or any(value is not None for value in numbers.values()):
        held = _waited("Measuring latency", lambda: comparison_api.pareto_front(place, runs, split, limits, PATIENCE))
        found["frontier"] = held["report"]
        lines.append(fronts.table(held["report"]) + "\n" + fronts.words(held["report"]))
    if report is not None:
        held = _waited(
            "Making the report", lambda: comparison_api.report(place, runs, split, limits, PATIENCE, to=str(report))
        )
        found["report"] = held["files"]
        lines.append(f"report: {', '.join(held['files'])}")
    answer(found, json, "\n\n".join(lines))


def _waited(what: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The whole answer to a question that is answered in steps, with a progress bar on stderr."""
    with progress(what) as told:
        while (held := ask())["done"] < 1:
            told(held["done"])
    return held
