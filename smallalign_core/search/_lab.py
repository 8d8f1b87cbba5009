"""Everything that a search measures: time, sizes, latency, steps, and what files and teachers predict on validation.

The only module of the package that imports torch, apart from the teacher's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core import data, export, networks
from smallalign_core.data import Splits
from smallalign_core.metrics import logits_of
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.search._journal import Measured
from smallalign_core.search._laboratory import Mixed
from smallalign_core.search._spec import WEIGHT_BYTES
from smallalign_core.spec import Network, RunSpec
from smallalign_core.spec.precision import Precision
from smallalign_core.system.machine import fastest, set_threads
from smallalign_core.training import loop, pruned, teacher_loading
from smallalign_core.training.teacher_evidence import Evidence

LATENCY_SECONDS = 0.3
LAYERS = (torch.nn.Conv2d, torch.nn.Linear)


class Lab:
    """Measurements for one search.

    Args:
        run: any run of it, for the images.
        device: where runs are trained.
    """

    def __init__(self, store: Store, run: RunSpec, device: str) -> None:
        set_threads()
        self.store, self._run, self.device = store, run, loop.pick_device(device)

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    @cached_property
    def splits(self) -> Splits:
        """The images of the search."""
        return data.load(self._run.data, self.store.data_cache)

    @property
    def train_images(self) -> int:
        """Number of training images."""
        return len(self.splits.train)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the images."""
        return self.splits.classes

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        return data.statistics(self.splits.train)

    def _built(self, run: RunSpec) -> networks.Classifier:
        mean, std = self._statistics  # equal ones would be one constant of the graph, and a smaller file
        return networks.build(run.network, self.splits.classes, self.splits.shape, mean=mean, std=std)

    def least_bytes(self, run: RunSpec, precisions: Sequence[Precision]) -> int:
        """What the weight matrices of a network alone take in the narrowest of some precisions: no file is smaller."""
        body = self._built(run).body
        numbers = sum(weight.numel() for weight in body.parameters() if weight.ndim > 1)
        return numbers * min(WEIGHT_BYTES[one] for one in precisions)

    def measure(self, run: RunSpec, precisions: tuple[Precision, ...], max_bytes: int | None) -> Measured:
        """Exact bytes, latency and the time of a step of a run before it is trained.

        Latency is measured on each file that is small enough.
        """
        classifier = self._built(run)
        size, layers = networks.measure(classifier), sum(isinstance(one, LAYERS) for one in classifier.modules())
        files = export.files_before(run, classifier, self.splits, precisions)
        image = export.nhwc(self.splits.val, 1)[0]
        ms = {
            name: round(export.OnnxClassifier(content).latency(image, LATENCY_SECONDS)[0], 4)
            for name, content in files.items()
            if content is not None and (max_bytes is None or len(content) <= max_bytes)
        }
        sizes = {str(name): None if content is None else len(content) for name, content in files.items()}
        latency = {str(name): one for name, one in ms.items()}
        return Measured(size.params, size.macs, sizes, latency, self.step(run), layers)

    def sizes(self, run: RunSpec, precisions: tuple[Precision, ...]) -> dict[str, int | None]:
        """Exact bytes of the files of a run before it is trained, by precision; None where it cannot be exported so."""
        found = export.sizes_before(run, self._built(run), self.splits, precisions)
        return {str(name): size for name, size in found.items()}

    def pruned(self, run: Run, share: float) -> Network:
        """The network of a finished run with about a share of its parameters, by the norms of its weights.

        Raises:
            SmallAlignError: it cannot be pruned, or not that far.
        """
        return pruned.spec_of(run, self.store, share, of="params", teacher=pruned.NONE).network

    def step(self, run: RunSpec) -> float:
        """Seconds of one training step on labels only, alone."""
        plain = run.model_copy(
            update={"teacher": None, "loss": RunSpec.model_fields["loss"].default, "start": None, "epochs": 1}
        )
        return fastest(loop.Training([plain], self.splits, device=self.device).advance)

    def right(self, run: Run, variant: str) -> NDArray[np.bool_]:
        """Whether a finished run's file is right, for each validation image: bool [N]."""
        precision, how = export.parse_variant(variant)
        if how.max_drop is not None:
            return self._right(export.within_drop(run, self.store, how.max_drop).logits)
        return self._right(export.validation_logits(run, self.store, precision))

    def _right(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(logits.argmax(1) == self.splits.val.labels)

    def mixed(self, run: Run) -> Mixed:
        """The int8 file of a finished run with as few layers in float as keep its accuracy, within the smallest loss
        that the validation images can show.

        Raises:
            SmallAlignError: there is none.
        """
        drop = export.least_drop(len(self.splits.val))
        made = export.within_drop(run, self.store, drop)
        ms = export.OnnxClassifier(made.content).latency(export.nhwc(self.splits.val, 1)[0], LATENCY_SECONDS)[0]
        variant = export.variant_of("int8", export.FileOptions(max_drop=drop))
        return Mixed(variant, len(made.content), round(ms, 4), self._right(made.logits), made.files)

    def teacher_right(self, run: Run) -> NDArray[np.bool_]:
        """The same of a teacher in PyTorch."""
        teacher = imported.classifier(run, self.splits.classes).to(self.device)
        return np.asarray(logits_of(teacher, self.splits.val, device=self.device).argmax(1) == self.splits.val.labels)

    def evidence(self, run: RunSpec) -> Evidence:
        """The check of the teacher of a run on validation images, cached in the store.

        Raises:
            SmallAlignError: it is not usable for these images.
        """
        found = teacher_loading.preflight(run, self.store, self.splits, self.device)
        assert found is not None, "the run has a teacher"
        return found

    def deliver(self, run: Run, variant: str) -> dict[str, Any]:
        """Export a finished run and compare the file with PyTorch on all test images; the report of the bundle."""
        precision, how = export.parse_variant(variant)
        return export.bundle(run, self.store, precision=precision, options=how)

    def lesson(self, run: RunSpec) -> float:
        """Seconds of the teacher's forward pass for one batch of a distilled run."""
        taught = run.model_copy(update={"start": None, "epochs": 1})
        teacher = teacher_loading.load_teacher([taught], self.store, self.splits, self.device)
        if teacher is None:
            return 0.0
        training = loop.Training([taught], self.splits, teacher, device=self.device)
        with torch.no_grad():
            return fastest(lambda: teacher.batch_with_targets(training.views, 0))
