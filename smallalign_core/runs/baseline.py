"""Runs against one of them: the paired difference in test accuracy, from kept logits. Loads no images and no torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import SmallAlignError
from smallalign_core.metrics import paired_difference
from smallalign_core.runs import logits
from smallalign_core.runs.store import Run, Store
from smallalign_core.runs.table import RunRow


@dataclass(frozen=True)
class Difference:
    """Test accuracy of a run minus that of the baseline, on the same images.

    Attributes:
        low, high: 95% interval (Bonett & Price, 2012).
    """

    accuracy: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        """In percentage points."""
        return f"{100 * self.accuracy:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(run: Run, baseline: Run) -> Difference | None:
    """How `run` differs from `baseline`; None where they have no test images in common, or one has no kept logits."""
    one, other = (_scored(each.folder, _changed(each)) for each in (run, baseline))
    if one is None or other is None or one.labels != other.labels:
        return None
    if one.fingerprint != other.fingerprint and one.source != other.source:
        return None
    found, known = (np.unpackbits(each.right, count=each.images).astype(bool) for each in (one, other))
    shares = paired_difference(int((known & ~found).sum()), int((found & ~known).sum()), len(found))
    return Difference(*shares, len(found))


def against(rows: Iterable[RunRow], baseline: Run, store: Store) -> dict[str, Difference]:
    """The differences of finished runs to `baseline`, by the names of their rows, where there are any."""
    found = {}
    for row in rows:
        if row.finished and row.name != baseline.name:
            with contextlib.suppress(SmallAlignError):  # a damaged run
                if (one := difference(store.run(row.name), baseline)) is not None:
                    found[row.name] = one
    return found


def _changed(run: Run) -> int:
    with contextlib.suppress(OSError):
        return (run.folder / logits.FILE).stat().st_mtime_ns
    return 0


@dataclass(frozen=True)
class _Scored:
    """What identifies the test images of a run, and which of them it classifies correctly, as bits.

    Runs with other training images (fewer, cleaned, with noise) have another fingerprint and the same test images:
    those of the same source, divided in the same way, in the order of their labels.
    """

    fingerprint: str | None
    source: tuple[Any, ...]
    labels: bytes
    right: NDArray[np.uint8]
    images: int


@functools.lru_cache(maxsize=4096)
def _scored(folder: Path, changed: int) -> _Scored | None:  # noqa: ARG001  # a change makes a new entry
    run = Run(folder)
    if run.imported is not None or (kept := logits.kept(run)) is None:
        return None
    spec = run.spec.data
    source = (spec.source, spec.test, spec.groups, spec.levels, spec.columns, spec.reader)
    return _Scored(spec.fingerprint, source, kept.labels.tobytes(), np.packbits(kept.right), len(kept.labels))
