"""The data-quality report, as dataclasses, as plain values and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from smallalign_core.data import Decision, Decisions


@dataclass(frozen=True)
class Place:
    """One image: its split, its row in that split of the undecided data, its id as 16 hexadecimal digits, and its file
    below the source; None where all came in one array."""

    split: str
    row: int
    id: str
    path: str | None = field(default=None, kw_only=True)

    @property
    def where(self) -> str:
        """The image's file, or its split and row."""
        return self.path or f"{self.split} {self.row}"


@dataclass(frozen=True)
class LabelledPlace(Place):
    """The same with its label."""

    label: str


@dataclass(frozen=True)
class Duplicates:
    """A group of duplicates.
    Attributes:
            kind: `exact`: equal source pixels; `near`: equal but for noise, compression, brightness or a shift.
            distance: the largest between two that were found to belong together: 1 - their correlation; 0 for exact
            ones. same_label: whether all labels are equal.
            images: two or more, of any splits; training images first.
    """

    kind: Literal["exact", "near"]
    distance: float
    same_label: bool
    images: tuple[Place, ...]


@dataclass(frozen=True)
class Leak:
    """A test image that duplicates a training or validation image: its score is biased."""

    kind: Literal["exact", "near"]
    distance: float
    same_label: bool
    train: LabelledPlace
    test: LabelledPlace


@dataclass(frozen=True)
class LabelIssue(Place):
    """A suspected label error.
    Attributes:
            given, suggested: class names.
            score: out-of-sample predicted probability of the given label, 0..1.
            sure: a likely error: a stricter rule agrees, so automatic cleaning would drop it; the others are possible
                errors and need review.
    """

    given: str
    suggested: str
    score: float
    sure: bool


@dataclass(frozen=True)
class Pair:
    """Two classes with confused labels.

    Attributes:
        classes: two names.
        share: estimated share of all images that are one of the two and labelled as the other.
        images: the estimated number.
    """

    classes: tuple[str, str]
    share: float
    images: int


@dataclass(frozen=True)
class Outlier(Place):
    """An image far from all others; `score`: its distance to its nearest neighbours, relative to the median."""

    score: float


@dataclass(frozen=True)
class PixelIssue(Place):
    """An image that is `dark`, `bright`, `blank` or of an `odd_size`.

    `value`: mean brightness 0..1; for `blank` the standard deviation of brightness; for `odd_size` the side of its
    file (root of its area) or its width / height, whichever is further off, over the usual one.
    """

    kind: str
    value: float


@dataclass(frozen=True)
class Hard(Place):
    """An image's accuracy in runs that were not trained on it.

    Attributes:
        label: its class.
        learned_by: parameters of the smallest student with at least half of its votes correct; None if none.
        right: share of correct votes.
        votes: number of votes.
    """

    label: str
    learned_by: int | None
    right: float
    votes: int


