"""Readers: each turns one kind of source into decoded arrays."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _embedded, _hub, _labels, _order, _parquet, _python, _tables
from smallalign_core.data._decode import DISK_FULL, Decoded, decode, source_ids
from smallalign_core.data._files import OLD_ENDINGS, Entry, Listing, files_below, of_folder, old_walk
from smallalign_core.data._find import find, of_table
from smallalign_core.data._layout import Layout, find_as_before
from smallalign_core.data._table_formats import FORMATS
from smallalign_core.data._zips import DAMAGED as DAMAGED_ZIP, OWNERS, unpack
from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits
from smallalign_core.system.files import check_regular

MAX_IDX_BYTES = 8 * 1024**3  # an IDX file is read into RAM whole
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist

NAMED: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8x8 grey (UCI; ships with scikit-learn)",
    "fashion-mnist": "70,000 pictures of clothes, 28x28 grey (Xiao et al., 2017)",
    "mnist": "70,000 handwritten digits, 28x28 grey (LeCun et al., 1998)",
    "cifar10": "60,000 photographs in 10 classes, 32x32 colour (Krizhevsky, 2009)",
    "cifar100": "60,000 photographs in 100 classes, 32x32 colour (Krizhevsky, 2009)",
}
FASHION_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


Reader = Callable[[DataSpec, Path], Decoded]


def reader(spec: DataSpec) -> Reader:
    """Which reader understands the source of `spec`."""
    source = spec.source
    if spec.reader is not None:
        return _read_by_python
    if source in NAMED:
        return _read_digits if source == "digits" else _read_named
    if _hub.is_address(source):
        return _read_hub
    path = path_of(source)
    if path.is_file() and _tables.is_table(path):
        return _read_table
    if path.is_file() and zipfile.is_zipfile(path):
        return _read_files
    if path.is_dir():
        return _read_idx if any(_idx_files(path)) else _read_files
    what = (
        f"is neither a folder, a zip file nor a table ({', '.join(FORMATS)})"
        if path.exists()
        else "is unknown, and the path does not exist"
    )
    raise BadData(f"the dataset {what}", given=source, do=f"use a path, or one of: {', '.join(NAMED)}")


def absolute(source: str) -> str:
    """`source` as it can be named from any folder: names and addresses as they are, paths in full.

    Raises:
        BadData: as `path_of`.
    """
    return source if source in NAMED or _hub.is_address(source) else str(path_of(source).resolve())


def path_of(source: str) -> Path:
    """The path that a user means by `source`; it need not exist.

    Raises:
        BadData: no path can be called that, or it may not be looked at.
    """
    try:
        path = Path(source).expanduser()
        path.resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`, a link to itself, a name too long, a zero byte
        raise BadData(
            f"the dataset's path cannot be used ({type(error).__name__})",
            given=ascii(source),
            do=f"use a path, or one of: {', '.join(NAMED)}",
        ) from None
    limits.check_path(path, "the dataset")
    return path


def _read_digits(spec: DataSpec, _into: Path) -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Decoded({"train": _part(images, bunch.target, spec.size)}, tuple("0123456789"))


def _part(
    images: NDArray[np.uint8], labels: Any, size: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]:
    """What `Decoded` holds of one split; the ids are those of the images before they are resized."""
    return _resized(images, size), np.asarray(labels, dtype=np.int64), source_ids(images)


def _read_named(spec: DataSpec, into: Path) -> Decoded:
    """Fashion-MNIST from Debian's package if it is installed; else from torchvision, which downloads once."""
    if spec.source == "fashion-mnist" and any(_idx_files(DEBIAN_FASHION_MNIST)):
        return replace(_read_idx(spec, into, DEBIAN_FASHION_MNIST), classes=FASHION_CLASSES)
    from torchvision import datasets  # imports torch: only here

    root = Path(os.environ.get("SMALLALIGN_DATA", "data"))
    kind = {
        "fashion-mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    parts = {}
    for name in ("train", "test"):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the download announces itself; stdout is for the answer
                found: Any = kind[spec.source](str(root), train=name == "train", download=True)
        except (OSError, RuntimeError) as error:
            for made in (root / kind[spec.source].__name__ / "raw", root / kind[spec.source].__name__, root):
                with contextlib.suppress(OSError):  # torchvision makes folders before it connects; full ones stay
                    made.rmdir()
            raise BadData(
                f"the dataset {spec.source} is not cached and could not be downloaded ({type(error).__name__})",
                given=f"looked in {root.resolve()}",
                do="connect to the internet, or give a path to its files; `digits` always works",
            ) from None
        images = np.asarray(found.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        parts[name] = _part(np.ascontiguousarray(images), found.targets, spec.size)
    classes = FASHION_CLASSES if spec.source == "fashion-mnist" else tuple(str(name) for name in found.classes)
    return Decoded(parts, classes)


def _idx_files(folder: Path) -> dict[str, Path]:
    """IDX files by their MNIST name, plain or .gz: 'train-images', 'train-labels', 't10k-images', 't10k-labels'."""
    found = {}
    for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        for file in (sorted(folder.glob(f"{stem}*idx?-ubyte")) + sorted(folder.glob(f"{stem}*idx?-ubyte.gz")))[:1]:
            found[stem] = file
    return found


def _read_idx(spec: DataSpec, _into: Path, folder: Path | None = None) -> Decoded:
    folder = folder or path_of(spec.source)
    files, parts = _idx_files(folder), {}
    for name, stem in (("train", "train"), ("test", "t10k")):
        if not {f"{stem}-images", f"{stem}-labels"} & files.keys():
            if name == "train":
                raise BadData(
                    "the IDX folder has no training images",
                    given=folder,
                    do="add train-images-idx3-ubyte and its labels",
                )
            continue
        for kind in ("images", "labels"):
            if f"{stem}-{kind}" not in files:
                raise BadData(
                    f"there are {stem} {'labels' if kind == 'images' else 'images'} without {kind}",
                    given=folder,
                    do=f"add {stem}-{kind}-idx{3 if kind == 'images' else 1}-ubyte",
                )
        labels = _idx(files[f"{stem}-labels"])  # first: so the images' header is not the only witness of their number
        images = _idx(files[f"{stem}-images"], len(labels))
        whole = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        if not whole or labels.ndim != 1 or not images.size:
            raise BadData(
                f"{stem} images and labels do not belong together",
                given=f"{images.shape} and {labels.shape}",
                do="give one label per image, and grey or RGB images",
            )
        images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        parts[name] = _part(images, labels, spec.size)
    highest = max(int(labels.max()) for _, labels, _ in parts.values())
    return Decoded(parts, tuple(str(number) for number in range(highest + 1)))


def _idx(file: Path, count: int | None = None) -> NDArray[np.uint8]:
    """One IDX array of unsigned bytes (yann.lecun.com/exdb/mnist), of `count` rows if that is given."""
    check_regular(file)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            zeros, kind, dimensions = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            if zeros or kind != 8 or not 1 <= dimensions <= 4:
                raise ValueError
            if count is not None and shape[0] != count:
                raise BadData(
                    "images and labels do not belong together",
                    given=f"{file}: {shape[0]} images, {count} labels",
                    do="give one label per image",
                )
            if math.prod(shape) > MAX_IDX_BYTES:
                raise BadData(
                    f"this IDX file promises more than {MAX_IDX_BYTES // 1024**3} GiB",
                    given=f"{file}: {' x '.join(map(str, shape))} bytes",
                    do="fetch the file again, or give the images as a folder",
                )
            values = np.frombuffer(stream.read(math.prod(shape) + 1), np.uint8)
            if len(values) != math.prod(shape):
                raise ValueError
    except (OSError, EOFError, ValueError, struct.error, zlib.error, MemoryError):
        raise BadData(
            "this is not an IDX file of bytes, or it is cut short", given=file, do="fetch the file again"
        ) from None
    return values.reshape(shape)


def _resized(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Images [N, C, H, W] at `size` pixels a side (bilinear, antialiased); unchanged without a size."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from PIL import Image

    resized = np.empty((len(images), images.shape[1], size, size), np.uint8)
    for row, image in enumerate(images):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        array = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        resized[row] = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return resized


def _read_files(spec: DataSpec, into: Path) -> Decoded:
    """A folder, or a zip of one, by the same rules: one sub-folder per class, optionally below parts, or a table."""
    path = path_of(spec.source)
    try:
        return _read_listing(_listed(path, into), spec, into)
    except BadData as error:  # names are relative to what the user gave
        raise BadData(
            error.wrong.replace("the folder", "the zip") if path.is_file() else error.wrong,
            given=f"{spec.source}: {error.given}" if error.given else spec.source,
            do=error.do,
            details=error.details,
        ) from None
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)


def _listed(path: Path, into: Path) -> Listing:
    if path.is_dir():
        return of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return unpack(archive, into / "unzipped", OWNERS)  # an upload was held to closer bounds before it was kept
    except DAMAGED_ZIP as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise  # not the zip's fault
        raise BadData("the zip file cannot be read", given=str(error), do="pack it again") from None


def _read_listing(listing: Listing, spec: DataSpec, into: Path) -> Decoded:
    path = path_of(spec.source)
    if not listing.pictures and any(table.ending in _parquet.ENDINGS for table in listing.tables):
        held = _embedded.extracted(listing, spec, into, _hub.card(path))
        if held is not None:
            return _of_embedded(held, listing.notes, spec, into)
    layout = find(listing, spec, path if path.is_dir() else None)
    found = _of_layout(layout, spec, into, listing.notes)
    if (into / "unzipped").is_dir():
        count = f"{sum(len(part[1]) for part in found.parts.values()):,} files were read from the zip."
        found = replace(found, notes=(*found.notes, count))
    old = [entry for classes in layout.parts.values() for files in classes.values() for entry in files]
    old = [entry for entry in old if entry.ending in OLD_ENDINGS]
    return replace(found, changed=found.changed or find_as_before(old).entries() != layout.entries())


def _of_layout(layout: Layout, spec: DataSpec, into: Path, notes: tuple[str, ...] = ()) -> Decoded:
    classes = tuple(layout.parts["train"])
    entries = {
        part: [(file, classes.index(name)) for name, files in by_class.items() for file in files]
        for part, by_class in layout.parts.items()
    }
    found = decode(entries, classes, spec, into)
    return replace(
        found,
        notes=(*notes, *layout.notes, *found.notes),
        unreadable={**layout.missing, **found.unreadable},
        reader="table" if layout.columns else "folders",
        columns=layout.columns,
        names=layout.names,
        order=layout.order,
    )


def _of_embedded(held: _embedded.Found, notes: tuple[str, ...], spec: DataSpec, into: Path) -> Decoded:
    found = decode(held.entries, held.classes, spec, into)
    return replace(
        found,
        notes=(*notes, *held.notes, *found.notes),
        reader="parquet",
        columns=held.columns,
        names=held.names,
        order=held.order,
    )


def _read_by_python(spec: DataSpec, into: Path) -> Decoded:
    """A path, by the user's own reader."""
    assert spec.reader is not None
    path = path_of(spec.source)
    if not path.exists():
        raise BadData("the path does not exist", given=spec.source, do="name the folder or file that the reader reads")
    try:
        made = _of_layout(_python.layout(spec.reader, path.resolve(), into), spec, into)
        return replace(made, reader="python")
    finally:
        shutil.rmtree(into / _python.KEPT, ignore_errors=True)


def _read_table(spec: DataSpec, into: Path) -> Decoded:
    """A table of labels that was named itself, or a Parquet file of images."""
    path = path_of(spec.source)
    entry = Entry((path.name,), path.resolve())
    try:
        if path.suffix.lower() in _parquet.ENDINGS and _embedded.holds_images(entry):
            held = _embedded.extracted(Listing((), (entry,), ()), spec, into, _hub.card(path.parent))
            assert held is not None
            return _of_embedded(held, (), spec, into)
        return _of_layout(of_table(entry, spec, lambda: of_folder(entry.file.parent)), spec, into)
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)


def _read_hub(spec: DataSpec, into: Path) -> Decoded:
    """A dataset of the Hugging Face hub: Parquet files of images, or a folder of images."""
    folder, commit = _hub.fetched(spec.source)
    listing, named = of_folder(folder), _hub.parsed(spec.source)
    note = f"Commit {commit[:12]} of {spec.source} was read; {_hub.PREFIX}{named.repo}@REVISION names another."
    try:
        held = _embedded.extracted(listing, spec, into, _hub.card(folder), named.config)
        if held is not None:
            return _of_embedded(held, (note, *listing.notes), spec, into)
        return _of_layout(find(listing, spec, folder), spec, into, (note, *listing.notes))
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)


