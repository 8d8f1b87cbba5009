"""Which folders are classes and which are parts of the data: decided from how they nest, then from their names.

A folder that holds images directly is a class, whatever it is called. Folders of folders are parts where their names
say so. If all of them have the same sub-folders and no name is conclusive, an error is raised instead of guessing.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from smallalign_core.data import _order
from smallalign_core.data._files import NO_PICTURES, Entry, Listing
from smallalign_core.data._names import natural
from smallalign_core.errors import BadData

ROLES = {
    "train": {"train", "training", "trn", "trainval", "trainset"},
    "val": {"val", "valid", "validation", "validate", "valset", "dev", "devel", "development"},
    "test": {"test", "testing", "tst", "testset", "eval", "evaluation", "holdout", "heldout"},
}
"""Words in a folder's name (in any case), and the part of the data that they name."""

ALIKE = 0.5
"""Share of all sub-folders that must be common before folders count as holding the same ones."""

MOST_NAMED = 12

Parts = dict[str, dict[str, list[Entry]]]
"""Images by part and class."""


@dataclass
class Layout:
    """Images by part (`train` always) and class, and what to say about all that is in neither.

    Attributes:
        columns: of the table that holds the labels, by what they are for.
        missing: images that the table names and that do not exist, and why they are not read.
        names: the classes in the order of their labels, where that is not the order of words.
        order: the label of each class of `train`, likewise.
    """

    parts: Parts
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()

    def entries(self) -> dict[str, dict[str, list[str]]]:
        """The parts with the names of the images."""
        return {
            part: {name: [entry.name for entry in files] for name, files in classes.items()}
            for part, classes in self.parts.items()
        }


class _Node:
    """A folder that holds images, at any depth."""

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        self.loose: list[Entry] = []
        self.below: dict[str, _Node] = {}

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else "the folder"

    @property
    def nested(self) -> bool:
        """Whether it holds folders of images and no image itself."""
        return bool(self.below) and not self.loose

    def images(self) -> list[Entry]:
        """All images in and below it, in order."""
        return [*self.loose, *(one for node in self.below.values() for one in node.images())]


def _tree(pictures: Sequence[Entry]) -> _Node:
    root = _Node(())
    for entry in pictures:
        node = root
        for depth, part in enumerate(entry.path[:-1], 1):
            node = node.below.setdefault(part, _Node(entry.path[:depth]))
        node.loose.append(entry)
    return root


@functools.lru_cache(maxsize=4096)
def role(name: str) -> str | None:
    """The part of the data that a folder's name speaks of; None where it speaks of none, or of several."""
    words = set(re.findall("[a-z]+", name.casefold().replace("hold-out", "holdout").replace("hold_out", "holdout")))
    found = {part for part, known in ROLES.items() if words & known}
    return found.pop() if len(found) == 1 else None


def top(listing: Listing) -> _Node:
    """The folder that holds the classes or parts of a listing, behind any that stand alone."""
    return _alone(_tree(listing.pictures))


def of_folders(listing: Listing, root: _Node, levels: int) -> Layout:
    """Parts and classes by the folders below `root`.

    Raises:
        BadData: there are no classes, or the folders can be read in more than one way.
    """
    if not root.below:
        raise _no_classes(listing, root)
    bases = _bases(root, levels)
    parts = {part: _classes(base, levels) for part, base in bases.items()}
    if not parts["train"]:
        raise BadData(
            f"no folder of images lies {levels} levels deep", given=_named([*root.below.values()]), do="set data.levels"
        )
    refuse_strangers(parts)
    lists = _order.lists(listing.others, root.path)
    order = _order.arranged(tuple(parts["train"]), lists)
    used = [entry for entry in lists if entry.name == order.file]
    notes = [*_loose(root, bases, levels), *others(listing, bases, used, levels), *near(parts["train"])]
    return Layout(parts, [*notes, *order.notes], names=order.names, order=order.places)


def _classes(base: _Node, levels: int) -> dict[str, list[Entry]]:
    """The images of the folders so many levels below a part's, by their joined names."""
    if levels == 1:
        return {name: node.images() for name, node in base.below.items()}
    return {
        f"{name}/{inner}": files
        for name, node in base.below.items()
        for inner, files in _classes(node, levels - 1).items()
    }


def _alone(node: _Node) -> _Node:
    """The folder that a chain of single folders ends in: unpacking often leaves one around everything."""
    while node.nested and len(node.below) == 1:
        (inner,) = node.below.values()
        if not inner.below or role(inner.name) in ("val", "test"):
            break
        if role(inner.name) == "train":
            return inner if len(inner.below) > 1 or not _chain(inner) else _alone(inner)
        node = inner
    return node


