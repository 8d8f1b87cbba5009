"""Cost estimate of an optimizer study, from a few real steps with the reference."""

from __future__ import annotations

from pathlib import Path

from smallalign_core import data
from smallalign_core.runs.store import Store
from smallalign_core.studies.optimizers._finder import STEPS
from smallalign_core.studies.optimizers._plan import finder_key, finders, run_status, wanted
from smallalign_core.studies.optimizers._spec import OptimizerStudySpec, entries, gradients_a_step, run_spec
from smallalign_core.system.machine import fastest, set_threads
from smallalign_core.training.runner import TOGETHER


def expected(spec: OptimizerStudySpec, store: Store, folder: Path, device: str = "auto") -> float:
    """Estimated seconds for the missing runs and LR range tests of a resolved study on this machine under its current
    load, one group after the other.

    Gradients and teacher logits, which a group shares, are counted; imports, evaluation, additional trials at an edge
    and the optimizer's own computation are not.
    """
    from smallalign_core.training import loop, teacher_loading

    curves, known = finders(folder), [(run, run_status(store, run).settled) for run in wanted(spec, store, folder)]
    every = entries(spec)
    searched = [one for one in every if one.track == "tuned" and finder_key(spec, one.optimizer) not in curves]
    if not searched and all(settled for _, settled in known):
        return 0.0
    set_threads()
    where, splits = loop.pick_device(device), data.load(spec.student.data, store.data_cache)
    run = run_spec(spec, spec.reference, 1, spec.student.seed)
    teacher = teacher_loading.load_teacher([run], store, splits, where)
    training = loop.Training([run], splits, teacher, device=where, starts=teacher_loading.starts([run], store))
    step = fastest(training.advance)
    if teacher is not None:
        shared = fastest(lambda: teacher.batch_with_targets(training.views, 0))
        step = max(step - shared, 0.1 * step) + shared / min(TOGETHER, len(every))
    runs = sum((spec.trials if one.track == "tuned" else 0) + spec.seeds for one in every)
    planned = spec.student.epochs * sum(spec.budgets) * runs  # budgets are equal in gradients
    done = sum(run.epochs * gradients_a_step(run.optimizer) for run, settled in known if settled)
    gradients = max(0, planned - done) * training.steps / run.epochs
    gradient = step / gradients_a_step(spec.reference)
    return gradient * (gradients + STEPS * sum(gradients_a_step(one.optimizer) for one in searched))
