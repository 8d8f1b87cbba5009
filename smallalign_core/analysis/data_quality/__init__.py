"""Are the data clean enough for a small model? Duplicates, leaks into test, suspected labels, oddities, and decisions.

A report is about the data before any decision, so that every decision can be seen and taken back. Nothing is changed
here: what a person decides is a file (`decide`), which a run's spec names. Nothing here imports torch unless a teacher
or votes of runs are asked.
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
from smallalign_core.analysis.data_quality import _features as _asked, _labels, _near_duplicates, _outliers
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
from smallalign_core.spec import DataSpec, parse_data
from smallalign_core.system import extras, resumable
from smallalign_core.system.files import read_json, write_json
from smallalign_core.system.machine import set_sklearn_threads
from smallalign_core.system.resumable import Work

METHODS = ("auto", "votes", "teacher", "pixels")
VERSION = 2
"""Raised when a finding starts to mean something else; then what was kept no longer answers."""
SIDE = 16
"""Pixels a side that labels are judged by."""
FEW = 20
"""Training and validation images a class, below which automatic cleaning cost accuracy: see the README."""
DOUBTFUL = 0.95
"""Share of the labels that they do not suspect with which judges must agree, or they are weak on these images."""
MOST_HARD = 1_000
"""Hard examples that are told."""


def run_check(store: Store, spec: DataSpec, *, method: str = "auto", teacher: str | None = None) -> QualityReport:
    """Look at all images of `spec`, without its decisions, and keep what was found.

    Args:
        method: who judges labels: `votes` of finished runs that did not learn the image, a probe on a `teacher`'s
            features, or on `pixels`. `auto`: on a teacher's features if one is named that did not learn these images,
            else on pixels; where there are votes that foretell the labels better, these.
        teacher: a finished run or import whose features are used.

    Raises:
        BadData: as `data.load`.
        BadInput: there is no such method, or it cannot be.
        UnknownRun, Refused: the teacher is not there, or not finished.
    """
    return resumable.finish(QualityCheck(store, spec, method, teacher).report())


def automatic(images: ImageSet) -> Work[Decisions]:
    """What automatic cleaning would do, judged from these images alone: sure label issues and copies that are labelled
    in different ways are dropped, of other copies one is kept. At least one image of every class stays.
    """
    set_sklearn_threads()
    features = _flat((yield from resumable.part_of(_near_duplicates.thumbnails([images], SIDE), 0, 2)))
    classes = len(images.classes)
    pool = _labels.Pool(features, images.labels, images.ids, classes, len(images))
    judged = yield from resumable.part_of(_labels.out_of_sample(pool), 1, 2)
    suspects = _labels.suspects(images.labels, judged.probabilities)
    drop = {int(one) for one in images.ids[suspects.rows[suspects.sure]]}
    once: set[int] = set()
    for group in _near_duplicates.exact(images.ids):
        (once if len(np.unique(images.labels[group])) == 1 else drop).add(int(images.ids[group[0]]))
    own = judged.probabilities[np.arange(len(images)), images.labels]
    for label in range(classes):
        rows = np.flatnonzero(images.labels == label)
        if len(rows) and all(int(one) in drop for one in images.ids[rows]):
            drop.discard(int(images.ids[rows[own[rows].argmax()]]))
    made = dict.fromkeys(once - drop, Decision("once")) | dict.fromkeys(drop, Decision("drop"))
    return Decisions("", made)


class QualityCheck:
    """One look at a dataset: what it is about, what it is kept as, and the work.

    Raises:
        As `look`.
    """

    def __init__(self, store: Store, spec: DataSpec, method: str = "auto", teacher: str | None = None) -> None:
        if method not in METHODS:
            raise BadInput("labels are not judged in such a way", given=method, do=f"choose {', '.join(METHODS)}")
        if method == "teacher" and teacher is None:
            raise BadInput("no teacher was named", do="name a finished run or an import")
        self.store, self.method = store, method
        self.spec = spec.model_copy(update={"decisions": None, "fingerprint": None})
        self.splits: Splits = data.load(self.spec, store.data_cache)
        self.parts = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}
        self.learned = len(self.splits.train) + len(self.splits.val)
        self.teacher = store.finished(teacher) if teacher is not None and method in ("auto", "teacher") else None
        self.biased = self.teacher if self.teacher is not None and self._learned_by(self.teacher) else None
        if self.biased is not None and method == "auto":
            self.teacher = None
        self.voters = _asked.voters(store, self.spec) if method in ("auto", "votes") else []
        if method == "votes" and len(self.voters) < _asked.LEAST_VOTES:
            raise BadInput(
                f"votes need {_asked.LEAST_VOTES} finished runs that learned a part of these images from labels",
                given=f"{len(self.voters)} such runs",
                do="run a scaling study on these images, or choose another method",
            )
        if len(self.voters) < _asked.LEAST_VOTES:
            self.voters = []

    def _learned_by(self, teacher: Run) -> bool:
        """Whether a teacher learned from some of these images, as far as can be known."""
        known = None if teacher.imported is not None else _asked.learned(teacher, self.store)
        return known is not None and any(np.isin(part.ids, known).any() for part in self.parts.values())

    @property
    def key(self) -> str:
        """Digest of all that the report depends on."""
        teacher = self.teacher.id if self.teacher is not None else None
        facts = [
            *(VERSION, self.splits.fingerprint, self.spec.source, self.method == "votes"),
            *(teacher, self.biased and self.biased.id, [run.id for run in self.voters]),
        ]
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
        extras.require("cleanlab", _labels.NEEDS)  # now, not after minutes
        set_sklearn_threads()
        atlas, parts = _near_duplicates.Atlas(self.parts), list(self.parts.values())
        fine = yield from resumable.part_of(_near_duplicates.thumbnails(parts), 0, 5)
        pairs = yield from resumable.part_of(_near_duplicates.near_duplicates(fine, atlas.ids), 1, 5)
        duplicates, leaks = _near_duplicates.decided(atlas, pairs)
        features = yield from resumable.part_of(self._features(), 2, 5)
        pool = _labels.Pool(features, atlas.labels, atlas.ids, len(self.splits.classes), self.learned)
        judged = yield from resumable.part_of(_labels.out_of_sample(pool), 3, 5)
        votes = yield from resumable.part_of(_asked.votes(self.voters, self.store, parts), 4, 5)
        voted = self._trusted(votes, judged, atlas.labels)
        probabilities = np.where(voted[:, None], votes.probabilities, judged.probabilities)
        names, own = self.splits.classes, slice(self.learned)
        confused = _labels.confused(atlas.labels[own], probabilities[own])
        agreed = probabilities.argmax(1) == atlas.labels
        issues = _issues(atlas, probabilities, self.learned)
        suspected = sum(issue.split != "test" for issue in issues)
        disputed = int((~agreed[own]).sum()) - suspected  # judges name another class, and do not suspect the label
        odd = [
            *_outliers.pixels(fine),
            *(("odd_size", row, off) for row, off in self._odd_sizes()),
        ]
        found = QualityReport(
            source=self.spec.source,
            fingerprint=self.splits.fingerprint,
            classes=tuple(sorted(names, key=data.natural)),
            images=len(atlas.rows),
            counts={name: data.in_order(part.counts()) for name, part in self.parts.items()},
            method=self._method(int(voted.sum()), votes.runs, float(agreed[own].mean())),
            near=_near_duplicates.WORDS,
            unreadable=self.splits.unreadable,
            duplicates=duplicates,
            leaks=leaks,
            label_issues=issues,
            pairs=tuple(Pair((names[a], names[b]), share, round(share * self.learned)) for a, b, share in confused),
            outliers=tuple(
                Outlier(*_at(atlas, row), float(score), path=atlas.path(row))
                for row, score in zip(*_outliers.outliers(judged.distance), strict=True)
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
            return (yield from _asked.features(self.teacher, parts))
        return _flat((yield from _near_duplicates.thumbnails(parts, SIDE)))

    def _trusted(
        self, votes: _asked.Votes, judged: _labels.OutOfSample, labels: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whose label is judged by votes [N]: where there are enough, if these foretell labels better or were asked."""
        enough = votes.count >= _asked.LEAST_VOTES
        rows = np.flatnonzero(enough[: self.learned])
        both = (votes.probabilities, judged.probabilities)
        right, others = ((said[rows].argmax(1) == labels[rows]).sum() for said in both)
        return enough if right > others or self.method == "votes" else np.zeros_like(enough)

    def _odd_sizes(self) -> list[tuple[int, float]]:
        sizes = [part.sizes for part in self.parts.values() if part.sizes is not None]
        return _outliers.odd_sizes(np.concatenate(sizes)) if len(sizes) == len(self.parts) else []

    def _method(self, voted: int, runs: int, agreed: float) -> str:
        """How out-of-sample probabilities were made, in words."""
        of = f"features of {self.teacher.name}" if self.teacher is not None else "pixels"
        split = f"5-fold, the mean of {_labels.NEIGHBOURS} nearest neighbours and kernel logistic regression on {of}"
        if min(self.learned, _labels.MOST_FITTED) < self.learned:
            split += f", fitted to {_labels.MOST_FITTED:,} images at most"
        if voted:
            rest = sum(map(len, self.parts.values())) - voted
            split = f"votes of {runs} runs that did not learn the image" + (
                f"; {rest:,} images by {split}" if rest else ""
            )
        elif runs:
            split += f" (which foretell labels better than the votes of {runs} runs)"
        return f"{split}; agrees with {agreed:.1%} of the labels"

    def _warnings(self, agreed: float) -> Iterator[str]:
        """What to know before anything is dropped; `agreed`: with which share of the other labels judges agree."""
        each = self.learned / len(self.splits.classes)
        if each < FEW:
            yield (
                f"automatic cleaning would likely hurt: {each:.0f} images a class are too few to judge labels by "
                f"(below {FEW} it cost accuracy where it was measured); look at each image instead"
            )
        if agreed < DOUBTFUL:
            yield (
                f"automatic cleaning may hurt: the judges name another class for {1 - agreed:.0%} of the labels that "
                "they do not even suspect, so many that they suspect will be right; look before you drop, give a "
                "teacher, or let a scaling study measure what cleaning is worth"
            )
        if self.biased is not None:
            yield (
                f"{self.biased.name} learned from some of these images, and its features hide wrong labels that it "
                "memorised"
                + (": look with `pixels`, too" if self.teacher is not None else ", so pixels were used instead")
            )


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels [N, C, h, w] as features float32 [N, F], 0..1."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def _at(atlas: _near_duplicates.Atlas, row: int | np.integer[Any]) -> tuple[str, int, str]:
    place = atlas.place(row)
    return place.split, place.row, place.id


