"""Chunks: teacher logits of consecutive steps, and their checksummed files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

LARGEST = 60_000.0
"""Maximum of half precision."""

SEAL = 32
"""Bytes of the SHA-256 at the end of each file."""


AT_ONCE = ("cpu",)
"""Devices from which a step is copied when it is added; a GPU would have to finish its work first."""
LATER_STEPS, LATER_BYTES = 16, 64 * 1024**2
"""Max. steps, and max. bytes of their images, that wait on a GPU until they are copied."""


class Damaged(Exception):
    """A file is damaged."""


def rounded(logits: Tensor) -> Tensor:
    """Logits rounded to half precision."""
    return logits.clamp(-LARGEST, LARGEST).half().float()


def sealed(content: bytes, salt: str) -> bytes:
    """`content` followed by a SHA-256 of it and of `salt` (the file's name), so that a misplaced file counts as
    damaged.
    """
    return content + hashlib.sha256(salt.encode() + content).digest()


def opened(file: Path, salt: str) -> NDArray[np.uint8]:
    """The bytes of a sealed file, memory-mapped.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it was cut short or changed.
    """
    try:
        whole = np.memmap(file, np.uint8, "r")
    except ValueError:
        raise Damaged(f"{file.name} is empty") from None
    digest = hashlib.sha256(salt.encode())
    digest.update(whole[:-SEAL].data)
    if whole[-SEAL:].tobytes() != digest.digest():
        raise Damaged(f"{file.name} is not what was written")
    return np.asarray(whole[:-SEAL])  # indexing a memmap as such is slow


def fingerprint(images: Tensor) -> int:
    """64-bit hash of the pixels of uint8 images."""
    pixels = np.ascontiguousarray(images.cpu().numpy())
    return int.from_bytes(hashlib.blake2b(pixels.data, digest_size=8).digest(), "little")


@dataclass
class Chunk:
    """Logits of its first `steps` steps; the arrays may have room for more.

    Attributes:
        logits: float16 [steps x batch, classes]; with the largest K only, rows of `_top.packed`.
        prints: uint64 [steps], the fingerprint of each step's pixels.
        images: uint8 [steps x batch, C, H, W], augmented and not yet mixed; None if rendered each time.
        saved: number of steps in the file.
        later: (step, logits, pixels, images, `pack`) that are still on a GPU: see `fetch`.
    """

    logits: NDArray[np.float16]
    prints: NDArray[np.uint64]
    images: NDArray[np.uint8] | None
    steps: int = 0
    saved: int = 0
    later: list[tuple[int, Tensor, Tensor, Tensor, Callable[[Tensor], NDArray[np.float16]]]] = field(
        default_factory=list
    )

    @classmethod
    def empty(cls, steps: int, batch: int, classes: int, shape: tuple[int, int, int] | None) -> Chunk:
        """An empty chunk for a number of steps; `shape` is that of an image, if images are cached."""
        images = np.empty((steps * batch, *shape), np.uint8) if shape else None
        return cls(np.empty((steps * batch, classes), np.float16), np.empty(steps, np.uint64), images)

    def roomy(self, steps: int, batch: int) -> Chunk:
        """The same with room for `steps`, in memory."""
        self.fetch()
        if len(self.prints) >= steps:
            return self
        shape = None if self.images is None else self.images.shape[1:]
        grown = Chunk.empty(steps, batch, self.logits.shape[1], shape)
        grown.steps, grown.saved = self.steps, self.saved
        for old, new in ((self.logits, grown.logits), (self.prints, grown.prints), (self.images, grown.images)):
            if old is not None and new is not None:
                new[: len(old)] = old
        return grown

    def add(self, logits: Tensor, pixels: Tensor, made: Tensor, pack: Callable[[Tensor], NDArray[np.float16]]) -> None:
        """Append a step: the logits of `pixels`, as the rows that `pack` makes of them, and the images `made` before
        any mixing.

        Those on a GPU are copied with later ones, so that it need not stop at each step; `fetch` copies them now.
        """
        self.later.append((self.steps, logits, pixels, made, pack))
        self.steps += 1
        waiting = len(self.later)
        if logits.device.type in AT_ONCE or waiting >= LATER_STEPS or waiting * pixels.nbytes >= LATER_BYTES:
            self.fetch()

    def fetch(self) -> None:
        """Copy what is still on a GPU into the arrays."""
        for step, logits, pixels, made, pack in self.later:
            rows = slice(step * len(logits), (step + 1) * len(logits))
            self.logits[rows] = pack(logits)
            self.prints[step] = fingerprint(pixels)
            if self.images is not None:
                self.images[rows] = made.cpu().numpy()
        self.later.clear()

    def answers(self) -> bytes:
        """Logits and fingerprints as bytes for a file."""
        self.fetch()
        rows = self.steps * (len(self.logits) // len(self.prints))
        return self.logits[:rows].tobytes() + self.prints[: self.steps].tobytes()


def gathered(
    chunks: Mapping[int, Chunk], places: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8] | None]:
    """(logits, images if all chunks have them) at `places`, counted over chunks of `rows` each, copied."""
    numbers, inside = np.divmod(places, rows)
    needed = [chunks[number] for number in np.unique(numbers).tolist()]
    for chunk in needed:
        chunk.fetch()
    first = needed[0]
    if len(needed) == 1:
        return first.logits[inside], None if first.images is None else first.images[inside]
    logits = np.empty((len(places), first.logits.shape[1]), np.float16)
    images = None
    if all(chunk.images is not None for chunk in needed):
        images = np.empty((len(places), *first.images.shape[1:]), np.uint8)  # type: ignore[union-attr]
    for number, chunk in zip(np.unique(numbers).tolist(), needed, strict=True):
        here = np.flatnonzero(numbers == number)
        logits[here] = chunk.logits[inside[here]]
        if images is not None and chunk.images is not None:
            images[here] = chunk.images[inside[here]]
    return logits, images


def read_answers(file: Path, salt: str, batch: int, classes: int) -> Chunk:
    """What `Chunk.answers` was sealed into `file`.

    Raises:
        FileNotFoundError, Damaged: it is not there; it was cut short or changed.
    """
    content = opened(file, salt)
    steps, rest = divmod(len(content), step_bytes(batch, classes))
    if rest or not steps:
        raise Damaged(f"{file.name} holds no whole number of steps")
    rows = steps * batch
    logits = content[: rows * classes * 2].view(np.float16).reshape(rows, classes)
    return Chunk(logits, content[rows * classes * 2 :].view(np.uint64), None, steps, steps)


def read_array(file: Path, salt: str, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """The array of `shape` that was sealed into `file`.

    Raises:
        FileNotFoundError, Damaged: it is not there; it was cut short or changed, or is of another shape.
    """
    content, wanted = opened(file, salt), math.prod(shape) * np.dtype(kind).itemsize
    if len(content) < wanted:
        raise Damaged(f"{file.name} holds too little")
    return content[:wanted].view(kind).reshape(shape)


def step_bytes(batch: int, classes: int) -> int:
    """Bytes per step in an answers file."""
    return batch * classes * 2 + 8


def steps_in(file: Path, batch: int, classes: int) -> int:
    """Number of steps in an answers file by its size; 0 if there is none."""
    try:
        return max(0, file.stat().st_size - SEAL) // step_bytes(batch, classes)
    except OSError:
        return 0
