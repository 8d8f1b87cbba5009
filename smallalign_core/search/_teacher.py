"""The teacher of a search: the one that was named, the best suitable one of the store, or a new one."""

from __future__ import annotations

from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.search._laboratory import Laboratory
from smallalign_core.search._space import policy
from smallalign_core.search._spec import NO_TEACHER, SearchSpec, base_of
from smallalign_core.spec import RunSpec
from smallalign_core.training import teacher_evidence
from smallalign_core.training.teacher_evidence import Evidence

SHARE = 0.25
"""Most of a budget of time that a new teacher may take."""
WIDTHS = (64, 48, 32, 24, 16)
DEPTH = 2
"""Of a new teacher: a residual network of one of these widths."""
MOST = 12
"""Models of the store that are evaluated as teachers."""
SLACK = 1.3
"""A run takes about this many times what its steps do."""


def choose(spec: SearchSpec, store: Store, lab: Laboratory) -> dict[str, Any]:
    """What a search records about its teacher: `run` (its id), `spec` (of a new run); both None without. And why."""
    if spec.teacher == NO_TEACHER:
        return {"run": None, "spec": None, "why": "none: labels only, as requested"}
    if spec.teacher is not None:
        return {"run": spec.teacher, "spec": None, "why": "the one that was named"}
    if (known := best_of(spec, store, lab)) is not None:
        run, evidence = known
        why = f"the best suitable model of the store: {evidence.accuracy:.1%} on {evidence.images:,} validation images"
        return {"run": run.id, "spec": None, "why": why}
    return _new(spec, lab)


def best_of(spec: SearchSpec, store: Store, lab: Laboratory) -> tuple[Run, Evidence] | None:
    """The most accurate suitable model on validation images; of those within about a point, the largest.

    Only models of exactly these classes that were not distilled themselves, as where a teacher is preselected.
    """
    found: list[tuple[Run, Evidence]] = []
    for run in _candidates(store, lab)[:MOST]:
        try:
            evidence = lab.evidence(_distilled(spec, run))
        except (SmallAlignError, OSError, KeyError, TypeError, ValueError):  # unsuitable, or damaged
            continue
        found.append((run, evidence))
    return max(
        found, key=lambda one: (round(one[1].accuracy, 2), (one[0].result or {}).get("params") or 0), default=None
    )


def _distilled(spec: SearchSpec, teacher: Run) -> RunSpec:
    """A run of the search that is distilled, with what is chosen for such a teacher left open."""
    return RunSpec.model_validate(base_of(spec).model_dump() | {"teacher": teacher.id, "loss": None})


def _candidates(store: Store, lab: Laboratory) -> list[Run]:
    found = []
    for run in [*store.zoo(), *store.runs()]:
        try:
            result = run.result or {}
            classes = run.imported.classes if run.imported is not None else tuple(result.get("classes", ()))
            own = run.imported is not None or not run.spec.teacher
            if run.finished and own and tuple(classes) == lab.classes:
                found.append((run, float(result["val"]["accuracy"])))
        except (SmallAlignError, KeyError, TypeError, ValueError):
            continue
    found.sort(key=lambda one: -one[1])
    return [run for run, _ in found]


def _new(spec: SearchSpec, lab: Laboratory) -> dict[str, Any]:
    """The largest teacher that a share of the budget trains. Only the smallest is measured, since a step of the largest
    can take seconds: with the same depth and input, the others take as many times longer as their weights are more."""
    steps = spec.rungs[-1] * lab.train_images / (spec.batch or 1)
    seconds = spec.budget.seconds

    def of_width(width: int) -> RunSpec:
        fields = base_of(spec).model_dump() | {
            "network": {"kind": "resnet", "width": width, "depth": DEPTH},
            "augment": policy("light", spec.side),
            "epochs": spec.rungs[-1],
        }
        return RunSpec.model_validate(fields)

    smallest = 0.0 if seconds is None else lab.step(of_width(WIDTHS[-1]))
    for width in WIDTHS if seconds is not None else (WIDTHS[2],):
        run = of_width(width)
        takes = SLACK * steps * smallest * (width / WIDTHS[-1]) ** 2
        if seconds is None or takes <= SHARE * seconds:
            how = "" if seconds is None else f", about {takes:.0f} s of the budget"
            return {"run": None, "spec": run.model_dump(mode="json"), "why": f"a new resnet {width}x{DEPTH}{how}"}
    return {
        "run": None,
        "spec": None,
        "why": f"none: the store has none for these images, and {SHARE:.0%} of the budget trains none",
    }


def lessons(spec: SearchSpec, store: Store, lab: Laboratory, teacher: str) -> dict[str, Any]:
    """What a search records once its teacher is finished: what candidates learn from, and its own accuracy.

    Raises:
        SmallAlignError: it is not usable for these images.
    """
    run = store.finished(teacher)
    plain = _distilled(spec, run)
    taught = plain.model_copy(update={"loss": teacher_evidence.chosen(plain.loss, lab.evidence(plain))})
    return {
        "taught": {"teacher": run.id, "loss": taught.loss.model_dump(mode="json")},
        "teacher": run.name,
        "lesson": lab.lesson(taught),
    }
