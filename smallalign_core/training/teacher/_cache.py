"""The teacher logits cache: logits under a key of everything that determines them, so that each view is computed once.

A network's outputs may depend on the batch composition, so logits are always computed in the same batch: that of the
step in which the image occurs first. Without fixed views every step is such a step. With K fixed views those of the
first K epochs are; later ones look logits up by image and view. So the first run fills the cache while it trains,
without a separate pass, and a run ends with the same weights whether the cache was full, empty or anything between.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from smallalign_core.augment import Batch, Views
from smallalign_core.data import ImageSet
from smallalign_core.errors import Refused
from smallalign_core.system.device import to_device
from smallalign_core.system.files import write_folder
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.teacher import _chunk, _index
from smallalign_core.training.teacher._chunk import Chunk, Damaged
from smallalign_core.training.teacher._device import DeviceCopy

log = logging.getLogger("smallalign")

SAVE_SECONDS = 10.0
AHEAD_STEPS, AHEAD_BYTES = 16, 4 * 1024**2
"""Max. steps, and max. bytes of images, that are fetched from memory at once: the calls cost more than the bytes."""
MET_BYTES = 32 * 1024**2
"""Max. bytes of the orders of epochs that are kept, to find images by their view; at least those of one batch."""
CHECKED_CHUNKS = 4
"""Number of existing chunks that are checked when the teacher is loaded."""

TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
"""Max. difference between logits of the same pixels in different batches, relative to 1 + the largest logit."""


class LogitSource(Protocol):
    """The interface of a teacher that a cache needs."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, C] of uint8 images [N, channels, H, W]."""
        ...

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images without augmentation."""
        ...


class TeacherCache:
    """Logits from the disk, and from the teacher where they are missing. Use as a context manager.

    About 1% of a chunk is rendered and computed again when it is written, and of some existing chunks when the teacher
    is loaded. On a mismatch the cache is emptied, and the teacher computes the rest of the run live.

    Args:
        plan: which logits are needed.
        caches: the index of all caches.
        load: loads the teacher; called on the first miss, so never by a run with a full cache.
        warn: called with warnings, as text.

    Attributes:
        answered: number of images with a teacher forward pass.
        live: whether the cache is abandoned and the teacher computes everything.
    """

    def __init__(
        self,
        plan: _index.CachePlan,
        caches: _index.CacheIndex,
        load: Callable[[], LogitSource],
        *,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.plan, self.answered, self.live = plan, 0, False
        self._caches, self._load, self._warn = caches, load, warn
        self._size, self._keeps_images = caches.fitting(plan)
        self._teacher: LogitSource | None = None
        self._chunks: dict[int, Chunk] = {}
        self._places_in_epoch: dict[int, NDArray[np.int64]] = {}
        self._made: tuple[int, Batch, Tensor] | None = None
        self._copy = DeviceCopy()
        self._ready: dict[int, tuple[Batch, NetworkOutput]] = {}
        self._on: dict[str, NDArray[np.float32]] = {}
        self._checked, self._emptied, self._unkept = False, False, False
        self._folder: Path | None = None
        self._saved = time.monotonic()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._folder = self._held.enter_context(self._caches.taken(self.plan, self._size))
        except Refused as error:  # training does not need a writable cache
            self._cannot_keep(error)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._chunks):
            self._save(number)
        self._chunks.clear()
        self._folder = None
        self._held.close()

    # --- interface of training ----------------------------------------------------------------------------------------

    def prepare(self, views: Views, step: int) -> Iterator[float]:
        """Compute what `batch_with_targets` needs, if it is more than one batch; yields progress, 0..1.

        The caller may stop between two values: logits computed so far are kept.
        """
        if step in self._ready:
            return
        missing = sum(wanted - self._chunks[number].steps for number, wanted in self._lacking(views, step))
        if missing > 1:  # a single one is the step's own, as with a live teacher
            for done, _ in enumerate(self._fill(views, step), 1):
                yield done / missing

    def batch_with_targets(self, views: Views, step: int) -> tuple[Batch, NetworkOutput]:
        """The batch of `step`, and the teacher's output for it."""
        if step not in self._ready:
            for _ in self._fill(views, step):
                pass
            if self.live:
                batch = views(step)
                return batch, NetworkOutput(self._answer(views, batch.images))
            self._ready = self._lessons(views, step)
        return self._ready.pop(step)

    def _lessons(self, views: Views, step: int) -> dict[int, tuple[Batch, NetworkOutput]]:
        """The batch and logits of `step`, which are present, and those of later steps as far as present."""
        batch, just_made = self.plan.batch, self._made is not None and self._made[0] == step
        places = self._places(views, step, 1 if just_made else self._ahead)
        if self._made is not None and just_made and places[-1] // batch == places[0] // batch == step:
            return {step: (self._made[1], NetworkOutput(self.plan.answered(self._made[2])))}
        places = places[: batch + self._there(places[batch:]) // batch * batch]
        logits, images = self._on_device(places, views.device)
        said = logits.split(batch)
        if self._made is not None and just_made:
            return {step: (self._made[1], NetworkOutput(said[0]))}
        made = [None] * len(said) if images is None else images.split(batch)
        return {
            at: (views(at, own), NetworkOutput(one)) for at, (own, one) in enumerate(zip(made, said, strict=True), step)
        }

    @property
    def _ahead(self) -> int:
        """Number of steps to fetch at once; images that are rendered again are rendered when needed."""
        if self.plan.renders and not self._keeps_images:
            return 1
        return max(1, min(AHEAD_STEPS, AHEAD_BYTES // (self.plan.batch * math.prod(self.plan.shape))))

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images without augmentation, in full precision."""
        name = f"on-{images.fingerprint}.logits"
        if name not in self._on:
            found = self._read(name, (len(images), self.plan.outputs), np.float32)
            if found is None:
                if self._teacher is None:
                    self._teacher = self._load()
                found = np.ascontiguousarray(self._teacher.on(images), np.float32)
                self.answered += len(images)
                self._write(name, found.tobytes())
            self._on[name] = found
        return self._on[name]

    # --- positions ----------------------------------------------------------------------------------------------------

    def _places(self, views: Views, step: int, steps: int = 1) -> NDArray[np.int64]:
        """Positions of the logits for the batches of `steps` steps from `step` on, counted in images from the first
        step.
        """
        first, batch, count = step * self.plan.batch, self.plan.batch, self.plan.count
        places = np.arange(first, first + steps * batch)
        missing = max(0, self.plan.views * count // batch - step) * batch if self.plan.views else len(places)
        missing = 0 if self._filled_from(views) is not views else missing
        if missing < len(places):  # these images occurred before
            rows, view = views.sample_indices(step + missing // batch, steps - missing // batch)
            view = view % self.plan.views
            for number in np.unique(view).tolist():
                here = np.flatnonzero(view == number)
                places[missing + here] = number * count + self._met(self._filled_from(views), number)[rows[here]]
        return places

    def _filled_from(self, views: Views) -> Views:
        """The views whose steps fill the cache. Where classes are sampled, images with few views have the logits of the
        steps without sampling: each image has them once, and runs with and without sampling share them.
        """
        return views.natural if self.plan.views else views

    def _met(self, views: Views, epoch: int) -> NDArray[np.int64]:
        """The place of each row in the order of `epoch`."""
        if epoch not in self._places_in_epoch:
            while len(self._places_in_epoch) > max(
                2 + self.plan.batch // self.plan.count, MET_BYTES // views.count // 8
            ):
                del self._places_in_epoch[next(iter(self._places_in_epoch))]
            order = views.order(epoch)
            self._places_in_epoch[epoch] = np.empty_like(order)
            self._places_in_epoch[epoch][order] = np.arange(len(order))
        return self._places_in_epoch[epoch]

    def _needed(self, views: Views, step: int) -> list[tuple[int, int]]:
        """(chunk, number of its steps) needed for the batch of `step`."""
        per, steps = self.plan.chunk_steps, self._places(views, step) // self.plan.batch
        own = {step // per: step % per + 1} if steps[0] == step and self._filled_from(views) is views else {}
        if own and steps[-1] == step:
            return list(own.items())
        return [(number, own.get(number, self._whole(number))) for number in np.unique(steps // per).tolist()]

    def _lacking(self, views: Views, step: int) -> list[tuple[int, int]]:
        """As `_needed`, for chunks that have fewer steps. All needed chunks are open afterwards."""
        if self.live:
            return []
        return [
            (number, wanted)
            for number, wanted in self._needed(views, step)
            if self._chunk(views, number).steps < wanted
        ]

    def _there(self, places: NDArray[np.int64]) -> int:
        """Number of positions in `places`, from the first on, that are in open chunks."""
        chunks, inside = np.divmod(places // self.plan.batch, self.plan.chunk_steps)
        there = np.zeros(len(places), bool)
        for number, chunk in self._chunks.items():
            there |= (chunks == number) & (inside < chunk.steps)
        return len(there) if there.all() else int(there.argmin())

    def _whole(self, number: int) -> int:
        """Number of steps of a full chunk."""
        per = self.plan.chunk_steps
        if not self.plan.views:
            return per
        return min(per, -(-self.plan.views * self.plan.count // self.plan.batch) - number * per)

    def _on_device(self, places: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """(logits float32, images if cached) at some positions; from the device where the whole cache is there."""
        if not self._copy.tried and self._is_full:
            self._copy.take([self._chunks[number] for number in sorted(self._chunks)], self.plan.batch, device)
        if (found := self._copy.at(places, device)) is not None:
            return self.plan.logits(found[0]), found[1]
        rows, images = _chunk.gathered(self._chunks, places, self.plan.chunk_steps * self.plan.batch)
        return self.plan.logits(to_device(rows, device)), None if images is None else to_device(images, device)

    @property
    def _is_full(self) -> bool:
        """Whether all steps of fixed views are in open chunks, which later steps read again."""
        full = -(-self.plan.views * self.plan.count // self.plan.batch)
        return bool(self.plan.views) and sum(chunk.steps for chunk in self._chunks.values()) == full

    # --- filling ------------------------------------------------------------------------------------------------------

    def _fill(self, views: Views, step: int) -> Iterator[None]:
        """Compute all missing logits that the batch of `step` needs; yields after each batch."""
        filled = self._filled_from(views)
        # Evaluated again after each chunk, since a failed check may empty the cache.
        while lacking := self._lacking(views, step):
            number, wanted = lacking[0]
            chunk = self._chunk(views, number).roomy(self.plan.chunk_steps, self.plan.batch)
            self._chunks[number] = chunk
            while chunk.steps < wanted:
                at = number * self.plan.chunk_steps + chunk.steps
                made = filled.augmented(*filled.sample_indices(at))
                batch = filled(at, made)
                logits = self._answer(views, batch.images)
                if self._chunks.get(number) is not chunk:  # emptied: the teacher or the images do not match the cache
                    break
                chunk.add(logits, batch.images, made, self.plan.rows)
                self._made = (at, batch, logits) if filled is views else None
                yield
            else:
                if chunk.steps == self._whole(number):
                    self._close(views, number)
                elif time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save(number)

    def _answer(self, views: Views, images: Tensor) -> Tensor:
        """Logits from a forward pass of the teacher."""
        if self._teacher is None:
            self._teacher = self._load()
        if not self._checked:
            self._checked = True
            self._check_others(views)
        self.answered += len(images)
        return _chunk.rounded(self._teacher.logits(images))

    def _close(self, views: Views, number: int) -> None:
        """Write a full chunk, read it back, and check it against the teacher."""
        self._save(number)
        chunk = self._chunks[number]
        if chunk.saved == chunk.steps and (back := self._read_chunk(views, number)):
            chunk = self._chunks[number] = back
        else:
            chunk.images = None  # stays in memory: logits are small, images are not
        if number in self._chunks and not self._agrees(views, number, chunk):
            self._give_up("new cached logits differ from the teacher's")

    # --- files --------------------------------------------------------------------------------------------------------

    def _chunk(self, views: Views, number: int) -> Chunk:
        """A chunk, opened if necessary, as far as it is filled."""
        if number not in self._chunks:
            if not self.plan.views:  # without fixed views it is not needed again
                for passed in [other for other in self._chunks if other != number - 1]:
                    self._save(passed)
                    del self._chunks[passed]
            found = self._read_chunk(views, number)
            shape = self.plan.shape if self._keeps_images else None
            self._chunks[number] = found or Chunk.empty(
                self.plan.chunk_steps, self.plan.batch, self.plan.classes, shape
            )
        return self._chunks[number]

    def _read_chunk(self, views: Views, number: int) -> Chunk | None:
        """A chunk from its files, if they are intact and match the pixels of this run."""
        views, file, plan = self._filled_from(views), f"{number:06d}.answers", self.plan
        chunk = None
        with self._noticing(file) as (path, salt):
            chunk = _chunk.read_answers(path, salt, plan.batch, plan.classes)
        if chunk is None:
            return None
        at = self._sample(number, chunk.steps)
        if _chunk.fingerprint(views(number * plan.chunk_steps + at).images) != chunk.prints[at]:
            self._empty("the images have changed")
            return None
        if self._keeps_images:
            chunk.images = self._images_of(views, number, chunk)
        return chunk

    def _images_of(self, views: Views, number: int, chunk: Chunk) -> NDArray[np.uint8] | None:
        """The images of a chunk: cached, or rendered and cached now."""
        views, name, rows = self._filled_from(views), f"{number:06d}.images", chunk.steps * self.plan.batch
        found = self._read(name, (rows, *self.plan.shape), np.uint8)
        if found is None:
            first = number * self.plan.chunk_steps
            made = [views.augmented(*views.sample_indices(first + step)).cpu().numpy() for step in range(chunk.steps)]
            self._write(name, np.concatenate(made).tobytes())
            found = self._read(name, (rows, *self.plan.shape), np.uint8)
        return found

    def _save(self, number: int) -> None:
        """Write a chunk, unless its file has as many steps."""
        chunk, file = self._chunks[number], f"{number:06d}.answers"
        self._saved = time.monotonic()
        if chunk.steps <= chunk.saved or self._folder is None:
            return
        if _chunk.steps_in(self._folder / file, self.plan.batch, self.plan.classes) < chunk.steps:
            chunk.fetch()
            if chunk.images is not None:
                self._write(f"{number:06d}.images", chunk.images[: chunk.steps * self.plan.batch].tobytes())
            if not self._write(file, chunk.answers()):
                return
        chunk.saved = chunk.steps

    def _write(self, name: str, content: bytes) -> bool:
        """Write a file atomically; returns whether that worked."""
        if self._folder is None or self.live:
            return False
        try:
            write_folder(self._folder, {name: _chunk.sealed(content, self._salt(name))})
        except Refused as error:
            self._cannot_keep(error)
            return False
        return True

    def _cannot_keep(self, error: Refused) -> None:
        if not self._unkept:  # warn once
            self._unkept = True
            self._warn(f"teacher logits are not cached: {error}")

    def _read(self, name: str, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any] | None:
        """The array in a file; None if missing or damaged."""
        with self._noticing(name) as (path, salt):
            return _chunk.read_array(path, salt, shape, kind)
        return None

    @contextlib.contextmanager
    def _noticing(self, name: str) -> Iterator[tuple[Path, str]]:
        """(path, salt) of a file to read. A missing file is skipped; a damaged one is removed with a warning."""
        folder = self._folder or self._caches.root / self.plan.key
        try:
            yield folder / name, self._salt(name)
        except FileNotFoundError:
            pass
        except (Damaged, OSError) as error:
            self._warn(f"a damaged file of the teacher logits cache is rebuilt: {error}")
            with contextlib.suppress(OSError):
                (folder / name).unlink()

    def _salt(self, name: str) -> str:
        return f"{self.plan.key}/{name}"

    # --- checks -------------------------------------------------------------------------------------------------------

    def _sample(self, number: int, steps: int) -> int:
        """The step of a chunk to check."""
        return int(np.random.default_rng([number, steps]).integers(steps))

    def _agrees(self, views: Views, number: int, chunk: Chunk) -> bool:
        """Whether about 1% of a chunk's logits match a new forward pass on images rendered again."""
        assert self._teacher is not None
        chunk.fetch()
        views = self._filled_from(views)
        batch, at = self.plan.batch, self._sample(number, chunk.steps)
        some = np.random.default_rng([number]).permutation(batch)[: max(1, chunk.steps * batch // 100)]
        images = views(number * self.plan.chunk_steps + at).images[torch.from_numpy(some).to(views.device)]
        said = _chunk.rounded(self._teacher.logits(images)).cpu().numpy()
        self.answered += len(some)
        gap = np.abs(said - self.plan.logits(torch.from_numpy(chunk.logits[at * batch + some])).numpy()).max(1)
        near = TOLERANCE.get(self.plan.facts["precision"], 0.05) * (1 + np.abs(said).max(1))
        return bool((gap <= near).all())

    def _check_others(self, views: Views) -> None:
        """Check some existing chunks, now that the teacher is loaded."""
        if self._folder is None:
            return
        there = sorted(int(file.stem) for file in self._folder.glob("*.answers") if file.stem.isdigit())
        for number in there[:: max(1, -(-len(there) // CHECKED_CHUNKS))]:
            chunk = self._chunks.get(number)
            chunk = chunk if chunk and chunk.steps else self._read_chunk(views, number)
            if chunk and not self._agrees(views, number, chunk):
                self._give_up("existing cached logits differ from the teacher's")
                return

    def _give_up(self, why: str) -> None:
        self._empty(f"{why}, so the teacher runs live for the rest of this run")
        self.live = True

    def _empty(self, why: str) -> None:
        """Delete all cached logits. If that happens twice in a run, the cache is not used any more."""
        self.live, self._emptied = self._emptied, True
        self._warn(f"the teacher logits cache is emptied: {why}")
        self._chunks.clear()
        self._copy.forget()
        self._ready.clear()
        self._on.clear()
        if self._folder is not None:
            for file in self._folder.glob("[0-9o]*.*"):
                if file.suffix in (".answers", ".images", ".logits"):
                    with contextlib.suppress(OSError):
                        file.unlink()
