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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import BadData
from smallalign_core.spec import DataSpec

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_PIXELS = 25_000_000  # one image; above this a small file can ask for gigabytes
MAX_UNREADABLE = 0.01
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist

NAMED: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8x8 grey (UCI; ships with scikit-learn)",
    "fashion-mnist": "70,000 pictures of clothes, 28x28 grey (Xiao et al., 2017)",
    "mnist": "70,000 handwritten digits, 28x28 grey (LeCun et al., 1998)",
    "cifar10": "60,000 photographs in 10 classes, 32x32 colour (Krizhevsky, 2009)",
    "cifar100": "60,000 photographs in 100 classes, 32x32 colour (Krizhevsky, 2009)",
}
FASHION_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Decoded:
    """What a reader hands over: splits that the source itself brings; `train` always, the others if it has them."""

    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


Reader = Callable[[DataSpec, Path], Decoded]


def reader(source: str) -> Reader:
    """Which reader understands `source`."""
    if source in NAMED:
        return _read_digits if source == "digits" else _read_named
    path = Path(source).expanduser()
    if path.is_file() and zipfile.is_zipfile(path):
        return _read_zip
    if path.is_dir():
        return _read_idx if any(_idx_files(path)) else _read_folder
    what = "is neither a folder nor a zip file" if path.exists() else "is not known here, and no such path exists"
    raise BadData(f"the dataset {what}", given=source, do=f"use a path, or one of: {', '.join(NAMED)}")


