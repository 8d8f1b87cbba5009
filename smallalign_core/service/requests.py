"""What the dashboard's pages can request of the backend, and the answers. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from smallalign_core.analysis.compare import Compared
from smallalign_core.analysis.data_quality import QualityReport
from smallalign_core.analysis.landscape_report import LandscapeCost, LandscapeReport
from smallalign_core.analysis.pareto import NO_LIMITS, Limits, ParetoFront
from smallalign_core.analysis.robustness import Robustness
from smallalign_core.analysis.teacher_report import Preflight
from smallalign_core.runs.export_report import ExportReport, TargetReport
from smallalign_core.search import SearchSpec
from smallalign_core.service.augmentation_requests import (
    AugmentBatch as AugmentBatch,
    AugmentedBatch as AugmentedBatch,
    AugmentedImages as AugmentedImages,
    AugmentImages as AugmentImages,
    CheckedLabels as CheckedLabels,
    CheckLabels as CheckLabels,
    Mixture as Mixture,
    OfPolicy as OfPolicy,
    Pixels as Pixels,
    PolicyCode as PolicyCode,
    WritePolicy as WritePolicy,
)
from smallalign_core.service.wire import LongRequest, Progress, Request
from smallalign_core.spec import DataSpec, Loss, RunSpec
from smallalign_core.studies.ablation import AblationReport, What
from smallalign_core.studies.kinds import AnyStudySpec
from smallalign_core.training.teacher_evidence import CheckedTeacher

# --- a dataset --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetFacts:
    """What is in a dataset.

    Attributes:
        data: the source, and how it was read: columns and levels.
        reader: `arrays`, `folders`, `table` or `parquet`; `columns`: those of a table of labels.
        images: number of images of all splits.
        labels: the label of each class.
        shape: [C, H, W] of an image.
        fingerprint: digest of all pixels, labels and class names; `validation`: that of the validation split.
        counts: images of each class, by split.
        unlabeled: number of unlabeled images beside them.
        unreadable: files that were skipped; `reasons`: why.
        test_looks: how often the test split was evaluated; None if the record is unreadable.
    """

    data: DataSpec
    reader: str
    columns: dict[str, str]
    images: int
    classes: tuple[str, ...]
    labels: dict[str, int]
    shape: tuple[int, int, int]
    fingerprint: str
    validation: str
    counts: dict[str, dict[str, int]]
    unlabeled: int
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    reasons: dict[str, str]
    test_looks: int | None

    @property
    def spec(self) -> DataSpec:
        """The spec of exactly these images."""
        return self.data.model_copy(update={"fingerprint": self.fingerprint})

    @property
    def reading(self) -> dict[str, Any]:
        """The fields of `data` that differ from their defaults."""
        return self.data.model_dump(mode="json", exclude_defaults=True)


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
class Prune(Request[Submitted]):
    """Queue a run that starts from the strongest channels of a finished one.

    Attributes:
        share: of its size that may be left, between 0 and 1.
        of: what its size is.
    """

    run: str
    share: float
    of: Literal["macs", "params"] = "macs"


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
        unexportable: why a user's network has no such file; None if it has.
        unlabeled: number of unlabeled images that join the training images.
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
    unexportable: str | None
    sizes: dict[str, int | None]
    steps: int
    unlabeled: int
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

    spec: AnyStudySpec


# --- a comparison -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedRuns(Compared):
    """The comparison of the first two runs; `others`: those of the first with each of the other runs."""

    others: tuple[Compared, ...]


@dataclass(frozen=True)
class Compare(Request[ComparedRuns]):
    """Compare runs on the student's images; results are cached.

    Attributes:
        runs: the teacher first.
        split: `test` or `val`.
    """

    runs: tuple[str, ...]
    split: str = "test"


@dataclass(frozen=True)
class AssessRobustness(LongRequest[Progress[Robustness]]):
    """Evaluate runs under image corruptions, the teacher first."""

    runs: tuple[str, ...]
    split: str = "test"


@dataclass(frozen=True)
class FindParetoFront(LongRequest[Progress[ParetoFront]]):
    """Size, latency and accuracy of runs, the teacher first."""

    runs: tuple[str, ...]
    split: str = "val"
    limits: Limits = NO_LIMITS


@dataclass(frozen=True)
class ReportFiles:
    """The paths of a report: HTML and JSON."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class WriteReport(LongRequest[Progress[ReportFiles]]):
    """Write a full report on runs as HTML and JSON, the teacher first.

    Attributes:
        to: the HTML file; default: in the store's cache.
    """

    runs: tuple[str, ...]
    split: str = "test"
    limits: Limits = NO_LIMITS
    to: str | None = None


