"""What the dashboard's pages can request of the backend, and the answers. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from smallalign_core.search import SearchSpec
from smallalign_core.service.wire import Request
from smallalign_core.spec import DataSpec, Loss, RunSpec
from smallalign_core.studies.lifecycle import AnyStudySpec
from smallalign_core.training.teacher_evidence import CheckedTeacher

# --- a dataset --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetFacts:
    """What is in a dataset.

    Attributes:
        images: number of images of all splits.
        labels: the label of each class.
        shape: [C, H, W] of an image.
        fingerprint: digest of all pixels, labels and class names; `validation`: that of the validation split.
        counts: images of each class, by split.
        unreadable: files that were skipped; `reasons`: why.
        test_looks: how often the test split was evaluated; None if the record is unreadable.
    """

    source: str
    images: int
    classes: tuple[str, ...]
    labels: dict[str, int]
    shape: tuple[int, int, int]
    fingerprint: str
    validation: str
    counts: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    reasons: dict[str, str]
    test_looks: int | None

    def __getitem__(self, name: str) -> Any:
        """One of the facts; for pages that read them as a mapping."""
        return getattr(self, name)


@dataclass(frozen=True)
class Inspect(Request[DatasetFacts]):
    """Decode a dataset if that was not done yet, and describe its contents."""

    seconds: ClassVar[float] = 3600.0
    shared: ClassVar[bool] = True

    data: DataSpec


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """A run in the queue.

    Attributes:
        state: a `State`.
        known: whether the run existed before.
    """

    id: str
    state: str
    known: bool


@dataclass(frozen=True)
class Submit(Request[Submitted]):
    """Queue the run of a spec."""

    spec: RunSpec


@dataclass(frozen=True)
class Cost:
    """The cost of a run before it is trained.

    Attributes:
        id: digest of the resolved spec.
        preflight: the check of its teacher; None without one.
        loss: the resolved loss.
        state: that of the run, if it exists already.
        macs: multiply-accumulates of one image.
        onnx_bytes: exact size of its ONNX file; `sizes`: in each precision; of a large network without int8.
        seconds: training time, from a short probe of the real loop.
        cache_bytes: disk space of the teacher's cached logits; 0: they are not cached.
        cache_ready: the share of them that is there.
    """

    id: str
    preflight: CheckedTeacher | None
    loss: Loss
    state: str | None
    params: int
    macs: int
    onnx_bytes: int | None
    sizes: dict[str, int | None]
    steps: int
    seconds: float
    device: str
    cache_bytes: int
    cache_ready: float


@dataclass(frozen=True)
class Estimate(Request[Cost]):
    """Estimate the cost of a run: nothing is trained or kept."""

    shared: ClassVar[bool] = True

    spec: RunSpec


# --- a study ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartedStudy:
    """A study whose missing runs workers train; its report is read from the store."""

    id: str


@dataclass(frozen=True)
class StartStudy(Request[StartedStudy]):
    """Create a study, or continue the existing one."""

    spec: AnyStudySpec | SearchSpec


@dataclass(frozen=True)
class StudyCost:
    """The cost of a study before it is started.

    Attributes:
        id: digest of the resolved spec.
        runs: number of runs, as far as known; `done`: finished or diverged ones, which are reused; `missing`: still to
            train.
        seconds: training time of the missing runs, from a few training steps.
    """

    id: str
    runs: int
    done: int
    missing: int
    seconds: float


@dataclass(frozen=True)
class EstimateStudy(Request[StudyCost]):
    """Count the runs of a study and estimate their cost: nothing is created or trained."""

    shared: ClassVar[bool] = True

    spec: AnyStudySpec | SearchSpec
