"""Data quality: duplicates, train/test leakage, suspected label errors, outliers, and cleaning decisions.

A report is about the data before any decision, so that every decision can be reviewed and undone. Images are not
changed: decisions are stored in a file (`decide`), which a run's spec names. Torch is imported only for a teacher's
features or votes of runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.analysis.data_quality import _features as evidence, _labels, _near_duplicates, _outliers
from smallalign_core.analysis.data_quality._progress import (
    RIGHT as RIGHT,
    decide as decide,
    decisions as decisions,
    file_of as file_of,
    undo as undo,
    undoable as undoable,
)
from smallalign_core.analysis.data_quality._report import (
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
from smallalign_core.data import Decision, Decisions, ImageSet, Splits
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec
from smallalign_core.system import extras, resumable, typed
from smallalign_core.system.files import read_json, write_json
from smallalign_core.system.machine import set_sklearn_threads
from smallalign_core.system.resumable import Work

METHODS = ("auto", "teacher", "pixels")
VERSION = 3
"""Version of findings; increased when their meaning changes, which invalidates cached reports."""
SIDE = 16
"""Image side in pixels for label-error detection."""
FEW = 20
"""Training and validation images per class below which automatic cleaning lowered accuracy: see
docs/results/2026-11-data-quality.md."""
DOUBTFUL = 0.95
"""Min. agreement of out-of-sample predictions with unflagged labels; below it they are unreliable."""
MOST_HARD = 1_000
"""Max. hard examples in a report."""


def run_check(store: Store, spec: DataSpec, *, method: str = "auto", teacher: str | None = None) -> QualityReport:
    """Check all images of `spec`, without its decisions, and cache the report.

    Args:
        method: out-of-sample predictions for label errors: a probe on a `teacher`'s features or on `pixels`. `auto`:
            features of the given teacher if it was not trained on these images, else pixels; and hard examples, where
            there are runs that were trained on a part of the images.
        teacher: a finished run or import to take features from.

    Raises:
        BadData: as `data.load`.
        BadInput: unknown or unavailable method.
        UnknownRun, Refused: the teacher does not exist, or is not finished.
    """
    return resumable.finish(QualityCheck(store, spec, method, teacher).report())


def automatic(images: ImageSet) -> Work[Decisions]:
    """Automatic cleaning, based on these images alone: likely label errors and copies with conflicting
    labels are dropped, of other copies one is kept. At least one image of every class remains.
    """
    set_sklearn_threads()
    features = _flat((yield from resumable.part_of(_near_duplicates.thumbnails([images], SIDE), 0, 2)))
    classes = len(images.classes)
    pool = _labels.Pool(features, images.labels, images.ids, classes, len(images))
    crossed = yield from resumable.part_of(_labels.out_of_sample(pool), 1, 2)
    suspects = _labels.suspects(images.labels, crossed.probabilities)
    drop = {int(one) for one in images.ids[suspects.rows[suspects.sure]]}
    once: set[int] = set()
    for group in _near_duplicates.exact(images.ids):
        (once if len(np.unique(images.labels[group])) == 1 else drop).add(int(images.ids[group[0]]))
    own = crossed.probabilities[np.arange(len(images)), images.labels]
    for label in range(classes):
        rows = np.flatnonzero(images.labels == label)
        if len(rows) and all(int(one) in drop for one in images.ids[rows]):
            drop.discard(int(images.ids[rows[own[rows].argmax()]]))
    made = dict.fromkeys(once - drop, Decision("once")) | dict.fromkeys(drop, Decision("drop"))
    return Decisions("", made)


class QualityCheck:
    """One check of a dataset: its data, its cache key, and the work.

    Raises:
        As `look`.
    """

    def __init__(self, store: Store, spec: DataSpec, method: str = "auto", teacher: str | None = None) -> None:
        if method not in METHODS:
            raise BadInput("unknown method for label-error detection", given=method, do=f"choose {', '.join(METHODS)}")
        if method == "teacher" and teacher is None:
            raise BadInput("method `teacher` needs a teacher", do="give a finished run or an import")
        self.store, self.method = store, method
        self.spec = spec.model_copy(update={"decisions": None, "fingerprint": None})
        self.splits: Splits = data.load(self.spec, store.data_cache)
        self.parts = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}
        self.learned = len(self.splits.train) + len(self.splits.val)
        self.teacher = store.finished(teacher) if teacher is not None and method in ("auto", "teacher") else None
        self.biased = self.teacher if self.teacher is not None and self._learned_by(self.teacher) else None
        if self.biased is not None and method == "auto":
            self.teacher = None
        self.voters = evidence.voters(store, self.spec) if method == "auto" else []
        if len(self.voters) < evidence.LEAST_VOTES:
            self.voters = []

    def _learned_by(self, teacher: Run) -> bool:
        """Whether a teacher was trained on some of these images, as far as known."""
        known = None if teacher.imported is not None else evidence.learned(teacher, self.store)
        return known is not None and any(np.isin(part.ids, known).any() for part in self.parts.values())

    @property
    def key(self) -> str:
        """Digest of all that the report depends on."""
        teacher = self.teacher.id if self.teacher is not None else None
        facts = [
            *(VERSION, self.splits.fingerprint, self.spec.source),
            *(teacher, self.biased and self.biased.id, [run.id for run in self.voters]),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    @property
    def kept(self) -> QualityReport | None:
        """The cached report; None if missing or damaged."""
        with contextlib.suppress(SmallAlignError):
            found = read_json(self.store.root / "cache" / "quality" / f"{self.key}.json", missing=None)
            return typed.decode(QualityReport, found, BadInput, "the report is damaged", "delete it")
        return None

    def report(self) -> Work[QualityReport]:
        """The resumable check, unless cached."""
        if (before := self.kept) is not None:
            return before
        extras.require("cleanlab", _labels.NEEDS)  # fail early
        set_sklearn_threads()
        atlas, parts = _near_duplicates.Atlas(self.parts), list(self.parts.values())
        fine = yield from resumable.part_of(_near_duplicates.thumbnails(parts), 0, 5)
        pairs = yield from resumable.part_of(_near_duplicates.near_duplicates(fine, atlas.ids), 1, 5)
        duplicates, leaks = _near_duplicates.decided(atlas, pairs)
        features = yield from resumable.part_of(self._features(), 2, 5)
        pool = _labels.Pool(features, atlas.labels, atlas.ids, len(self.splits.classes), self.learned)
        crossed = yield from resumable.part_of(_labels.out_of_sample(pool), 3, 5)
        votes = yield from resumable.part_of(evidence.votes(self.voters, self.store, parts), 4, 5)
        probabilities = crossed.probabilities
        names, own = self.splits.classes, slice(self.learned)
        confused = _labels.confused(atlas.labels[own], probabilities[own])
        agreed = probabilities.argmax(1) == atlas.labels
        issues = _issues(atlas, probabilities, self.learned)
        suspected = sum(issue.split != "test" for issue in issues)
        disputed = int((~agreed[own]).sum()) - suspected  # predictions disagree with labels that are not flagged
        odd = [
            *_outliers.pixels(fine),
            *(("odd_size", row, off) for row, off in self._odd_sizes()),
        ]
        found = QualityReport(
            source=self.spec.source,
            fingerprint=self.splits.fingerprint,
            classes=names,
            images=len(atlas.rows),
            counts={name: part.counts() for name, part in self.parts.items()},
            method=self._method(float(agreed[own].mean())),
            near=_near_duplicates.WORDS,
            unreadable=self.splits.unreadable,
            duplicates=duplicates,
            leaks=leaks,
            label_issues=issues,
            pairs=tuple(Pair((names[a], names[b]), share, round(share * self.learned)) for a, b, share in confused),
            outliers=tuple(
                Outlier(*_at(atlas, row), float(score), path=atlas.path(row))
                for row, score in zip(*_outliers.outliers(crossed.distance), strict=True)
            ),
            pixels=tuple(PixelIssue(*_at(atlas, row), kind, value, path=atlas.path(row)) for kind, row, value in odd),
            hard=_hard(atlas, votes),
            warnings=(
                *self._warnings(1 - disputed / max(1, self.learned - suspected)),
                *([_near_duplicates.MORE] if len(pairs[0]) == _near_duplicates.MOST_PAIRS else []),
            ),
        )
        file = self.store.root / "cache" / "quality" / f"{self.key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found.as_dict())
        return found

    def _features(self) -> Work[NDArray[np.float32]]:
        parts = list(self.parts.values())
        if self.teacher is not None:
            return (yield from evidence.features(self.teacher, parts))
        return _flat((yield from _near_duplicates.thumbnails(parts, SIDE)))

    def _odd_sizes(self) -> list[tuple[int, float]]:
        sizes = [part.sizes for part in self.parts.values() if part.sizes is not None]
        return _outliers.odd_sizes(np.concatenate(sizes)) if len(sizes) == len(self.parts) else []

    def _method(self, agreed: float) -> str:
        """The method of out-of-sample probabilities, as text."""
        of = f"features of {self.teacher.name}" if self.teacher is not None else "pixels"
        split = f"5-fold, the mean of {_labels.NEIGHBOURS} nearest neighbours and kernel logistic regression on {of}"
        if min(self.learned, _labels.MOST_FITTED) < self.learned:
            split += f", fitted to {_labels.MOST_FITTED:,} images at most"
        return f"{split}; agrees with {agreed:.1%} of the labels"

    def _warnings(self, agreed: float) -> Iterator[str]:
        """Warnings before cleaning; `agreed`: share of unflagged labels that out-of-sample predictions agree with."""
        each = self.learned / len(self.splits.classes)
        if each < FEW:
            yield (
                f"automatic cleaning is likely to hurt: {each:.0f} images per class are too few to detect label errors "
                f"(below {FEW} it lowered accuracy in our measurements); review each image instead"
            )
        if agreed < DOUBTFUL:
            yield (
                f"automatic cleaning may hurt: out-of-sample predictions disagree with {1 - agreed:.0%} of unflagged "
                "labels, so many flags will be false positives; review before dropping, use a teacher's features, or "
                "measure the value of cleaning by a scaling study"
            )
        if self.biased is not None:
            yield (
                f"{self.biased.name} was trained on some of these images, so features may hide label errors that it "
                "memorised" + (": use `pixels`, too" if self.teacher is not None else ", so pixels were used instead")
            )


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels [N, C, h, w] as features float32 [N, F], 0..1."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def _at(atlas: _near_duplicates.Atlas, row: int | np.integer[Any]) -> tuple[str, int, str]:
    place = atlas.place(row)
    return place.split, place.row, place.id


def _issues(atlas: _near_duplicates.Atlas, probabilities: NDArray[np.float64], learned: int) -> tuple[LabelIssue, ...]:
    """Suspected label errors of training and validation images, and of test images, separately."""
    found = []
    for begin, end in ((0, learned), (learned, len(atlas.rows))):
        suspects = _labels.suspects(atlas.labels[begin:end], probabilities[begin:end])
        for row, score, sure, suggested in zip(
            suspects.rows + begin, suspects.scores, suspects.sure, suspects.suggested, strict=True
        ):
            given = atlas.classes[atlas.labels[row]]
            at, like = _at(atlas, row), atlas.classes[suggested]
            found.append(LabelIssue(*at, given, like, float(score), bool(sure), path=atlas.path(row)))
    return tuple(sorted(found, key=lambda issue: issue.score))


def _hard(atlas: _near_duplicates.Atlas, votes: evidence.Votes) -> tuple[Hard, ...]:
    """Images that small students misclassify, hardest first."""
    if not votes.runs:
        return ()
    smallest = votes.learned_by[votes.learned_by > 0].min(initial=np.iinfo(np.int64).max)
    rows = np.flatnonzero((votes.count > 0) & (votes.learned_by != smallest))
    size = np.where(votes.learned_by == 0, np.iinfo(np.int64).max, votes.learned_by)
    rows = rows[np.lexsort((votes.right[rows], -size[rows]))][:MOST_HARD]
    return tuple(
        Hard(
            *_at(atlas, row),
            atlas.classes[atlas.labels[row]],
            int(votes.learned_by[row]) or None,
            float(votes.right[row]),
            int(votes.count[row]),
            path=atlas.path(row),
        )
        for row in rows
    )


# --- interface of dashboard and command line --------------------------------------------------------------------------


def quality(
    store: Store,
    spec: DataSpec,
    method: str = "auto",
    teacher: str | None = None,
    *,
    start: bool = True,
    patience: float | None = None,
) -> tuple[QualityReport | None, float]:
    """(report, 1), or (None, progress in 0..1).

    Args:
        start: whether to run the check if there is no cached report.
        patience: seconds until an unfinished result is returned; the next call continues.
    """
    question = json.dumps([str(store.root.resolve()), spec.model_dump(mode="json"), method, teacher])
    check = _LOOKING.get(question) or QualityCheck(store, spec, method, teacher)
    if not start and check.kept is None and question not in _LOOKING:
        return None, 0.0
    # Kept while it is in progress: its images are loaded once, regardless of the number of polls.
    _LOOKING[question] = check
    while len(_LOOKING) > resumable.KEPT:
        _LOOKING.pop(next(iter(_LOOKING)))
    try:
        found, done = resumable.advance(f"quality {question} {check.key}", check.report, patience if start else 0.0)
    except BaseException:
        _LOOKING.pop(question, None)
        raise
    if found is not None:
        _LOOKING.pop(question, None)
    return found, done


_LOOKING: dict[str, QualityCheck] = {}
"""Unfinished checks, by request."""