def files_of(source: str, old: bool = False) -> tuple[list[Path], Mapping[str, int]]:
    """(the files on which the images of a source depend, folders that were left out); none of the hub's, which are
    decoded once.

    Raises:
        OSError: a folder may not be read.
    """
    if source in NAMED or _hub.is_address(source):
        return [], {}
    path = path_of(source)
    if not path.is_file():
        return (list(old_walk(path)), {}) if old else files_below(path)
    if old or not _tables.is_table(path):
        return [path], {}
    path = path.resolve()
    beside = [
        one for one in (path.parent / "README.md", *(entry.file for entry in _order.beside(path))) if one.is_file()
    ]
    entry = Entry((path.name,), path)
    if path.suffix.lower() in _parquet.ENDINGS and _embedded.holds_images(entry):
        return [path, *beside], {}
    named = _labels.files_named(_tables.read(entry), path.parent)
    return [path, *beside, *(files_below(path.parent)[0] if named is None else named)], {}


def read_as_before(spec: DataSpec, into: Path) -> Decoded:
    """A folder or a zip as it was read before 2026-12, for runs of that time.

    Raises:
        BadData: it has no classes in that way.
    """
    path = path_of(spec.source)
    try:
        listing = _listed(path, into)
        layout = find_as_before([one for one in listing.pictures if one.ending in OLD_ENDINGS])
        classes = tuple(layout.parts["train"])
        if not set().union(*layout.parts.values()) <= set(classes):
            raise BadData("classes in val/ or test/ are missing from train/")
        entries = {
            part: [(file, classes.index(name)) for name, files in by_class.items() for file in files]
            for part, by_class in layout.parts.items()
        }
        found = decode(entries, classes, spec, into, old=True)
        note = "These images are read as they were before 2026-12, since that is what the run was made for."
        return replace(found, notes=(note, *found.notes))
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)
