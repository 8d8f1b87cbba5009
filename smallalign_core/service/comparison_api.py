"""Comparison of runs, for all entry points: comparison, robustness, latency, the report, the user's own image.

Used by the backend and by `compare` on the command line. Torch is imported on use.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.analysis import (
    compare as comparing,
    html_report as reporting,
    pareto as fronts,
    robustness as bearing,
)
from smallalign_core.analysis.compare import Compared, ComparedImages
from smallalign_core.analysis.pareto import ParetoFront
from smallalign_core.analysis.robustness import Robustness
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadData, BadInput, SmallAlignError
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import augmentation_api, requests
from smallalign_core.service.requests import ComparedRuns, Explained, Explanations, ReportFiles
from smallalign_core.service.wire import Progress
from smallalign_core.spec import parse_data
from smallalign_core.system import resumable


def compare(store: Store, request: requests.Compare) -> ComparedRuns:
    """Compare teacher and students, cached."""
    runs = [store.finished(name) for name in request.runs]
    found = comparing.compare_once(runs[0], runs[1:], store, split=request.split)
    about = _images_of(runs[0], runs[1])
    first, *others = (Compared(**vars(one), data=about) for one in found)
    return ComparedRuns(**vars(first), others=tuple(others))


def _images_of(teacher: Run, student: Run) -> ComparedImages:
    """The dataset of a comparison, that of the student, and the split that its teacher was trained on."""
    _, height, width = (student.result or {})["input_shape"]
    if teacher.imported is not None:
        learned = max(teacher.imported.size) if teacher.imported.size else None
    else:
        sides = [max((teacher.result or {})["input_shape"][1:]), teacher.spec.network.size]
        learned = min(side for side in sides if side)
    return ComparedImages(student.data.source, height, width, learned)


def evaluate(store: Store, name: str, source: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Scores of a finished run or import, as `Scores.as_dict`, on its test images or on images of `source`: a name, a
    path, or fields of a data spec.

    If a source has no test split, all its images are used, except the run's training and validation images if these are
    available; the run's own dataset at another path is split as before.

    Raises:
        BadInput: the images have other classes, or none are left.
    """
    from smallalign_core.metrics import logits_of, score
    from smallalign_core.runs import imported

    run = store.finished(name)
    fields = {"source": source} if isinstance(source, str) else source
    images, notes, fingerprint = _images_compared(run, store, fields)
    classes = run.imported.classes if run.imported is not None else tuple((run.result or {})["classes"])
    imported.classifier(run, images.classes)  # raises for unknown classes
    if fields is not None and images.classes != classes:  # accuracy over all its classes, not only the dataset's
        there = np.array([classes.index(one) for one in images.classes], np.int64)
        images = replace(images, labels=there[images.labels], classes=classes)
    store.count_test_look(fingerprint, run.id, "evaluate")
    found = score(logits_of(imported.classifier(run, classes), images), images.labels, classes).as_dict()
    found["recall"] = data.in_order(found["recall"])
    looks = store.test_looks(fingerprint)
    shown = fields["source"] if fields else run.data.source
    return {"run": run.id, "data": shown, **found, "test_looks": looks, "notes": list(notes)}


def _images_compared(run: Run, store: Store, fields: Mapping[str, Any] | None) -> tuple[ImageSet, tuple[str, ...], str]:
    """(images to evaluate on, notes, the fingerprint under which test-set evaluations are counted)."""
    if fields is None:
        splits = data.load(run.data, store.data_cache)
        return splits.test, splits.notes, splits.fingerprint
    shape = (run.result or {}).get("input_shape")
    side = shape[1] if shape and shape[1] == shape[2] else None
    spec = parse_data({"size": run.data.size or side, **fields})  # refused before any image is read
    spec = python_files.filled(spec, store.user)
    with contextlib.suppress(BadData), data.found_at(spec.source):
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
    fresh = np.flatnonzero(~np.isin(images.ids, _met(run, store)))
    if len(fresh) < len(images):
        notes = (*notes, f"{len(images) - len(fresh):,} images were excluded: the run was trained on them.")
        images = images.take(fresh)
    if not len(images):
        raise BadInput("the run was trained on all of these images", given=spec.source, do="choose another dataset")
    return images, (*notes, f"All {len(images):,} images were used."), images.fingerprint


