"""The report of a search: the answer in words, and every candidate with the reason for which it was tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from smallalign_core.search._evidence import Verdict
from smallalign_core.search._outlook import Outlook
from smallalign_core.search._spec import SearchSpec
from smallalign_core.studies.base import StudyReport

EXHAUSTED = "all further proposals were ruled out"
REASONS = {
    "size": "by size",
    "latency": "by latency",
    "larger": "as larger than one that met the limits",
    "time": "as too slow to train within the budget",
}


@dataclass(frozen=True)
class Row:
    """A candidate.

    Attributes:
        why: the reason for which it was tried.
        state: `ruled out`, `training`, `stopped early` (others went on), `failed`, or `evaluated`.
        reason: why it was ruled out, a key of `REASONS`, or why it failed.
        bytes: of its smallest file within the limits; where it was ruled out, of its smallest file, or what its weights
            alone take.
        epochs: trained so far.
        accuracy: on validation images: of the file where it was evaluated, else in single precision.
        low, high: interval of that, corrected for the number of files; only where the file was evaluated.
        verdict: whether that meets the accuracy limit; None without a limit.
    """

    number: int
    label: str
    candidate: dict[str, Any]
    why: str
    round: int
    state: str
    reason: str | None
    bytes: int
    params: int | None
    latency_ms: float | None
    precision: str | None
    epochs: int
    accuracy: float | None
    low: float | None
    high: float | None
    verdict: Verdict | None
    run: str | None


@dataclass(frozen=True)
class BudgetSearch(StudyReport):
    """The current state of a search.

    Attributes:
        met: whether a file meets all limits; None while it is not known.
        row: the winner, or the nearest; None before a file was evaluated.
        test: accuracy of the winner's file on all test images, with its 95% interval; None before the end.
        verified: whether the file and PyTorch predict the same on them.
        file: name of the winner's file in its export bundle.
        repeated: the winner with other seeds: seed, run, accuracy on validation images.
        images: number of validation images; `needed`: how many would decide the nearest file, if its accuracy holds.
        looks: files evaluated on validation images, for which intervals are corrected.
        spent: seconds; `budget`: as text; `outlook`: what more of it would probably buy.
        test_looks: evaluations of the test set of these images so far, by anything.
        ended: whether no decision is left.
    """

    spec: SearchSpec
    limits: str
    met: bool | None
    row: Row | None
    rows: tuple[Row, ...]
    teacher: str
    teacher_run: str | None
    teacher_accuracy: float | None
    file: str | None
    bytes: int | None
    test: dict[str, Any] | None
    verified: bool | None
    latency_ms: float | None
    repeated: tuple[dict[str, Any], ...]
    images: int | None
    needed: int | None
    looks: int
    spent: float
    budget: str
    stopped: str | None
    outlook: Outlook | None
    test_looks: int | None
    limits_accuracy: bool
    ended: bool

    @property
    def unprepared(self) -> bool:
        """Whether a decision is left."""
        return not self.ended

    def states(self) -> str:
        """How far it is."""
        tried = sum(row.state != "ruled out" for row in self.rows)
        state = self.stopped or ("in work" if self.active else "not complete")
        return f"{_some(tried, 'trial')}, {self.spent:,.0f} s of {self.budget}: {state}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with what scripts need at the top: met, accuracy, latency_ms, run, file, precision, trials."""
        plain = asdict(self)
        rows = plain.pop("rows")
        best = self.row
        accuracy = self.test["accuracy"] if self.test else best.accuracy if best else None
        return plain | {
            "spec": self.spec.model_dump(mode="json"),
            "complete": self.complete,
            "bytes": self.bytes if self.bytes is not None else best and best.bytes,
            "accuracy": accuracy,
            "accuracy_on": "test" if self.test else "validation" if best else None,
            "latency_ms": self.latency_ms,
            "run": best and best.run,
            "precision": best and best.precision,
            "trials": rows,
        }

    def counts(self) -> str:
        """The candidates by what became of them, as text."""
        out = Counter(row.reason for row in self.rows if row.state == "ruled out")
        parts = [_some(len(self.rows), "candidate")]
        parts += [f"{count} ruled out {REASONS[str(reason)]}" for reason, count in out.most_common()]
        early = sum(row.state == "stopped early" for row in self.rows)
        failed = sum(row.state == "failed" for row in self.rows)
        undecided = sum(row.verdict == "undecided" for row in self.rows)
        parts += [f"{early} stopped early"] if early else []
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{undecided} undecided"] if undecided else []
        return ", ".join(parts)

    def words(self) -> str:
        """The answer and how it was found, as text."""
        return f"{self.answer()} {self.effort()}"

    def more(self) -> str:
        """What more budget would probably buy, as a sentence after others; empty before the search is complete."""
        if self.outlook is None or not self.complete:
            return ""
        if self.stopped == EXHAUSTED:
            return " More budget would probably buy nothing: none of the last proposals was within the limits."
        gain, more = self.outlook.gain, self.outlook.more
        if gain is None:
            what = "nothing that can be shown"
        elif self.outlook.of == "bytes":
            what = f"{gain / 1000:.2g} kB" if gain >= 100 else f"{gain:.0f} bytes"
        else:
            what = f"{100 * gain:.2g} points of accuracy"
        return f" {more} would probably buy {what}."

    def effort(self) -> str:
        """How the answer was found, as text: candidates, seeds, teacher and time."""
        parts = [self.counts() + "."]
        if self.repeated:
            shares = [float(one["accuracy"]) for one in self.repeated]
            parts.append(
                f"Trained again with {_some(len(shares), 'other seed')}: {min(shares):.1%} to {max(shares):.1%} on "
                "validation images."
            )
        elif self.complete and self.met:
            parts.append("Single seed: the budget had no room for more.")
        parts.append(f"Teacher: {self.teacher}.")
        if self.stopped:
            parts.append(f"Stopped after {self.spent:,.0f} s: {self.stopped} (budget: {self.budget}).")
        else:
            parts.append(f"{self.spent:,.0f} s so far (budget: {self.budget}).")
        parts += [f"Failed: {reason}." for reason in self.failed]
        return " ".join(parts)

    def answer(self) -> str:
        """The answer, as text: the file, its size and its accuracy with an interval."""
        row = self.row
        if row is None:
            return f"No file has been evaluated yet ({self.limits})."
        what = f"{row.bytes / 1000:,.1f} kB {row.precision}, {row.latency_ms:.3g} ms ({row.label})"
        seen = f"{row.accuracy:.1%} on {self.images:,} validation images"
        if row.low is not None and row.high is not None:
            seen += f" ({row.low:.1%} to {row.high:.1%}, corrected for {_some(self.looks, 'file')})"
        if self.test:
            low, high = self.test["accuracy_low"], self.test["accuracy_high"]
            seen = (
                f"{self.test['accuracy']:.1%} on {self.test['images']:,} test images ({low:.1%} to {high:.1%}); {seen}"
            )
        if self.met:
            first = "Smallest" if self.limits_accuracy else "Most accurate"
            so_far = "" if self.complete else " so far"
            smaller = "; nothing smaller that was tried met them" if self.limits_accuracy and self.complete else ""
            verified = "" if self.verified is not False else " The file does NOT predict as PyTorch does."
            return f"{first} within the limits{so_far} ({self.limits}): {what}: {seen}{smaller}.{verified}{self.more()}"
        nearest = f"nearest: {what}: {seen}"
        if row.verdict == "undecided":
            nearest += ", undecided"
            if self.needed:
                nearest += f": about {self.needed:,} validation images would decide it, if its accuracy holds"
        state = "No student here is shown to meet the limits" if self.complete else "No student meets the limits yet"
        return f"{state} ({self.limits}); {nearest}.{self.more()}"

    def card(self) -> str:
        """Markdown for the card of the winner."""
        lines = [
            "## The search",
            "",
            f"The result of a search for the smallest model within limits: {self.limits}. Chosen on validation images; "
            "the intervals are corrected for the number of files that were compared (Bonferroni).",
            "",
            "| | |",
            "|---|---|",
            f"| candidates | {self.counts()} |",
            f"| teacher | {self.teacher} |",
            f"| budget | {self.budget}; {self.spent:,.0f} s spent; {self.stopped or 'in work'} |",
        ]
        if self.row and self.row.accuracy is not None:
            row = self.row
            interval = f" ({row.low:.2%} to {row.high:.2%})" if row.low is not None and row.high is not None else ""
            lines.append(
                f"| chosen | trial {row.number}: {row.label}, {row.precision}, {row.bytes:,} bytes; "
                f"{row.accuracy:.2%}{interval} on {self.images:,} validation images, of "
                f"{_some(self.looks, 'file')} |"
            )
        lines += [
            f"| seed {one['seed']} | {one['accuracy']:.2%} on validation images (run `{one['run']}`) |"
            for one in self.repeated
        ]
        return "\n".join(lines) + "\n"


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
