"""Two sets of logits on the same images: metrics, and the case of each image. NumPy only, so that pages can use it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import ImageSet
from smallalign_core.metrics import (
    Bin,
    Scores,
    divergence,
    log_softmax,
    mover,
    paired_difference,
    reliability,
    score,
    wilson,
)

SHOWN = 100
"""Max. cases of each kind in a comparison; the cached logits have all."""

KINDS = {
    "inherited": "both wrong, same prediction",
    "regressions": "teacher correct, student wrong",
    "fixes": "student correct, teacher wrong",
    "differently": "both wrong, different predictions",
}
"""The kinds of images that are not correct for both."""

DIFFER = ("regressions", "fixes", "differently")

TOP = 3
Side = Literal["teacher", "student"]
SIDES: tuple[Side, Side] = ("teacher", "student")
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """One image and both predictions.
    Attributes:
            row: its position in the split.
            label: the true class.
            teacher, student: the top-3 classes with their probabilities.
            kl: KL(teacher || student) in nats.
    """

    row: int
    label: str
    teacher: list[tuple[str, float]]
    student: list[tuple[str, float]]
    kl: float


@dataclass(frozen=True)
class RecallChange:
    """One class: recall of both, and the student's minus the teacher's with its 95% interval.

    The interval is that of paired shares (Bonett & Price, 2012). Shares are None for a class without images.
    """

    name: str
    images: int
    teacher: float | None
    student: float | None
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """One classifier before and after dividing its logits by a temperature fitted on validation.

    Attributes:
        scores: after fitting; those before are the comparison's.
        before, after: reliability diagrams.
    """

    temperature: float
    scores: Scores
    before: list[Bin]
    after: list[Bin]


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
        split: `test` or `val`.
        agreement: share of images with the same top-1, with its 95% interval (Wilson, 1927).
        both_right, teacher_only, student_only, both_wrong: counts.
        mcnemar_p: exact two-sided McNemar test that both are right equally often (McNemar, 1947).
        accuracy_change: the student's accuracy minus the teacher's, with the 95% interval of paired shares.
        macro_recall_change: the student's macro recall minus the teacher's, over the classes that have images, with the
            95% interval of a mean of those in `recall_change` (MOVER; Zou & Donner, 2008).
        kl: mean KL(teacher || student) in nats.
        teacher_confusion, student_confusion: [true class][predicted class] counts.
        counts: how many images are of each of `KINDS`; `inherited` is that of the same name.
        cases: of each kind those with the largest KL, largest first; at most 100.
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
    accuracy_change: float
    accuracy_change_low: float
    accuracy_change_high: float
    macro_recall_change: float
    macro_recall_change_low: float
    macro_recall_change_high: float
    kl: float
    teacher: Scores
    student: Scores
    teacher_calibration: Calibration
    student_calibration: Calibration
    recall_change: list[RecallChange]
    teacher_confusion: list[list[int]]
    student_confusion: list[list[int]]
    counts: dict[str, int]
    cases: dict[str, list[Case]]

    @property
    def sides(self) -> tuple[tuple[Side, Scores, Calibration], ...]:
        """Both classifiers: name, scores before temperature scaling, calibration."""
        return ("teacher", self.teacher, self.teacher_calibration), ("student", self.student, self.student_calibration)

    def confusion(self, side: Side) -> list[list[int]]:
        """One of the confusion matrices."""
        return self.teacher_confusion if side == "teacher" else self.student_confusion


@dataclass(frozen=True)
class ComparedImages:
    """The dataset of a comparison.

    Attributes:
        height, width: in pixels.
        teacher_side: longest side of the images that the teacher was trained on, None if unknown.
    """

    source: str
    height: int
    width: int
    teacher_side: int | None


@dataclass(frozen=True)
class Compared(Comparison):
    """A comparison, and the student's dataset, on whose images it is."""

    data: ComparedImages


