"""Parts and classes of a source: by a table of labels, else by its folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smallalign_core.data import _labels, _layout, _named, _order, _tables
from smallalign_core.data._files import Entry, Listing
from smallalign_core.data._labels import Chosen, Labelled, Parts
from smallalign_core.data._layout import MOST_NAMED, Layout, role
from smallalign_core.data._named import Images
from smallalign_core.data._tables import Table
from smallalign_core.errors import BadData, SmallAlignError
from smallalign_core.spec import Columns, DataSpec

PartOf = Callable[[Entry], str]


@dataclass(frozen=True)
class _Fitting:
    """A table that labels images, and the part that its name, or its folder's, speaks of."""

    entry: Entry
    table: Table
    chosen: Chosen

    @property
    def part(self) -> str | None:
        above = self.entry.path[-2] if len(self.entry.path) > 1 else ""
        return role(Path(self.entry.path[-1]).stem) or role(above)

    def always(self, _: Entry) -> str:
        """The part of each of its images."""
        return str(self.part)


def find(listing: Listing, spec: DataSpec, root: Path | None = None) -> Layout:
    """Parts and classes of what a folder or zip holds.

    A table is used where no folder says what an image shows, or where the spec names its columns.

    Args:
        root: the folder that was listed, where it was one: tables may name images by their absolute paths.

    Raises:
        BadData: there are no classes, or the folders or the table can be read in more than one way.
    """
    top = _layout.top(listing)
    named = spec.columns != Columns()
    if named or _layout.classless(top):
        images = _named.Listed(listing.pictures, root)
        fitting = _fitting(listing, spec, images, True) or _fitting(listing, spec, images, False)
        if fitting:
            return _of_tables(fitting, listing, spec, images, _layout.part_of(top))
        if named:
            tables = _layout.some([table.name for table in listing.tables]) or "there is no table"
            raise BadData("no table labels images by the columns that `data.columns` names", given=tables)
    return _layout.of_folders(listing, top, spec.levels)


def of_table(entry: Entry, spec: DataSpec, listed: Callable[[], Listing]) -> Layout:
    """Parts and classes by a table that was named itself: its paths are looked for where they lead, and if that is
    nowhere, among all files below its folder, as for a folder.

    Args:
        listed: lists that folder.

    Raises:
        BadData: it has no columns of images and labels, or as `_labels`.
    """
    alone = Listing((), (entry,), tuple(_order.beside(entry.file)))
    images: Images = _named.Below(entry.file.parent)
    fitting = _fitting(alone, spec, images, True)
    if not fitting:
        images = _named.Listed(listed().pictures, entry.file.parent)
        fitting = _fitting(alone, spec, images, True) or _fitting(alone, spec, images, False)
    if not fitting:
        table = _tables.read(entry)
        head = ", ".join(table.rows[0][:MOST_NAMED]) if table.rows else "nothing"
        raise BadData(
            "the table has no column of image files beside one of labels",
            given=f"{entry.name} has {head}",
            do="name them with `data.columns` (--set columns.path=NAME, columns.label=NAME); paths are relative to "
            "the table",
        )
    return _of_tables(fitting, alone, spec, images, lambda _: "train")


def _fitting(listing: Listing, spec: DataSpec, images: Images, exist: bool) -> list[_Fitting]:
    """The tables that label images: of several, those whose column of labels is not guessed from its content.

    Raises:
        BadData: none does, and one cannot be read or may be read in several ways.
    """
    found, wrong = [], []
    for entry in listing.tables:
        try:
            table = _tables.read(entry)
            chosen = _labels.choose(table, images, spec.columns, role, exist=exist)
        except SmallAlignError as error:
            wrong.append(error)
            continue
        if chosen is not None:
            found.append(_Fitting(entry, table, chosen))
    if wrong and not found:
        raise wrong[0]
    return [one for one in found if one.chosen.sure] or found


def _of_tables(fitting: list[_Fitting], listing: Listing, spec: DataSpec, images: Images, part_of: PartOf) -> Layout:
    """Parts and classes by one table, or by one for each part."""
    named = [one.part for one in fitting]
    if len(fitting) > 1 and (None in named or len(set(named)) < len(named)):
        held = _layout.some([one.entry.name for one in fitting])
        raise BadData("several tables hold labels", given=held, do="leave one beside the images, or name its path")
    alone, skip = len(fitting) == 1, spec.skip_unreadable
    found = [
        _labels.labelled(one.table, one.chosen, images, role, part_of if alone else one.always, skip=skip)
        for one in fitting
    ]
    parts = _joined(found)
    _layout.refuse_strangers(parts)
    lists = _order.lists(listing.others, ())
    order = _order.arranged(tuple(parts["train"]), lists)
    used = [*(one.entry for one in fitting), *(entry for entry in lists if entry.name == order.file)]
    notes = [note for one in found for note in one.notes]
    left = set.intersection(*(set(one.without) for one in found))
    if left:
        tables = " or ".join(one.table.name for one in found)
        first = ", ".join(sorted(left)[:3])
        notes.append(f"{len(left):,} images have no row in {tables} and were left out: {first}.")
    notes += [*_layout.others(listing, {}, used), *_layout.near(parts["train"]), *order.notes]
    missing = {name: why for one in found for name, why in one.missing.items()}
    return Layout(parts, notes, found[0].columns, missing, order.names, order.places)


def _joined(found: list[Labelled]) -> Parts:
    """The images of all tables by part and class, the classes in the order of words.

    Raises:
        BadData: none is for training.
    """
    parts: Parts = {"train": {}}
    for one in found:
        for part, classes in one.parts.items():
            for name, files in classes.items():
                parts.setdefault(part, {}).setdefault(name, []).extend(files)
    if not any(parts["train"].values()):
        names = ", ".join(one.table.name for one in found)
        raise BadData("the table has no images for training", given=names, do="call a split train")
    return {part: {name: parts[part].get(name, []) for name in sorted(parts["train"])} for part in parts}
