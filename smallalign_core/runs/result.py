"""A run's result.json as types, for readers that show it. Fields that older versions did not write are None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from smallalign_core.errors import BadModel
from smallalign_core.metrics import in_words, macro_of
from smallalign_core.runs.store import Run


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SplitScores(_Read):
    """Scores on one split: the fields of `metrics.Scores` that every version wrote.

    Attributes:
        macro_recall: computed from `recall` where it was not written.
        other_scores: macro recall, macro F1, least recall and top-5 with intervals, in one line; empty for results from
            before they were computed.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    nll: float
    ece: float
    recall: dict[str, float | None]
    macro_recall: float
    other_scores: str

    @classmethod
    def of(cls, scores: Mapping[str, Any]) -> SplitScores:
        """From a split of result.json."""
        return cls.model_validate(
            {**scores, "macro_recall": macro_of(scores["recall"]), "other_scores": in_words(scores)}
        )


class ClassResult(_Read):
    """Scores of one class on test: see `metrics.ClassScores`."""

    images: int
    recall: float | None
    recall_low: float
    recall_high: float
    precision: float | None
    f1: float | None
    ece: float
    excess: float


class TeacherResult(_Read):
    """The teacher on validation images of the run's dataset, as checked before training."""

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    chance: float
    warnings: list[str] = []


class BackendResult(_Read):
    """How near another inference backend of the teacher is to PyTorch. `kl` in nats."""

    agreement: float
    kl: float
    images: int


class FeatureResult(_Read):
    """A network without a head: length of its features, and their closeness to a teacher's where there was one."""

    features: int
    cosine: float | None = None
    loss: float | None = None
    images: int | None = None


class RunResult(_Read):
    """The result of a finished run or an imported classifier.

    Attributes:
        val, test, test_calibrated, last_test: None for networks without a head; `last_test` and the measurements of
            training are None for imported classifiers.
        seconds: duration of training.
        macs: multiply-accumulate operations per image.
        peak_bytes: peak memory of the training process.
    """

    params: int
    val: SplitScores | None = None
    test: SplitScores | None = None
    test_calibrated: SplitScores | None = None
    last_test: SplitScores | None = None
    per_class: dict[str, ClassResult] | None = None
    temperature: float | None = None
    embedding: FeatureResult | None = None
    best_epoch: int | None = None
    macs: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    device: str | None = None
    peak_bytes: int | None = None
    features: str | None = None
    answers: list[BackendResult] | None = None
    preflight: TeacherResult | None = None


SPLITS = ("val", "test", "test_calibrated")


def result_of(run: Run) -> RunResult | None:
    """The result of `run`; None before it finished.

    Raises:
        BadModel: result.json is damaged.
    """
    if (found := run.result) is None:
        return None
    try:
        splits = {name: SplitScores.of(found[name]) for name in SPLITS if name in found}
        last = {"last_test": SplitScores.of(found["last"]["test"])} if "last" in found else {}
        return RunResult.model_validate({**found, **splits, **last})
    except (ValidationError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        problem = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise BadModel(
            "the run's result.json is damaged", given=f"{run.name}: {problem}", do="delete the run"
        ) from None
