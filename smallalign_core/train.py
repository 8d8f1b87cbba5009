"""The training loop, the only one: a generator that takes one or more students through the same views in lockstep.

Each step makes the view once, asks the teacher once, and steps every student. One student is a list of one. The loop
yields events; the caller records, plots or tests. Nothing in it depends on time or on a generator of random numbers
that would have to be saved, so a run that was stopped and resumed ends with the same weights, bit for bit (same
processor and thread count).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallalign_core import losses, networks, optim, views
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadModel, BadSpec, Diverged
from smallalign_core.evaluate import Scores, logits_of, score
from smallalign_core.networks import Classifier
from smallalign_core.spec import RunSpec
from smallalign_core.teacher import Teacher

REPORT_SECONDS = 0.25


@dataclass(frozen=True)
class Progress:
    """Some steps were taken. Losses are means since the last report, one dict of weighted terms a student."""

    step: int
    steps: int
    epoch: float
    images_per_second: float
    losses: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Validated:
    """An epoch ended. One score a student, on validation; `best` says whose is its best so far."""

    step: int
    epoch: int
    scores: tuple[Scores, ...]
    best: tuple[bool, ...]


Event = Progress | Validated


@dataclass
class Student:
    """One learner of a lockstep: its network, its optimizer, and its best weights by validation so far."""

    spec: RunSpec
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, -float("inf"))
    sums: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, scores: Scores, epoch: int) -> bool:
        """Keep the present weights if they are the best on validation: by accuracy, then by likelihood."""
        rank = (scores.accuracy, -scores.nll)
        if rank <= self.best_score:
            return False
        self.best_score, self.best_epoch = rank, epoch
        self.best_weights = {name: tensor.detach().clone() for name, tensor in self.classifier.state_dict().items()}
        return True

    def best(self) -> Classifier:
        """A copy of the classifier with its best weights."""
        classifier = copy.deepcopy(self.classifier)
        classifier.load_state_dict(self.best_weights)
        return classifier.eval()


class Training:
    """One lockstep of students. Iterate over it to train; between events, `state()` is all that a resume needs.

    Args:
        specs: runs that share data, augmentation, views, batch, epochs, seed and teacher.
        splits: their data. Only `train` is learned from and only `val` is chosen by; `test` is not touched.
        teacher: who answers each view, for the students whose loss asks; None without.
        device: where to train.

    Raises:
        BadSpec: the specs do not share their views.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        splits: Splits,
        teacher: Teacher | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        shared = {(s.data, s.augment, s.views, s.batch, s.epochs, s.seed, s.precision) for s in specs}
        if len(shared) != 1 or len({s.teacher for s in specs if s.teacher}) > 1:
            raise BadSpec(
                "a lockstep shares data, augmentation, batch, epochs, seed, precision and teacher: these differ",
                given=f"{len(specs)} specs",
                do="train them one after the other",
            )
        self.splits, self.teacher, self.device = splits, teacher, torch.device(device)
        self.views = views.of_run(specs[0], splits.train, self.device)
        self.steps = views.steps_of(specs[0], len(splits.train))
        self.step = 0
        mean, std = statistics(splits.train)
        self.students = [self._student(spec, mean, std) for spec in specs]

    def _student(self, spec: RunSpec, mean: list[float], std: list[float]) -> Student:
        classifier = networks.build(
            spec.network, self.splits.classes, self.splits.shape, mean=mean, std=std, seed=spec.seed
        ).to(self.device)
        return Student(spec, classifier, optim.build(spec.optimizer, classifier))

    def __iter__(self) -> Iterator[Event]:
        """Train from `self.step` to the end.

        Raises:
            Diverged: a student's loss is NaN or infinite; names the step.
        """
        count, batch = len(self.splits.train), self.views.batch
        reported, since = time.monotonic(), self.step
        while self.step < self.steps:
            self.advance()
            now = time.monotonic()
            epoch_ended = self.step * batch // count > (self.step - 1) * batch // count or self.step == self.steps
            if not epoch_ended and now - reported < REPORT_SECONDS:
                continue
            rate = (self.step - since) * batch / max(1e-9, now - reported)
            losses = self._mean_losses(self.step - since)
            if epoch_ended:  # first: whoever stops at any event of this step must not lose its validation
                last = self.step == self.steps
                yield self._validate(self.students[0].spec.epochs if last else self.step * batch // count)
            yield Progress(self.step, self.steps, self.step * batch / count, rate, losses)
            reported, since = time.monotonic(), self.step

    def advance(self) -> None:
        """Take one step with every student."""
        view = self.views(self.step)
        answers = self._answers(view.images)
        for student in self.students:
            spec = student.spec
            student.classifier.train()
            # Dropout draws from the global generator. Keyed by (seed, step), it does not depend on who else trains.
            self._seed(spec.seed * 1_000_003 + self.step)
            rate = optim.peak_rate(spec.optimizer) * optim.factor(spec.schedule, self.step, self.steps)
            for group in student.optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(self.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                logits = student.classifier(view.images)
            parts = losses.terms(spec.loss, logits, answers if spec.teacher else None, view.labels)
            total = torch.stack(list(parts.values())).sum()
            student.optimizer.zero_grad(set_to_none=True)
            total.backward()
            student.optimizer.step()
            for name, value in (*parts.items(), ("total", total)):
                student.sums[name] = student.sums.get(name, 0) + value.detach()
        self.step += 1

    def _seed(self, number: int) -> None:
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(number)  # torch.manual_seed looks at every backend: half a millisecond
        else:
            torch.manual_seed(number)

    def _answers(self, images: Tensor) -> Tensor | None:
        """The teacher's logits for a view, in the students' precision; None if nobody asks."""
        if self.teacher is None or not any(student.spec.teacher for student in self.students):
            return None
        precision = self.students[0].spec.precision  # a lockstep has one
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.teacher.logits(images)

    def _mean_losses(self, steps: int) -> tuple[dict[str, float], ...]:
        """Means since the last report; reading them is the only moment that a GPU has to wait for."""
        means = []
        for student in self.students:
            means.append({name: float(total) / max(1, steps) for name, total in student.sums.items()})
            student.sums = {}
            self._refuse_nan(student, means[-1]["total"])
        return tuple(means)

    def _refuse_nan(self, student: Student, loss: float) -> None:
        if not np.isfinite(loss):
            raise Diverged(
                f"the loss became {loss} by step {self.step} of {self.steps}",
                given=f"{student.spec.optimizer.kind}, learning rate {optim.peak_rate(student.spec.optimizer)}",
                do="lower optimizer.lr, or lengthen schedule.warmup",
            )

    def _validate(self, epoch: int) -> Validated:
        val = self.splits.val
        scores = tuple(
            score(logits_of(student.classifier, val, device=self.device), val.labels, val.classes)
            for student in self.students
        )
        for student, found in zip(self.students, scores, strict=True):
            self._refuse_nan(student, found.nll)
        best = tuple(student.consider(found, epoch) for student, found in zip(self.students, scores, strict=True))
        return Validated(self.step, epoch, scores, best)

    # --- resume -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on as if nothing had happened: plain tensors, numbers and text."""
        return {
            "step": self.step,
            "students": [
                {
                    "weights": student.classifier.state_dict(),
                    "optimizer": student.optimizer.state_dict(),
                    "best_weights": student.best_weights,
                    "best_epoch": student.best_epoch,
                    "best_score": list(student.best_score),
                    "sums": student.sums,
                }
                for student in self.students
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()` of the same specs.

        Raises:
            BadModel: the state is of other specs.
        """
        try:
            for student, kept in zip(self.students, state["students"], strict=True):
                student.classifier.load_state_dict(kept["weights"])
                # Rebuilt after the weights are in: Lookahead copies its slow weights when it is built.
                student.optimizer = optim.build(student.spec.optimizer, student.classifier)
                student.optimizer.load_state_dict(kept["optimizer"])
                student.best_weights = {name: tensor.to(self.device) for name, tensor in kept["best_weights"].items()}
                student.best_epoch, student.best_score = kept["best_epoch"], tuple(kept["best_score"])
                student.sums = {name: tensor.to(self.device) for name, tensor in kept["sums"].items()}
            self.step = state["step"]
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise BadModel(
                "the checkpoint does not fit this run",
                given=type(error).__name__,
                do="delete the run and start it again",
            ) from None


def statistics(images: ImageSet, sample: int = 10_000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1, over at most `sample` evenly spread images."""
    rows = np.arange(0, len(images), max(1, -(-len(images) // sample)))
    count, (total, squares) = 0, np.zeros((2, images.shape[0]), np.int64)  # whole numbers: exact, whatever the chunks
    for start in range(0, len(rows), 256):
        pixels = np.asarray(images.images[rows[start : start + 256]])
        count += pixels[:, 0].size
        total += pixels.sum((0, 2, 3), dtype=np.int64)
        squares += np.square(pixels, dtype=np.int32).sum((0, 2, 3), dtype=np.int64)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    return [float(m) for m in mean / 255], [float(max(s, 1e-3)) for s in std]


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes the first of cuda, xpu, mps and cpu that is there.

    Raises:
        BadSpec: that device is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = name.split(":")[0]
    if name == "auto":
        kind = name = next(kind for kind, found in there.items() if found)
    if not there.get(kind):
        raise BadSpec(
            "this machine has no such device",
            given=name,
            do=f"choose one of: auto, {', '.join(k for k, v in there.items() if v)}",
        )
    return torch.device(name)


def pick_precision(asked: str, device: torch.device) -> str:
    """What `auto` means on `device`: bf16 where the hardware multiplies it natively, else fp32.

    On CPUs bf16 pays for some networks and costs others a factor of two (depthwise convolutions), so it is a choice
    there, not a default.
    """
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