def _issues(atlas: _near_duplicates.Atlas, probabilities: NDArray[np.float64], learned: int) -> tuple[LabelIssue, ...]:
    """Suspected labels of images that may be learned from and of test images, each judged among its own."""
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


def _hard(atlas: _near_duplicates.Atlas, votes: _asked.Votes) -> tuple[Hard, ...]:
    """Images that the smallest students do not learn, hardest first."""
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
    spec = parse_data(source)
    question = json.dumps([str(store.root.resolve()), spec.model_dump(mode="json"), method, teacher])
    asked = _LOOKING.get(question) or QualityCheck(store, spec, method, teacher)
    if not start and asked.kept is None and question not in _LOOKING:
        return {"done": 0.0}
    # Kept while it goes on: its images are loaded once, however often somebody looks how far it is.
    _LOOKING[question] = asked
    while len(_LOOKING) > resumable.KEPT:
        _LOOKING.pop(next(iter(_LOOKING)))
    try:
        found, done = resumable.advance(f"quality {question} {asked.key}", asked.report, patience if start else 0.0)
    except BaseException:
        _LOOKING.pop(question, None)
        raise
    if found is None:
        return {"done": done}
    _LOOKING.pop(question, None)
    return {"done": 1.0, "report": found.as_dict(), "words": found.words()}


_LOOKING: dict[str, QualityCheck] = {}
"""Looks that are not finished, by what was asked."""