def _chain(node: _Node) -> bool:
    return node.nested and all(inner.below for inner in node.below.values())


def classless(root: _Node) -> bool:
    """Whether no folder says what an image shows: there is none, one that holds all, or only such as name parts."""
    flat = [node for node in root.below.values() if not node.below]
    return len(flat) == len(root.below) and (len(flat) < 2 or all(role(node.name) for node in flat))


def part_of(root: _Node) -> Callable[[Entry], str]:
    """The part that an image belongs to where a table says what it shows."""
    named = {node.path: str(role(node.name)) for node in root.below.values() if role(node.name)}
    if "train" not in named.values():
        return lambda _: "train"
    depth = len(root.path) + 1
    return lambda entry: named.get(entry.path[:depth], "train")


def _no_classes(listing: Listing, root: _Node) -> BadData:
    what = f", only {len(root.loose)} images without labels" if root.loose else ""
    if tables := [table.name for table in listing.tables]:
        what += f"; {some(tables)} has no column of file names beside one of labels"
    kinds = Counter(map(_kind, listing.others))
    return BadData(
        f"the folder has no class folders{what}",
        given=f"other files: {_kinds(kinds)}" if kinds else "",
        do="put the images into one sub-folder per class, or add a CSV with the columns filename and label",
    )


def _bases(root: _Node, levels: int) -> dict[str, _Node]:
    """The folders of classes by part: `root` itself is `train` unless the folders in it are parts."""
    folders = list(root.below.values())
    inner = any(node.below and role(node.name) == "train" for node in folders)
    if root.path and role(root.name) == "train" and not inner:  # it is said already: what is in it are classes
        return {"train": root}
    nested = [node for node in folders if node.below]
    flat = [node for node in folders if not node.below]
    parts = [node for node in nested if role(node.name)]
    if not parts:
        if not nested and folders and all(role(node.name) for node in folders):
            raise _unclear(f"{folders[0].name}/ has images but no classes", folders)
        if levels == 1:
            _refuse_alike(nested, flat)
        return {"train": root}
    found = _by_role(parts)
    others = [node for node in folders if node not in parts and not (node in flat and role(node.name))]
    bare = [node for node in flat if role(node.name)]
    if "train" not in found:
        raise _unclear(f"there is {parts[0].name}/ but no train/", folders)
    if len(found) < len(parts):
        raise _unclear("two folders name the same split", parts)
    if others:
        wrong = "there are folders beside train/ that are neither validation nor test images"
        raise _unclear(wrong, [*parts, *others], f" (where {found['train'].name}/ is a class itself: {WRAP})")
    if bare:
        raise _unclear(f"{bare[0].name}/ has images but no classes", folders)
    return {part: _alone_in(node) for part, node in found.items()}


def _alone_in(node: _Node) -> _Node:
    """A part's folder of classes, below a single folder that holds them all."""
    while node.nested and len(node.below) == 1:
        (inner,) = node.below.values()
        if not inner.nested:
            break
        node = inner
    return node


def _by_role(nodes: Sequence[_Node]) -> dict[str, _Node]:
    """Folders by part; beside a test part, `eval` is where to choose."""
    found: dict[str, _Node] = {}
    for node in sorted(nodes, key=lambda node: "eval" in node.name.casefold()):
        part = str(role(node.name))
        if part in found and part == "test" and "eval" in node.name.casefold():
            part = "val"
        found.setdefault(part, node)
    return found


WRAP = "put all of them into a folder train/"


def _refuse_alike(nested: Sequence[_Node], flat: Sequence[_Node]) -> None:
    """Folders that all hold the same sub-folders may be classes or splits: ambiguous."""
    if len(nested) < 2 or flat:
        return
    inside = [set(node.below) for node in nested]
    common, every = set.intersection(*inside), set.union(*inside)
    if len(common) < 2 or len(common) < ALIKE * len(every):
        return
    raise BadData(
        "all folders hold the same sub-folders, so they may be classes or parts of the data",
        given=f"{_named(nested)} hold {', '.join(sorted(common, key=natural)[:MOST_NAMED])}",
        do=f"if they are parts, name them train/, val/ and test/; if they are classes, {WRAP}; if the sub-folders are "
        "the classes within them, set data.levels to 2",
    )


def _unclear(wrong: str, nodes: Sequence[_Node], more: str = "") -> BadData:
    return BadData(
        f"the folder cannot be understood: {wrong}",
        given=_named(nodes),
        do=f"use train/, and beside it only val/ and test/, each with one sub-folder per class{more}",
    )


