"""One image file to uint8 pixels: EXIF orientation, transparency on a visible background, full range of grey levels.

The format is detected from the content, not from the name. Unreadable metadata is skipped.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data._files import SNIFFED, kind_of
from smallalign_core.errors import BadData

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "PPM", "JPEG2000")
OLD_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What a file may hold: others may start programs."""

DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Grey of more than 8 bits."""
GREY_MODES = ("L", "1", "LA", *DEEP)

MAX_PIXELS = 25_000_000
"""Of one image as it is decoded; above this a small file can ask for gigabytes."""
MAX_SCALED = 256_000_000
"""Of a JPEG that is decoded at a half, a quarter or an eighth: only what comes out takes memory."""
MAX_PROGRESSIVE = 64_000_000
"""Likewise where the whole image must be held in coefficients."""
MAX_HEIF = 50_000_000
"""Phones write 48 million pixels so, and they cannot be scaled while decoding."""
MAX_IMAGE_SIDE = 32_768

UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Pillow's transposition for each EXIF orientation."""

LIGHT, MOSTLY = 224, 0.9
"""A drawing is nearly white if this share of what is visible is lighter than LIGHT."""

EXTRAS = {
    "exif": "unreadable EXIF tags: they were used without rotation",
    "metadata": "damaged or too long metadata: it was skipped",
    "white": "transparency: they were put on white",
    "black": "transparency and nearly white drawings: they were put on black",
    "frames": "several frames or pages: the first was used",
    "scaled": f"more than {MAX_PIXELS // 1_000_000} million pixels: they were scaled down while decoding",
    "colour16": "16 bits a colour channel: the higher 8 were used",
    "named": "another format than their file extension",
}
"""Notes on images that were read, as after "12 images have"."""


class Unreadable(Exception):
    """Why a file is not read, in words."""


