"""Cost estimate of a scaling study, from a few real steps of each size and the teacher."""

from __future__ import annotations

from pathlib import Path

from smallalign_core import data
from smallalign_core.runs.store import Store
from smallalign_core.studies.run_status import id_of, status_of
from smallalign_core.studies.scaling._plan import (
    NEEDS,
    Cell,
    cells,
    data_of,
    epochs_for,
    key_of,
    ladder,
    run_of,
    seen,
)
from smallalign_core.studies.scaling._spec import UNLABELED, ScalingStudySpec
from smallalign_core.system.machine import fastest, set_threads

FORWARD = 1 / 3
"""Cost of evaluating a batch, relative to a training step."""


def expected(spec: ScalingStudySpec, store: Store, folder: Path, device: str = "auto") -> float:
    """Estimated seconds for the missing runs of a resolved study on this machine under its current load, sequentially.

    Training steps, evaluation, and one teacher forward pass for each shared view are counted; imports, decoding and the
    additional cost of an optimizer or a policy are not.
    """
    from smallalign_core.training import loop, teacher_loading

    set_threads()
    where = loop.pick_device(device)
    missing = [cell for cell in cells(spec, store, folder) if not _done(spec, store, cell)]
    step: dict[int, float] = {}
    shared_step = 0.0
    splits = None
    for width in sorted({cell.width for cell in missing}):
        taught = not step and next((one for one in spec.recipes if "distil" in spec.adds(one)), None)
        cell = Cell(taught or "baseline", width, spec.most, 0)
        run = run_of(spec, cell, {})
        if run is None:  # the baseline's images are always known
            continue
        splits = splits or data.load(run.data, store.data_cache)
        teacher = teacher_loading.load_teacher([run], store, splits, where) if taught else None
        training = loop.Training([run], splits, teacher, device=where)
        step[width] = fastest(training.advance)
        if teacher is not None:
            views, lesson = training.views, teacher
            shared_step = fastest(lambda: lesson.batch_with_targets(views, 0))  # noqa: B023  # called at once
            step[width] = max(step[width] - shared_step, 0.1 * step[width])
    if splits is None:
        return 0.0
    batch, total, shared = spec.student.batch, 0.0, set()
    for cell in missing:
        scored = 2 * (len(splits.val) + len(splits.test)) + epochs_for(spec, cell) * len(splits.val)
        total += step[cell.width] * (seen(spec, cell) + FORWARD * scored) / batch
        adds = spec.adds(cell.recipe)
        if "distil" in adds:
            shared.add((key_of(cell, spec), cell.recipe == UNLABELED, "augment" in adds, seen(spec, cell)))
    total += sum(shared_step * images / batch for *_, images in shared)
    if spec.budget is not None:  # only the pilot is known yet
        total *= max(1.0, spec.budget / len(cells(spec, store, folder)))
    return total + _ladder(spec, store, total / max(1, len(missing)))


def _ladder(spec: ScalingStudySpec, store: Store, usual: float) -> float:
    """Seconds for the teachers with fewer epochs, scaled from the teacher itself, and for their students."""
    rungs = ladder(spec, store)
    if not rungs or not spec.teacher:
        return 0.0
    own = store.run(spec.teacher)
    took = float((own.result or {}).get("seconds", 0.0)) / own.spec.epochs
    return sum(epochs * took + spec.replicates * usual for epochs, _ in rungs)


def _done(spec: ScalingStudySpec, store: Store, cell: Cell) -> bool:
    if data_of(spec, cell, {}) is None:
        return False
    run = run_of(spec, cell, {})
    return run is not None and status_of(store, id_of(run), NEEDS).result is not None
