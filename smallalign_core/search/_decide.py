"""The decisions of a search, one at a time, each recorded before anything follows from it.

Teacher; rounds of candidates, each with rungs of successive halving; files of those that reach the last rung on
validation images; the winner; its repetitions with other seeds; its exported file. What a decision depends on besides
the record and finished runs (times, sizes) becomes part of the record.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.search import _plan
from smallalign_core.search._evidence import Counts
from smallalign_core.search._journal import SEEN, Look, Measured, Record, Trial, note
from smallalign_core.search._laboratory import Laboratory
from smallalign_core.search._plan import AHEAD, Standing, compared, runs_of, status
from smallalign_core.search._proposals import proposals
from smallalign_core.search._report import EXHAUSTED
from smallalign_core.search._sampler import Proposal
from smallalign_core.search._spec import ETA, SearchSpec
from smallalign_core.spec import RunSpec, digest
from smallalign_core.spec.precision import CALIBRATED
from smallalign_core.system.files import read_array, write_array

TOGETHER = 8
"""Candidates of a round: as many as train in lockstep."""
MEASURING = 0.25
"""Most of the time left that is spent on measuring the candidates of a round."""
RULED_OUT = 24
"""Proposals of a round that may be ruled out before it is given up to find more."""
FIRST_RATIO = 2.0
"""A rung is expected to take this many times its steps, until rungs were measured."""
DELIVERY = 4
"""Exporting and verifying the winner takes about as long as evaluating this many files."""
MIXED = "mixed"
"""In place of a precision: int8 with some layers in float."""
LOOK_FILES = 4
"""Evaluating a file takes about as long as writing and running so many that differ in their layers in float only."""
FIRST_LOOK = 6.0
"""Seconds of evaluating a file, before one was."""
OVERHEAD = (1.25, 10.0)
"""Most of the time between two decisions that counts as training: a multiple of the runs' own seconds, plus seconds."""
TEACHER = "teacher"
"""File with what the teacher gets right."""


