"""What was found about a dataset, as frozen values, as plain values and in words."""

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
        """The image as people find it."""
        return self.path or f"{self.split} {self.row}"


@dataclass(frozen=True)
class LabelledPlace(Place):
    """The same with the class that it is labelled as."""

    label: str


@dataclass(frozen=True)
class Duplicates:
    """Images that show the same thing.

    Attributes:
        kind: `exact`: equal source pixels; `near`: equal but for noise, compression, brightness or a shift.
        distance: the largest between two that were found to belong together: 1 - their correlation; 0 for exact ones.
        same_label: whether all are labelled alike.
        images: two or more, of any splits; training images first.
    """

    kind: Literal["exact", "near"]
    distance: float
    same_label: bool
    images: tuple[Place, ...]


@dataclass(frozen=True)
class Leak:
    """A test image that a training or validation image shows as well: its score is not evidence."""

    kind: Literal["exact", "near"]
    distance: float
    same_label: bool
    train: LabelledPlace
    test: LabelledPlace


@dataclass(frozen=True)
class LabelIssue(Place):
    """A label that is probably wrong.

    Attributes:
        given, suggested: class names.
        score: the probability that the given label gets from models that did not learn this image, 0..1; low is bad.
        sure: whether a stricter rule agrees, so that automatic cleaning would drop it; the others want a look.
    """

    given: str
    suggested: str
    score: float
    sure: bool


@dataclass(frozen=True)
class Pair:
    """Two classes that labels confuse.

    Attributes:
        classes: two names.
        share: estimated share of all images that are one of the two and labelled as the other.
        images: about how many that are.
    """

    classes: tuple[str, str]
    share: float
    images: int


@dataclass(frozen=True)
class Outlier(Place):
    """An image far from all others; `score`: its distance to its nearest ones over what is usual."""

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
    """How an image fares in runs that did not learn it.

    Attributes:
        label: its class.
        learned_by: parameters of the smallest student that names it right in at least half of its votes; None if none.
        right: share of all votes that are right.
        votes: how many there are.
    """

    label: str
    learned_by: int | None
    right: float
    votes: int


@dataclass(frozen=True)
class QualityReport:
    """Whether data are clean enough for a small model.

    Attributes:
        source, fingerprint: what was looked at: the data before any decision.
        classes, images, counts: names; how many images; and how many of each class in each split.
        method: how out-of-sample probabilities were made, in words.
        near: what counts as a near duplicate, in words.
        unreadable: files that could not be decoded.
        label_issues: worst first.
        hard: only where votes of runs exist; those hardest to learn first.
        warnings: what should be known before anything is dropped.
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

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> QualityReport:
        """The report that `as_dict` gave, also after it was JSON.

        Raises:
            KeyError, TypeError: it gave no such thing.
        """

        def place(of: type[Any], one: dict[str, Any]) -> Any:
            return of(**one)

        kinds: dict[str, Any] = {"label_issues": LabelIssue, "outliers": Outlier, "pixels": PixelIssue, "hard": Hard}
        made: dict[str, Any] = {name: tuple(place(kind, one) for one in found[name]) for name, kind in kinds.items()}
        made["duplicates"] = tuple(
            Duplicates(**{**one, "images": tuple(Place(**image) for image in one["images"])})
            for one in found["duplicates"]
        )
        made["leaks"] = tuple(
            Leak(**{**one, "train": LabelledPlace(**one["train"]), "test": LabelledPlace(**one["test"])})
            for one in found["leaks"]
        )
        made["pairs"] = tuple(Pair(**{**one, "classes": tuple(one["classes"])}) for one in found["pairs"])
        for name in ("classes", "unreadable", "warnings"):
            made[name] = tuple(found[name])
        return cls(**{**found, **made})

    def decisions(self) -> Decisions:
        """What can be decided without a look: training and validation images with a sure label issue, with equal copies
        of another label, or that the test has as well, are dropped; of other equal copies one is kept. What is only
        near wants a person.
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
        """The report for people, a line a finding."""
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
            f"{kind} duplicates: {len(groups):,} groups, {spare:,} images too many"
            + (f", {torn:,} groups labelled in different ways" if torn else "")
        )
        lines += [f"  {_listed(one.images)}" for one in groups[:3]]
    tests = {leak.test.row for leak in report.leaks}
    lines.append(
        f"leaks: {len(tests):,} test images are also among training or validation images"
        + (f" ({sum(leak.kind == 'near' for leak in report.leaks):,} pairs are near duplicates)" if tests else "")
    )
    for leak in report.leaks[:3]:
        lines.append(f"  {leak.test.where} is {'' if leak.kind == 'exact' else 'nearly '}{leak.train.where}")
    sure = sum(issue.sure for issue in report.label_issues)
    lines.append(f"suspected labels: {len(report.label_issues):,}, of which {sure:,} are sure ({report.method})")
    for issue in report.label_issues[:5]:
        lines.append(f"  {issue.where}: labelled {issue.given}, looks like {issue.suggested}")
    for pair in report.pairs[:3]:
        lines.append(f"  confused: {pair.classes[0]} and {pair.classes[1]}, about {pair.images:,} images")
    lines.append(f"outliers: {len(report.outliers):,}{_first(report.outliers)}")
    kinds = Counter(one.kind for one in report.pixels)
    odd = [
        f"{count:,} {kind}{_first([one for one in report.pixels if one.kind == kind])}" for kind, count in kinds.items()
    ]
    lines.append("pixels: " + (", ".join(odd) or "nothing odd"))
    if report.hard:
        never = sum(one.learned_by is None for one in report.hard)
        lines.append(f"hard examples: {never:,} of {len(report.hard):,} images with votes are learned by no student")
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