@dataclass(frozen=True)
class QualityReport:
    """The data-quality report of a dataset.

    Attributes:
        source, fingerprint: the data before any decision.
        classes, images, counts: names; number of images; and number per class and split.
        method: method of out-of-sample probabilities, as text.
        near: criterion of near duplicates, as text.
        unreadable: files that could not be decoded.
        label_issues: worst first.
        hard: only if votes of runs exist; hardest first.
        warnings: to be read before cleaning.
    """

    source: str
    fingerprint: str
    classes: tuple[str, ...]
    images: int
    counts: dict[str, dict[str, int]]
    method: str
    near: str
    unreadable: tuple[str, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    leaks: tuple[Leak, ...] = ()
    label_issues: tuple[LabelIssue, ...] = ()
    pairs: tuple[Pair, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    pixels: tuple[PixelIssue, ...] = ()
    hard: tuple[Hard, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def decisions(self) -> Decisions:
        """The decisions of automatic cleaning: training and validation images with a likely label error,
        with equal copies of another label, or with copies in test, are dropped; of other equal copies one is kept.
        Near duplicates need review.
        """
        drop = {int(issue.id, 16) for issue in self.label_issues if issue.sure and issue.split != "test"}
        drop |= {int(leak.train.id, 16) for leak in self.leaks if leak.kind == "exact"}
        places = [*self.label_issues, *(leak.train for leak in self.leaks)]
        places += [image for group in self.duplicates for image in group.images if image.split != "test"]
        paths = {int(place.id, 16): place.path for place in reversed(places)}
        once: set[int] = set()
        for group in self.duplicates:
            copies = [int(image.id, 16) for image in group.images if image.split != "test"]
            if group.kind == "exact" and len(copies) > 1:
                (once if group.same_label else drop).add(copies[0])
        made = {one: Decision("once", path=paths.get(one)) for one in once - drop}
        made |= {one: Decision("drop", path=paths.get(one)) for one in drop}
        return Decisions(self.source, made)

    def words(self) -> str:
        """The report as text, one line per finding."""
        return "\n".join(_lines(self))


def _lines(report: QualityReport) -> list[str]:
    classes = len(report.classes)
    lines = [f"{report.source}: {report.images:,} images, {classes} classes"]
    lines += [f"  {split}: {sum(tally.values()):,} images{_balance(tally)}" for split, tally in report.counts.items()]
    lines.append(f"unreadable files: {len(report.unreadable):,}{_some(report.unreadable)}")
    for kind in ("exact", "near"):
        groups = [one for one in report.duplicates if one.kind == kind]
        spare = sum(len(one.images) - 1 for one in groups)
        torn = sum(not one.same_label for one in groups)
        lines.append(
            f"{kind} duplicates: {len(groups):,} groups, {spare:,} redundant images"
            + (f", {torn:,} groups with conflicting labels" if torn else "")
        )
        lines += [f"  {_listed(one.images)}" for one in groups[:3]]
    tests = {leak.test.row for leak in report.leaks}
    lines.append(
        f"train/test leakage: {len(tests):,} test images are also in train or validation"
        + (f" ({sum(leak.kind == 'near' for leak in report.leaks):,} pairs are near duplicates)" if tests else "")
    )
    for leak in report.leaks[:3]:
        lines.append(f"  {leak.test.where} {'equals' if leak.kind == 'exact' else 'nearly equals'} {leak.train.where}")
    sure = sum(issue.sure for issue in report.label_issues)
    lines.append(f"suspected label errors: {len(report.label_issues):,}, {sure:,} of them likely ({report.method})")
    for issue in report.label_issues[:5]:
        lines.append(f"  {issue.where}: label {issue.given}, predicted {issue.suggested}")
    for pair in report.pairs[:3]:
        lines.append(f"  confused: {pair.classes[0]} and {pair.classes[1]}, about {pair.images:,} images")
    lines.append(f"outliers: {len(report.outliers):,}{_first(report.outliers)}")
    kinds = Counter(one.kind for one in report.pixels)
    odd = [
        f"{count:,} {kind}{_first([one for one in report.pixels if one.kind == kind])}" for kind, count in kinds.items()
    ]
    lines.append("exposure and size outliers: " + (", ".join(odd) or "none"))
    if report.hard:
        never = sum(one.learned_by is None for one in report.hard)
        lines.append(
            f"hard examples: {never:,} of {len(report.hard):,} images with votes are misclassified by all students"
        )
    return lines + [f"warning: {warning}" for warning in report.warnings]


def _balance(tally: dict[str, int]) -> str:
    least, most = min(tally, key=lambda name: tally[name]), max(tally, key=lambda name: tally[name])
    if tally[least] == tally[most]:
        return f", {tally[most]:,} of each class"
    return f", from {tally[least]:,} of {least} to {tally[most]:,} of {most}"


def _listed(places: Sequence[Place]) -> str:
    more = f" and {len(places) - 4:,} more" if len(places) > 4 else ""
    return ", ".join(place.where for place in places[:4]) + more


def _first(places: Sequence[Place]) -> str:
    return _some(tuple(place.where for place in places))


def _some(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
