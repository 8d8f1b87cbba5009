"""The command `compare`: two or more runs on the same held-out images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from smallalign_core.cli._shared import MODELS, JsonOption, MovedOption, StoreOption, answer, found_at, progress
from smallalign_core.runs.store import Store
from smallalign_core.service import comparison_api
from smallalign_core.service.requests import AssessRobustness, Compare, FindParetoFront, WriteReport
from smallalign_core.service.wire import Progress
from smallalign_core.system.machine import set_threads
from smallalign_core.system.typed import plain

R = TypeVar("R")

PATIENCE = 1.0
"""Seconds between two progress updates."""


def compare(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER")],
    students: Annotated[list[str], typer.Argument(metavar="STUDENT...")],
    split: Annotated[Literal["test", "val"], typer.Option("--split", help="Held-out split.")] = "test",
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also evaluate under 12 corruptions at 5 severities.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Also file size, MACs, latency on this machine and the Pareto front.")
    ] = False,
    kb: Annotated[float | None, typer.Option("--max-kb", help="Max. ONNX file size in kB; with --table.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="Precision of the file that --max-kb limits.")] = "fp32",
    ms: Annotated[
        float | None, typer.Option("--max-ms", help="Max. p50 latency of one image in ms; with --table.")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option("--min-accuracy", help="Min. accuracy, 0 to 1; with --table.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a full report as one HTML file, and as JSON.")
    ] = None,
    data_source: MovedOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Compare runs on the same images: agreement, disagreements, calibration and McNemar's test."""
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
    limits = fronts.Limits(**numbers, precision=precision)
    limits.check()
    if report is not None:
        reporting.target(report)  # before the work, not after it
    found = comparison_api.compare(place, Compare(tuple(runs), split))
    pairs = [found, *found.others]
    lines = [comparing.verdict(pair, teacher, student) for pair, student in zip(pairs, students, strict=True)]
    more: dict[str, Any] = {}
    if robustness:
        corrupting = AssessRobustness(tuple(runs), split, patience=PATIENCE)
        held = _waited("Corrupting images", lambda: comparison_api.robustness(place, corrupting))
        more["robustness"] = held
        lines.append(bearing.words(held, runs))
    if table or any(value is not None for value in numbers.values()):
        measuring = FindParetoFront(tuple(runs), split, limits, patience=PATIENCE)
        front = _waited("Measuring latency", lambda: comparison_api.pareto_front(place, measuring))
        more["frontier"] = front
        lines.append(fronts.table(front) + "\n" + fronts.words(front))
    if report is not None:
        writing = WriteReport(tuple(runs), split, limits, to=str(report), patience=PATIENCE)
        files = _waited("Writing the report", lambda: comparison_api.report(place, writing)).files
        more["report"] = files
        lines.append(f"report: {', '.join(files)}")
    answer(plain(found) | more, json, "\n\n".join(lines))


def _waited(what: str, poll: Callable[[], Progress[R]]) -> R:
    """The final result of a computation that reports its progress at each poll, with a progress bar on stderr."""
    with progress(what) as update:
        while (held := poll()).report is None:
            update(held.done)
    return held.report
