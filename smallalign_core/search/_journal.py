"""The record of a search: decisions in the order in which they were taken, one line each.

Trained weights and scores are in the runs. Here is what runs cannot say and a repetition would not find again: which
candidates were proposed and why, sizes and times as they were measured, how much of the budget was spent at each
decision, and why the search ended. A search that was killed reads its record, and goes on with the next decision.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from smallalign_core.errors import BadModel
from smallalign_core.search._evidence import Counts
from smallalign_core.search._space import Candidate, OptimizerName, Taught
from smallalign_core.search._spec import Budget
from smallalign_core.spec import Loss, Network
from smallalign_core.spec.precision import Precision
from smallalign_core.system.files import append, read_lines

FILE = "search.jsonl"
SEEN: dict[Path, float] = {}
"""When this process took its last decision of a search, by its folder."""


@dataclass(frozen=True)
class Measured:
    """What is known of a candidate before it is trained.

    Attributes:
        bytes: exact size of its exported file, by precision; None where it cannot be exported so.
        ms: latency (p50) of the file in ONNX Runtime, one image, one thread.
        step: seconds of one training step, alone.
        layers: convolutions and linear maps.
    """

    params: int
    macs: int
    bytes: dict[str, int | None]
    ms: dict[str, float]
    step: float
    layers: int = 0


@dataclass(frozen=True)
class Trial:
    """A candidate that was proposed.

    Attributes:
        number: from 1, in the order of proposals.
        why: the reason for which it was proposed.
        ruled_out: `size`, `latency`, `larger` (than a file that meets the limits) or `time` (its training exceeds
            what is left of the budget); None if it was trained.
        least: bytes of its smallest file; where it was not exported, what its weights alone take.
        precisions: those in which its file is within the limits, the smallest first.
        rung: the highest that it was admitted to; -1 if ruled out.
        failed: why its training ended without a result.
    """

    number: int
    candidate: Candidate
    why: str
    round: int
    ruled_out: str | None = None
    least: int = 0
    measured: Measured | None = None
    precisions: tuple[Precision, ...] = ()
    rung: int = -1
    failed: str | None = None


@dataclass(frozen=True)
class Look:
    """A file that was evaluated on validation images.

    Attributes:
        precision: or a variant of int8 with some layers in float, as of `spec.precision.variant_of`.
        files: how many were compared to find it: more than 1 where layers were chosen on validation images.
    """

    trial: int
    precision: str
    run: str
    bytes: int
    ms: float
    counts: Counts
    files: int = 1


@dataclass(frozen=True)
class Choices:
    """What a search chooses from that depends on the machine: installed optimizers, downloaded pretrained networks."""

    optimizers: tuple[OptimizerName, ...]
    backbones: tuple[Network, ...]


@dataclass(frozen=True)
class Closing:
    """The end of a round: seconds and trials until then, since candidates are trained, and the number of looks."""

    seconds: float
    trials: int
    looks: int


@dataclass
class Record:
    """What a search has decided so far.

    Attributes:
        choices: what the search chooses from, as found at its start; None before, and in older records.
        teacher: the entry about it; None before one was chosen.
        ready: the entry about what distilled candidates learn from, once the teacher is finished.
        closed: rounds whose files were evaluated; `closings`: their ends, in order.
        mixed: trials of which int8 with layers in float was tried and gave no file, with the reason.
        ready_at: seconds spent when the first candidates could be proposed.
        spent: seconds, at the last decision.
        look_seconds: the longest evaluation of a file.
        accounted: (round, rung) whose time is part of `took` already.
        predicted: seconds predicted for rungs that are finished, and `took` what they took.
        winner: the entry with the trial, precision and seeds of the finalist.
        delivered: the entry about its file.
        stopped: why no more candidates are proposed.
    """

    budget: Budget
    choices: Choices | None = None
    teacher: dict[str, Any] | None = None
    ready: dict[str, Any] | None = None
    trials: list[Trial] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    rungs: dict[int, list[list[int]]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    closings: list[Closing] = field(default_factory=list)
    mixed: dict[int, str] = field(default_factory=dict)
    ready_at: float = 0.0
    spent: float = 0.0
    look_seconds: float = 0.0
    accounted: tuple[int, int] | None = None
    predicted: float = 0.0
    took: float = 0.0
    winner: dict[str, Any] | None = None
    seed_failures: set[int] = field(default_factory=set)
    delivered: dict[str, Any] | None = None
    stopped: str | None = None

    @property
    def taught(self) -> Taught | None:
        """What distilled candidates learn from; None without a teacher."""
        written = self.ready and self.ready["taught"]
        if not written:
            return None
        return Taught(written["teacher"], TypeAdapter[Loss](Loss).validate_python(written["loss"]))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do within the budget."""
        return self.stopped is not None and self.delivered is not None

    @property
    def tried(self) -> list[Trial]:
        """The trials that were trained, or will be."""
        return [trial for trial in self.trials if trial.ruled_out is None]

    @property
    def open_round(self) -> int | None:
        """The round in work; None between two."""
        return next((number for number in self.rungs if number not in self.closed), None)

    def trial(self, number: int) -> Trial:
        return self.trials[number - 1]

    def _set(self, number: int, **values: Any) -> None:
        self.trials[number - 1] = replace(self.trial(number), **values)

    def add(self, entry: dict[str, Any]) -> None:
        """Take one more entry into account."""
        self.spent = float(entry.get("spent", self.spent))
        getattr(self, f"_on_{entry['kind']}")(entry)

    def _on_budget(self, entry: dict[str, Any]) -> None:
        self.budget = Budget(seconds=entry["seconds"], trials=entry["trials"])
        self.stopped = self.winner = self.delivered = None
        self.seed_failures = set()

    def _on_choices(self, entry: dict[str, Any]) -> None:
        backbones = TypeAdapter[tuple[Network, ...]](tuple[Network, ...]).validate_python(entry["backbones"])
        self.choices = Choices(tuple(entry["optimizers"]), backbones)

    def _on_teacher(self, entry: dict[str, Any]) -> None:
        self.teacher = entry

    def _on_setup(self, entry: dict[str, Any]) -> None:
        """Seconds before the first decision; `add` has read them."""

    def _on_ready(self, entry: dict[str, Any]) -> None:
        self.ready, self.ready_at = entry, self.spent

    def _on_mixed(self, entry: dict[str, Any]) -> None:
        self.look_seconds = max(self.look_seconds, float(entry["seconds"]))
        self.mixed[int(entry["trial"])] = entry["reason"]

    def _on_round(self, entry: dict[str, Any]) -> None:
        number = int(entry["round"])
        for one in entry["trials"]:
            if one["number"] != len(self.trials) + 1:
                raise ValueError("a round is missing")
            measured = one["measured"] and Measured(**one["measured"])
            self.trials.append(
                Trial(
                    number=one["number"],
                    candidate=Candidate.of(one["candidate"]),
                    why=one["why"],
                    round=number,
                    ruled_out=one["ruled_out"],
                    least=one["least"],
                    measured=measured,
                    precisions=tuple(one["precisions"]),
                    rung=-1 if one["ruled_out"] else 0,
                )
            )
        entered = [one["number"] for one in entry["trials"] if not one["ruled_out"]]
        self.rungs[number] = [entered]
        if not entered:
            self.closed.add(number)

    def _on_rung(self, entry: dict[str, Any]) -> None:
        self.predicted += entry["predicted"]
        self.took += entry["took"]
        self.accounted = (int(entry["round"]), int(entry["rung"]) - 1)
        chosen = [int(number) for number in entry["trials"]]
        if chosen:
            self.rungs[entry["round"]].append(chosen)
        for number in chosen:
            self._set(number, rung=entry["rung"])

    def _on_look(self, entry: dict[str, Any]) -> None:
        counts = Counts(**entry["counts"])
        self.look_seconds = max(self.look_seconds, float(entry["seconds"]))
        known = {name: entry[name] for name in ("trial", "precision", "run", "bytes", "ms")}
        self.looks.append(Look(**known, counts=counts, files=entry.get("files", 1)))

    def _on_closed(self, entry: dict[str, Any]) -> None:
        self.closed.add(int(entry["round"]))
        self.closings.append(Closing(self.spent - self.ready_at, len(self.tried), len(self.looks)))

    def _on_failed(self, entry: dict[str, Any]) -> None:
        self._set(entry["trial"], failed=entry["reason"])

    def _on_seed_failed(self, entry: dict[str, Any]) -> None:
        self.seed_failures.add(int(entry["seed"]))

    def _on_stop(self, entry: dict[str, Any]) -> None:
        self.stopped = entry["why"]

    def _on_winner(self, entry: dict[str, Any]) -> None:
        self.winner = entry

    def _on_delivered(self, entry: dict[str, Any]) -> None:
        self.delivered = entry


