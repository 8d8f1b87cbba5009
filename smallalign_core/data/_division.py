"""From decoded images to training, validation and test images: by what each image shows, never by file order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _groups, _unlabeled
from smallalign_core.data._decisions import decided, read_decisions
from smallalign_core.data._sets import ImageSet, Splits, mixed
from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec
from smallalign_core.spec.parts import REST


def divide(stored: dict[str, ImageSet], spec: DataSpec, facts: dict[str, Any]) -> Splits:
    """Hold out what the source does not bring: test first, then validation; then keep `spec.images` of the rest."""
    train, said, rest = stored["train"], list(facts["notes"]), None
    _check(train, spec.source)
    test, val = stored.get("test"), stored.get("val")
    if test is None:
        train, test = hold_out(train, spec.test, spec, salt=b"test", leave=2 if val is None else 1)
        said.append(f"The source has no test split: {spec.test:.0%} of each class were held out for test.")
    if val is None:
        train, val = hold_out(train, spec.validation, spec, salt=b"validation")
    said += _groups.notes(spec, {"train": train, "val": val, "test": test})
    if spec.images is not None:
        if spec.images > len(train) or spec.images < len(train.classes):
            raise BadData(
                f"`data.images` must be between {len(train.classes)} (one per class) and {len(train)} (all)",
                given=spec.images,
                do="change data.images",
            )
        if spec.images < len(train):
            salt = b"images%d" % spec.draw if spec.draw else b"images"
            rest, train = hold_out(train, spec.images / len(train), spec, salt=salt, count=spec.images)
    if spec.noise:
        train = _mislabelled(train, spec)
        said.append(f"{spec.noise:.0%} of the training labels are wrong on purpose (`noise`).")
    if spec.decisions:
        decisions, before = read_decisions(Path(spec.decisions).expanduser()), len(train) + len(val)
        train, val = decided(train, decisions), decided(val, decisions)
        left_out = before - len(train) - len(val)
        said.append(
            f"{left_out:,} images were dropped or relabelled, by decisions about {len(decisions.by_image):,} images."
        )
    known = {name: facts[name] for name in ("unreadable", "reasons", "reader", "columns")}
    splits = Splits(train, val, test, tuple(said), **known)
    if spec.unlabeled != REST:
        return splits
    if rest is None:
        raise BadData(
            "no training images are left to be unlabeled", given=f"images {spec.images}", do="lower data.images"
        )
    return _unlabeled.beside(splits, rest, spec)


def _check(train: ImageSet, source: str) -> None:
    if len(train.classes) < 2:
        raise BadData(
            "a classifier needs at least two classes",
            given=f"{source} has {', '.join(train.classes) or 'none'}",
            do="put the images into one sub-folder per class",
        )
    lonely = [name for row, name in enumerate(train.classes) if (train.labels == row).sum() < 3]
    if lonely:
        raise BadData(
            f"{len(lonely)} classes have fewer than 3 training images",
            given=", ".join(lonely[:5]),
            do="add images, or remove those classes: one each must go to train, validation and test",
        )


def _mislabelled(images: ImageSet, spec: DataSpec) -> ImageSet:
    """The same with a share of wrong labels, each other class as likely. By what an image shows and by `draw`, so that
    an image that is mislabelled in a small draw is so in a larger one, and equal images are so alike.
    """
    key = np.frombuffer(hashlib.blake2b(b"noise%d" % spec.draw, digest_size=8).digest(), "<u8")[0]
    chance = mixed(images.ids ^ key)
    wrong = chance / np.float64(2**64) < spec.noise
    others = np.uint64(len(images.classes) - 1)
    shifted = (images.labels + 1 + (mixed(chance) % others).astype(np.int64)) % len(images.classes)
    return images.relabelled(np.where(wrong, shifted, images.labels))


def hold_out(
    images: ImageSet, share: float, spec: DataSpec, *, salt: bytes, count: int | None = None, leave: int = 1
) -> tuple[ImageSet, ImageSet]:
    """(the rest, the held-out part): stratified, and by what each image shows instead of where it stands.

    Within a class, images are ordered by a hash of their source pixels and the first `share` is held out. So the
    division does not depend on file order or on `data.size`, and a larger share only adds to what a smaller one holds.
    Equal images stay together whatever their labels (no leak through exact duplicates), and so do those of one group
    (`spec.groups`). Where a class would keep fewer
    than `leave` different images, its last are kept. A folder that grows is another dataset, with other splits and
    another fingerprint.

    With `count`, exactly so many are held instead, in proportion to the classes: more are a superset of fewer.

    Raises:
        BadData: a class has too few different images to stand on both sides.
    """
    key = np.frombuffer(hashlib.blake2b(salt, digest_size=8).digest(), "<u8")[0]
    units = images.ids if count is not None else _groups.units(images, _groups.of(spec, images))
    order = mixed(units ^ key)  # a bijection: equal only where the ids are, or the groups
    if count is not None:
        held = _first(order, images.labels, count)
    else:
        held = np.zeros(len(images), bool)
        classes = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
        for rows in classes:  # equal images go together, whatever their labels
            first = np.sort(order[rows])[: max(1, round(share * len(rows)))]
            held |= np.isin(order, first)
        for rows in classes:
            different = np.unique(order[rows])
            if len(np.unique(order[rows][~held[rows]])) < leave:
                held &= ~np.isin(order, different[-leave:])
        short = [
            name for name, rows in zip(images.classes, classes, strict=True) if held[rows].all() or not held[rows].any()
        ]
        if short:
            raise BadData(
                f"{len(short)} classes have too few different images to hold some out",
                given=", ".join(short[:5]),
                do="add images, or remove equal ones (in other classes too)"
                + ("; images of one group count as one" if spec.groups else ""),
            )
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def _first(order: NDArray[np.uint64], labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which `count` rows come first: one of each class, then by turns in proportion to the classes (Sainte-Laguë)."""
    turn = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(order[rows], kind="stable")]
        turn[rows[1:]] = (np.arange(1, len(rows)) + 0.5) / len(rows)
    chosen = np.zeros(len(labels), bool)
    chosen[np.lexsort((labels, turn))[:count]] = True
    return chosen
