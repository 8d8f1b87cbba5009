"""Groups of images of one person, patient or original, which must not be split between train and test.

Groups are given by `data.groups`, or suspected by typical file names of augmented copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _tables
from smallalign_core.data._files import Entry, regular
from smallalign_core.data._sets import ImageSet
from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec
from smallalign_core.spec.data import GROUP
from smallalign_core.system import limits

GROUPS = ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "person", "person_id", "original")

VERSION = re.compile(
    r"(?P<own>.+?)(?:\.rf\.[0-9a-f]{8,}|(?:[ _-](?:aug|augmented|rot|rotated?|flip|flipped|hflip|vflip|mirror|mirrored|"
    r"crop|cropped|copy|bright|dark|noise|noisy|blur|blurred|shift|zoom|scaled?|lr|ud)[_-]?[0-9]*"
    r"|[ _]?\([0-9]{1,3}\))+)[ _-]?[0-9]{0,3}",
    re.IGNORECASE,
)
"""How editors and augmenters call what they make of an image: its name, and what was done."""


def matcher(pattern: str) -> Callable[[str], str | None]:
    """What stands in place of `{group}` in a text that fits `pattern`, where `*` is anything; None if it does not fit.

    Each wildcard ends where what follows it comes first, so that no pattern costs more than a look at the text.
    """
    pieces = re.split(r"(\{group\}|\*)", pattern)

    def found(text: str) -> str | None:
        at, wild, group = 0, "", None
        for place, piece in enumerate(pieces):
            if place % 2:
                wild = piece if wild != GROUP else wild
                continue
            last = place == len(pieces) - 1
            if not piece and not last:
                continue
            if not wild:
                begin = at if text.startswith(piece, at) else -1
            elif last:
                begin = len(text) - len(piece) if text.endswith(piece) and len(text) - len(piece) >= at else -1
            else:
                begin = text.find(piece, at)
            if begin < 0:
                return None
            if wild == GROUP:
                group = text[at:begin]
            at, wild = begin + len(piece), ""
        return group if at == len(text) else None

    return found


def table_of(spec: DataSpec) -> Path | None:
    """The table that `data.groups` names, in the dataset's folder or beside its table; None for a pattern.

    Raises:
        BadData: there is none.
    """
    if spec.groups is None or GROUP in spec.groups:
        return None
    named = Path(spec.groups).expanduser()
    source = Path(spec.source).expanduser()
    for file in (named, source / named, source.parent / named):
        limits.check_path(file, "the table of groups")
        if regular(file):
            return file.resolve()
    raise BadData(
        "the table of groups does not exist",
        given=spec.groups,
        do=f"give a CSV with the columns filename and group, or a pattern such as {GROUP}_*",
    )


def of(spec: DataSpec, images: ImageSet) -> list[str | None] | None:
    """The group of each image; None for images without a group, or if no groups are defined.

    Raises:
        BadData: the images have no names, or the table cannot be used.
    """
    if spec.groups is None:
        return None
    if images.paths is None:
        raise BadData("only files have names to group by", given=spec.source, do="leave data.groups out")
    paths = [str(images.path(row)) for row in range(len(images))]
    if (file := table_of(spec)) is None:
        group = matcher(spec.groups)
        return [group(path if "/" in spec.groups else path.rpartition("/")[2]) for path in paths]
    head, *body = _tables.rows(Entry((file.name,), file)) or [[]]
    names, groups = _tables.column(head, _tables.NAMES), _tables.column(head, GROUPS)
    if names is None or groups is None or names == groups:
        raise BadData("the table of groups needs the columns filename and group", given=f"{file}: {', '.join(head)}")
    known = _tables.by_name([Entry(tuple(path.split("/")), file) for path in paths])
    found: dict[str, str] = {}
    for row in body:
        for entry in known.get(_tables.cell(row, names).replace("\\", "/"), []):
            found[entry.name] = _tables.cell(row, groups)
    return [found.get(path) for path in paths]


def units(images: ImageSet, groups: Sequence[str | None] | None) -> NDArray[np.uint64]:
    """What must stay together, as one number for all of it: the image's id, or that of the first of its group.

    Equal images belong together whatever their groups are, and so do their groups.
    """
    if groups is None:
        return images.ids
    home: dict[object, object] = {}

    def root(one: object) -> object:
        while home.setdefault(one, one) != one:
            home[one] = home[home[one]]
            one = home[one]
        return one

    for identity, group in zip(images.ids.tolist(), groups, strict=True):
        if group is not None:
            home[root(identity)] = root(f"group {group}")
    first: dict[object, int] = {}
    for identity in sorted(set(images.ids.tolist())):
        first.setdefault(root(identity), identity)
    return np.array([first[root(identity)] for identity in images.ids.tolist()], np.uint64)


def notes(spec: DataSpec, parts: dict[str, ImageSet]) -> list[str]:
    """Notes on groups, and on versions of one image, across train, val and test."""
    if parts["train"].paths is None:
        return []
    grouped = {name: of(spec, part) for name, part in parts.items()}
    if spec.groups is not None:
        every = [group for groups in grouped.values() for group in groups or ()]
        alone = every.count(None)
        lines = [
            f"Images of one group are on one side of the split: {len(set(every) - {None}):,} groups by "
            f"{spec.groups}" + (f"; {alone:,} images are in no group." if alone else ".")
        ]
        both = {one for one in grouped["train"] or () if one} & {one for one in grouped["test"] or () if one}
        if both:
            names = ", ".join(sorted(both)[:3])
            lines.append(f"{len(both):,} groups are in train and in test, as the source itself divides them: {names}.")
        return lines
    own, made = {}, set()
    for name, part in parts.items():
        found = [_original(str(part.path(row))) for row in range(len(part))]
        own[name] = [original for original, _ in found]
        made |= {original for original, version in found if version}
    learned = {*own["train"], *own["val"]}
    leaked = [row for row, name in enumerate(own["test"]) if name in made and name in learned]
    if not leaked:
        return []
    test = parts["test"]
    example = own["test"][leaked[0]]
    twin = next(
        str(parts[part].path(row)) for part in ("train", "val") for row, name in enumerate(own[part]) if name == example
    )
    return [
        f"By their names, {len(leaked):,} of {len(test):,} test images are versions of training images "
        f"({test.path(leaked[0])} and {twin}), so the score on test is too good: keep versions on one side with "
        "`data.groups` (a pattern such as {group}_*, or a CSV), or take them out."
    ]


def _original(path: str) -> tuple[str, bool]:
    """(the image that a file is a version of, whether its name marks it as one): without ending and additions.

    Numbers start again in each folder; other names mean one image in all folders of a class.
    """
    folder, _, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    found = VERSION.fullmatch(stem)
    own = found["own"] if found else stem
    return f"{folder if own.isdecimal() else folder.rpartition('/')[2]}/{own}", found is not None
