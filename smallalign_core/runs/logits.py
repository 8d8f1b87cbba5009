"""Logits of a finished run on each validation and test image, stored with it for per-image comparisons.

The file's SHA-256 is in the run's result. It may be deleted; then, as for runs of older versions, comparisons omit it.
Reading does not import torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import Splits
from smallalign_core.runs.store import Run

FILE = "logits.safetensors"
LEAST = -60_000.0
"""Half precision ends a little below."""


@dataclass(frozen=True)
class SplitLogits:
    """What a run answered to the images of one split.

    Attributes:
        logits: float32 [N, C], each row shifted so that its largest is 0: that changes no probability, and half
            precision is finest near 0, where it decides the top class.
        labels: int64 [N].
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the first choice is the label, image by image."""
        return np.asarray(self.logits.argmax(1) == self.labels)

    @property
    def nll(self) -> NDArray[np.float64]:
        """Negative log-likelihood of the label, image by image."""
        wide = self.logits.astype(np.float64)
        total = np.log(np.exp(wide).sum(1))
        return np.asarray(total - wide[np.arange(len(wide)), self.labels])


def packed(val: NDArray[np.float32], test: NDArray[np.float32], splits: Splits) -> bytes:
    """The file's content: logits [N, C] of both splits in half precision, and the labels."""
    from safetensors.numpy import save

    def halved(logits: NDArray[np.float32]) -> NDArray[np.float16]:
        return np.maximum(logits - logits.max(1, keepdims=True), LEAST).astype(np.float16)

    return save(
        {
            "val": halved(val),
            "test": halved(test),
            "val_labels": splits.val.labels.astype(np.int32),
            "test_labels": splits.test.labels.astype(np.int32),
        }
    )


def kept(run: Run, split: str = "test") -> SplitLogits | None:
    """The stored logits of a finished run; None if there are none, or they do not match the digest in its result."""
    from safetensors.numpy import load

    try:
        content = (run.folder / FILE).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != (run.result or {}).get("logits_sha256"):
        return None
    arrays = load(content)
    return SplitLogits(arrays[split].astype(np.float32), arrays[f"{split}_labels"].astype(np.int64))
