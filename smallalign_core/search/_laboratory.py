"""What the decisions of a search measure, as an interface: `_lab.Lab` on this machine, a simulation in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smallalign_core.runs.store import Run
from smallalign_core.search._journal import Measured
from smallalign_core.spec import Network, RunSpec
from smallalign_core.spec.precision import Precision
from smallalign_core.training.teacher_evidence import Evidence


@dataclass(frozen=True)
class Mixed:
    """An int8 file with some layers in float.

    Attributes:
        variant: its name, as of `spec.precision.variant_of`.
        right: whether it is right, for each validation image: bool [N].
        files: how many were compared on the validation images to choose the layers.
    """

    variant: str
    bytes: int
    ms: float
    right: NDArray[np.bool_]
    files: int


class Laboratory(Protocol):
    """Measurements for one search; see `_lab.Lab`."""

    @property
    def train_images(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def now(self) -> float: ...
    def step(self, run: RunSpec, /) -> float: ...
    def lesson(self, run: RunSpec, /) -> float: ...
    def least_bytes(self, run: RunSpec, precisions: Sequence[Precision], /) -> int: ...
    def sizes(self, run: RunSpec, precisions: tuple[Precision, ...], /) -> dict[str, int | None]: ...
    def measure(self, run: RunSpec, precisions: tuple[Precision, ...], max_bytes: int | None, /) -> Measured: ...
    def right(self, run: Run, variant: str, /) -> NDArray[np.bool_]: ...
    def mixed(self, run: Run, /) -> Mixed: ...
    def pruned(self, run: Run, share: float, /) -> Network: ...
    def teacher_right(self, run: Run, /) -> NDArray[np.bool_]: ...
    def evidence(self, run: RunSpec, /) -> Evidence: ...
    def deliver(self, run: Run, variant: str, /) -> dict[str, Any]: ...