def _read_digits(spec: DataSpec, _into: Path) -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    images = _resized(images, spec.size)
    return Decoded({"train": (images, bunch.target.astype(np.int64))}, tuple("0123456789"))


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
            raise BadData(
                f"the dataset {spec.source} is not here and could not be downloaded ({type(error).__name__})",
                given=f"looked in {root.resolve()}",
                do="connect to a network, or give a path to its files; `digits` always works",
            ) from None
        images = np.asarray(found.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        parts[name] = (_resized(np.ascontiguousarray(images), spec.size), np.asarray(found.targets, dtype=np.int64))
    return Decoded(parts, tuple(str(name) for name in found.classes))


def _idx_files(folder: Path) -> dict[str, Path]:
    """IDX files by their MNIST name, plain or .gz: 'train-images', 'train-labels', 't10k-images', 't10k-labels'."""
    found = {}
    for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        for file in (sorted(folder.glob(f"{stem}*idx?-ubyte")) + sorted(folder.glob(f"{stem}*idx?-ubyte.gz")))[:1]:
            found[stem] = file
    return found


def _read_idx(spec: DataSpec, _into: Path, folder: Path | None = None) -> Decoded:
    folder = folder or Path(spec.source).expanduser()
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
        images, labels = _idx(files[f"{stem}-images"]), _idx(files[f"{stem}-labels"])
        if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise BadData(
                f"{stem} images and labels do not belong together",
                given=f"{images.shape} and {labels.shape}",
                do="give one label per image",
            )
        images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        parts[name] = (_resized(images, spec.size), labels.astype(np.int64))
    highest = max(int(labels.max()) for _, labels in parts.values())
    return Decoded(parts, tuple(str(number) for number in range(highest + 1)))


def _idx(file: Path) -> NDArray[np.uint8]:
    """One IDX array of unsigned bytes (yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            zeros, kind, dimensions = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            size = math.prod(shape)
            if zeros or kind != 8 or not 1 <= dimensions <= 4 or size > 2**34:
                raise ValueError
            values = np.frombuffer(stream.read(size + 1), np.uint8)
            if len(values) != size:
                raise ValueError
    except (OSError, EOFError, ValueError, struct.error, OverflowError):
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


def _read_folder(spec: DataSpec, into: Path) -> Decoded:
    """A folder of one sub-folder per class, optionally below train/, val/ and test/."""
    root = Path(spec.source).expanduser()
    listing = {name: path for name in ("train", "val", "test") if (path := root / name).is_dir()}
    if "train" not in listing:
        listing = {"train": root}
    files = {
        part: {
            child.name: [file for file in walk(child) if file.suffix.lower() in IMAGE_ENDINGS]
            for child in sorted(base.iterdir())
            if child.is_dir()
        }
        for part, base in listing.items()
    }
    classes = tuple(name for name, found in files["train"].items() if found)
    if not classes:
        loose = sum(1 for file in root.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        raise BadData(
            "the folder has no classes" + (f", only {loose} images without labels" if loose else ""),
            given=root,
            do="put the images (" + ", ".join(sorted(e[1:] for e in IMAGE_ENDINGS)) + ") into one sub-folder per class",
        )
    strangers = {name for part in files.values() for name, found in part.items() if found} - set(classes)
    if strangers:
        raise BadData(
            "classes in val/ or test/ are missing from train/",
            given=", ".join(sorted(strangers)[:5]),
            do="add training images of them",
        )
    entries = {
        part: [(file, classes.index(name)) for name, found in by_class.items() for file in found]
        for part, by_class in files.items()
    }
    return _decode(entries, classes, spec, into, name=lambda file: str(file.relative_to(root)))


def _read_zip(spec: DataSpec, into: Path) -> Decoded:
    """A zip of such a folder: unpacked beside the cache under names of our own, read, and removed."""
    path, room = Path(spec.source).expanduser(), into / "unzipped"
    try:
        with zipfile.ZipFile(path) as archive:
            names = _unzip(archive, room)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise BadData("the zip file cannot be read", given=f"{path}: {error}", do="pack it again") from None
    try:
        while (
            len(inside := [child for child in room.iterdir() if not child.name.startswith((".", "__MACOSX"))]) == 1
            and inside[0].is_dir()
            and any(c.is_dir() for c in inside[0].iterdir())
        ):
            room = inside[0]  # a zip often holds one folder that holds everything
        found = _read_folder(spec.model_copy(update={"source": str(room)}), into)
    except BadData as error:  # name what the user gave, not where we unpacked it
        raise BadData(error.wrong.replace("the folder", "the zip"), given=path, do=error.do) from None
    finally:
        shutil.rmtree(into / "unzipped", ignore_errors=True)
    return replace(found, notes=(*found.notes, f"{names} files were read from the zip."))


def _unzip(archive: zipfile.ZipFile, room: Path, *, max_entries: int = 200_000, max_bytes: int = 8 * 1024**3) -> int:
    """Unpack images only, counting what is really written: an archive's own sizes may lie.

    Raises:
        BadData: names that leave the folder, too many entries, or too much content.
    """
    entries = [
        entry
        for entry in archive.infolist()
        if not entry.is_dir() and Path(entry.filename).suffix.lower() in IMAGE_ENDINGS
    ]
    if len(entries) > max_entries:
        raise BadData(
            f"the zip has over {max_entries:,} images", given=len(entries), do="unpack it and give the folder"
        )
    written = 0
    for entry in entries:
        parts = Path(entry.filename).parts
        if (
            entry.filename.startswith("/")
            or ".." in parts
            or "\\" in entry.filename
            or ":" in parts[0]
            or len(entry.filename) > 500
        ):
            raise BadData(
                "the zip holds a name that leaves its folder",
                given=entry.filename,
                do="pack it again with relative names",
            )
        target = room.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as sink:
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > max_bytes or (len(chunk) and sink.tell() > 100 * 1024**2):
                    raise BadData(
                        "the zip unpacks to more than is allowed",
                        given=entry.filename,
                        do="unpack it and give the folder",
                    )
                sink.write(chunk)
    room.mkdir(parents=True, exist_ok=True)
    return len(entries)


def _decode(
    entries: dict[str, list[tuple[Path, int]]],
    classes: tuple[str, ...],
    spec: DataSpec,
    into: Path,
    *,
    name: Callable[[Path], str],
) -> Decoded:
    """Decode image files straight into memory-mapped arrays; unreadable ones are named, and refused above 1 %."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # we look at the header ourselves, below
    unreadable: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    colour = False
    readable: dict[str, list[tuple[Path, int]]] = {}
    for part, files in entries.items():  # first pass: headers only
        readable[part] = []
        for file, label in files:
            try:
                with Image.open(file) as picture:
                    if picture.width * picture.height > MAX_PIXELS:
                        raise ValueError
                    sizes[picture.size] += 1
                    colour = colour or picture.mode not in ("L", "1", "I;16", "I", "LA")
                    readable[part].append((file, label))
            except (OSError, ValueError, SyntaxError, EOFError):
                unreadable.append(name(file))
    total = sum(len(files) for files in entries.values())
    _refuse_unreadable(unreadable, total)
    notes, side = [], spec.size
    if side is None and len(sizes) > 1:
        shorts = sorted(min(size) for size in sizes.elements())
        side = max(8, min(224, shorts[len(shorts) // 2]))
        notes.append(
            f"The images come in {len(sizes)} sizes: each was scaled to {side} pixels on its shorter side "
            "and cut to a square about its centre."
        )
    width, height = (side, side) if side else next(iter(sizes))
    parts = {}
    for part, files in readable.items():
        shape = (len(files), 3 if colour else 1, height, width)
        array = (
            np.lib.format.open_memmap(into / f"{part}.images.npy", mode="w+", dtype=np.uint8, shape=shape)
            if files
            else np.empty(shape, np.uint8)
        )
        labels, row = [], 0
        for file, label in files:
            try:
                array[row] = _pixels(file, colour, (width, height))
            except (OSError, ValueError, SyntaxError, EOFError):
                unreadable.append(name(file))
                continue
            labels.append(label)
            row += 1
        if row < len(files):  # some failed late: keep what was read
            kept = np.array(array[:row])
            del array
            (into / f"{part}.images.npy").unlink()
            np.save(into / f"{part}.images.npy", kept)
            array = kept
        parts[part] = (array, np.array(labels, np.int64))
    _refuse_unreadable(unreadable, total)
    if unreadable:
        named = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        notes.append(f"{len(unreadable)} of {total} files could not be read and were left out: {named}.")
    return Decoded(
        {part: found for part, found in parts.items() if len(found[1])}, classes, tuple(notes), tuple(unreadable)
    )


def _refuse_unreadable(unreadable: Sequence[str], total: int) -> None:
    if unreadable and len(unreadable) > MAX_UNREADABLE * total:
        raise BadData(
            f"{len(unreadable)} of {total} images cannot be read (more than {MAX_UNREADABLE:.0%})",
            given=", ".join(unreadable[:3]),
            do="repair or remove them",
        )


def _pixels(file: Path, colour: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as uint8 [C, H, W]: upright by its EXIF tag, transparency on black, its first frame."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode in ("I;16", "I"):  # 16-bit grey: keep the high byte instead of clipping to white
            picture = Image.fromarray((np.asarray(picture, dtype=np.uint32) >> 8).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
        picture = picture.convert("RGB" if colour else "L")
        if picture.size != size:
            picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        array = np.asarray(picture)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def walk(folder: Path) -> Iterator[Path]:
    """All images and IDX files below `folder`, in an order that does not depend on the file system."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_ENDINGS or "ubyte" in name:
                yield Path(root) / name
