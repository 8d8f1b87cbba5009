"""The bank: a teacher's answers, kept under the key of all that decides them, so that it answers each view once.

A network's floats may depend on the batch that they are computed in, so an answer is always computed in the same batch:
that of the step which first meets the image. With fresh views every step is such a step. With K fixed views those of
the first K epochs are; later ones look the answers up by image and view. So the first run fills the bank as it trains,
with no pass of its own, and a run ends with the same weights whether the bank was full, empty or anything between.
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
from smallalign_core.system.files import write_folder
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.teacher import _chunk, _index
from smallalign_core.training.teacher._chunk import Chunk, Damaged

log = logging.getLogger("smallalign")

SAVE_SECONDS = 10.0
AHEAD_STEPS, AHEAD_BYTES = 16, 4 * 1024**2
"""Lessons are taken from memory for so many steps at once, and no more than so many bytes of images: taking costs more
than the bytes."""
CHECKED_CHUNKS = 4
"""Of the chunks that others left, so many are checked when the teacher is loaded."""

TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
"""Largest difference between two answers to the same pixels in other batches, as a share of 1 + the largest logit."""


class LogitSource(Protocol):
    """A teacher, as far as a bank needs it."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, C] of uint8 images [N, channels, H, W]."""
        ...

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images as they are."""
        ...


class TeacherCache:
    """Answers from the disk, and from the teacher where there are none yet. Use as a context manager.

    About 1 % of a chunk is rendered and answered once more when it is written, and of some that were there before
    when the teacher is loaded. A mismatch empties the bank, and the rest of the run is answered live.

    Args:
        plan: which answers.
        shelf: where they are kept, beside others.
        load: gives the teacher; called when the first answer is missing, so never by a run whose bank is full.
        warn: is told what is not as it should be.

    Attributes:
        answered: images that the teacher itself answered.
        live: whether the bank is given up and the teacher answers everything.
    """

    def __init__(
        self,
        plan: _index.CachePlan,
        shelf: _index.CacheIndex,
        load: Callable[[], LogitSource],
        *,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.plan, self.answered, self.live = plan, 0, False
        self._shelf, self._load, self._warn = shelf, load, warn
        self._size, self._keeps_images = shelf.fitting(plan)
        self._teacher: LogitSource | None = None
        self._chunks: dict[int, Chunk] = {}
        self._places_in_epoch: dict[int, NDArray[np.int64]] = {}
        self._made: tuple[int, Batch] | None = None
        self._ready: dict[int, tuple[Batch, NetworkOutput]] = {}
        self._on: dict[str, NDArray[np.float32]] = {}
        self._checked, self._emptied, self._unkept = False, False, False
        self._folder: Path | None = None
        self._saved = time.monotonic()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._folder = self._held.enter_context(self._shelf.taken(self.plan, self._size))
        except Refused as error:  # a cache that cannot be written is no reason not to train
            self._cannot_keep(error)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._chunks):
            self._save(number)
        self._chunks.clear()
        self._folder = None
        self._held.close()

    # --- what training asks -------------------------------------------------------------------------------------------

    def prepare(self, views: Views, step: int) -> Iterator[float]:
        """Get what `lesson` needs, if that takes more than the answer to one batch; yields how far it is, 0..1.

        Between two values the caller may stop: what was answered so far is kept.
        """
        if step in self._ready:
            return
        missing = sum(wanted - self._chunks[number].steps for number, wanted in self._lacking(views, step))
        if missing > 1:  # one is the step's own, which costs what a live teacher costs
            for done, _ in enumerate(self._fill(views, step), 1):
                yield done / missing

    def batch_with_targets(self, views: Views, step: int) -> tuple[Batch, NetworkOutput]:
        """The batch of `step`, and the answer to it."""
        if step not in self._ready:
            for _ in self._fill(views, step):
                pass
            if self.live:
                batch = views(step)
                return batch, NetworkOutput(self._answer(views, batch.images))
            self._ready = self._lessons(views, step)
        return self._ready.pop(step)

    def _lessons(self, views: Views, step: int) -> dict[int, tuple[Batch, NetworkOutput]]:
        """The lesson of `step`, whose answers are there, and those of the steps after it as far as theirs are."""
        batch, just_made = self.plan.batch, self._made is not None and self._made[0] == step
        places = self._places(views, step, 1 if just_made else self._ahead)
        places = places[: batch + self._there(places[batch:]) // batch * batch]
        logits, images = self._taken(places)
        said = torch.from_numpy(logits).to(views.device).float().split(batch)
        if self._made is not None and just_made:
            return {step: (self._made[1], NetworkOutput(said[0]))}
        made = [None] * len(said) if images is None else torch.from_numpy(images).to(views.device).split(batch)
        return {
            at: (views(at, own), NetworkOutput(one)) for at, (own, one) in enumerate(zip(made, said, strict=True), step)
        }

    @property
    def _ahead(self) -> int:
        """For how many steps lessons are taken at once; images that are made anew are made when they are needed."""
        if self.plan.renders and not self._keeps_images:
            return 1
        return max(1, min(AHEAD_STEPS, AHEAD_BYTES // (self.plan.batch * math.prod(self.plan.shape))))

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images as they are, in full precision."""
        name = f"on-{images.fingerprint}.logits"
        if name not in self._on:
            found = self._read(name, (len(images), self.plan.classes), np.float32)
            if found is None:
                if self._teacher is None:
                    self._teacher = self._load()
                found = np.ascontiguousarray(self._teacher.on(images), np.float32)
                self.answered += len(images)
                self._write(name, found.tobytes())
            self._on[name] = found
        return self._on[name]

    # --- where answers stand ------------------------------------------------------------------------------------------

    def _places(self, views: Views, step: int, steps: int = 1) -> NDArray[np.int64]:
        """Where the answers to the batches of `steps` from `step` on stand, counted in images from the first step."""
        first, batch, count = step * self.plan.batch, self.plan.batch, self.plan.count
        places = np.arange(first, first + steps * batch)
        asked = max(0, self.plan.views * count // batch - step) * batch if self.plan.views else len(places)
        if asked < len(places):  # these images were met before
            rows, view = views.sample_indices(step + asked // batch, steps - asked // batch)
            view = view % self.plan.views
            for number in np.unique(view).tolist():
                here = np.flatnonzero(view == number)
                places[asked + here] = number * count + self._met(views, number)[rows[here]]
        return places

    def _met(self, views: Views, epoch: int) -> NDArray[np.int64]:
        """The place of each row in the order of `epoch`."""
        if epoch not in self._places_in_epoch:
            while len(self._places_in_epoch) > 2 + self.plan.batch // self.plan.count:
                del self._places_in_epoch[next(iter(self._places_in_epoch))]
            order = views.order(epoch)
            self._places_in_epoch[epoch] = np.empty_like(order)
            self._places_in_epoch[epoch][order] = np.arange(len(order))
        return self._places_in_epoch[epoch]

    def _needed(self, views: Views, step: int) -> list[tuple[int, int]]:
        """(chunk, how many of its steps) that the batch of `step` needs."""
        per, steps = self.plan.chunk_steps, self._places(views, step) // self.plan.batch
        own = {step // per: step % per + 1} if steps[0] == step else {}
        if steps[-1] == step:
            return list(own.items())
        return [(number, own.get(number, self._whole(number))) for number in np.unique(steps // per).tolist()]

    def _lacking(self, views: Views, step: int) -> list[tuple[int, int]]:
        """As `_needed`, of chunks that have fewer. All needed chunks are open afterwards."""
        if self.live:
            return []
        return [
            (number, wanted)
            for number, wanted in self._needed(views, step)
            if self._chunk(views, number).steps < wanted
        ]

    def _there(self, places: NDArray[np.int64]) -> int:
        """How many of the answers at `places`, from the first on, stand in chunks that are open."""
        chunks, inside = np.divmod(places // self.plan.batch, self.plan.chunk_steps)
        there = np.zeros(len(places), bool)
        for number, chunk in self._chunks.items():
            there |= (chunks == number) & (inside < chunk.steps)
        return len(there) if there.all() else int(there.argmin())

    def _whole(self, number: int) -> int:
        """Steps of a chunk that is full."""
        per = self.plan.chunk_steps
        if not self.plan.views:
            return per
        return min(per, -(-self.plan.views * self.plan.count // self.plan.batch) - number * per)

    def _taken(self, places: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.uint8] | None]:
        """(logits, images if they are kept) at some places, copied."""
        chunks, inside = np.divmod(places, self.plan.chunk_steps * self.plan.batch)
        chunk = self._chunks[int(chunks[0])]
        if (chunks == chunks[0]).all():
            return chunk.logits[inside], None if chunk.images is None else chunk.images[inside]
        logits = np.empty((len(places), self.plan.classes), np.float16)
        images = np.empty((len(places), *self.plan.shape), np.uint8)
        complete = True
        for number in np.unique(chunks):
            here = np.flatnonzero(chunks == number)
            chunk = self._chunks[int(number)]
            logits[here] = chunk.logits[inside[here]]
            if chunk.images is None:
                complete = False
            elif complete:
                images[here] = chunk.images[inside[here]]
        return logits, images if complete else None

    # --- filling ------------------------------------------------------------------------------------------------------

    def _fill(self, views: Views, step: int) -> Iterator[None]:
        """Ask the teacher for all that the batch of `step` needs and is not there; yields after each batch."""
        # Asked again after each chunk: what is found on the way may empty the bank.
        while lacking := self._lacking(views, step):
            number, wanted = lacking[0]
            chunk = self._chunk(views, number).roomy(self.plan.chunk_steps, self.plan.batch)
            self._chunks[number] = chunk
            while chunk.steps < wanted:
                at = number * self.plan.chunk_steps + chunk.steps
                made = views.augmented(*views.sample_indices(at))
                batch = views(at, made)
                logits = self._answer(views, batch.images)
                if (
                    self._chunks.get(number) is not chunk
                ):  # emptied: the teacher or the images are not those of the bank
                    break
                chunk.add(logits, batch.images, made)
                self._made = at, batch
                yield
            else:
                if chunk.steps == self._whole(number):
                    self._close(views, number)
                elif time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save(number)

    def _answer(self, views: Views, images: Tensor) -> Tensor:
        """The teacher's answer, now."""
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
            chunk.images = None  # it stays in memory: answers are small, images are not
        if number in self._chunks and not self._agrees(views, number, chunk):
            self._give_up("answers that were just kept differ from the teacher's")

    # --- files --------------------------------------------------------------------------------------------------------

    def _chunk(self, views: Views, number: int) -> Chunk:
        """A chunk as far as it is filled; opened now if it is not open."""
        if number not in self._chunks:
            if not self.plan.views:  # a stream never comes back
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
        """A chunk from its files, if they are whole and its pixels are those that this run sees."""
        file, plan = f"{number:06d}.answers", self.plan
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
        """The images of a chunk: kept ones, or made and kept now."""
        name, rows = f"{number:06d}.images", chunk.steps * self.plan.batch
        found = self._read(name, (rows, *self.plan.shape), np.uint8)
        if found is None:
            first = number * self.plan.chunk_steps
            made = [views.augmented(*views.sample_indices(first + step)).cpu().numpy() for step in range(chunk.steps)]
            self._write(name, np.concatenate(made).tobytes())
            found = self._read(name, (rows, *self.plan.shape), np.uint8)
        return found

    def _save(self, number: int) -> None:
        """Write what a chunk has, unless a file has as much."""
        chunk, file = self._chunks[number], f"{number:06d}.answers"
        self._saved = time.monotonic()
        if chunk.steps <= chunk.saved or self._folder is None:
            return
        if _chunk.steps_in(self._folder / file, self.plan.batch, self.plan.classes) < chunk.steps:
            if chunk.images is not None:
                self._write(f"{number:06d}.images", chunk.images[: chunk.steps * self.plan.batch].tobytes())
            if not self._write(file, chunk.answers()):
                return
        chunk.saved = chunk.steps

    def _write(self, name: str, content: bytes) -> bool:
        """Keep a file, whole; whether that worked."""
        if self._folder is None or self.live:
            return False
        try:
            write_folder(self._folder, {name: _chunk.sealed(content, self._salt(name))})
        except Refused as error:
            self._cannot_keep(error)
            return False
        return True

    def _cannot_keep(self, error: Refused) -> None:
        if not self._unkept:  # said once
            self._unkept = True
            self._warn(f"the teacher's answers are not kept: {error}")

    def _read(self, name: str, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any] | None:
        """The array in a file; None if it is not there or damaged."""
        with self._noticing(name) as (path, salt):
            return _chunk.read_array(path, salt, shape, kind)
        return None

    @contextlib.contextmanager
    def _noticing(self, name: str) -> Iterator[tuple[Path, str]]:
        """(path, salt) of a file to read. Nothing happens if it is not there; a damaged one is told of and removed."""
        folder = self._folder or self._shelf.root / self.plan.key
        try:
            yield folder / name, self._salt(name)
        except FileNotFoundError:
            pass
        except (Damaged, OSError) as error:
            self._warn(f"a file of the teacher's answers is damaged and made anew: {error}")
            with contextlib.suppress(OSError):
                (folder / name).unlink()

    def _salt(self, name: str) -> str:
        return f"{self.plan.key}/{name}"

    # --- checks -------------------------------------------------------------------------------------------------------

    def _sample(self, number: int, steps: int) -> int:
        """Which step of a chunk is looked at."""
        return int(np.random.default_rng([number, steps]).integers(steps))

    def _agrees(self, views: Views, number: int, chunk: Chunk) -> bool:
        """Whether about 1 % of a chunk's answers are what the teacher says now, to images made anew."""
        assert self._teacher is not None
        batch, at = self.plan.batch, self._sample(number, chunk.steps)
        some = np.random.default_rng([number]).permutation(batch)[: max(1, chunk.steps * batch // 100)]
        images = views(number * self.plan.chunk_steps + at).images[torch.from_numpy(some).to(views.device)]
        said = _chunk.rounded(self._teacher.logits(images)).cpu().numpy()
        self.answered += len(some)
        gap = np.abs(said - chunk.logits[at * batch + some].astype(np.float32)).max(1)
        near = TOLERANCE.get(self.plan.facts["precision"], 0.05) * (1 + np.abs(said).max(1))
        return bool((gap <= near).all())

    def _check_others(self, views: Views) -> None:
        """Check some of the chunks that this or another run left, now that the teacher is there."""
        if self._folder is None:
            return
        there = sorted(int(file.stem) for file in self._folder.glob("*.answers") if file.stem.isdigit())
        for number in there[:: max(1, -(-len(there) // CHECKED_CHUNKS))]:
            chunk = self._chunks.get(number)
            chunk = chunk if chunk and chunk.steps else self._read_chunk(views, number)
            if chunk and not self._agrees(views, number, chunk):
                self._give_up("answers that were kept before differ from the teacher's")
                return

    def _give_up(self, why: str) -> None:
        self._empty(f"{why}, so the teacher answers all of this run itself")
        self.live = True

    def _empty(self, why: str) -> None:
        """Throw away all that was kept. Whoever has to do so twice cannot trust it."""
        self.live, self._emptied = self._emptied, True
        self._warn(f"the cache of the teacher's answers is emptied: {why}")
        self._chunks.clear()
        self._ready.clear()
        self._on.clear()
        if self._folder is not None:
            for file in self._folder.glob("[0-9o]*.*"):
                if file.suffix in (".answers", ".images", ".logits"):
                    with contextlib.suppress(OSError):
                        file.unlink()
