"""Network outputs for data quality: a teacher's features, and votes of finished runs that were not trained on an image.

Torch is imported on use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.data import ImageSet
from smallalign_core.errors import SmallAlignError, WorkFailed
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec
from smallalign_core.system.machine import set_threads
from smallalign_core.system.resumable import Work

CHUNK = 500
LEAST_VOTES = 8
"""Min. number of runs for hard examples."""
MOST_RUNS = 64
"""Max. number of voting runs, evenly spread over their sizes."""
MOST_FEATURES = 512
"""Wider features are randomly projected to this dimension, which preserves distances (Johnson & Lindenstrauss,
1984)."""


@dataclass(frozen=True)
class Votes:
    """Votes of runs on images that they were not trained on.

    Attributes:
        count: int64 [N].
        right: share of an image's votes for its label, float64 [N]; 0 without votes.
        learned_by: parameters of the smallest students with at least half of the votes correct, int64 [N]; 0 for none.
        runs: number of runs.
    """

    count: NDArray[np.int64]
    right: NDArray[np.float64]
    learned_by: NDArray[np.int64]
    runs: int


def features(run: Run, parts: Sequence[ImageSet]) -> Work[NDArray[np.float32]]:
    """The input of a run's last layer, float32 [N, F], for all images of some splits; an import's logits."""
    import torch

    from smallalign_core import networks
    from smallalign_core.runs import imported
    from smallalign_core.system.batching import in_batches

    set_threads()
    teacher = imported.classifier(run)
    caught: list[Any] = []
    if run.imported is None:
        networks.head(teacher).register_forward_pre_hook(lambda _, given: caught.append(given[0].flatten(1)))  # type: ignore[arg-type]
    found, total = [], sum(map(len, parts))
    for images in parts:
        for start in range(0, len(images), CHUNK):
            caught.clear()
            logits = in_batches(teacher, torch.from_numpy(np.ascontiguousarray(images.images[start : start + CHUNK])))
            given = torch.cat(caught)[-len(logits) :] if caught else logits  # without those of the memory measurement
            found.append(_narrow(given.float().numpy()))
            yield min(1.0, CHUNK * len(found) / total)
    features = np.concatenate(found)
    if not np.isfinite(features).all():
        raise WorkFailed("the teacher's features are not all finite", given=run.name, do="choose another teacher")
    return features


def _narrow(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.shape[1] <= MOST_FEATURES:
        return values
    drawn = np.random.default_rng(0).standard_normal((values.shape[1], MOST_FEATURES), np.float32)
    return values @ drawn / np.float32(np.sqrt(MOST_FEATURES))


def learned(run: Run, store: Store) -> NDArray[np.uint64] | None:
    """The ids of a run's training images; None if they cannot be read any more."""
    with contextlib.suppress(SmallAlignError):
        return data.load(run.data, store.data_cache).train.ids
    return None


def voters(store: Store, spec: DataSpec) -> list[Run]:
    """Finished runs that may have votes on the images of `spec`, smallest first: trained on a part of the same images
    and labels, without a teacher (which may have been trained on the others)."""
    found = []
    for run in store.runs():
        with contextlib.suppress(OSError):  # no result: not finished
            known = _learner(str(run.folder), (run.folder / "result.json").stat().st_mtime_ns)
            if known is not None and _partly(known[0], spec):
                found.append((known[1], run.id, run))
    found.sort(key=lambda one: one[:2])
    if len(found) > MOST_RUNS:
        found = [found[row] for row in np.linspace(0, len(found) - 1, MOST_RUNS).round().astype(int)]
    return [run for *_, run in found]


@lru_cache(maxsize=4096)
def _learner(folder: str, _changed: int) -> tuple[DataSpec, int] | None:
    """(data, number of parameters) of a finished run without a teacher; None for any other. Cached, since pages call
    it at every rerun."""
    with contextlib.suppress(SmallAlignError, KeyError, TypeError):
        run = Run(Path(folder))
        if run.finished and run.imported is None and not run.spec.teachers and run.spec.start is None:
            return run.spec.data, int((run.result or {})["params"])
    return None


def _partly(theirs: DataSpec, spec: DataSpec) -> bool:
    """Whether `theirs` lacks some of the images of `spec`, and has the same labels."""
    left_out = theirs.images is not None and (spec.images is None or theirs.images < spec.images)
    try:
        return left_out and _same(theirs) == _same(spec)
    except SmallAlignError:  # a path that may not be read
        return False


def _same(spec: DataSpec) -> tuple[Any, ...]:
    """The fields that must be equal for the same images, labels, and held-out images."""
    return (
        data.absolute(spec.source),
        spec.columns,
        spec.levels,
        spec.size,
        spec.validation,
        spec.test,
        spec.noise,
        spec.draw if spec.noise else 0,
    )


def votes(runs: Sequence[Run], store: Store, parts: Sequence[ImageSet]) -> Work[Votes]:
    """Collect votes of runs on all images of some splits that they were not trained on."""
    ids = np.concatenate([part.ids for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    count, right = np.zeros(len(ids), np.int64), np.zeros(len(ids))
    by_size: dict[int, NDArray[np.int64]] = {}
    seen: dict[str, NDArray[np.uint64] | None] = {}
    predicted = 0
    for place, run in enumerate(runs):
        name = run.data.model_dump_json()
        if name not in seen:
            seen[name] = learned(run, store)
        known = seen[name]
        if known is None:
            continue
        predicted += 1
        fresh = np.flatnonzero(~np.isin(ids, known))
        done = 0
        for rows, logits in _answers(run, parts, fresh):
            if not np.isfinite(logits).all():
                continue  # a run with non-finite outputs does not vote on these
            hit = logits.argmax(1) == labels[rows]
            count[rows] += 1
            right[rows] += hit
            tally = by_size.setdefault(int((run.result or {})["params"]), np.zeros((2, len(ids)), np.int64))
            tally[0, rows] += 1
            tally[1, rows] += hit
            done += len(rows)
            yield (place + done / max(1, len(fresh))) / len(runs)
    least = np.zeros(len(ids), np.int64)
    for size, (voted, named) in sorted(by_size.items(), reverse=True):
        least = np.where((voted > 0) & (2 * named >= voted), size, least)
    return Votes(count, right / np.maximum(count, 1), least, predicted)


def _answers(
    run: Run, parts: Sequence[ImageSet], rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(rows of the joined splits, logits) of some images, in batches."""
    import torch

    from smallalign_core.runs import imported
    from smallalign_core.system.batching import in_batches

    set_threads()
    classifier = imported.classifier(run, parts[0].classes)
    begin = 0
    for images in parts:
        own = rows[(rows >= begin) & (rows < begin + len(images))]
        for start in range(0, len(own), CHUNK):
            chunk = own[start : start + CHUNK]
            pixels = torch.from_numpy(np.ascontiguousarray(images.images[chunk - begin]))
            yield chunk, in_batches(classifier, pixels).float().numpy()
        begin += len(images)
