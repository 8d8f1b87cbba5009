"""What a report holds; its JSON file has the same keys."""

from __future__ import annotations

from dataclasses import dataclass

from smallalign_core.analysis.compare import Comparison
from smallalign_core.analysis.pareto import ParetoFront
from smallalign_core.analysis.robustness import Robustness


@dataclass(frozen=True)
class ReportData:
    """The images of a report; `source` without its folder."""

    source: str
    fingerprint: str
    images: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ReportRun:
    """A run of a report; None where it is not known of an import."""

    id: str
    name: str
    title: str
    params: int | None
    macs: int | None
    weights_sha256: str | None


@dataclass(frozen=True)
class Report:
    """A full report.

    Attributes:
        schema: version of the JSON file; made: when, in UTC.
        runs: the teacher first; pairs: it against each of the others.
        test_looks: how often the test split was evaluated; None if the record is unreadable.
    """

    schema: int
    made: str
    split: str
    test_looks: int | None
    data: ReportData
    runs: list[ReportRun]
    pairs: list[Comparison]
    robustness: Robustness | None
    frontier: ParetoFront | None