@dataclass(frozen=True)
class Range:
    """The values that grey images of more than 8 bits take, of a whole dataset: `low` becomes black."""

    low: float
    high: float
    whole: bool

    def joined(self, other: Range | None) -> Range:
        if other is None:
            return self
        return Range(min(self.low, other.low), max(self.high, other.high), self.whole and other.whole)

    @property
    def bits(self) -> int | None:
        """How many bits hold all values; None where they are negative or fractions."""
        return max(8, int(self.high).bit_length()) if self.whole and self.low >= 0 else None

    def to_bytes(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values as uint8: the highest 8 of the bits in use; fractions of 0..1 times 255, else from low to high."""
        if (bits := self.bits) is not None:
            return (values.astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        low, high = (
            (self.low, self.high) if self.low < 0 or self.high > 255 else (0.0, 1.0 if self.high <= 1 else 255.0)
        )
        scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / max(high - low, 1e-12)
        return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)

    @property
    def words(self) -> str:
        """How values became uint8, as after "grey images of more than 8 bits"."""
        if (bits := self.bits) is not None:
            return f"use {bits} bits of their 16-bit or larger values: the higher 8 of these were kept"
        if self.low >= 0 and self.high <= 255:
            return f"hold fractions from {self.low:g} to {self.high:g}: {1 if self.high <= 1 else 255} became white"
        return f"hold values from {self.low:g} to {self.high:g}, which became black and white"


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded: (width, height) upright, whether it is grey, or deep."""

    size: tuple[int, int]
    grey: bool
    deep: bool
    extras: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Picture:
    """One decoded image: uint8 [C, H, W], its source id, its (height, width) before, and what to say about it."""

    pixels: NDArray[np.uint8]
    id: int
    before: tuple[int, int]
    extras: frozenset[str] = frozenset()


def source_id(pixels: NDArray[np.uint8]) -> int:
    """A hash of one image's shape and pixels, [H, W] or [H, W, 3], as its source has them: before any resizing."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def header(file: Path | BytesIO, ending: str = "", old: bool = False) -> Header:
    """The header of a file with that `ending`; no pixel is decoded.

    Raises:
        Unreadable, or whatever Pillow's parsers raise.
    """
    with _opened(file, old) as (picture, extras):
        turned, extras = _orientation(picture, extras)
        size = picture.size[::-1] if turned in (5, 6, 7, 8) else picture.size
        grey, deep = picture.mode in GREY_MODES, picture.mode in DEEP
        return Header(size, grey, deep and not old, extras | (frozenset() if old else _extras_of(picture, ending)))


def outcome_of_header(file: Path, ending: str, old: bool) -> tuple[Any, ...]:
    """Of `header`, in plain values: ("", size, grey, extras), then the `Range` of a deep image; or (why not,)."""
    try:
        found = header(file, ending, old)
        deep = astuple(range_of(file)) if found.deep else ()
        return "", found.size, found.grey, sorted(found.extras), *deep
    except Exception as error:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
        return (why(error, file),)


def outcome_of(
    file: Path, colour: bool, size: tuple[int, int], deep: tuple[float, float, bool] | None, old: bool
) -> tuple[Any, ...]:
    """Of `pixels`, in plain values: ("", pixels, id, before, extras); or (why not,)."""
    try:
        made = pixels(file, colour, size, deep and Range(*deep), old=old)
        return "", made.pixels, made.id, made.before, sorted(made.extras)
    except Exception as error:  # noqa: BLE001  # as above
        return (why(error, file),)


def of_content(content: bytes, colour: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of one image file's content, uint8 [C, H, W].

    Raises:
        BadData: it is too large.
        Exception: whatever Pillow's parsers raise.
    """
    try:
        return pixels(BytesIO(content), colour, size).pixels
    except Unreadable as error:
        raise BadData(
            f"the image has more than {MAX_PIXELS // 1_000_000} million pixels, or over {MAX_IMAGE_SIDE:,} on a side",
            given=error,
            do="make it smaller, or save it as a JPEG",
        ) from None


def range_of(file: Path) -> Range:
    """The values of a deep image."""
    with _opened(file) as (picture, _):
        values = np.asarray(picture)
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not finite.size:
            raise Unreadable("it holds no number")
        return Range(float(finite.min()), float(finite.max()), values.dtype.kind in "iu")


def pixels(
    file: Path | BytesIO, colour: bool, size: tuple[int, int], deep: Range | None = None, *, old: bool = False
) -> Picture:
    """One image as uint8 [C, H, W] of `size` (width, height): upright by its EXIF tag, first frame.

    Args:
        deep: the values of all deep images of the dataset; its own without.
        old: as before 2026-12, for runs of that time: transparency on black, the high byte of 16 bits.

    Raises:
        Unreadable, or whatever Pillow's parsers raise.
    """
    try:
        return _decoded(file, colour, size, deep, old)
    except Exception:
        if old or (bare := _bare_png(file)) is None:
            raise
        found = _decoded(bare, colour, size, deep, old)  # what stands behind the pixels is read with them
        return replace(found, extras=found.extras | {"metadata"})


def _decoded(file: Path | BytesIO, colour: bool, size: tuple[int, int], deep: Range | None, old: bool) -> Picture:
    from PIL import Image, ImageOps

    with _opened(file, old) as (opened, extras):
        turned, extras = (0, extras) if old else _orientation(opened, extras)
        before = opened.size[::-1] if turned in (5, 6, 7, 8) else opened.size
        grey = opened.mode in GREY_MODES
        if not old and math.prod(opened.size) > MAX_PIXELS and opened.format in ("JPEG", "MPO"):
            times = next(by for by in (2, 4, 8) if math.prod(opened.size) / by**2 <= MAX_PIXELS)
            opened.draft(None, (opened.width // times, opened.height // times))
            extras |= {"scaled"}
        picture: Image.Image = opened
        if old:
            ImageOps.exif_transpose(opened, in_place=True)
            before = opened.size
        elif turned in UPRIGHT:
            picture = opened.transpose(Image.Transpose(UPRIGHT[turned]))
        if picture.mode in DEEP and not (old and picture.mode == "F"):
            values = np.asarray(picture)
            if old:
                deep = Range(0, 0xFFFF, True)
            elif deep is None:
                deep = Range(float(values.min()), float(values.max()), values.dtype.kind in "iu")
            picture = Image.fromarray(deep.to_bytes(values))
        if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
            picture, ground = _grounded(picture, old)
            extras |= {ground} if ground else set()
        picture = picture.convert("L" if grey else "RGB")  # what the file is, whatever the others are
        found = source_id(np.asarray(picture))
        if colour != (picture.mode == "RGB"):
            picture = picture.convert("RGB" if colour else "L")
        if picture.size != size:
            picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        array = np.asarray(picture)
    array = np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return Picture(array, found, (before[1], before[0]), extras)


def _grounded(picture: Image.Image, old: bool) -> tuple[Image.Image, str | None]:
    """(the image on a ground that keeps it visible, which that is; None where nothing is transparent).

    White, as on a page; black where nearly all that is visible is nearly white itself, or nothing is visible.
    """
    from PIL import Image

    if picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    ground = "black"
    if not old:
        alpha = np.asarray(picture.getchannel("A"))
        if alpha.min() == 255:
            return picture, None
        seen = alpha >= 128 if (alpha >= 128).any() else alpha > 0
        light = np.asarray(picture.convert("RGB").convert("L"))[seen]
        ground = "white" if light.size and (light > LIGHT).mean() < MOSTLY else "black"
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture), ground


# --- opening ----------------------------------------------------------------------------------------------------------


@functools.cache
def prepare() -> None:
    """Load what Pillow reads by itself, and HEIF."""
    from PIL import Image
    from pillow_heif import register_heif_opener

    Image.MAX_IMAGE_PIXELS = None  # we look at the header ourselves, below
    register_heif_opener(thumbnails=False)


@contextlib.contextmanager
def _opened(file: Path | BytesIO, old: bool = False) -> Iterator[tuple[Image.Image, frozenset[str]]]:
    """A file whose header was read, and what had to be skipped for that.

    Raises:
        Unreadable: it is too large.
    """
    from PIL import Image

    prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata: it is counted, or costs nothing
        extras: frozenset[str] = frozenset()
        try:
            picture = Image.open(file, formats=OLD_FORMATS if old else FORMATS)
        except Exception:
            if old or (bare := _bare_png(file)) is None:
                raise
            picture, extras = Image.open(bare, formats=("PNG",)), frozenset({"metadata"})
        with picture:
            _check_size(picture, old)
            yield picture, extras


def _check_size(picture: Image.Image, old: bool) -> None:
    count, kind = math.prod(picture.size), str(picture.format)
    if old:
        most, side = MAX_PIXELS, 10_000
    else:
        most, side = MOST.get(kind, MAX_PIXELS), MAX_IMAGE_SIDE
        if kind in ("JPEG", "MPO") and picture.info.get("progressive"):
            most = MAX_PROGRESSIVE
        if any(tile[0] == "ppm_plain" for tile in _tiles(picture)):
            most = MAX_PLAIN
        tags: Any = getattr(picture, "tag_v2", {})
        count = max(count, *(math.prod(_whole(tags.get(tag)) for tag in pair) for pair in TILES))
    if count > most:
        raise Unreadable(f"{count / 1e6:,.0f} million pixels, of which {most / 1e6:,.0f} are read of {kind}")
    if max(picture.size) > side:
        raise Unreadable(f"{picture.width:,} x {picture.height:,} pixels: a side has at most {side:,}")


MAX_PLAIN = 1_000_000
"""Of pixels that are written as text."""
MOST = {"JPEG": MAX_SCALED, "MPO": MAX_SCALED, "HEIF": MAX_HEIF, "JPEG2000": 16_000_000}
TILES = ((322, 323), (322, 278))
"""TIFF tags: the width and height of a tile, which may be larger than the image."""


def _tiles(picture: Image.Image) -> list[Any]:
    """How the file holds its pixels; unknown for HEIF."""
    return getattr(picture, "tile", None) or []


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _orientation(picture: Image.Image, extras: frozenset[str]) -> tuple[int, frozenset[str]]:
    """(the EXIF orientation 1..8, what had to be skipped): nothing else of the tags is read."""
    if (
        not picture.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
        and picture.format != "TIFF"
    ):
        return 1, extras
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # cameras and editors write what they like
        return 1, extras | {"exif"}
    return (found if isinstance(found, int) else 1), extras


def _extras_of(picture: Image.Image, ending: str) -> frozenset[str]:
    """Facts of a header that the decoded pixels do not have."""
    kind, found = str(picture.format), set()
    if ending in NAMED and kind not in NAMED[ending]:
        found.add("named")
    if picture.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in _tiles(picture)):
        found.add("colour16")
    with contextlib.suppress(Exception):
        if kind != "MPO" and getattr(picture, "is_animated", False):  # last: looking for a second frame may seek
            found.add("frames")
    return frozenset(found)


NAMED = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    **{".png": ("PNG",), ".webp": ("WEBP",), ".bmp": ("BMP", "DIB"), ".gif": ("GIF",), ".avif": ("AVIF",)},
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".heic", ".heif"), ("HEIF", "AVIF")),
}
"""Endings, and the formats that they promise."""

KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MAX_PNG = 512 * 1024**2


def _bare_png(file: Path | BytesIO) -> BytesIO | None:
    """A PNG without all that is not needed for its pixels; None of anything else."""
    try:
        content = file.getvalue() if isinstance(file, BytesIO) else file.read_bytes() if _small(file) else b""
    except OSError:
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, at = [content[:8]], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        if content[at + 4 : at + 8] in KEPT_CHUNKS:
            kept.append(content[at : at + 12 + length])
        at += 12 + length
    return BytesIO(b"".join(kept))


def _small(file: Path) -> bool:
    return file.stat().st_size <= MAX_PNG


def why(error: BaseException, file: Path) -> str:
    """Why a file is not read, for people."""
    from PIL import UnidentifiedImageError

    if isinstance(error, Unreadable):
        return str(error)
    try:
        if not file.stat().st_size:
            return "empty"
        with file.open("rb") as stream:
            kind = kind_of(stream.read(SNIFFED))
    except OSError as problem:
        return (problem.strerror or type(problem).__name__).lower()
    if isinstance(error, UnidentifiedImageError):
        return f"{kind}, which is not read or is damaged" if kind else "not an image, by its first bytes"
    text = " ".join(str(error).split()).replace(str(file), "it")
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "cut short"
    return f"damaged {kind or 'image'} ({text[:80] or type(error).__name__})"
