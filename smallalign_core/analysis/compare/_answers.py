"""Cached logits of runs on held-out images: computed once for the same weights and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallalign_core.data import Splits
from smallalign_core.metrics import logits_of
from smallalign_core.runs.store import Run, Store
from smallalign_core.system.files import read_array, write_array

Logits = NDArray[np.float32]


def folder(store: Store) -> Path:
    """The folder of cached results on held-out images.

    File names contain the ids of their runs, with which they are deleted: nothing else in a name looks like an id.
    """
    return store.root / "cache" / "compare"


def digest_of(run: Run) -> str:
    """Eight characters of the digest of a run's weights, or of an import's file."""
    return str((run.result or {}).get("weights_sha256"))[:8]


def file_of(run: Run, fingerprint: str, split: str, store: Store) -> Path:
    """The file of a run's logits on one split of the data of that fingerprint."""
    return folder(store) / f"{run.id}.{digest_of(run)}-{fingerprint[:12]}-{split}.npy"


def kept_logits(run: Run, splits: Splits, split: str, store: Store) -> Logits | None:
    """The cached logits [N, C]; None if missing or damaged."""
    return read_array(file_of(run, splits.fingerprint, split, store))


def split_logits(run: Run, splits: Splits, split: str, store: Store, device: str = "cpu") -> Logits:
    """Logits float32 [N, C] of a run for the images of `split`, with classes matched by name; cached.

    Raises:
        BadInput: it has other classes.
        BadModel: its weights cannot be read.
    """
    known = kept_logits(run, splits, split, store)
    if known is not None:
        return known
    from smallalign_core.runs import imported

    model = imported.classifier(run, splits.classes).to(device)
    found = np.ascontiguousarray(logits_of(model, getattr(splits, split), device=device), np.float32)
    write_array(file_of(run, splits.fingerprint, split, store), found)
    return found