def read(folder: Path, budget: Budget) -> Record:
    """What a search decided so far.

    Args:
        budget: the one that it was created with.

    Raises:
        BadModel: lines of it were lost or changed.
    """
    record = Record(budget)
    try:
        for entry in read_lines(folder / FILE)[0]:
            record.add(entry)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise BadModel(
            "the record of the search is damaged", given=folder / FILE, do="delete the study: its runs are kept"
        ) from None
    return record


def note(folder: Path, record: Record, kind: str, **values: Any) -> None:
    """Record a decision; when this returns, no kill can lose it."""
    entry = {"kind": kind, **values}
    append(folder / FILE, entry, sync=True)
    record.add(entry)


def begin(folder: Path, budget: Budget, seconds: float) -> None:
    """Count the seconds that checks and loading took before a search as part of its budget, once."""
    if not (folder / FILE).exists():
        note(folder, Record(budget), "setup", spent=round(seconds, 3))
        SEEN[folder] = time.monotonic()


def extend(folder: Path, first: Budget, budget: Budget) -> None:
    """Give a search another budget. One that is complete goes on only if it is larger, or of another kind.

    Args:
        first: the budget that it was created with.
    """
    record = read(folder, first)
    amounts = [(one.seconds or 0.0, one.trials or 0) for one in (budget, record.budget)]
    if record.budget != budget and not (record.complete and amounts[0] <= amounts[1]):
        note(folder, record, "budget", seconds=budget.seconds, trials=budget.trials)
