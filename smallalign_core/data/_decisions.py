"""Cleaning decisions about single images: a separate file; the images themselves are not changed.

    {"schema": 2, "source": "digits", "decisions": [{"image": "<16 hex>", "what": "relabel", "label": "3"}], ...}

An image is known by the hash of its source pixels (`ImageSet.ids`), so a decision survives renaming, reordering and
another `data.size`, and holds for every copy of the image. Decisions change training and validation images, never test:
scores before and after are of the same test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from smallalign_core.data._sets import ImageSet
from smallalign_core.errors import BadData, BadModel
from smallalign_core.system import limits
from smallalign_core.system.files import read_json, write_json

What = Literal["keep", "drop", "once", "relabel"]
"""keep: it is right, ask no more. drop: learn from no copy of it. once: from one copy. relabel: from it as `label`."""


@dataclass(frozen=True)
class Decision:
    """A decision about an image; `label` is the new class name for `relabel`.

    `path` is the image's file below the source, for people: what counts is its id.
    """

    what: What
    label: str | None = None
    path: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Decisions:
    """Decisions by image id, and the source that they are about (for people; nothing is compared with it)."""

    source: str
    by_image: dict[int, Decision] = field(default_factory=dict)

    def with_(self, image: int, decision: Decision | None) -> Decisions:
        """The same with another decision about one image; None takes it back."""
        others = {one: made for one, made in self.by_image.items() if one != image}
        return Decisions(self.source, others if decision is None else {**others, image: decision})

    def as_dict(self) -> dict[str, Any]:
        """As it is written, in the order of the images' ids: equal decisions are equal files."""
        return {
            "source": self.source,
            "decisions": [
                {"image": f"{image:016x}", "what": made.what}
                | ({"label": made.label} if made.label else {})
                | ({"path": made.path} if made.path else {})
                for image, made in sorted(self.by_image.items())
            ],
        }

    def write(self, file: Path) -> None:
        """Write them, whole and sealed.

        Raises:
            Refused: the disk is full.
        """
        write_json(file, self.as_dict())

    def count(self) -> dict[str, int]:
        """How many of each kind there are, those that occur."""
        every = [made.what for made in self.by_image.values()]
        return {what: every.count(what) for what in get_args(What) if what in every}


def read_decisions(file: Path) -> Decisions:
    """The decisions in a file.

    Raises:
        BadData: it is not there, may not be read, is damaged, or no file of decisions.
    """
    limits.check_path(file, "the file of decisions")
    do = "give a file that the Data page or `inspect --decide` wrote"
    try:
        written = read_json(file, missing=None) if file.is_file() else None
        if not isinstance(written, dict):
            raise ValueError("no fields" if file.exists() else "there is no such file")
        return Decisions(str(written["source"]), dict(_read(written["decisions"])))
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise BadData(f"the decisions cannot be read: {reason}", given=file, do=do) from None
    except BadModel:  # its message is about runs
        raise BadData(
            "the decisions file is damaged: no JSON, or changed since it was saved", given=file, do=do
        ) from None
    except KeyError as error:
        raise BadData(f"not a decisions file: `{error.args[0]}` is missing", given=file, do=do) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadData(f"not a decisions file: {error}", given=file, do=do) from None


def _read(lines: Iterable[dict[str, str]]) -> Iterable[tuple[int, Decision]]:
    for line in lines:
        if line["what"] not in get_args(What) or (line["what"] == "relabel") != isinstance(line.get("label"), str):
            raise ValueError(f"a line reads {str(line)[:80]}")
        image = int(line["image"], 16)
        if not 0 <= image < 2**64:
            raise ValueError(f"no image is called {line['image'][:40]}")
        path = line.get("path")
        yield image, Decision(line["what"], line.get("label"), path if isinstance(path, str) else None)  # type: ignore[arg-type]


def decided(images: ImageSet, decisions: Decisions) -> ImageSet:
    """What is left of `images`, with the labels that were decided.

    Raises:
        BadData: a decided label is none of the classes, or a class has no images left.
    """
    position = {name: row for row, name in enumerate(images.classes)}
    unknown = sorted({made.label for made in decisions.by_image.values() if made.label} - position.keys())
    if unknown:
        raise BadData("a decision has an unknown class", given=", ".join(unknown[:3]), do="remove that decision")
    ids = np.array(sorted(decisions.by_image), np.uint64)
    made = [decisions.by_image[int(one)] for one in ids]
    at = np.searchsorted(ids, images.ids).clip(max=max(0, len(ids) - 1))
    about = ids[at] == images.ids if len(ids) else np.zeros(len(images), bool)
    keep, labels = np.ones(len(images), bool), images.labels.copy()
    seen: set[int] = set()
    for row in np.flatnonzero(about):
        decision = made[at[row]]
        if decision.label is not None:
            labels[row] = position[decision.label]
        again = decision.what == "once" and int(images.ids[row]) in seen
        keep[row] = decision.what != "drop" and not again
        seen.add(int(images.ids[row]))
    rows = np.flatnonzero(keep)
    gone = [name for name, row in position.items() if (images.labels == row).any() and not (labels[rows] == row).any()]
    if gone:
        raise BadData("the decisions leave a class without images", given=", ".join(gone[:3]), do="remove some of them")
    return images.relabelled(labels).take(rows)
