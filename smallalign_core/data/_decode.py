"""From image files to arrays: which files count, what may be opened, and the pixels that come out."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import _guarded
from smallalign_core.errors import BadData, WorkFailed
from smallalign_core.spec import DataSpec

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # what a file holds, whatever its name says: others may start programs
GREY_MODES = ("L", "1", "I;16", "I", "LA")
MAX_PIXELS = 25_000_000  # one image; above this a small file can ask for gigabytes
MAX_IMAGE_SIDE = 10_000  # likewise: long and thin costs as much where it is turned or scaled
MAX_UNREADABLE = 0.01
MAX_SIDE = 224  # photographs are scaled to this unless `data.size` says otherwise
DISK_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}

Entries = dict[str, list[tuple[Path, int]]]
"""Image files and their labels, by split."""


@dataclass(frozen=True)
class Decoded:
    """What a reader hands over.

    Attributes:
        parts: images, labels and source ids of the splits that the source itself brings; `train` always.
        sizes: (height, width) of each image of a split before it was scaled, int32 [N, 2], where they may differ.
    """

    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    sizes: dict[str, NDArray[np.int32]] = field(default_factory=dict)


def source_id(pixels: NDArray[np.uint8]) -> int:
    """A hash of one image's shape and pixels, [H, W] or [H, W, 3], as its source has them: before any resizing."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def source_ids(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """`source_id` of each of the images [N, C, H, W]."""
    plain = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    return np.fromiter((source_id(image) for image in plain), np.uint64, len(images))


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images: what macOS, Jupyter and editors leave."""
    return name.startswith((".", "__MACOSX"))


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All images and IDX files below `folder`, through links, in an order that does not depend on the file system."""
    here = os.path.realpath(folder)
    if here in above:
        return  # a link to a folder that holds it
    children = sorted(child for child in folder.iterdir() if not hidden(child.name))
    folders = [child for child in children if child.is_dir()]
    for child in children:
        if (child.suffix.lower() in IMAGE_ENDINGS or "ubyte" in child.name) and child not in folders:
            yield child
    for child in folders:
        yield from walk(child, (*above, here))


def decode(
    entries: Entries, classes: tuple[str, ...], spec: DataSpec, into: Path, *, name: Callable[[Path], str]
) -> Decoded:
    """Decode image files straight into memory-mapped arrays; unreadable ones are named, and refused above 1 %."""
    unreadable: list[str] = []
    readable, sizes, colour = _look(entries, unreadable, name)
    total = sum(len(files) for files in entries.values())
    _refuse_unreadable(unreadable, total)
    side, notes = _side(sizes, spec.size)
    width, height = (side, side) if side else next(iter(sizes))
    parts, originals = {}, {}
    for part, files in readable.items():
        if not files:
            continue
        array = _reserved(into / f"{part}.images.npy", (len(files), 3 if colour else 1, height, width))
        labels: list[int] = []
        ids: list[int] = []
        before: list[tuple[int, int]] = []
        decoded = _guarded.each(_pixels, ([file, colour, (width, height)] for file, _ in files))
        for (file, label), one in zip(files, decoded, strict=True):
            try:
                array[len(ids)], found, size = one.get()
            except Exception as error:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
                unreadable.append(name(file))
                if isinstance(error, _guarded.TooCostly):  # each takes seconds: not all of them before it is refused
                    _refuse_unreadable(unreadable, total)
                continue
            labels.append(label)
            ids.append(found)
            before.append(size)
        parts[part] = (array[: len(ids)], np.array(labels, np.int64), np.array(ids, np.uint64))
        originals[part] = np.array(before, np.int32).reshape(-1, 2)
    _refuse_unreadable(unreadable, total)
    if unreadable:
        named = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        notes.append(f"{len(unreadable)} of {total} files could not be read and were left out: {named}.")
    held = {part: found for part, found in parts.items() if len(found[1])}
    return Decoded(held, classes, tuple(notes), tuple(unreadable), originals)


def _look(
    entries: Entries, unreadable: list[str], name: Callable[[Path], str]
) -> tuple[Entries, Counter[tuple[int, int]], bool]:
    """(the files whose header can be read, their upright sizes, whether any has colour): no pixel is decoded."""
    sizes: Counter[tuple[int, int]] = Counter()
    colour, total = False, sum(len(files) for files in entries.values())
    readable: Entries = {part: [] for part in entries}
    for part, files in entries.items():
        found = _guarded.each(_header, ([file] for file, _ in files))
        for (file, label), one in zip(files, found, strict=True):
            try:
                size, grey = one.get()
            except Exception as error:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
                unreadable.append(name(file))
                if isinstance(error, _guarded.TooCostly):  # each takes seconds: not all of them before it is refused
                    _refuse_unreadable(unreadable, total)
                continue
            sizes[size] += 1
            colour = colour or not grey
            readable[part].append((file, label))
    return readable, sizes, colour