def _named(nodes: Sequence[_Node]) -> str:
    rest = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return ", ".join(node.name for node in nodes[:MOST_NAMED]) + rest


def refuse_strangers(parts: Parts) -> None:
    known = set(parts["train"])
    strangers = sorted({name for classes in parts.values() for name in classes} - known, key=natural)
    if not strangers:
        return
    near = {re.sub(r"[\W_]", "", name.casefold()): name for name in known}
    named = [
        f"{name} (train/ has {near[key]})" if (key := re.sub(r"[\W_]", "", name.casefold())) in near else name
        for name in strangers
    ]
    raise BadData(
        "classes in val/ or test/ are missing from train/",
        given=", ".join(named[:MOST_NAMED]),
        do="call them the same, or add training images of them",
    )


# --- what to say about the rest ---------------------------------------------------------------------------------------


def _loose(root: _Node, bases: dict[str, _Node], levels: int) -> list[str]:
    """Images beside the folders of classes."""
    above = list(bases.values())
    for _ in range(levels - 1):
        above += [node for one in above for node in one.below.values() if node not in above]
    nodes = {id(node): node for node in (root, *above)}.values()
    found = [entry.name for node in nodes for entry in node.loose]
    if not found:
        return []
    return [f"{_count(len(found), 'image')} outside the class folders {_were(len(found))} left out: {some(found)}."]


def others(listing: Listing, bases: dict[str, _Node], used: Sequence[Entry] = (), levels: int = 1) -> list[str]:
    """Files that are not read, by class, and folders that are no classes.

    Raises:
        BadData: a class has no other files.
    """
    read = {(*base.path, *name.split("/")) for base in bases.values() for name in _classes(base, levels)}
    left: dict[str, Counter[str]] = {}
    lost: dict[str, Counter[str]] = {}
    texts: Counter[str] = Counter()
    for entry in (*listing.others, *listing.tables):
        if entry in used:
            continue
        base = next((base for base in bases.values() if entry.path[: len(base.path)] == base.path), None)
        folder = entry.path[: len(base.path) + levels] if base is not None else ()
        if folder in read:
            left.setdefault(folder[-1], Counter())[_kind(entry)] += 1
        elif base is not None and len(entry.path) > len(folder) > 0 and entry.ending not in NO_PICTURES:
            lost.setdefault("/".join(folder), Counter())[_kind(entry)] += 1
        elif bases and base is None and len(entry.path) > 1 and role(entry.path[0]) and entry.ending not in NO_PICTURES:
            lost.setdefault(entry.path[0], Counter())[_kind(entry)] += 1
        else:
            texts[_kind(entry)] += 1
    if lost:
        raise BadData(
            f"{len(lost)} folders hold files but no image that can be read, so a class would be lost",
            given="; ".join(f"{name}: {_kinds(kinds)}" for name, kinds in list(lost.items())[:5]),
            do="convert them to PNG or JPEG, or take those folders out",
        )
    said = []
    for kinds, what in ((sum(left.values(), Counter[str]()), "in class folders"), (texts, "outside the class folders")):
        if kinds:
            each = (
                ", ".join(f"{name} {sum(one.values()):,}" for name, one in left.items()) if kinds is not texts else ""
            )
            said.append(
                f"{_count(kinds.total(), 'file')} of other kinds {what} {_were(kinds.total())} left out "
                f"({_kinds(kinds)})" + (f": {each}." if each else ".")
            )
    empty = [names for names in listing.empty if any(names[:-1] == base.path for base in bases.values())]
    if empty:
        said.append(f"Empty folders are no classes: {some(['/'.join(names) for names in empty])}.")
    return said


def near(classes: dict[str, list[Entry]]) -> list[str]:
    """Class names that differ in case or spaces only."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(" ".join(name.casefold().split()), []).append(name)
    twins = [" and ".join(names) for names in same.values() if len(names) > 1]
    return [f"Class names that differ in case or spaces only: {some(twins)}."] if twins else []


def _kind(entry: Entry) -> str:
    return entry.ending or "no ending"


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(MOST_NAMED))


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


# --- as it was before 2026-12 -----------------------------------------------------------------------------------------

OLD_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_as_before(pictures: Sequence[Entry]) -> Layout:
    """Parts and classes as they were found before 2026-12, for runs of that time: by these names alone."""
    root = _tree(pictures)
    known = {OLD_PARTS[node.name.casefold()]: node for node in root.below.values() if node.name.casefold() in OLD_PARTS}
    bases = known if "train" in known else {"train": root}
    return Layout({part: {name: node.images() for name, node in base.below.items()} for part, base in bases.items()})
