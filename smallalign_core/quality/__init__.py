"""Are the data clean enough for a small model? Duplicates, leaks into test, suspected labels, oddities, and decisions.

A report is about the data before any decision, so that every decision can be seen and taken back. Nothing is changed
here: what a person decides is a file (`decide`), which a run's spec names. Nothing here imports torch unless a teacher
or votes of runs are asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data, steps
from smallalign_core.data import Decision, Decisions, ImageSet, Splits
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.files import read_json, write_json
from smallalign_core.quality import _labels, _oddities, _twins
from smallalign_core.quality._progress import (
    decide as decide,
    decisions as decisions,
    file_of as file_of,
    undo as undo,
    undoable as undoable,
)
from smallalign_core.quality._report import (
    Duplicates as Duplicates,
    Hard as Hard,
    LabelIssue as LabelIssue,
    LabelledPlace as LabelledPlace,
    Leak as Leak,
    Outlier as Outlier,
    Pair as Pair,
    PixelIssue as PixelIssue,
    Place as Place,
    QualityReport as QualityReport,
)
from smallalign_core.spec import DataSpec, parse_data
from smallalign_core.steps import Work
from smallalign_core.store import Store

METHODS = ("auto", "votes", "teacher", "pixels")
VERSION = 1
"""Raised when a finding starts to mean something else; then what was kept no longer answers."""
SIDE = 16
"""Pixels a side that labels are judged by."""


def look(store: Store, spec: DataSpec, *, method: str = "auto", teacher: str | None = None) -> QualityReport:
    """Look at all images of `spec`, without its decisions, and keep what was found.

    Args:
        method: who judges labels: `votes` of finished runs that did not learn the image, a probe on a `teacher`'s
            features, `pixels`, or the first of these that is possible (`auto`).
        teacher: a finished run or import whose features are used.

    Raises:
        BadData: as `data.load`.
        BadInput: there is no such method, or it cannot be.
        UnknownRun, Refused: the teacher is not there, or not finished.
    """
    return steps.finish(Looking(store, spec, method, teacher).report())


def automatic(images: ImageSet) -> Decisions:
    """What automatic cleaning would do, judged from these images alone: sure label issues and copies that are labelled
    in different ways are dropped, of other copies one is kept. At least one image of every class stays.
    """
    features = steps.finish(_twins.small([images], SIDE)).reshape(len(images), -1)
    classes = len(images.classes)
    judged = steps.finish(_labels.judged(features, images.labels, images.ids, classes, len(images)))
    suspects = _labels.suspects(images.labels, judged.probabilities)
    drop = {int(one) for one in images.ids[suspects.rows[suspects.sure]]}
    once: set[int] = set()
    for group in _twins.exact(images.ids):
        (once if len(np.unique(images.labels[group])) == 1 else drop).add(int(images.ids[group[0]]))
    own = judged.probabilities[np.arange(len(images)), images.labels]
    for label in range(classes):
        rows = np.flatnonzero(images.labels == label)
        if len(rows) and all(int(one) in drop for one in images.ids[rows]):
            drop.discard(int(images.ids[rows[own[rows].argmax()]]))
    made = dict.fromkeys(once - drop, Decision("once")) | dict.fromkeys(drop, Decision("drop"))
    return Decisions("", made)


class Looking:
    """One look at a dataset: what it is about, what it is kept as, and the work.

    Raises:
        As `look`.
    """

    def __init__(self, store: Store, spec: DataSpec, method: str = "auto", teacher: str | None = None) -> None:
        if method not in METHODS:
            raise BadInput("labels are not judged in such a way", given=method, do=f"choose {', '.join(METHODS)}")
        if method == "teacher" and teacher is None:
            raise BadInput("no teacher was named", do="name a finished run or an import")
        self.store = store
        self.spec = spec.model_copy(update={"decisions": None, "fingerprint": None})
        self.splits: Splits = data.load(self.spec, store.data_cache)
        self.method = "pixels" if method == "auto" else method

    @property
    def key(self) -> str:
        facts = [VERSION, self.splits.fingerprint, self.spec.source, self.method]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    @property
    def kept(self) -> QualityReport | None:
        """What was found before; None if nobody looked, or it is damaged."""
        with contextlib.suppress(SmallAlignError, KeyError, TypeError, AttributeError):
            found = read_json(self.store.root / "cache" / "quality" / f"{self.key}.json", missing=None)
            return QualityReport.from_dict(found)
        return None

    def report(self) -> Work[QualityReport]:
        """Look, in steps, unless it was done before."""
        if (before := self.kept) is not None:
            return before
        splits = self.splits
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        atlas, learned = _twins.Atlas(parts), len(splits.train) + len(splits.val)
        fine = yield from steps.part_of(_twins.small(list(parts.values())), 0, 3)
        pairs = yield from steps.part_of(_twins.near(fine, atlas.ids), 1, 3)
        duplicates, leaks = _twins.told(atlas, pairs)
        features = yield from self._features(fine)
        work = _labels.judged(features, atlas.labels, atlas.ids, len(splits.classes), learned)
        judged = yield from steps.part_of(work, 2, 3)
        issues = _issues(atlas, judged.probabilities, learned)
        names, count = splits.classes, len(atlas.rows)
        found = QualityReport(
            source=self.spec.source,
            fingerprint=splits.fingerprint,
            classes=names,
            images=count,
            counts={name: part.counts() for name, part in parts.items()},
            method=self._method(judged.probabilities[:learned], atlas.labels[:learned]),
            near=_twins.WORDS,
            unreadable=splits.unreadable,
            duplicates=duplicates,
            leaks=leaks,
            label_issues=issues,
            pairs=tuple(
                Pair((names[one], names[other]), share, round(share * learned))
                for one, other, share in _labels.confused(atlas.labels[:learned], judged.probabilities[:learned])
            ),
            outliers=tuple(
                Outlier(*_at(atlas, row), float(score))
                for row, score in zip(*_oddities.outliers(judged.distance), strict=True)
            ),
            pixels=tuple(PixelIssue(*_at(atlas, row), kind, value) for kind, row, value in _oddities.pixels(fine)),
        )
        file = self.store.root / "cache" / "quality" / f"{self.key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found.as_dict())
        return found

    def _features(self, fine: NDArray[np.float32]) -> Work[NDArray[np.float32]]:
        by = -(-max(fine.shape[2:]) // SIDE)
        high, wide = fine.shape[2] // by, fine.shape[3] // by
        blocks = fine[:, :, : high * by, : wide * by].reshape(*fine.shape[:2], high, by, wide, by)
        yield 0.66
        return blocks.mean((3, 5)).reshape(len(fine), -1)

    def _method(self, probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
        agreed = float((probabilities.argmax(1) == labels).mean())
        return (
            f"5-fold: the mean of {_labels.NEIGHBOURS} nearest neighbours and logistic regression on pixels, which "
            f"agree with {agreed:.1%} of the labels that they did not learn"
        )


def _at(atlas: _twins.Atlas, row: int) -> tuple[str, int, str]:
    place = atlas.place(row)
    return place.split, place.row, place.id


def _issues(atlas: _twins.Atlas, probabilities: NDArray[np.float64], learned: int) -> tuple[LabelIssue, ...]:
    """Suspected labels of images that may be learned from and of test images, each judged among its own."""
    found = []
    for begin, end in ((0, learned), (learned, len(atlas.rows))):
        suspects = _labels.suspects(atlas.labels[begin:end], probabilities[begin:end])
        for row, score, sure, suggested in zip(
            suspects.rows + begin, suspects.scores, suspects.sure, suspects.suggested, strict=True
        ):
            given = atlas.classes[atlas.labels[row]]
            found.append(LabelIssue(*_at(atlas, row), given, atlas.classes[suggested], float(score), bool(sure)))
    return tuple(sorted(found, key=lambda issue: issue.score))


# --- asked from the dashboard and the command line --------------------------------------------------------------------


def quality(
    store: Store,
    source: str | dict[str, Any],
    method: str = "auto",
    teacher: str | None = None,
    *,
    start: bool = True,
    patience: float | None = None,
) -> dict[str, Any]:
    """A report on a dataset.

    Args:
        start: whether to look if nobody did; without it, only what is kept comes back.
        patience: seconds after which an unfinished answer comes back; asking again goes on from there.

    Returns:
        `done`: the share that is done, and when that is all: `report` as `QualityReport.as_dict`, and `words`.
    """
    asked = Looking(store, parse_data(source), method, teacher)
    if not start and asked.kept is None:
        return {"done": 0.0}
    question = f"quality {store.root.resolve()} {asked.key}"
    found, done = steps.advance(question, asked.report, patience)
    if found is None:
        return {"done": done}
    return {"done": 1.0, "report": found.as_dict(), "words": found.words()}
