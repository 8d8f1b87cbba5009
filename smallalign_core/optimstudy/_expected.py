"""What an optimizer study will cost, before anything of it is trained: a few real steps of each optimizer."""

from __future__ import annotations

from pathlib import Path

from smallalign_core import data
from smallalign_core.execution import TOGETHER
from smallalign_core.machine import fastest, set_threads
from smallalign_core.optimstudy._finder import STEPS
from smallalign_core.optimstudy._plan import finder_key, finders, look, wanted
from smallalign_core.optimstudy._spec import OptimizerStudySpec, entries, epochs_of, gradients_a_step, run_spec
from smallalign_core.store import Store


def expected(spec: OptimizerStudySpec, store: Store, folder: Path, device: str = "auto") -> float:
    """Seconds that the missing runs, and searches for rates, of a resolved study take on this machine as it is loaded
    now, one group after the other.

    Steps and the teacher's answers, which a group shares, are counted; imports, scoring and trials beyond an edge are
    not.
    """
    from smallalign_core import teaching, train

    curves, known = finders(folder), [(run, look(store, run).settled) for run in wanted(spec, store, folder)]
    every = entries(spec)
    searched = [one for one in every if one.track == "tuned" and finder_key(spec, one.optimizer) not in curves]
    if not searched and all(settled for _, settled in known):
        return 0.0
    set_threads()
    where, splits = train.pick_device(device), data.load(spec.student.data, store.data_cache)
    together, total, planned = min(TOGETHER, len(every)), 0.0, 0.0
    for entry in every:
        run = run_spec(spec, entry.optimizer, 1, spec.student.seed)
        teacher = teaching.live([run], store, splits, where)
        training = train.Training([run], splits, teacher, device=where, starts=teaching.starts([run], store))
        step = fastest(training.advance)
        if teacher is not None:
            views, asked = training.views, teacher
            lesson = fastest(lambda: asked.lesson(views, 0))  # noqa: B023  # called at once
            step = max(step - lesson, 0.1 * step) + lesson / together
        runs = (spec.trials if entry.track == "tuned" else 0) + spec.seeds
        epochs = sum(runs * epochs_of(spec, entry.optimizer, budget) for budget in spec.budgets)
        total += step * (epochs * training.steps / run.epochs + STEPS * (entry in searched))
        planned += epochs * gradients_a_step(entry.optimizer)
    done = sum(run.epochs * gradients_a_step(run.optimizer) for run, settled in known if settled)
    return total * max(0.0, 1 - done / planned)
