"""Comparison of runs, for all entry points: comparison, robustness, latency, the report, the user's own image.

Used by the backend and by `compare` on the command line. Torch is imported on use.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smallalign_core import data
from smallalign_core.analysis import (
    compare as comparing,
    html_report as reporting,
    pareto as fronts,
    robustness as bearing,
)
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadData, BadInput, SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import augmentation_api
from smallalign_core.spec import parse_data
from smallalign_core.system import resumable


def compare(store: Store, teacher: str, students: list[str], split: str = "test") -> dict[str, Any]:
    """Compare teacher and students, cached: the first pair, and under `others` the other pairs."""
    runs = [store.finished(name) for name in (teacher, *students)]
    found = comparing.compare_once(runs[0], runs[1:], store, split=split)
    first, *others = (one | {"data": _images_of(runs[0], runs[1])} for one in found)
    return first | {"others": others}


def _images_of(teacher: Run, student: Run) -> dict[str, Any]:
    """The dataset of a comparison, that of the student, and the split that its teacher was trained on."""
    _, height, width = (student.result or {})["input_shape"]
    if teacher.imported is not None:
        learned = max(teacher.imported.size) if teacher.imported.size else None
    else:
        sides = [max((teacher.result or {})["input_shape"][1:]), teacher.spec.network.size]
        learned = min(side for side in sides if side)
    return {"source": student.data.source, "height": height, "width": width, "teacher_side": learned}


def evaluate(store: Store, name: str, source: str | None = None) -> dict[str, Any]:
    """Scores of a finished run or import, as `Scores.as_dict`, on its test images or on images of `source`.

    If a source has no test split, all its images are used, except the run's training and validation images if these are
    available; the run's own dataset at another path is split as before.

    Raises:
        BadInput: the images have other classes, or none are left.
    """
    from smallalign_core.metrics import logits_of, score
    from smallalign_core.runs import imported

    run = store.finished(name)
    images, notes, fingerprint = _asked_about(run, store, source)
    classes = run.imported.classes if run.imported is not None else tuple((run.result or {})["classes"])
    imported.classifier(run, images.classes)  # raises for unknown classes
    if source is not None and images.classes != classes:  # accuracy over all its classes, not only the dataset's
        there = np.array([classes.index(one) for one in images.classes], np.int64)
        images = replace(images, labels=there[images.labels], classes=classes)
    store.count_test_look(fingerprint, run.id, "evaluate")
    found = score(logits_of(imported.classifier(run, classes), images), images.labels, classes).as_dict()
    found["recall"] = data.in_order(found["recall"])
    looks = store.test_looks(fingerprint)
    return {"run": run.id, "data": source or run.data.source, **found, "test_looks": looks, "notes": list(notes)}


def _asked_about(run: Run, store: Store, source: str | None) -> tuple[ImageSet, tuple[str, ...], str]:
    """(images to evaluate on, notes, the fingerprint under which test-set evaluations are counted)."""
    if source is None:
        splits = data.load(run.data, store.data_cache)
        return splits.test, splits.notes, splits.fingerprint
    shape = (run.result or {}).get("input_shape")
    side = shape[1] if shape and shape[1] == shape[2] else None
    spec = parse_data({"source": source, "size": run.data.size or side})  # refused before any image is read
    with contextlib.suppress(BadData), data.found_at(source):
        splits = data.load(run.data, store.data_cache)
        return (
            splits.test,
            (*splits.notes, "This is the run's own dataset: its test images were used."),
            splits.fingerprint,
        )
    if data.brings_test(spec, store.data_cache):
        splits = data.load(spec, store.data_cache)
        return splits.test, splits.notes, splits.fingerprint
    images, notes = data.everything(spec, store.data_cache)
    with contextlib.suppress(SmallAlignError):
        own = data.load(run.data, store.data_cache)
        learned = np.concatenate([own.train.ids, own.val.ids])
        fresh = np.flatnonzero(~np.isin(images.ids, learned))
        if len(fresh) < len(images):
            notes = (*notes, f"{len(images) - len(fresh):,} images were excluded: the run was trained on them.")
            images = images.take(fresh)
    if not len(images):
        raise BadInput("the run was trained on all of these images", given=source, do="choose another dataset")
    return images, (*notes, f"All {len(images):,} images were used."), images.fingerprint


def robustness(store: Store, runs: list[str], split: str = "test", patience: float | None = None) -> dict[str, Any]:
    """Robustness of runs to corruptions, the teacher first: `done` (0..1), and at 1 `report`."""
    asked, splits = _side_by_side(store, runs)
    question = f"robustness {store.root.resolve()} {[run.id for run in asked]} {splits.fingerprint} {split}"
    found, done = resumable.advance(question, lambda: bearing.assess(asked, splits, split, store), patience)
    return {"done": done, "report": found and found.as_dict()}


def pareto_front(
    store: Store,
    runs: list[str],
    split: str = "val",
    limits: dict[str, Any] | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """Size, latency and accuracy of runs, the teacher first: `done` (0..1), and at 1 `report`."""
    asked, splits = _side_by_side(store, runs)
    within = fronts.Limits(**limits or {})
    question = f"frontier {store.root.resolve()} {[run.id for run in asked]} {splits.fingerprint} {split} {within}"
    found, done = resumable.advance(
        question, lambda: fronts.pareto_front(asked, splits, split, store, within), patience
    )
    return {"done": done, "report": found and found.as_dict()}


def report(
    store: Store,
    runs: list[str],
    split: str = "test",
    limits: dict[str, Any] | None = None,
    patience: float | None = None,
    to: str | None = None,
) -> dict[str, Any]:
    """A full report on runs as HTML and JSON, the teacher first: `done` (0..1), and at 1 `report` and `files`,
    written to the cache or to `to`."""
    asked, splits = _side_by_side(store, runs)
    within = fronts.Limits(**limits or {})
    digest_of = hashlib.sha256(" ".join([*(run.id for run in asked), split, str(within)]).encode()).hexdigest()[:12]
    kept = comparing.folder(store) / f"{asked[0].id}-{asked[1].id}-{digest_of}.html"
    file = reporting.target(Path(to)) if to else kept
    question = f"report {store.root.resolve()} {[run.id for run in asked]} {splits.fingerprint} {split} {within}"
    found, done = resumable.advance(question, lambda: reporting.gather(asked, splits, split, store, within), patience)
    files = reporting.save(found, splits, file) if found else []
    return {"done": done, "report": found, "files": [str(one) for one in files]}


def look(
    store: Store, runs: list[str], own: dict[str, Any], target: str | None = None, occluding: bool = False
) -> dict[str, Any]:
    """Predictions and saliency maps of runs for a user's image.

    Args:
        own: an image of the data's size, as `preview.encoded` gives it.
        target: the class to explain; default: each run's top-1 prediction.
        occluding: use occlusion maps for all runs, not only where Grad-CAM is not applicable.

    Returns:
        `answers`, one per run: `top`, the top-5 classes with probabilities; `target`; `method`, as text; `heat`: base64
        of uint8 [H, W], 255 for the strongest evidence, and `anything`: whether there is any.
    """
    from smallalign_core.analysis import saliency
    from smallalign_core.runs import imported

    asked, splits = _side_by_side(store, runs)
    image = augmentation_api.decoded(own, splits.shape)
    if target is not None and target not in splits.classes:
        raise BadInput("unknown class", given=target, do=f"choose one of {', '.join(splits.classes[:12])}")
    answers = []
    for run in asked:
        wanted = None if target is None else splits.classes.index(target)
        found = saliency.explain(imported.classifier(run, splits.classes), image, target=wanted, occluding=occluding)
        best = sorted(range(len(splits.classes)), key=lambda place: -found.probabilities[place])[:5]
        answers.append(
            {
                "top": [(splits.classes[place], float(found.probabilities[place])) for place in best],
                "target": splits.classes[found.target],
                "method": saliency.METHODS[found.method],
                "heat": base64.b64encode((255 * found.heat).round().astype("uint8").tobytes()).decode(),
                "anything": bool(found.heat.max() > 0),
            }
        )
    return {"answers": answers}


def _side_by_side(store: Store, names: list[str]) -> tuple[list[Run], Splits]:
    """Finished runs, the teacher first, and the first student's images."""
    runs = [store.finished(name) for name in names]
    if len(runs) < 2:
        raise BadInput("a comparison needs at least two runs", given=", ".join(names), do="add another run")
    return runs, data.load(runs[1].data, store.data_cache)
