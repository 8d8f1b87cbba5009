"""Teacher and student side by side: agreement, who is right where, and the images that they disagree on."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data, foreign
from smallalign_core.data import ImageSet
from smallalign_core.errors import SmallAlignError
from smallalign_core.evaluate import Scores, divergence, log_softmax, logits_of, score, wilson
from smallalign_core.files import read_json, write_json
from smallalign_core.store import Run, Store

SHOWN = 300


@dataclass(frozen=True)
class Disagreement:
    """One image that the two classifiers call differently.

    Attributes:
        row: its position in the split.
        label: the true class.
        teacher, student: the three likeliest classes with their probabilities.
        kl: KL(teacher || student) in nats.
    """

    row: int
    label: str
    teacher: list[tuple[str, float]]
    student: list[tuple[str, float]]
    kl: float


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
        split: `test` or `val`.
        agreement: share of images with the same top-1, with its 95 % interval.
        both_right, teacher_only, student_only, both_wrong: counts.
        mcnemar_p: exact two-sided McNemar test that both are right equally often (McNemar, 1947).
        kl: mean KL(teacher || student) in nats.
        inherited: images that both get wrong in the same way.
        teacher_confusion, student_confusion: [true class][predicted class] counts.
        disagreements: sorted by KL, largest first; at most 300 of `disagreement_count`.
    """

    teacher_id: str
    student_id: str
    split: str
    images: int
    classes: tuple[str, ...]
    agreement: float
    agreement_low: float
    agreement_high: float
    both_right: int
    teacher_only: int
    student_only: int
    both_wrong: int
    inherited: int
    mcnemar_p: float
    kl: float
    teacher: Scores
    student: Scores
    teacher_confusion: list[list[int]]
    student_confusion: list[list[int]]
    disagreement_count: int
    disagreements: list[Disagreement]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(teacher: Run, student: Run, store: Store, *, split: str = "test", device: str = "cpu") -> Comparison:
    """Compare two finished runs or imports on the student's data; classes are matched by name.

    Raises:
        BadInput: one of them does not know these classes.
        BadModel, BadData: weights or images cannot be read.
    """
    splits = data.load(student.data, store.data_cache)
    models = [foreign.classifier(run, splits.classes).to(device) for run in (teacher, student)]
    images: ImageSet = getattr(splits, split)
    if split == "test":
        store.count_test_look(splits.fingerprint, student.id, "comparison")
    logits = [logits_of(model, images, device=device) for model in models]
    return of_logits(logits[0], logits[1], images, split=split, ids=(teacher.id, student.id))


def of_logits(
    teacher: NDArray[np.float32],
    student: NDArray[np.float32],
    images: ImageSet,
    *,
    split: str = "test",
    ids: tuple[str, str] = ("", ""),
) -> Comparison:
    """The comparison of two sets of logits [N, C] on the same images."""
    from scipy.stats import binomtest

    labels, classes = images.labels, images.classes
    log_q, log_p = log_softmax(teacher), log_softmax(student)
    kl = divergence(teacher, student)
    said_t, said_s = teacher.argmax(1), student.argmax(1)
    right_t, right_s = said_t == labels, said_s == labels
    agree = said_t == said_s
    low, high = wilson(int(agree.sum()), len(labels))
    only_t, only_s = int((right_t & ~right_s).sum()), int((right_s & ~right_t).sum())
    rows = np.flatnonzero(~agree)
    rows = rows[np.argsort(-kl[rows], kind="stable")]
    return Comparison(
        teacher_id=ids[0],
        student_id=ids[1],
        split=split,
        images=len(labels),
        classes=classes,
        agreement=float(agree.mean()),
        agreement_low=low,
        agreement_high=high,
        both_right=int((right_t & right_s).sum()),
        teacher_only=only_t,
        student_only=only_s,
        both_wrong=int((~right_t & ~right_s).sum()),
        inherited=int((~right_t & agree).sum()),
        mcnemar_p=float(binomtest(only_t, only_t + only_s).pvalue) if only_t + only_s else 1.0,
        kl=float(kl.mean()),
        teacher=score(teacher, labels, classes),
        student=score(student, labels, classes),
        teacher_confusion=confusion(said_t, labels, len(classes)),
        student_confusion=confusion(said_s, labels, len(classes)),
        disagreement_count=len(rows),
        disagreements=[
            Disagreement(
                int(row), classes[labels[row]], _top3(log_q[row], classes), _top3(log_p[row], classes), float(kl[row])
            )
            for row in rows[:SHOWN]
        ],
    )


def confusion(said: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[list[int]]:
    """[true class][predicted class] counts."""
    table = np.bincount(labels * classes + said, minlength=classes * classes).reshape(classes, classes)
    return [[int(count) for count in row] for row in table]


def _top3(log_p: NDArray[np.float64], classes: tuple[str, ...]) -> list[tuple[str, float]]:
    best = np.argsort(-log_p, kind="stable")[:3]
    return [(classes[index], float(np.exp(log_p[index]))) for index in best]


def kept(teacher: Run, student: Run, store: Store, split: str) -> Path:
    """Where a comparison is kept: under both ids and the beginnings of both weights' digests."""
    names = [f"{run.id}.{str((run.result or {}).get('weights_sha256'))[:8]}" for run in (teacher, student)]
    return store.root / "cache" / "compare" / f"{'-'.join(names)}-{split}.json"


def compare_once(teacher: Run, student: Run, store: Store, *, split: str = "test") -> dict[str, Any]:
    """As `compare`, as plain values; made once for the same weights."""
    file = kept(teacher, student, store, split)
    with contextlib.suppress(SmallAlignError):  # damaged: made again
        known: dict[str, Any] | None = read_json(file, missing=None)
        if known:
            return known
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, compare(teacher, student, store, split=split).as_dict())
    found: dict[str, Any] = read_json(file)
    return found