class Decision:
    """The next decision of a search, taken by `take`.

    Args:
        record: what was decided before.
        lab: what measures.
        loading: seconds since the last decision that are neither training nor on the laboratory's clock.
    """

    def __init__(
        self, spec: SearchSpec, store: Store, folder: Path, record: Record, lab: Laboratory, loading: float = 0.0
    ) -> None:
        self.spec, self.store, self.folder, self.record, self.lab = spec, store, folder, record, lab
        self.began = lab.now() - loading
        self.trained = 0.0

    # --- time ---------------------------------------------------------------------------------------------------------

    def waited_for(self, runs: Sequence[RunSpec]) -> float:
        """Seconds that training took since the last decision: measured by this process where it took that one too,
        within reason; else as the runs recorded them."""
        own: dict[tuple[Any, ...], float] = {}
        for run in runs:
            result = status(self.store, run).result
            key = (run.augment, run.epochs, run.seed)  # what trains in lockstep takes its time once
            own[key] = max(own.get(key, 0.0), float((result or {}).get("seconds", 0.0)))
        known, seen = sum(own.values()), SEEN.get(self.folder)
        gap = known if seen is None else self.began - seen
        self.trained = max(known, min(gap, OVERHEAD[0] * known + OVERHEAD[1]))
        return self.trained

    @property
    def spent(self) -> float:
        """Seconds of the budget that are spent, now."""
        return self.record.spent + self.trained + self.lab.now() - self.began

    def note(self, kind: str, **values: Any) -> None:
        """Record a decision, and what was spent until then."""
        note(self.folder, self.record, kind, spent=round(self.spent, 3), **values)
        self.began, self.trained = self.lab.now(), 0.0
        SEEN[self.folder] = self.began

    def seconds_of(self, one: Measured, rungs: Sequence[int]) -> float:
        """Predicted seconds of training a candidate for these numbers of epochs, from measured ones."""
        ratio = self.record.took / self.record.predicted if self.record.predicted else FIRST_RATIO
        return ratio * sum(self.steps_of(one, epochs) for epochs in rungs)

    def steps_of(self, one: Measured, epochs: int) -> float:
        """Seconds of its steps alone, before what a rung takes besides."""
        return one.step * epochs * self.lab.train_images / (self.spec.batch or 1)

    @property
    def delivery(self) -> float:
        """Seconds to keep for exporting the winner."""
        return DELIVERY * self.record.look_seconds if self.record.look_seconds else DELIVERY * FIRST_LOOK

    def left(self, *, repetitions: bool) -> float:
        """Seconds left for training; infinite for a budget of trials.

        Args:
            repetitions: keep those of the finalist's repetitions too, up to 30% of the budget.
        """
        seconds = self.record.budget.seconds
        if seconds is None:
            return float("inf")
        kept = self.delivery
        known = [trial.measured for trial in self.record.tried if trial.measured]
        if repetitions and known:
            usual = sorted(self.seconds_of(one, self.spec.rungs) for one in known)[len(known) // 2]
            kept += min(0.3 * seconds, (self.spec.seeds - 1) * (usual + self.record.look_seconds))
        return seconds - self.spent - kept

    # --- proposals ----------------------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Begin a round, or stop."""
        most = TOGETHER
        if self.record.budget.trials is not None:
            most = min(most, self.record.budget.trials - len(self.record.tried))
            if most <= 0:
                self.note("stop", why=f"the budget of {self.record.budget} is used")
                return
        found, chosen = self._within_budget(most)
        if not chosen:
            short = any(trial.ruled_out == "time" for trial in found)
            why = "the rest of the budget is shorter than one more trial" if short else EXHAUSTED
            if found:
                self._note_round(found)
            self.note("stop", why=why)
            return
        self._note_round(found)

    def _within_budget(self, most: int) -> tuple[list[Trial], list[Measured]]:
        """Proposals of a round, and what was measured of those to train: as many as the time left can take through all
        rungs, and without more than `MEASURING` of it for measuring them."""
        found: list[Trial] = []
        chosen: list[Measured] = []
        first, began, slowest = self.left(repetitions=True), self.lab.now(), 0.0
        for proposal in self._fresh():
            since = self.lab.now()
            if chosen and (
                since - began > MEASURING * first or self._round_seconds(chosen) + slowest > self.left(repetitions=True)
            ):
                break
            trial = self._measured(proposal, len(self.record.trials) + len(found) + 1)
            slowest = max(slowest, self.lab.now() - since)
            left = self.left(repetitions=True)
            if trial.ruled_out is None and trial.measured is not None:
                if self._round_seconds([*chosen, trial.measured]) <= left:
                    chosen.append(trial.measured)
                elif chosen:
                    break
                else:
                    trial = dataclasses.replace(trial, ruled_out="time")
            found.append(trial)
            if left <= 0 or len(found) - len(chosen) >= RULED_OUT or len(chosen) >= most:
                break
        return found, chosen

    def _note_round(self, trials: Sequence[Trial]) -> None:
        number = len(self.record.rungs) + 1
        self.note("round", round=number, trials=[_written(trial) for trial in trials])

    def _round_seconds(self, chosen: Sequence[Measured]) -> float:
        """Predicted seconds of a round: all in the first rung, one in `ETA` in each next one, and the files of the
        last."""
        total, count = 0.0, len(chosen)
        for epochs in self.spec.rungs:
            takes = sorted((self.seconds_of(one, [epochs]) for one in chosen), reverse=True)
            total += sum(takes[:count])
            last, count = count, math.ceil(count / ETA)
        return total + 2 * last * (self.record.look_seconds or FIRST_LOOK)

    def _fresh(self) -> Iterator[Proposal]:
        """Proposals that were not tried yet, without end in practice."""
        known = {trial.candidate for trial in self.record.trials if trial.ruled_out != "time"}
        for proposal in proposals(self.spec, self.store, self.record, self.lab):
            if proposal.candidate not in known:
                known.add(proposal.candidate)
                yield proposal

    def _measured(self, proposal: Proposal, number: int) -> Trial:
        """A proposal with its exact sizes and latency, ruled out where it is beyond a limit."""
        run, limit = _plan.last_run(self.spec, self.record, proposal.candidate), self.spec.max_bytes
        trial = Trial(number, proposal.candidate, proposal.why, len(self.record.rungs) + 1)
        least = self.lab.least_bytes(run, self.spec.precisions)
        if limit is not None and least > limit:
            return dataclasses.replace(trial, ruled_out="size", least=least)
        smaller_than = self._must_be_smaller_than()
        if smaller_than is not None and least >= smaller_than:
            return dataclasses.replace(trial, ruled_out="larger", least=least)
        one = self.lab.measure(run, self.spec.precisions, limit)
        sizes = {name: size for name, size in one.bytes.items() if size is not None}
        small = [name for name, size in sizes.items() if limit is None or size <= limit]
        fast = [name for name in small if self.spec.max_ms is None or one.ms[name] <= self.spec.max_ms]
        useful = [name for name in fast if smaller_than is None or sizes[name] < smaller_than]
        reason = None if useful else "larger" if fast else "latency" if small else "size"
        ordered: Any = tuple(sorted(useful, key=lambda name: (sizes[name], name)))
        least = min(sizes.values(), default=least)
        return dataclasses.replace(trial, ruled_out=reason, least=least, measured=one, precisions=ordered)

    def _must_be_smaller_than(self) -> int | None:
        """Bytes of the smallest file that meets the accuracy limit, now and after some more looks: a larger one cannot
        win."""
        if not self.spec.limits_accuracy:
            return None
        best = _plan.best_look(self.spec, self.record.looks, compared(self.record.looks) + AHEAD)
        return None if best is None else best.bytes

    # --- rungs --------------------------------------------------------------------------------------------------------

    def advance(self, number: int) -> None:
        """After the runs of a rung: which candidates go on, or the next file to evaluate."""
        rungs = self.record.rungs[number]
        rung, trials = len(rungs) - 1, [self.record.trial(one) for one in rungs[-1]]
        runs = {trial.number: runs_of(self.spec, self.record, trial)[rung] for trial in trials}
        already = self.record.accounted == (number, rung)
        took = 0.0 if already else self.waited_for(list(runs.values()))
        for trial in trials:
            found = status(self.store, runs[trial.number])
            if found.result is None and trial.failed is None:
                reason = "its loss became NaN or infinite" if found.diverged else found.reason or found.state
                self.note("failed", trial=trial.number, reason=reason)
        trials = [trial for trial in map(self.record.trial, rungs[-1]) if trial.failed is None]
        standings = [_plan.standing(self.spec, self.store, self.record, trial, rung) for trial in trials]
        alive = [one for one in standings if one is not None]
        measured = [trial.measured for trial in trials if trial.measured]
        predicted = sum(self.steps_of(one, self.spec.rungs[rung]) for one in measured)
        if rung + 1 < len(self.spec.rungs) and not already:
            chosen = self._affordable(alive, rung + 1)
            self.note("rung", round=number, rung=rung + 1, trials=chosen, predicted=predicted, took=took)
            if not chosen and self.record.looks:
                self.note("closed", round=number)
            return  # if no file was evaluated so far, the best of this rung are, rather than none
        if not already:
            self.note("rung", round=number, rung=rung + 1, trials=[], predicted=predicted, took=took)
        best = [one.number for one in alive]
        if rung + 1 < len(self.spec.rungs):
            best = _plan.ranked(alive, _plan.target(self.spec, self.record))[:1]
        self._look([self.record.trial(one) for one in best], number)

    def _affordable(self, alive: Sequence[Standing], rung: int) -> list[int]:
        """The survivors of a rung, as far as the budget has room for the next one."""
        chosen: list[int] = []
        cost = 0.0
        smaller_than = self._must_be_smaller_than()
        useful = [one for one in alive if smaller_than is None or one.bytes < smaller_than]
        for number in _plan.survivors(useful, _plan.target(self.spec, self.record)):
            measured = self.record.trial(number).measured
            takes = self.seconds_of(measured, [self.spec.rungs[rung]]) if measured else 0.0
            if cost + takes > self.left(repetitions=False):
                break
            chosen, cost = [*chosen, number], cost + takes
        return chosen

    def _look(self, trials: Sequence[Trial], number: int) -> None:
        """Evaluate one more file of the trials that reached the last rung; close the round after the last."""
        for trial in trials:
            variant = self._next_file(trial)
            if variant is None or trial.measured is None:
                continue
            run = self.store.by_id(digest(_plan.trained(self.spec, self.record, trial)[-1]))
            if variant == MIXED:
                self._look_mixed(trial, run)
                return
            try:
                counts = self._counts(self.lab.right(run, variant))
            except SmallAlignError as error:
                self.note("failed", trial=trial.number, reason=str(error))
                continue
            size, ms = trial.measured.bytes[variant], trial.measured.ms[variant]
            self._note_look(trial, run, variant, size or 0, ms, counts)
            return
        self.note("closed", round=number)

    def _note_look(
        self, trial: Trial, run: Run, variant: str, size: int, ms: float, counts: Counts, files: int = 1
    ) -> None:
        known = {"trial": trial.number, "precision": variant, "run": run.id, "bytes": size, "ms": ms, "files": files}
        seconds = round(self.lab.now() - self.began, 3)
        self.note("look", **known, counts=dataclasses.asdict(counts), seconds=seconds)

    def _next_file(self, trial: Trial) -> str | None:
        """The precision in which a trial's file is evaluated next, the smallest first; `MIXED` where int8 misses what
        the same weights reach in float, before a larger precision. None where no more is worth a look."""
        limit = _plan.target(self.spec, self.record)
        looks = [look for look in self.record.looks if look.trial == trial.number]
        if limit is not None and any(look.counts.accuracy >= limit for look in looks):
            return None  # a larger precision of the same weights is no smaller answer
        if [look.precision in CALIBRATED for look in looks] == [True] and self._is_worth_mixing(trial, looks[0]):
            return MIXED
        if limit is None and looks:
            return None
        seen = {not look.precision.startswith("fp") for look in looks}  # fp32 and fp16 are equal up to rounding
        order = sorted(trial.precisions, key=lambda one: limit is None and one in CALIBRATED)
        return next((one for one in order if (one in CALIBRATED) not in seen), None)

    def _is_worth_mixing(self, trial: Trial, integers: Look) -> bool:
        """Whether int8 with layers in float may be what int8 is not (of enough accuracy, or more accurate), and fits
        into the rest of the budget: it takes about two files for each layer."""
        limit = _plan.target(self.spec, self.record)
        reached = _plan.standing(self.spec, self.store, self.record, trial, trial.rung)
        if trial.number in self.record.mixed or trial.measured is None or reached is None:
            return False
        takes = 2 * trial.measured.layers * self.record.look_seconds / LOOK_FILES
        better = reached.accuracy > integers.counts.accuracy if limit is None else reached.accuracy >= limit
        return better and takes <= self.left(repetitions=True)

    def _look_mixed(self, trial: Trial, run: Run) -> None:
        measured, smaller_than = trial.measured, self._must_be_smaller_than()
        assert measured is not None, "it has been trained"
        why = None
        try:
            found = self.lab.mixed(run)
        except SmallAlignError as error:
            why = str(error)
        else:
            floats = [measured.bytes[one] or 0 for one in trial.precisions if one not in CALIBRATED]
            if self.spec.max_bytes is not None and found.bytes > self.spec.max_bytes:
                why = f"{found.bytes:,} bytes"
            elif self.spec.max_ms is not None and found.ms > self.spec.max_ms:
                why = f"{found.ms:.3g} ms"
            elif found.bytes >= min([*floats, *([smaller_than] if smaller_than else []), found.bytes + 1]):
                why = f"{found.bytes:,} bytes, not smaller than another file"
            else:
                counts = self._counts(found.right)
                self._note_look(trial, run, found.variant, found.bytes, found.ms, counts, found.files)
        if why is not None:
            self.note("mixed", trial=trial.number, reason=why, seconds=round(self.lab.now() - self.began, 3))

    def _counts(self, right: NDArray[np.bool_]) -> Counts:
        teacher = read_array(self.folder / f"{TEACHER}.npy")
        beside = np.zeros_like(right) if teacher is None else teacher.astype(bool)
        return Counts(
            int((right & beside).sum()),
            int((right & ~beside).sum()),
            int((~right & beside).sum()),
            int((~right & ~beside).sum()),
        )

    def keep_teacher(self, run: Run) -> tuple[float, int]:
        """Keep which validation images the teacher gets right; returns its accuracy and their number."""
        right = self.lab.teacher_right(run)
        write_array(self.folder / f"{TEACHER}.npy", right)
        return float(right.mean()), len(right)

    # --- the end ------------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Choose the winner, and as many repetitions with other seeds as the budget has room for."""
        best = _plan.best_look(self.spec, self.record.looks)
        if best is None:
            self.note("winner", trial=None, precision=None, run=None, repetitions=[])
            return
        measured = self.record.trial(best.trial).measured
        takes = self.seconds_of(measured, self.spec.rungs) + self.record.look_seconds if measured else 0.0
        room, wanted = self.left(repetitions=False), self.spec.seeds - 1
        count = wanted if room == float("inf") or takes <= 0 else max(0, min(wanted, int(room // takes)))
        self.note(
            "winner",
            trial=best.trial,
            precision=best.precision,
            run=best.run,
            repetitions=list(range(1, count + 1)),
        )

    def repeated(self) -> list[dict[str, Any]]:
        """The winner's file with other seeds: seed, run and accuracy on validation images."""
        winner = self.record.winner or {}
        trial, found = self.record.trial(winner["trial"]), []
        every = [_plan.trained(self.spec, self.record, trial, one) for one in winner["repetitions"]]
        self.waited_for([run for runs in every for run in runs])
        for repetition, runs in zip(winner["repetitions"], every, strict=True):
            if any(status(self.store, run).result is None for run in runs):
                self.note("seed_failed", seed=repetition)
                continue
            run = self.store.by_id(digest(runs[-1]))
            try:
                right = self.lab.right(run, winner["precision"])
            except SmallAlignError:  # its layers do not keep the accuracy within the same loss
                self.note("seed_failed", seed=repetition)
                continue
            found.append({"seed": runs[0].seed, "run": run.id, "accuracy": float(right.mean())})
        return found


def _written(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "candidate": trial.candidate.as_dict(),
        "why": trial.why,
        "ruled_out": trial.ruled_out,
        "least": trial.least,
        "measured": trial.measured and dataclasses.asdict(trial.measured),
        "precisions": list(trial.precisions),
    }
