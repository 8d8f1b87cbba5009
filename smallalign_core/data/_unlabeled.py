"""Unlabeled images beside a dataset: read without labels, and without what would leak."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _groups
from smallalign_core.data._decode import Decoded, decode
from smallalign_core.data._readers import NAMED, _listed, path_of
from smallalign_core.data._sets import ImageSet, MappedRows, Splits, mixed
from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec
from smallalign_core.spec.parts import REST


def without_labels(spec: DataSpec, into: Path) -> Decoded:
    """All images in and below a folder, or in a zip of one: part `train`, with the label -1.

    Raises:
        BadData: there are none, or too many cannot be read.
    """
    path = path_of(spec.source)
    if spec.source in NAMED or not (path.is_dir() or (path.is_file() and zipfile.is_zipfile(path))):
        there = path.exists() and spec.source not in NAMED
        raise BadData(
            "the unlabeled images are neither in a folder nor in a zip"
            if there
            else "the unlabeled images are not there",
            given=spec.source,
            do=f"set data.unlabeled to a folder of images, a zip of one, or `{REST}`",
        )
    try:
        listing = _listed(path, into)
        if not listing.pictures:
            raise BadData("there are no images in it", given=spec.source, do="set data.unlabeled to a folder of images")
        found = decode({"train": [(entry, -1) for entry in listing.pictures]}, (), spec, into)
        return replace(found, notes=(*listing.notes, *found.notes))
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)


def alone(stored: dict[str, ImageSet], spec: DataSpec, facts: dict[str, Any]) -> Splits:
    """Splits of images that all have no label: some are held out for validation, and none for test, since nothing
    could be scored on them.

    Raises:
        BadData: there are fewer than 4 different images.
    """
    images, key = stored["train"], np.frombuffer(hashlib.blake2b(b"validation", digest_size=8).digest(), "<u8")[0]
    order = np.unique(images.ids ^ key)
    if len(order) < 4:
        raise BadData(
            "too few different images to hold some out", given=f"{spec.source}: {len(order)}", do="add images"
        )
    # By what an image shows, so that equal images are on one side, whatever the order of files.
    order = order[np.argsort(mixed(order))]
    held = np.isin(images.ids ^ key, order[: max(2, round(spec.validation * len(order)))])
    train, val = images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))
    notes = (*facts["notes"], f"No image has a label: {len(val):,} were held out for validation, none for test.")
    known = {name: facts[name] for name in ("unreadable", "reasons", "reader", "columns")}
    return Splits(train, val, images.take(np.arange(0)), notes, **known)


def question(spec: DataSpec, splits: Splits) -> DataSpec:
    """What reads the unlabeled images of `spec` at the size of the labeled ones: a source that is its own
    `unlabeled`."""
    height, width = splits.shape[1:]
    side = height if height == width else None
    place = str(spec.unlabeled)
    return DataSpec(source=place, size=side, skip_unreadable=spec.skip_unreadable, unlabeled=place)


def beside(splits: Splits, found: ImageSet, spec: DataSpec) -> Splits:
    """`splits` with these unlabeled images, less those that are among the labeled ones (by their pixels) and those of
    a group that validation or test images are of.

    Raises:
        BadData: they have another shape, or none are left.
    """
    if found.shape[1:] != splits.shape[1:] or found.shape[0] > splits.shape[0]:
        raise BadData(
            "the unlabeled images do not have the shape of the labeled ones",
            given=f"{'x'.join(map(str, found.shape))} and {'x'.join(map(str, splits.shape))} (channels, height, width)",
            do="set data.size, which both get; unlabeled images in colour need labeled ones in colour",
        )
    held = np.isin(found.ids, np.concatenate([splits.val.ids, splits.test.ids]))
    if spec.groups is not None and found.paths is not None:
        taken = {one for part in (splits.val, splits.test) for one in _groups.of(spec, part) or () if one is not None}
        held |= np.array([group in taken for group in _groups.of(spec, found) or ()], bool)
    known = np.isin(found.ids, splits.train.ids) & ~held
    kept = np.flatnonzero(~held & ~known)
    said = f"{len(kept):,} unlabeled images of {spec.unlabeled} are used"
    if held.any():
        said += f"; {int(held.sum()):,} that are validation or test images, or of a group of these, were left out"
    if known.any():
        said += f"; {int(known.sum()):,} that are training images were left out"
    if not len(kept):
        raise BadData(
            "no unlabeled images are left: all are training, validation or test images",
            given=f"{len(found):,} images of {spec.unlabeled}",
            do="set data.unlabeled to other images",
        )
    images = found.take(kept)
    if found.shape[0] < splits.shape[0]:
        images = replace(images, images=MappedRows(_Grey(images.images), np.arange(len(images))))
    labels = np.full(len(images), -1, np.int64)
    images = replace(images, labels=labels, classes=splits.classes)
    return replace(splits, unlabeled=images, notes=(*splits.notes, f"{said}."))


class _Grey:
    """Grey images as colour: their one channel, three times; nothing is copied before it is indexed."""

    def __init__(self, images: NDArray[np.uint8] | MappedRows) -> None:
        self._images, self.shape = images, (images.shape[0], 3, *images.shape[2:])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.repeat(np.asarray(self._images[rows]), 3, axis=-3)
