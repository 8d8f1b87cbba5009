"""The learning rate range test (Smith, 2017), for several optimizers in lockstep, through the one training loop."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from smallalign_core import data
from smallalign_core.errors import Refused
from smallalign_core.runs.store import Store
from smallalign_core.spec import Constant
from smallalign_core.studies.optimizers._parts import Finder
from smallalign_core.studies.optimizers._plan import FINDERS, finder_key, finders, finders_json
from smallalign_core.studies.optimizers._spec import Entry, OptimizerStudySpec, entries, run_spec, tuning_seed
from smallalign_core.system.files import write
from smallalign_core.system.machine import set_threads
from smallalign_core.training import teacher_loading
from smallalign_core.training.runner import TOGETHER

STEPS = 100
SMOOTHED = 0.9
"""Decay of the running mean loss."""
TOO_MUCH = 4.0
"""A curve ends at this multiple of its lowest mean loss."""
DOWN, UP, HIGHEST = 1e-2, 1e4, 10.0
"""Range of a curve relative to the library's default rate; and its absolute upper end."""


def prepare(spec: OptimizerStudySpec, store: Store, folder: Path, device: str, stop: threading.Event) -> bool:
    """Measure and store a curve for each tuned optimizer of one lockstep, which `wanted` needs besides runs. Returns
    whether others are left.

    Curves of the same student and optimizer in other studies of this store are reused.

    Raises:
        SmallAlignError: the data or the teacher cannot be used.
    """
    tuned = [entry for entry in entries(spec) if entry.track == "tuned"]
    keys = {finder_key(spec, entry.optimizer): entry for entry in tuned}
    if keys.keys() <= finders(folder).keys():
        return False
    with FileLock(folder / "lock", timeout=600):
        known = {key: one for other in sorted(folder.parent.glob("*")) for key, one in finders(other).items()}
        known |= finders(folder)
        missing = [entry for key, entry in keys.items() if key not in known]
        some = missing[:TOGETHER]
        curves = measure(spec, some, store, device, stop) if some else []
        known |= {finder_key(spec, entry.optimizer): one for entry, one in zip(some, curves, strict=True)}
        write(folder / FINDERS, finders_json({key: known[key] for key in keys if key in known}))
        return len(missing) > len(some)


def swept(step: int, default: float) -> float:
    """The learning rate at a step of the curve, for a library's default."""
    low, high = default * DOWN, min(default * UP, HIGHEST)
    return float(low * (high / low) ** (step / (STEPS - 1)))


def measure(
    spec: OptimizerStudySpec, some: Sequence[Entry], store: Store, device: str, stop: threading.Event
) -> list[Finder]:
    """The curves of tuned optimizers: the loss of the actual student on its actual views.

    Raises:
        Refused: `stop` was set.
    """
    from smallalign_core.training import loop

    set_threads()
    where = loop.pick_device(device)
    splits = data.load(spec.student.data, store.data_cache)
    level = {"schedule": Constant(warmup=0), "epochs": spec.student.epochs}
    specs = [run_spec(spec, entry.optimizer, 1, tuning_seed(spec)).model_copy(update=level) for entry in some]
    taught, starts = teacher_loading.load_teacher(specs, store, splits, where), teacher_loading.starts(specs, store)
    training = loop.Training(specs, splits, taught, device=where, starts=starts)
    rates: list[list[float]] = [[] for _ in some]
    losses: list[list[float]] = [[] for _ in some]
    stopped, shared = [False] * len(some), [0.0] * len(some)
    for step in range(STEPS):
        if stop.is_set():
            raise Refused("the LR range test was stopped", do="repeat the command to continue")
        for index, student in enumerate(training.students):
            student.rate = swept(step, some[index].default_rate or 1.0)
            if student.learns:
                rates[index].append(student.rate)
        training.advance()
        for index, student in enumerate(training.students):
            if not student.learns:
                continue
            loss, student.sums, student.recent = float(student.sums["total"]), {}, []
            mean = SMOOTHED * losses[index][-1] + (1 - SMOOTHED) * loss if losses[index] else loss
            losses[index].append(mean)
            shared[index] = training.shared.seconds
            if not math.isfinite(mean) or mean > TOO_MUCH * min(losses[index]):
                stopped[index] = True
                training.drop(index)
        if not any(student.learns for student in training.students):
            break
    return [
        _read(rates[index], losses[index], stopped[index], student.clock.seconds + shared[index])
        for index, student in enumerate(training.students)
    ]


def _read(rates: list[float], losses: list[float], stopped: bool, seconds: float) -> Finder:
    """The rates proposed by a curve: its steepest descent, and its minimum."""
    import numpy as np

    if not math.isfinite(losses[-1]):
        rates, losses = rates[:-1], losses[:-1]
    if len(losses) < 3:
        lowest = rates[0] if rates else 1e-6
        return Finder(tuple(rates), tuple(losses), lowest, lowest, stopped, seconds)
    falling = np.gradient(np.asarray(losses), np.log(np.asarray(rates)))
    lowest = int(np.argmin(losses))
    steepest = int(np.argmin(falling[: lowest + 1]))
    return Finder(tuple(rates), tuple(losses), rates[steepest], rates[lowest], stopped, seconds)
