"""A full cache in the memory of a GPU: batches are then gathered there, without the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallalign_core.system.device import room, to_device, upload
from smallalign_core.training.teacher._chunk import Chunk


class DeviceCopy:
    """Logits and images of a full cache on a device, if they may take so much of its memory (`system.device.SHARE`)."""

    def __init__(self) -> None:
        self._rows: tuple[Tensor, Tensor | None] | None = None
        self.tried = False

    def take(self, chunks: Sequence[Chunk], batch: int, device: torch.device) -> None:
        """Copy full chunks that follow each other, once; nothing where `device` works in the host's memory."""
        self.tried, limit = True, room(device)
        for chunk in chunks:
            chunk.fetch()
        logits = [chunk.logits[: chunk.steps * batch] for chunk in chunks]
        images = [chunk.images[: chunk.steps * batch] for chunk in chunks if chunk.images is not None]
        images = images if len(images) == len(chunks) else []
        if limit is None or sum(one.nbytes for one in logits) + sum(one.nbytes for one in images) > limit:
            return
        count = sum(map(len, logits))
        self._rows = upload(logits, count, device), upload(images, count, device) if images else None

    def at(self, places: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor | None] | None:
        """(logits float16 [len(places), classes], images uint8 if cached); None without a copy."""
        if self._rows is None:
            return None
        index, (logits, images) = to_device(places, device), self._rows
        return logits.index_select(0, index), None if images is None else images.index_select(0, index)

    def forget(self) -> None:
        """Free the memory."""
        self._rows, self.tried = None, False