@dataclass(frozen=True, eq=False)
class Pair:
    """The logits of two classifiers on the same images.

    Args:
        teacher, student: logits float32 [N, C].
        labels: int64 [N], positions in `classes`.
    """

    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    labels: Rows
    classes: tuple[str, ...]

    @cached_property
    def predicted(self) -> tuple[Rows, Rows]:
        """The predicted classes of both: int64 [N]."""
        return self.teacher.argmax(1), self.student.argmax(1)

    @cached_property
    def kl(self) -> NDArray[np.float64]:
        """KL(teacher || student) of each image, in nats."""
        return divergence(self.teacher, self.student)

    @cached_property
    def order(self) -> Rows:
        """All rows, the largest KL first."""
        return np.argsort(-self.kl, kind="stable")

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """Bool [N]: images of one of `KINDS`."""
        teacher, student = (said == self.labels for said in self.predicted)
        same = self.predicted[0] == self.predicted[1]
        return {
            "inherited": ~teacher & same,
            "regressions": teacher & ~student,
            "fixes": student & ~teacher,
            "differently": ~teacher & ~student & ~same,
        }[kind]

    def rows(
        self, *, kinds: tuple[str, ...] = (), label: int | None = None, cell: tuple[str, int, int] | None = None
    ) -> Rows:
        """The images that match all filters, the largest KL first.

        Args:
            kinds: of any of these kinds; default: all images.
            label: of this true class.
            cell: one of a confusion matrix: (`teacher` or `student`, true class, predicted class).
        """
        kept = np.ones(len(self.labels), bool)
        if kinds:
            kept &= np.logical_or.reduce([self.of_kind(kind) for kind in kinds])
        if label is not None:
            kept &= self.labels == label
        if cell is not None:
            who, true, predicted = cell
            kept &= (self.labels == true) & (self.predicted[who == "student"] == predicted)
        return self.order[kept[self.order]]

    def case(self, row: int) -> Case:
        """Both predictions for the image at `row`."""
        teacher, student = (self._top(logits[row : row + 1]) for logits in (self.teacher, self.student))
        return Case(int(row), self.classes[self.labels[row]], teacher, student, float(self.kl[row]))

    def _top(self, logits: NDArray[np.float32]) -> list[tuple[str, float]]:
        log_p = log_softmax(logits)[0]
        best = np.argsort(-log_p, kind="stable")[:TOP]
        return [(self.classes[place], float(np.exp(log_p[place]))) for place in best]


def of_logits(
    teacher: NDArray[np.float32],
    student: NDArray[np.float32],
    images: ImageSet,
    *,
    split: str = "test",
    ids: tuple[str, str] = ("", ""),
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> Comparison:
    """The comparison of two sets of logits [N, C] on the same images.

    Args:
        temperatures: fitted elsewhere, on validation.
    """
    from scipy.stats import binomtest

    labels, classes = images.labels, images.classes
    both = Pair(teacher, student, labels, classes)
    said_t, said_s = both.predicted
    right_t, right_s = said_t == labels, said_s == labels
    agree = int((said_t == said_s).sum())
    counts = {kind: int(both.of_kind(kind).sum()) for kind in KINDS}
    only_t, only_s = counts["regressions"], counts["fixes"]
    low, high = wilson(agree, len(labels))
    change = paired_difference(only_t, only_s, len(labels))
    changes = _recall_changes(right_t, right_s, images)
    there = np.array([(one.change, one.low, one.high) for one in changes if one.images]).T
    macro = mover(*there)
    return Comparison(
        teacher_id=ids[0],
        student_id=ids[1],
        split=split,
        images=len(labels),
        classes=classes,
        agreement=agree / len(labels),
        agreement_low=low,
        agreement_high=high,
        both_right=int((right_t & right_s).sum()),
        teacher_only=only_t,
        student_only=only_s,
        both_wrong=counts["inherited"] + counts["differently"],
        inherited=counts["inherited"],
        mcnemar_p=float(binomtest(only_t, only_t + only_s).pvalue) if only_t + only_s else 1.0,
        accuracy_change=change[0],
        accuracy_change_low=change[1],
        accuracy_change_high=change[2],
        macro_recall_change=macro[0],
        macro_recall_change_low=max(-1.0, macro[1]),
        macro_recall_change_high=min(1.0, macro[2]),
        kl=float(both.kl.mean()),
        teacher=score(teacher, labels, classes),
        student=score(student, labels, classes),
        teacher_calibration=_calibration(teacher, images, temperatures[0]),
        student_calibration=_calibration(student, images, temperatures[1]),
        recall_change=changes,
        teacher_confusion=confusion(said_t, labels, len(classes)),
        student_confusion=confusion(said_s, labels, len(classes)),
        counts=counts,
        cases={kind: [both.case(row) for row in both.rows(kinds=(kind,))[:SHOWN]] for kind in KINDS},
    )


def _calibration(logits: NDArray[np.float32], images: ImageSet, temperature: float) -> Calibration:
    return Calibration(
        temperature,
        score(logits, images.labels, images.classes, temperature),
        reliability(logits, images.labels),
        reliability(logits, images.labels, temperature),
    )


def _recall_changes(teacher: NDArray[np.bool_], student: NDArray[np.bool_], images: ImageSet) -> list[RecallChange]:
    """The recall change of each class; the bool arguments [N] are the correct images of each."""
    classes = len(images.classes)
    total, found_t, found_s, only_t, only_s = (
        np.bincount(images.labels[which], minlength=classes)
        for which in (slice(None), teacher, student, teacher & ~student, student & ~teacher)
    )
    return [
        RecallChange(
            name,
            int(total[at]),
            float(found_t[at] / total[at]) if total[at] else None,
            float(found_s[at] / total[at]) if total[at] else None,
            *paired_difference(int(only_t[at]), int(only_s[at]), int(total[at])),
        )
        for at, name in enumerate(images.classes)
    ]


def confusion(said: Rows, labels: Rows, classes: int) -> list[list[int]]:
    """[true class][predicted class] counts."""
    table = np.bincount(labels * classes + said, minlength=classes * classes).reshape(classes, classes)
    return [[int(count) for count in row] for row in table]