@dataclass(frozen=True)
class Explained:
    """A run's prediction for an image, and what it depends on.

    Attributes:
        top: the five classes with the highest probabilities.
        target: the explained class; method: how, as text.
        heat: base64 of uint8 [H, W], 255 for the strongest evidence; anything: whether there is any.
    """

    top: tuple[tuple[str, float], ...]
    target: str
    method: str
    heat: str
    anything: bool


@dataclass(frozen=True)
class Explanations:
    """One answer a run."""

    answers: tuple[Explained, ...]


@dataclass(frozen=True)
class Explain(Request[Explanations]):
    """Predictions and saliency maps of runs for a user's image.

    Attributes:
        own: an image of the data's size.
        target: the class to explain; default: each run's top-1 prediction.
        occluding: use occlusion maps for all runs, not only where Grad-CAM is not applicable.
    """

    runs: tuple[str, ...]
    own: Pixels
    target: str | None = None
    occluding: bool = False


# --- a teacher --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckTeacher(Request[Preflight]):
    """Check a finished run or an import as a teacher, on validation images of `data` (default: its own data)."""

    shared: ClassVar[bool] = True

    teacher: str
    data: DataSpec | None = None


# --- the quality of a dataset -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckQuality(LongRequest[Progress[QualityReport]]):
    """Check the quality of a dataset.

    Attributes:
        method: features for label-error detection; teacher: a run to take them from.
        start: whether to run the check if there is no cached report.
    """

    data: DataSpec
    method: str = "auto"
    teacher: str | None = None
    start: bool = True


# --- an ablation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """The current result of an ablation, and the resolved spec, from which `studies.ablation.report` makes it too."""

    report: AblationReport
    spec: RunSpec


@dataclass(frozen=True)
class Ablate(Request[Ablation]):
    """The effect of a component of a spec, as far as its runs are finished.

    Attributes:
        start: queue those that are not finished.
    """

    spec: RunSpec
    what: What
    seeds: int = 3
    start: bool = False


# --- the loss landscape -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LandscapeProgress(Progress[LandscapeReport]):
    """With `cost` where the work was not started."""

    report: LandscapeReport | None = None
    cost: LandscapeCost | None = None


@dataclass(frozen=True)
class MeasureLandscape(LongRequest[LandscapeProgress]):
    """The loss landscape around finished runs.

    Attributes:
        measures: see `landscape.MEASURES`; norms: batch-norm statistics; images: approximate number.
        start: whether to compute missing measures, or only to estimate their cost.
    """

    runs: tuple[str, ...]
    measures: tuple[str, ...]
    norms: str = "eval"
    images: int = 512
    seed: int = 0
    start: bool = True


# --- an export --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export(Request[ExportReport]):
    """Export a run in one precision and check its parity, unless that was done already.

    Attributes:
        precision: with the options of int8, as `int8-drop0.5-mse`.
    """

    run: str
    precision: str = "fp32"


@dataclass(frozen=True)
class ExportTarget(Request[TargetReport]):
    """Export a run for another runtime and check its parity, unless that was done already.

    Attributes:
        target: its name, such as openvino.
    """

    run: str
    target: str


@dataclass(frozen=True)
class SubmitParity(Request[ExportReport]):
    """Add a user's browser to the parity report of an export.

    Attributes:
        precision: as of the export.
        said: as sent by the browser, see `export.submit_browser_parity`, which checks all of it.
    """

    run: str
    precision: str
    said: dict[str, Any]
