"""The training loop, the only one: a generator that trains one or more students on the same views in lockstep.

Each step computes the view and the teacher's logits once, then steps every student. One student is a list of one. The
loop yields events; the caller records, plots or tests. Nothing depends on time or on the state of a random number
generator, so a resumed run ends with bit-identical weights (on the same processor and thread count).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core import augment, networks
from smallalign_core.data import Splits, statistics
from smallalign_core.errors import BadModel, BadSpec, Diverged
from smallalign_core.metrics import fidelity, fit_temperature, logits_of, score
from smallalign_core.networks import Classifier
from smallalign_core.spec import Embedding, RunSpec
from smallalign_core.system.device import compiled
from smallalign_core.training import frozen_features, losses, optim
from smallalign_core.training.distributed import World, pick_device as pick_device
from smallalign_core.training.events import (
    Event as Event,
    Progress as Progress,
    Stopped as Stopped,
    Validated as Validated,
    Waiting as Waiting,
)
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.student import Student
from smallalign_core.training.teacher import TeacherSource
from smallalign_core.training.timer import Timer

REPORT_SECONDS = 0.25
ALONE = World()
STEP, SUMS = "step", "sums"
"""Commands from rank 0 to the other processes."""
NORMS_FROM = 2_000
"""Approximate number of training images for the batch-norm statistics of averaged weights."""
FITTED_ON = 2_000
"""Approximate number of validation images to fit an epoch's temperature on."""