def _header(file: Path) -> tuple[tuple[int, int], bool]:
    """((width, height) of an image file as it stands upright, whether it is grey); no pixel is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # we look at the header ourselves
    with Image.open(file, formats=FORMATS) as picture:
        if _too_many(picture.size):
            raise ValueError
        tagged = picture.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
        turned = bool(tagged) and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return picture.size[::-1] if turned else picture.size, picture.mode in GREY_MODES


def _too_many(size: tuple[int, int]) -> bool:
    return math.prod(size) > MAX_PIXELS or max(size) > MAX_IMAGE_SIDE


def _side(sizes: Counter[tuple[int, int]], wanted: int | None) -> tuple[int | None, list[str]]:
    """(the side of the squares that all images become, what to say about it); None keeps the one size there is."""
    shorts = sorted(min(size) for size in sizes.elements())
    if wanted or (len(sizes) == 1 and shorts[0] <= MAX_SIDE):
        return wanted, []
    side = max(8, min(MAX_SIDE, shorts[len(shorts) // 2]))
    width, height = next(iter(sizes))
    what = f"come in {len(sizes)} sizes" if len(sizes) > 1 else f"have {width} x {height} pixels"
    return side, [
        f"The images {what}: each was scaled to {side} pixels on its shorter side and cut to a square about its centre "
        "(`data.size` sets another)."
    ]


def _refuse_unreadable(unreadable: Sequence[str], total: int) -> None:
    if unreadable and len(unreadable) > MAX_UNREADABLE * total:
        raise BadData(
            f"{len(unreadable)} of {total} images cannot be read (more than {MAX_UNREADABLE:.0%})",
            given=", ".join(unreadable[:3]),
            do="repair or remove them",
        )


def _reserved(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A new memory-mapped array whose blocks are the file's own already.

    A sparse file would find the disk full only when a page is written back, and then the process is killed (SIGBUS).

    Raises:
        OSError: the disk has no room for it.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        if not _allocated(stream.fileno(), stream.tell(), math.prod(shape)):
            for start in range(0, math.prod(shape), 1 << 20):
                stream.write(bytes(min(1 << 20, math.prod(shape) - start)))
    return np.lib.format.open_memmap(file, mode="r+")


def _allocated(descriptor: int, start: int, size: int) -> bool:
    """Whether the system could reserve these bytes; False where it or the file system knows no such thing."""
    try:
        os.posix_fallocate(descriptor, start, size)
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False
    return True


def decode_one(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One image file's content as uint8 of `shape` [C, H, W], scaled and cut as the images of a folder are.

    Raises:
        BadData: it is no image, or has too many pixels. Its header is looked at before anything is decoded.
    """
    channels, height, width = shape
    try:
        return _guarded.call(_upload, content, channels == 3, (width, height))
    except (BadData, WorkFailed):
        raise
    except Exception:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
        raise BadData(
            "the file is not an image that can be read", given=f"{len(content):,} bytes", do="use PNG, JPEG or WebP"
        ) from None


def _upload(content: bytes, colour: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of one image file's content, uint8 [C, H, W]."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # we look at the header ourselves
    with Image.open(BytesIO(content), formats=FORMATS) as picture:
        given = picture.size
    if _too_many(given):
        raise BadData(
            f"the image has more than {MAX_PIXELS // 1_000_000} million pixels, or over {MAX_IMAGE_SIDE:,} on a side",
            given=f"{given[0]} x {given[1]}",
            do="make it smaller",
        )
    return _pixels(BytesIO(content), colour, size)[0]


def _pixels(
    file: Path | BytesIO, colour: bool, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], int, tuple[int, int]]:
    """One image as uint8 [C, H, W], its source id, and its (height, width) before: upright by its EXIF tag,
    transparency on black, first frame."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=FORMATS) as opened:
        grey = opened.mode in GREY_MODES
        ImageOps.exif_transpose(opened, in_place=True)  # a copy of 25 million pixels is 100 MB: none that is not needed
        picture: Image.Image = opened
        if picture.mode in ("I;16", "I"):  # 16-bit grey: keep the high byte instead of clipping to white
            picture = Image.fromarray((np.asarray(picture, dtype=np.uint32) >> 8).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            if picture.mode != "RGBA":
                picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        picture = picture.convert("L" if grey else "RGB")  # what the file is, whatever the others are
        found, before = source_id(np.asarray(picture)), (picture.height, picture.width)
        if colour != (picture.mode == "RGB"):
            picture = picture.convert("RGB" if colour else "L")
        if picture.size != size:
            picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        array = np.asarray(picture)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)), found, before
