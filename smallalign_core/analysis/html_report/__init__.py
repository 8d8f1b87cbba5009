"""A comparison as one self-contained HTML file, and as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from smallalign_core.analysis import compare, pareto, robustness
from smallalign_core.analysis.html_report._page import page as page
from smallalign_core.analysis.html_report._report import (
    Report as Report,
    ReportData as ReportData,
    ReportRun as ReportRun,
)
from smallalign_core.analysis.pareto import NO_LIMITS, Limits
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, Store
from smallalign_core.system import typed
from smallalign_core.system.files import write
from smallalign_core.system.resumable import Work, part_of

SCHEMA = 1


def gather(runs: Sequence[Run], splits: Splits, split: str, store: Store, limits: Limits = NO_LIMITS) -> Work[Report]:
    """The full report on `runs`, the teacher first; yields progress, 0..1.

    Comparison, robustness and latency are computed if not cached; each counts as a test-set evaluation.
    """
    limits.check()
    pairs = compare.compare_once(runs[0], runs[1:], store, split=split)
    yield 0.05
    bearing = yield from part_of(robustness.assess(runs, splits, split, store), 0, 2)
    front = yield from part_of(pareto.pareto_front(runs, splits, split, store, limits), 1, 2)
    return Report(
        schema=SCHEMA,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        split=split,
        test_looks=store.test_looks(splits.fingerprint),
        data=ReportData(
            source=Path(runs[1].data.source).name,
            fingerprint=splits.fingerprint,
            images=len(getattr(splits, split)),
            classes=splits.classes,
        ),
        runs=[_facts(run) for run in runs],
        pairs=pairs,
        robustness=bearing,
        frontier=front,
    )


def _facts(run: Run) -> ReportRun:
    result = run.result or {}
    name = run.name if run.in_zoo else f"{run.title} · {run.id[:6]}"
    return ReportRun(run.id, name, run.title, result.get("params"), result.get("macs"), result.get("weights_sha256"))


def target(file: Path) -> Path:
    """Check the path of a report before the work is done.

    Raises:
        BadInput: it is not an .html file, its folder is missing, or its JSON would overwrite another file.
    """
    if file.suffix != ".html" or not file.parent.is_dir():
        raise BadInput(
            "the report's path is not an .html file in an existing folder",
            given=file,
            do="write for example --report comparison.html",
        )
    if (beside := file.with_suffix(".json")).exists() and not file.exists():
        raise BadInput("the report's JSON would overwrite a file", given=beside, do="choose another name")
    return file


def save(report: Report, splits: Splits, file: Path) -> list[Path]:
    """Write the report as HTML to `file`, and as JSON beside it; returns both."""
    images = getattr(splits, report.split).images
    beside = file.with_suffix(".json")
    write(target(file), page(report, images))
    write(beside, json.dumps(report, allow_nan=False, default=typed.plain))
    return [file, beside]
