"""Findings of a data quality check, as cards to review: images, a description, and the effect of a decision."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pages.ui.widgets import formatting, image_grid
from smallalign_core.analysis.data_quality import Place, QualityReport
from smallalign_core.data import Decision, Splits

LABELS, LEAKS, DUPLICATES, HARD = "Label errors", "Leakage", "Duplicates", "Hard examples"
"""Kinds of finding with texts of their own on the page."""
SPLITS = {"train": "train", "val": "validation", "test": "test"}
MOST_PICTURES = 6
"""Images on a card; the number of further ones is given as text."""
LARGE, PAIRED, SMALL = 224, 150, 88
"""CSS pixels of an image: under review, alone and beside others, and in the gallery."""


@dataclass(frozen=True)
class Card:
    """One finding.

    Attributes:
        places: its images, those of the training split first.
        text: the finding, as a sentence; `score`: the number behind it, as text.
        suggested: the suggested class, if any.
        several: whether it is a group of duplicates.
        sure: whether automatic cleaning may resolve it.
    """

    places: tuple[Place, ...]
    text: str
    score: str
    suggested: str | None = None
    several: bool = False
    sure: bool = True

    @property
    def images(self) -> list[int]:
        """Ids that a decision would change; none if the card has test images only."""
        return list(dict.fromkeys(int(place.id, 16) for place in self.places if place.split != "test"))

    def changes(self, what: str, label: str | None = None) -> list[tuple[int, Decision | None]]:
        """The decisions that resolve this card as `what`. `once`: one of several is kept."""
        paths = {int(place.id, 16): place.path for place in reversed(self.places)}
        made = [what if what != "once" or not place else "drop" for place in range(len(self.images))]
        return [(one, Decision(how, label, paths[one])) for one, how in zip(self.images, made, strict=True)]  # type: ignore[arg-type]

    def decided(self, by_image: Mapping[int, Decision]) -> str | None:
        """The decision in a word or two; None while an image is unreviewed."""
        made = [by_image.get(one) for one in self.images]
        if not made or None in made:
            return None
        first = made[0]
        if first is not None and first.what == "once":
            return "Keep one"
        if len(set(made)) > 1 or first is None:
            return "Mixed"
        return f"Relabeled as {first.label}" if first.label else {"keep": "Keep", "drop": "Drop"}[first.what]


def _labels(report: QualityReport) -> list[Card]:
    return [
        Card(
            (one,),
            f"Label: {one.given}; predicted: {one.suggested}. "
            + ("Likely label error (auto-clean would drop it)." if one.sure else "Possible label error: review it."),
            f"predicted probability of the given label: {formatting.percent(one.score)}",
            one.suggested,
            sure=one.sure,
        )
        for one in report.label_issues
    ]


def _leaks(report: QualityReport) -> list[Card]:
    return [
        Card(
            (one.train, one.test),
            f"{_alike(one.kind, one.same_label)} {SPLITS[one.train.split].capitalize()} image left, test image right.",
            _distance(one.distance),
            one.test.label if not one.same_label else None,
        )
        for one in report.leaks
    ]


def _duplicates(report: QualityReport) -> list[Card]:
    return [
        Card(
            tuple(sorted(one.images, key=lambda place: place.split == "test")),
            f"{len(one.images)} images. {_alike(one.kind, one.same_label)}",
            _distance(one.distance),
            several=True,
        )
        for one in report.duplicates
    ]


def _outliers(report: QualityReport) -> list[Card]:
    known = {one.id: one.suggested for one in report.label_issues}
    return [
        Card((one,), "Far from all other images.", f"{one.score:.1f} times the typical distance", known.get(one.id))
        for one in report.outliers
    ]


def _pixels(report: QualityReport) -> list[Card]:
    known = {one.id: one.suggested for one in report.label_issues}
    units = {"blank": "standard deviation of brightness", "odd_size": "times the typical size or aspect ratio"}
    return [
        Card(
            (one,),
            f"{one.kind.replace('_', ' ').capitalize()}.",
            f"{one.value:.2f} {units.get(one.kind, 'mean brightness')}",
            known.get(one.id),
        )
        for one in report.pixels
    ]


def _hard(report: QualityReport) -> list[Card]:
    known = {one.id: one.suggested for one in report.label_issues}
    return [
        Card(
            (one,),
            "Misclassified by all students of the study."
            if one.learned_by is None
            else f"Smallest student that classifies it correctly: {one.learned_by:,} parameters.",
            f"{round(one.right * one.votes)} of {one.votes} predictions correct",
            known.get(one.id),
        )
        for one in report.hard
    ]


FOUND: dict[str, Callable[[QualityReport], list[Card]]] = {
    LABELS: _labels,
    LEAKS: _leaks,
    DUPLICATES: _duplicates,
    "Outliers": _outliers,
    "Exposure and size": _pixels,
    HARD: _hard,
}


def _alike(kind: str, same_label: bool) -> str:
    labels = "same label" if same_label else "different labels"
    return f"{'Exact duplicate' if kind == 'exact' else 'Near duplicate'}, {labels}."


def _distance(distance: float) -> str:
    return "distance 0" if not distance else f"distance {distance:.4f}"


def pictured(card: Card, splits: Splits, side: int) -> str:
    """The images of a card side by side as HTML, with split and class below each."""
    shown = card.places[:MOST_PICTURES]
    rest = len(card.places) - len(shown)
    return (
        f'<div class="sa-reviewed">{"".join(_figures(shown, splits, side))}'
        + (f"<small>and {rest:,} more</small>" if rest else "")
        + "</div>"
    )


def _figures(places: Sequence[Place], splits: Splits, side: int) -> Iterator[str]:
    for place in places:
        part = getattr(splits, place.split)
        height, width = part.shape[1:]
        times = side / max(height, width)
        times = int(times) if times >= 1 else times  # pixels stay square
        name = html.escape(splits.classes[part.labels[place.row]])
        where = f"{SPLITS[place.split]} {place.row}"
        file = html.escape(place.path or "")
        yield (
            f'<figure><img src="{image_grid.png(part.images[place.row])}" width="{round(width * times)}" '
            f'height="{round(height * times)}" alt="{where}, label {name}"/>'
            f'<figcaption style="max-width:{max(round(width * times), 64)}px" title="{file or name}"><b>{name}</b><br/>'
            f"{where}{f'<br/><small>{file}</small>' if file else ''}</figcaption></figure>"
        )