def _met(run: Run, store: Store) -> NDArray[np.uint64]:
    """The ids of the images that a run was trained on or chosen by, unlabeled ones too, as far as they can be read."""
    for spec in (run.data if run.imported is not None else run.spec.data, run.data):
        with contextlib.suppress(SmallAlignError):
            own = data.load(spec, store.data_cache)
            return np.concatenate([own.learned.ids, own.val.ids])
    return np.zeros(0, np.uint64)


def robustness(store: Store, request: requests.AssessRobustness) -> Progress[Robustness]:
    """Robustness of runs to corruptions, the teacher first."""
    runs, splits = _side_by_side(store, request.runs)
    question = f"robustness {store.root.resolve()} {[run.id for run in runs]} {splits.fingerprint} {request.split}"
    begin = partial(bearing.assess, runs, splits, request.split, store)
    found, done = resumable.advance(question, begin, request.patience)
    return Progress(done, found)


def pareto_front(store: Store, request: requests.FindParetoFront) -> Progress[ParetoFront]:
    """Size, latency and accuracy of runs, the teacher first."""
    runs, splits = _side_by_side(store, request.runs)
    question = f"frontier {_question(store, runs, splits, request)}"
    begin = partial(fronts.pareto_front, runs, splits, request.split, store, request.limits)
    found, done = resumable.advance(question, begin, request.patience)
    return Progress(done, found)


def report(store: Store, request: requests.WriteReport) -> Progress[ReportFiles]:
    """A full report on runs as HTML and JSON, the teacher first."""
    runs, splits = _side_by_side(store, request.runs)
    facts = " ".join([*(run.id for run in runs), request.split, str(request.limits)])
    name = f"{runs[0].id}-{runs[1].id}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.html"
    file = reporting.target(Path(request.to)) if request.to else comparing.folder(store) / name
    question = f"report {_question(store, runs, splits, request)}"
    begin = partial(reporting.gather, runs, splits, request.split, store, request.limits)
    found, done = resumable.advance(question, begin, request.patience)
    files = None if found is None else ReportFiles(tuple(map(str, reporting.save(found, splits, file))))
    return Progress(done, files)


def _question(
    store: Store, runs: list[Run], splits: Splits, request: requests.FindParetoFront | requests.WriteReport
) -> str:
    ids = [run.id for run in runs]
    return f"{store.root.resolve()} {ids} {splits.fingerprint} {request.split} {request.limits}"


def look(store: Store, request: requests.Explain) -> Explanations:
    """Predictions and saliency maps of runs for a user's image."""
    from smallalign_core.analysis import saliency
    from smallalign_core.runs import imported

    runs, splits = _side_by_side(store, request.runs)
    classes, target = splits.classes, request.target
    image = augmentation_api.decoded(request.own, splits.shape)
    if target is not None and target not in classes:
        raise BadInput("unknown class", given=target, do=f"choose one of {', '.join(classes[:12])}")
    answers = []
    for run in runs:
        wanted = None if target is None else classes.index(target)
        found = saliency.explain(imported.classifier(run, classes), image, target=wanted, occluding=request.occluding)
        best = sorted(range(len(classes)), key=lambda place: -found.probabilities[place])[:5]
        answers.append(
            Explained(
                top=tuple((classes[place], float(found.probabilities[place])) for place in best),
                target=classes[found.target],
                method=saliency.METHODS[found.method],
                heat=base64.b64encode((255 * found.heat).round().astype("uint8").tobytes()).decode(),
                anything=bool(found.heat.max() > 0),
            )
        )
    return Explanations(tuple(answers))


def _side_by_side(store: Store, names: Sequence[str]) -> tuple[list[Run], Splits]:
    """Finished runs, the teacher first, and the first student's images."""
    runs = [store.finished(name) for name in names]
    if len(runs) < 2:
        raise BadInput("a comparison needs at least two runs", given=", ".join(names), do="add another run")
    return runs, data.load(runs[1].data, store.data_cache)
