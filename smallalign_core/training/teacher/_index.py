"""The index of teacher logits caches: keys, sizes and eviction.

    <store>/cache/teacher/<key>/   about.json       the facts behind the key
                                   000000.answers   logits and pixel fingerprints of some steps, with checksum
                                   000000.images    their images, if cached, with checksum
                                   on-<id>.logits   logits of images without augmentation (validation), with checksum
                                   *.lock           held by processes in use; released by the system when they die

Everything may be deleted at any moment, also while a run reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core import augment, data
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput
from smallalign_core.spec import LOOP, Mixing, RunSpec, canonical
from smallalign_core.spec.precision import QUANTIZER
from smallalign_core.system.files import is_held, write_folder
from smallalign_core.system.machine import capability, processor
from smallalign_core.training import losses
from smallalign_core.training.teacher import _chunk, _top
from smallalign_core.training.teacher._chunk import rounded

FORMAT = 1
"""Part of every key; increased when the meaning of cache files changes."""

CHUNK_IMAGES, CHUNK_BYTES = 8192, 32 * 1024**2
"""Approximate images per chunk, and max. bytes per chunk."""

LIMIT_GB = 4.0


@dataclass(frozen=True)
class CachePlan:
    """The logits that a run needs, as steps that are each computed in their own batch.

    Attributes:
        key: digest of `facts`.
        facts: everything that determines the logits, as plain values.
        count: training images; batch: batch size; shape: of an image.
        outputs: number of classes, or of features; top: number of the largest logits that are kept, None for all.
        views: number of fixed views per image; 0 if every epoch has new ones.
        steps: number of steps with teacher forward passes. With K views they end with epoch K.
        chunk_steps: steps per chunk; depends on the key only, so that longer runs reuse the chunks of shorter ones.
        renders: whether rendering the images costs more than reading them.
    """

    key: str
    facts: dict[str, Any]
    count: int
    batch: int
    outputs: int
    top: int | None
    shape: tuple[int, int, int]
    views: int
    steps: int
    chunk_steps: int
    renders: bool

    @property
    def classes(self) -> int:
        """Numbers of 16 bits in a row."""
        return self.outputs if self.top is None else _top.columns(self.top)

    def rows(self, logits: Tensor) -> NDArray[np.float16]:
        """Logits [N, outputs] as rows float16 [N, classes] of a file."""
        return rounded(logits).half().cpu().numpy() if self.top is None else _top.packed(logits, self.top)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits float32 [N, outputs] of such rows, where they are."""
        return rows.float() if self.top is None else _top.unpacked(rows, self.outputs)

    def answered(self, logits: Tensor) -> Tensor:
        """Logits [N, outputs] as `logits` of their `rows` gives them, without leaving the device."""
        return _top.kept(logits, self.top)

    @property
    def answer_bytes(self) -> int:
        return self.steps * _chunk.step_bytes(self.batch, self.classes)

    @property
    def image_bytes(self) -> int:
        return self.steps * self.batch * math.prod(self.shape) if self.renders else 0


def _runtime_version() -> str:
    import onnxruntime  # only for its teachers: training needs none of ONNX

    return str(onnxruntime.__version__)