class Training:
    """Students trained in lockstep. Iterate over it to train; between events, `state()` is all that a resume needs.

    Args:
        specs: runs that share data, augmentation, views, batch, epochs, seed, precision and teacher.
        splits: their data. Trains on `train`, selects on `val`; `test` is not used.
        teacher: source of teacher logits, for the students that have a teacher; None without.
        device: where to train.
        world: the processes that train together; each computes its part of every batch.
        starts: the initial weights files, by the names in `start` of the specs.
        keep: whether features of frozen bodies may be precomputed and cached; otherwise the body runs at each step.

    Raises:
        BadSpec: the specs differ in their views, a batch cannot be split, or an optimizer does not support this.
        BadModel: the initial weights are of another network.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        splits: Splits,
        teacher: TeacherSource | None = None,
        *,
        device: torch.device | str = "cpu",
        world: World = ALONE,
        starts: Mapping[str, Path] = MappingProxyType({}),
        keep: bool = True,
    ) -> None:
        if (
            not all(specs[0].can_lockstep_with(spec) for spec in specs)
            or len({s.teacher for s in specs if s.teacher}) > 1
        ):
            raise BadSpec(
                "runs in lockstep must have equal data, augmentation, batch, epochs, seed, precision and teacher",
                given=f"{len(specs)} specs",
                do="train them one after the other",
            )
        self.splits, self.device, self.world, self._starts = splits, torch.device(device), world, starts
        self.teacher = teacher if any(spec.teacher for spec in specs) else None
        half = specs[0].precision == "bf16"
        self._casting = torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext()
        self.views = augment.of_run(specs[0], splits.learned, self.device, world.local_slice(specs[0].batch))
        self.steps = augment.steps_of(specs[0], len(splits.learned))
        self.step = self._kept = 0
        self.shared = Timer(self.device)
        self._expected: NDArray[np.float32] | None = None
        self._refuse_parted(specs)
        self._keeps, self._bodies = keep, dict[str, frozen_features.Features]()
        mean, std = statistics(splits.train)
        self.students = [self._student(spec, mean, std) for spec in specs]

    def _refuse_parted(self, specs: Sequence[RunSpec]) -> None:
        for spec in specs:
            if self.world.size > 1 and (kind := optim.not_distributable(spec.optimizer)):
                raise BadSpec(
                    f"`{kind}` does not support several processes yet",
                    given=f"{self.world.size} processes",
                    do="train in one process, or use another optimizer",
                )

    def _student(self, spec: RunSpec, mean: list[float], std: list[float]) -> Student:
        classes = () if spec.headless else self.splits.classes
        classifier = networks.build(spec.network, classes, self.splits.shape, mean=mean, std=std, seed=spec.seed)
        if spec.start:
            networks.begin_from(classifier, self._starts[spec.start])
        networks.in_bits(classifier.to(self.device), spec.bits)
        kept = optim.state_bytes(spec.optimizer, classifier, head=networks.head(classifier))
        self._kept += kept
        optim.check(self._kept, self.device, optim.described(spec.optimizer)[0])
        companion = self._projector(spec, classifier)
        call = fast = self.world.wrap_ddp(classifier, self.device)
        if spec.compile and not any(losses.layers(spec.loss)):  # hooks would be compiled away
            fast = compiled(call, self.device)
        counts, partial = list(self.splits.train.counts().values()), augment.lacks_labels(spec, self.splits)
        balance = losses.class_balance(spec.balance, counts, self.device, partial=partial)
        timers = Timer(self.device), self.shared
        student = Student(spec, classifier, companion, balance, call, fast, self.steps, *timers, kept)
        images = len(self.splits.learned) + len(self.splits.val)
        student.frozen = frozen_features.is_frozen(spec, classifier, images, alone=self.world.size == 1)
        if student.frozen == frozen_features.KEPT and self._keeps:
            made = frozen_features.Features(classifier, self.views, self.splits.val, self._casting)
            student.features = self._bodies.setdefault(frozen_features.key(spec), made)
            student.call = student.fast = networks.head(classifier)
        return student

    def _projector(self, spec: RunSpec, classifier: Classifier) -> nn.Module | None:
        layers = losses.layers(spec.loss)
        if self.teacher is None or not (any(layers) or spec.of_features):
            return None
        # Features are cached, and the first batch may be long past: only the number of them matters.
        example = (
            (self.views(self.step), NetworkOutput(torch.zeros(1, self._teacher_on_val().shape[1])))
            if spec.of_features
            else self.teacher.batch_with_targets(self.views, 0)
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(spec.seed)
            classifier.eval()
            made = losses.projector(
                spec.loss, losses.network_output(classifier, example[0].images, layers[0]), example[1]
            )
        return made if made is None else made.to(self.device)

    def __iter__(self) -> Iterator[Event]:
        """Train from `self.step` to the end, or until no student is left."""
        count, batch = len(self.splits.learned), self.views.batch
        if not self.steps:  # initial weights, evaluated as they are
            yield from [self._validate(index) for index in range(len(self.students))]
        reported, since = time.monotonic(), self.step
        while self.step < self.steps and any(student.learns for student in self.students):
            for waiting in self._waiting():
                yield waiting
                reported, since = time.monotonic(), self.step
            if not any(student.learns for student in self.students):
                return
            self.advance()
            now = time.monotonic()
            epoch_ended = self.step * batch // count > (self.step - 1) * batch // count or self.step == self.steps
            if not epoch_ended and now - reported < REPORT_SECONDS:
                continue
            rate = (self.step - since) * batch / max(1e-9, now - reported)
            events: list[Event] = []
            # All are computed before the first is yielded: a caller that stops must not lose an epoch's validation.
            for index, student in enumerate(self.students):
                if student.learns:
                    try:
                        means = self._mean_losses(student, self.step - since)
                        if epoch_ended:
                            events.append(self._validate(index))
                        place = self.step * batch / count
                        counted = student.gradients, student.evaluations
                        events.append(Progress(index, self.step, self.steps, place, rate, means, *counted))
                    except Diverged as error:
                        student.learns = False
                        events.append(Stopped(index, self.step, error))
            yield from events
            reported, since = time.monotonic(), self.step

    def _waiting(self) -> Iterator[Waiting]:
        """Let the caller stop while teacher logits for more than one batch, or features of a frozen body, are computed;
        nothing has changed since the last step."""
        said = -float("inf")
        for share in self.shared.over(self._preparing()):
            if time.monotonic() - said < REPORT_SECONDS:
                continue
            for index, student in enumerate(self.students):
                student.sums = {}  # a checkpoint made now must not count these losses again
                if student.learns:
                    yield Waiting(index, self.step, share)
            if not any(student.learns for student in self.students):
                return
            said = time.monotonic()

    def _preparing(self) -> Iterator[float]:
        if self.teacher:
            yield from self.teacher.prepare(self.views, self.step)
        for student in self.students:
            if student.learns and student.features:
                yield from student.features.prepare(self.step)

    def drop(self, student: int) -> None:
        """Stop one student; the others continue."""
        self.students[student].learns = False

    def advance(self) -> None:
        """Take one step with every active student."""
        self.world.broadcast(STEP)
        said: NetworkOutput | None
        with self.shared.measure():
            view, said = (
                self.teacher.batch_with_targets(self.views, self.step)
                if self.teacher
                else (self.views(self.step), None)
            )
        learning = [student for student in self.students if student.learns and not student.stuck]
        swapped = None
        if said is not None and any(student.spec.shuffled for student in learning):
            swapped = said.rows(self.views.same_class_permutation(self.step, losses.classes_of(view.labels, said)))
        for student in self.students:
            if student.learns and student.stuck:  # until it is reported, every step has no loss
                student.add({"total": torch.full((), torch.nan, device=self.device)})
        for student in learning:
            wanted = swapped if student.spec.shuffled else said
            with student.clock.measure():
                self._teach(student, view, wanted if student.spec.teacher else None)
        self.step += 1

    def _teach(self, student: Student, view: augment.Batch, wanted: NetworkOutput | None) -> None:
        spec = student.spec
        if not student.classifier.training:  # a walk over all modules
            student.classifier.train()
        optim.set_rate(student.optimizer, student.rate * optim.factor(spec.schedule, self.step, self.steps))
        if student.needs == "losses":
            student.step_gradient_free(view, wanted, self.epoch, lambda: self._seed_step(spec))
            return
        parts = self._gradient(student, view, wanted)

        def again() -> Tensor:
            with student.freeze_bn_stats():
                return self._gradient(student, view, wanted, again=True)["total"]

        def excess() -> Tensor:
            """The loss minus that of the teacher."""
            how: dict[str, Any] = {"epoch": self.epoch, "balance": student.balance}
            own = losses.terms(spec.loss, wanted, wanted, view.labels, **how) if wanted else {}
            return parts["total"].detach() - sum(own.values(), start=torch.zeros(()))

        try:
            student.step(again if student.needs == "gradient" else excess if student.needs == "excess" else None)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # SOAP factorises gradient statistics, which were not finite: the next report raises.
            parts["total"], student.stuck = parts["total"] * torch.nan, True
        student.add(parts)

    def _gradient(
        self, student: Student, view: augment.Batch, wanted: NetworkOutput | None, *, again: bool = False
    ) -> dict[str, Tensor]:
        """Compute the gradient of the loss at the student's current weights.

        Args:
            again: whether it is not the first of this step. It uses the same dropout masks, since SAM needs two
                gradients of the same loss.

        Returns:
            The terms of the loss, and their sum as `total`.
        """
        spec = student.spec
        self._seed_step(spec)
        begins = self.step * self.views.batch % len(self.splits.learned) < self.views.batch and not again  # an epoch
        # The shares need several gradients of one output, and a compiled network frees what the second one needs.
        call = student.call if begins else student.fast
        seen = student.features.at(self.step) if student.features else view.images
        with student.count_memory() if begins and student.saved_bytes is None else contextlib.nullcontext():
            with self._casting:
                given = losses.network_output(student.classifier, seen, losses.layers(spec.loss)[0], call)
            how: dict[str, Any] = {"epoch": self.epoch, "companion": student.companion, "balance": student.balance}
            parts = losses.terms(spec.loss, given, wanted, view.labels, **how)
        if begins:
            with student.clock.paused():  # a report, not a part of the step
                student.measure_shares(parts)
        first, *others = parts.values()
        total = sum(others, start=first)
        for weight in student.learning:  # as `zero_grad`, without a profiler record
            weight.grad = None
        total.backward()
        student.gradients += 1
        if student.companion:
            self.world.average(*(weight.grad for weight in student.companion.parameters()))
        return {**parts, "total": total}

    @property
    def epoch(self) -> float:
        """Number of epochs so far, as a float."""
        return self.step * self.views.batch / len(self.splits.learned)

    def _seed_step(self, spec: RunSpec) -> None:
        """Seed the global generator for dropout by (seed, step), independently of other students."""
        self._seed(spec.seed * 1_000_003 + self.step)

    def _seed(self, number: int) -> None:
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(number)  # torch.manual_seed visits every backend: half a millisecond
        else:
            torch.manual_seed(number)

    def _mean_losses(self, student: Student, steps: int) -> dict[str, float]:
        """Means since the last report; reading them is the only synchronisation with a GPU."""
        self.world.broadcast(SUMS)
        self.world.average(*student.sums.values())
        means = {name: float(total) / max(1, steps) for name, total in student.sums.items()}
        self._refuse_nan(student, means["total"])
        student.sums, student.recent = {}, []
        return means

    def _refuse_nan(self, student: Student, loss: float) -> None:
        if not np.isfinite(loss):
            first = next((index for index, one in enumerate(student.recent) if not torch.isfinite(one)), None)
            step = f"by step {self.step}" if first is None else f"at step {self.step - len(student.recent) + first + 1}"
            given, do = optim.described(student.spec.optimizer)
            raise Diverged(f"the loss became {loss} {step} of {self.steps}", given=given, do=do)

    def _validate(self, index: int) -> Validated:
        student, val = self.students[index], self.splits.val
        epoch = (
            student.spec.epochs if self.step == self.steps else self.step * self.views.batch // len(self.splits.learned)
        )
        scored = self.scored(index)
        if student.spec.headless:
            return self._validate_features(index, epoch, scored)
        kept = student.features
        said = kept.answers(networks.head(scored)) if kept else logits_of(scored, val, device=self.device)
        self._refuse_nan(student, float(np.abs(said).max()))
        scores = score(said, val.labels, val.classes)
        some = slice(None, None, max(1, len(said) // FITTED_ON))
        fitted = score(said, val.labels, val.classes, fit_temperature(said[some], val.labels[some]))
        close = None
        if student.spec.teacher and self.teacher:
            close = fidelity(self._teacher_on_val(), said)
        best = student.keep_if_best(scored, scores, epoch)
        return Validated(index, self.step, epoch, scores, fitted, best, close, student.shares)

    def _validate_features(self, index: int, epoch: int, scored: Classifier) -> Validated:
        student, found = self.students[index], None
        if student.companion is not None and isinstance(student.spec.loss, Embedding):
            said = logits_of(scored, self.splits.val, device=self.device)
            found = losses.embedding_scores(student.spec.loss, said, self._teacher_on_val(), student.companion)
            self._refuse_nan(student, found.loss)
        best = student.keep_if_best(scored, found, epoch)
        return Validated(index, self.step, epoch, None, None, best, None, student.shares, found)

    def _teacher_on_val(self) -> NDArray[np.float32]:
        """The teacher's outputs for the validation images, computed once."""
        if self._expected is None:
            assert self.teacher is not None
            self._expected = self.teacher.on(self.splits.val)
        return self._expected

    def scored(self, index: int = 0) -> Classifier:
        """The network to evaluate: the student's classifier, or its weight average, if any.

        The batch norms of an average are estimated on the run's first views, about 2,000 images, always the same.
        """
        if not self.steps:
            return self.students[index].classifier
        student, batches = self.students[index], min(self.steps, -(-NORMS_FROM // self.views.batch))
        self._seed(student.spec.seed)  # dropout before a norm
        return optim.scored(
            student.spec.optimizer,
            student.optimizer,
            student.classifier,
            student.average,
            lambda: (self.views(step).images for step in range(batches)),
        )

    def assist(self) -> None:
        """Execute the commands of rank 0 (steps, sums, loading a state) until another one arrives."""
        while True:
            said = self.world.receive()
            if said == STEP:
                self.advance()
            elif said == SUMS:
                self.world.average(*self.students[0].sums.values())
                self.students[0].sums, self.students[0].recent = {}, []
            elif isinstance(said, dict):
                self.restore(said)
            else:
                return

    # --- resume -------------------------------------------------------------------------------------------------------

    def state(self, index: int = 0) -> dict[str, Any]:
        """All that one student needs for an exact resume: plain tensors, numbers and strings."""
        return {"step": self.step, **self.students[index].state()}

    def restore(self, *states: dict[str, Any]) -> None:
        """Resume from the `state` of each student, all of the same step.

        Raises:
            BadModel: the states are of other specs.
        """
        try:
            for state in states:
                self.world.broadcast(state)
            for student, kept in zip(self.students, states, strict=True):
                student.restore(kept, self.device)
            (self.step,) = {kept["step"] for kept in states}
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise BadModel(
                "the checkpoint does not fit this run",
                given=type(error).__name__,
                do="delete the run and start it again",
            ) from None
