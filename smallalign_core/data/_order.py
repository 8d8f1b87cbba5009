"""The order of classes: that of a `classes.txt`, else 2 before 10, and otherwise as words are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smallalign_core.data import _tables
from smallalign_core.data._files import CLASS_LISTS, Entry, regular
from smallalign_core.data._names import natural
from smallalign_core.data._sets import ImageSet


@dataclass(frozen=True)
class Order:
    """Classes in the order of their labels.

    Attributes:
        names: the classes.
        places: the position in `names` of each class that was found.
        file: the list that they are ordered by; None without.
        notes: what to say about it.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    file: str | None = None
    notes: tuple[str, ...] = ()


def lists(others: Sequence[Entry], base: tuple[str, ...]) -> list[Entry]:
    """The files of class names in a folder or in that of the classes, in the order of `CLASS_LISTS`."""
    found = [one for one in others if one.path[-1].lower() in CLASS_LISTS and one.path[:-1] in ((), base)]
    return sorted(found, key=lambda one: (-len(one.path), CLASS_LISTS.index(one.path[-1].lower())))


def beside(file: Path) -> list[Entry]:
    """Such files beside a table."""
    return [Entry((name,), file.parent / name) for name in CLASS_LISTS if regular(file.parent / name)]


def arranged(found: Sequence[str], files: Sequence[Entry]) -> Order:
    """The classes `found`, each once, in the order of the first of `files` that names all of them, else in natural
    order. Where they are numbers and a file has a name for each, they get these names.
    """
    notes = []
    for entry in files:
        names = list(dict.fromkeys(_tables.listed(entry.file)))
        if names and set(found) <= set(names):
            kept = tuple(name for name in names if name in found)
            notes.append(f"Classes are in the order of {entry.name}.")
            if len(kept) < len(names):
                notes.append(f"{len(names) - len(kept):,} classes of {entry.name} have no images and were left out.")
            return Order(kept, tuple(kept.index(name) for name in found), entry.name, tuple(notes))
        numbers = [int(name) for name in found if name.isdecimal() and len(name) < 8]
        if len(numbers) == len(found) and len(set(numbers)) == len(found) and max(numbers, default=0) < len(names):
            ranked = sorted(numbers)
            notes.append(f"The classes are numbers: their names are the lines of {entry.name}, from 0 on.")
            return Order(
                tuple(names[one] for one in ranked), tuple(map(ranked.index, numbers)), entry.name, tuple(notes)
            )
        strange = [name for name in found if name not in names]
        notes.append(f"{entry.name} does not give the order of classes: it lacks {', '.join(strange[:3])}.")
    names = sorted(found, key=lambda name: (natural(name, cased=True), name))
    place = {name: at for at, name in enumerate(names)}
    return Order(tuple(names), tuple(place[name] for name in found), None, tuple(notes))


def shown(stored: dict[str, ImageSet], facts: dict[str, Any]) -> dict[str, ImageSet]:
    """The same with the classes in the order in which they are shown.

    What is stored has the order of words, as all had at first: runs that were made then are still given it.
    """
    if not facts["order"]:
        return stored
    order = np.array(facts["order"], np.int64)
    return {
        part: replace(images, labels=order[images.labels], classes=facts["names"]) for part, images in stored.items()
    }