def plan(
    spec: RunSpec, splits: Splits, teachers: Sequence[str], device: torch.device, width: int | None = None
) -> CachePlan | None:
    """The cache plan of the resolved `spec`.

    Student, loss, optimizer, schedule and the number of epochs are not part of its key.

    Args:
        teachers: a digest of each teacher's weights.
        width: number of features, where the teacher gives these and not logits.

    Returns:
        None if it cannot be cached, since the loss compares layers.
    """
    if not teachers or losses.layers(spec.loss)[1]:
        return None
    mixes = bool(spec.augment) and isinstance(spec.augment[-1], Mixing)
    fixed = spec.views if spec.augment else 1
    count = len(splits.learned)
    steps = augment.steps_of(spec, count)
    if fixed:
        every = -(-fixed * count // spec.batch)
        steps = every if spec.sampling is not None else min(steps, every)
    outputs = len(splits.classes) if width is None else width
    top = _top.used(spec.top, outputs) if width is None else None
    row = math.prod(splits.shape) + 2 * (outputs if top is None else _top.columns(top))
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // row) // spec.batch)
    facts = {
        "format": FORMAT,
        "chunk": chunk,
        "loop": LOOP,
        "decoding": data.FORMAT,
        "teachers": list(teachers),
        "data": canonical(splits.filled(spec.data)),
        "augment": [canonical(part) for part in spec.augment],
        "views": fixed,
        "batch": spec.batch,
        "seed": spec.seed,
        "precision": spec.precision,
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "capability": capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({} if fixed or spec.sampling is None else {"sampling": spec.sampling}),
        **({} if width is None else {"features": width}),
        **({} if top is None else {"top": top}),
        **({} if spec.answers == "torch" else {"answers": spec.answers, "onnxruntime": _runtime_version()}),
        **({"quantizer": QUANTIZER} if spec.answers == "int8" else {}),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    renders = len(spec.augment) > int(mixes)
    return CachePlan(key, facts, count, spec.batch, outputs, top, splits.shape, fixed, steps, chunk, renders)


@dataclass(frozen=True)
class Kept:
    """One cache on the disk."""

    folder: Path
    size: int
    used: float

    @property
    def in_use(self) -> bool:
        """Whether a living process reads or fills it."""
        return any(is_held(lock) for lock in self.folder.glob("*.lock"))


class CacheIndex:
    """All teacher logits caches of a store, with LRU eviction.

    Args:
        root: the folder; created on first use.
        limit: total bytes. Default: SMALLALIGN_CACHE_GB (4), and at most half of the free disk space.

    Raises:
        BadInput: SMALLALIGN_CACHE_GB is not a number.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.limit = self._default_limit() if limit is None else limit

    def _default_limit(self) -> int:
        value = os.environ.get("SMALLALIGN_CACHE_GB") or LIMIT_GB
        try:
            limit = int(float(value) * 1024**3)
        except (ValueError, OverflowError):
            raise BadInput(
                "SMALLALIGN_CACHE_GB is not a number",
                given=value,
                do="set it to a number of gigabytes, or to 0 to disable the cache",
            ) from None
        there = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        return min(limit, self.size + shutil.disk_usage(there).free // 2)

    def kept(self) -> list[Kept]:
        """All caches, least recently used first."""
        found = []
        for folder in self.root.glob("[0-9a-f]*") if self.root.is_dir() else ():
            with contextlib.suppress(OSError):  # deleted meanwhile
                files = [file.stat() for file in folder.iterdir()]
                found.append(Kept(folder, sum(file.st_size for file in files), folder.stat().st_mtime))
        return sorted(found, key=lambda one: one.used)

    @property
    def size(self) -> int:
        """Total bytes of all caches."""
        return sum(one.size for one in self.kept())

    def has(self, wanted: CachePlan) -> int:
        """Number of steps of `wanted` that are cached, by the sizes of the files."""
        per, found = wanted.chunk_steps, 0
        for number in range(-(-wanted.steps // per)):
            file = self.root / wanted.key / f"{number:06d}.answers"
            found += min(_chunk.steps_in(file, wanted.batch, wanted.classes), wanted.steps - number * per)
        return found

    def fitting(self, wanted: CachePlan) -> tuple[int, bool]:
        """(max. bytes of a cache for `wanted`, whether images are cached too); (0, False) if it does not fit.

        Images are cached only if they leave three quarters to others: they save rendering, logits save the teacher.
        """
        taken = sum(one.size for one in self.kept() if one.folder.name != wanted.key and one.in_use)
        room, whole = self.limit - taken, wanted.answer_bytes + wanted.image_bytes
        if wanted.renders and whole <= min(room, self.limit // 4):
            return whole, True
        return (wanted.answer_bytes, False) if wanted.answer_bytes <= room else (0, False)

    @contextlib.contextmanager
    def taken(self, wanted: CachePlan, size: int) -> Iterator[Path]:
        """The folder of the cache for `wanted`, locked during the block, after evicting others to make room for
        `size` bytes.

        Raises:
            Refused: the folder cannot be written.
        """
        folder = self.root / wanted.key
        write_folder(folder, {"about.json": json.dumps(wanted.facts, indent=1)})  # and so it was used now
        lock = FileLock(folder / f"{os.getpid()}-{time.time_ns()}.lock", thread_local=False)
        with lock:
            self._tidy(folder)
            self._make_room(size, folder)
            yield folder
        Path(lock.lock_file).unlink(missing_ok=True)

    def _make_room(self, size: int, keep: Path) -> None:
        """Evict least recently used caches that are not in use, until `size` more bytes fit."""
        for gone in self.root.glob(".gone-*"):  # its deletion was interrupted
            shutil.rmtree(gone, ignore_errors=True)
        others = [one for one in self.kept() if one.folder != keep]
        total = sum(one.size for one in others)
        for one in others:
            if total + size <= self.limit:
                return
            if not one.in_use:
                remove(one.folder)
                total -= one.size

    @staticmethod
    def _tidy(folder: Path) -> None:
        """Remove temporary files of dead processes."""
        for left in folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > 60:  # younger ones may still be written
                    left.unlink()
        for left in folder.glob("*.lock"):
            with contextlib.suppress(Timeout, OSError):
                if not is_held(left):
                    left.unlink()


def intact(file: Path) -> bool:
    """Whether a cache file is intact."""
    try:
        _chunk.opened(file, f"{file.parent.name}/{file.name}")
    except (_chunk.Damaged, OSError):
        return False
    return True


def remove(folder: Path) -> None:
    """Delete a cache; open files of readers stay valid."""
    gone = folder.with_name(f".gone-{folder.name}-{time.time_ns()}")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
