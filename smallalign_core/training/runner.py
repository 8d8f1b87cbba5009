"""Training of recorded runs: from their current state to their results.

Runs with identical views are trained in lockstep, one step each on the same images. Each has its own folder, events and
checkpoints: one can be cancelled, diverge or be resumed alone, and its weights are the same either way.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from smallalign_core import data
from smallalign_core.errors import BadModel, Diverged, Refused, SmallAlignError, WorkFailed
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.spec import RunSpec
from smallalign_core.system import machine, usercode
from smallalign_core.system.machine import forget_peak, set_threads
from smallalign_core.training import teacher_loading
from smallalign_core.training.finishing import ANNOUNCED as ANNOUNCED, MADE_OF as MADE_OF, finish
from smallalign_core.training.watchdog import HangDetector, with_explanation

if TYPE_CHECKING:
    from smallalign_core.training.distributed import World
    from smallalign_core.training.loop import Progress, Training, Validated
    from smallalign_core.training.teacher import TeacherSource

log = logging.getLogger("smallalign")

CHECKPOINT_SECONDS = 10.0
TOGETHER = 8
"""Max. runs in lockstep per worker or study."""
OVER = "over"
"""The last command of rank 0."""

Observer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunnerConfig:
    """Device, observer and other arguments of `execute`."""

    store: Store
    device: str
    observe: Observer
    stop: threading.Event
    world: World
    give_up: Callable[[], None] | None = None


def execute(
    run: Run,
    store: Store,
    *,
    device: str = "auto",
    from_queue: bool = False,
    observe: Observer = lambda _: None,
    stop: threading.Event | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Train `run` from its last checkpoint, or from the start, to its result.

    Args:
        from_queue: train it only if it is still queued.
        observe: called with every event, recorded or not.
        stop: once set, the run is paused at its next event, with a checkpoint.
        world: the processes that train it together, of which this is rank 0; the others call `run_assistant`.

    Returns:
        Its result; only `id`, `state` and `asked` (the request) if it was paused or cancelled; `asked` is None if
        `stop` was set.

    Raises:
        Refused: another process is training it, or the disk is full (it is then paused).
        SmallAlignError: it failed; the reason is recorded in its folder.
    """
    (ended,) = run_lockstep([run], store, device=device, from_queue=from_queue, observe=observe, stop=stop, world=world)
    if isinstance(ended, SmallAlignError):
        raise ended
    return ended


def run_lockstep(
    runs: Sequence[Run],
    store: Store,
    *,
    device: str = "auto",
    from_queue: bool = False,
    observe: Observer = lambda _: None,
    stop: threading.Event | None = None,
    world: World | None = None,
    give_up: Callable[[], None] | None = None,
) -> list[dict[str, Any] | SmallAlignError]:
    """Train runs with identical views in lockstep, as `execute` trains one.

    Args:
        give_up: ends this process if a step hangs and the user stops its run.

    Returns:
        The result or error of each. Runs with last checkpoints of different steps are trained one group after the
        other.
    """
    from smallalign_core.training.distributed import World

    config = RunnerConfig(store, device, observe, stop or threading.Event(), world or World(), give_up)
    ended: dict[str, dict[str, Any] | SmallAlignError] = {}
    with contextlib.ExitStack() as held:
        group = []
        for run in runs:
            try:
                if not run.finished:
                    group.append(ActiveRun(held.enter_context(RunWriter(run, from_queue=from_queue))))
                    if run.finished:  # by another worker, while waiting for the lock
                        group.pop()
            except Refused as error:
                ended[run.id] = error
        if not group:
            config.world.broadcast(OVER)
        while waiting := [member for member in group if member.ended is None]:
            _attempt(waiting, config)
        ended |= {member.run.id: member.ended for member in group if member.ended is not None}
    return [ended.get(run.id) or run.result or {} for run in runs]


def _attempt(group: list[ActiveRun], config: RunnerConfig) -> None:
    """Train some of `group` together until at least one has ended; errors are recorded in their folders."""
    try:
        _train(group, config)
    except KeyboardInterrupt:
        _end_all(group, State.PAUSED, Refused("interrupted by Ctrl-C"))
        raise
    except Exception as error:  # recorded in the runs; the worker continues
        if len(group) > 1 and not isinstance(error, Refused):  # training each alone shows which one fails
            traceback.clear_frames(error.__traceback__)  # or their tensors would stay in memory beside those of each
            log.warning("training in lockstep failed (%s); retrying each run alone", error)
            for member in group:
                if member.ended is None:
                    _attempt([member], config)
        elif isinstance(error, SmallAlignError):
            _end_all(group, State.PAUSED if isinstance(error, Refused) else State.FAILED, error)
        elif short := with_explanation(error):
            log.exception("training failed")
            _end_all(group, State.FAILED, short)
        elif short := usercode.explanation(error):
            log.error("training failed: %s", short)  # a traceback would be of our code
            _end_all(group, State.FAILED, short)
        else:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            log.exception("training failed")
            failure = WorkFailed("the run failed", given=reason, do="change the spec, or report the error with the log")
            _end_all(group, State.FAILED, failure, reason)


def _end_all(group: Sequence[ActiveRun], state: State, error: SmallAlignError, reason: str | None = None) -> None:
    for member in group:
        if member.ended is None:
            member.end(state, error, reason)


@dataclass
class ActiveRun:
    """One run in training: its writer, and the state of recording."""

    recording: RunWriter
    before: float = 0.0
    answered: int = 0
    taught: TeacherSource | None = None
    began: bool = False
    recorded: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    ended: dict[str, Any] | SmallAlignError | None = None

    def __post_init__(self) -> None:
        self.began = self.recording.attempt > 1

    @property
    def run(self) -> Run:
        """The run."""
        return self.recording.run

    @property
    def seconds(self) -> float:
        """Seconds trained, including those before a resume."""
        return self.before + time.monotonic() - self.started

    @property
    def teacher_images(self) -> int:
        """Number of images with a teacher forward pass, including before a resume; the others came from the cache."""
        return self.answered + (self.taught.answered if self.taught else 0)

    def end(self, state: State, error: SmallAlignError, reason: str | None = None) -> None:
        """Record why it stopped."""
        self.ended = error
        try:
            self.recording.write_status(ended=state, reason=reason or str(error), diverged=isinstance(error, Diverged))
        except Refused:  # the disk is full: without a record, the released lock means "interrupted"
            log.warning("could not record why %s stopped: %s", self.run.name, error)
        self.recording.release()

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        import torch

        buffer = io.BytesIO()
        torch.save({"training": state, "seconds": self.seconds, "teacher_images": self.teacher_images}, buffer)
        self.recording.checkpoint(buffer.getvalue(), state["step"])
        self.saved = time.monotonic()

    def restored(self) -> dict[str, Any] | None:
        """The state in its last intact checkpoint; None if it has none."""
        import torch

        content = self.recording.last_checkpoint()
        if content is None:
            return None
        try:
            kept = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            self.before, self.answered = float(kept["seconds"]), int(kept.get("teacher_images", 0))
            state: dict[str, Any] = kept["training"]
            int(state["step"])
        except (RuntimeError, KeyError, ValueError, EOFError, TypeError) as error:
            raise BadModel(
                "the checkpoint cannot be read",
                given=type(error).__name__,
                do="delete the run and submit its spec again",
            ) from None
        return state

    def progress(self, event: Progress) -> dict[str, Any]:
        """Record progress, less often the longer it trains."""
        losses, now = dict(event.losses), time.monotonic()
        remaining = (event.steps - event.step) * self.seconds / max(1, event.step)
        shown = {
            "step": event.step,
            "steps": event.steps,
            "epoch": event.epoch,
            "loss": losses.pop("total"),
            "terms": losses,
            "gradients": event.gradients,
            "evaluations": event.evaluations,
            "images_per_second": event.images_per_second,
            "seconds": self.seconds,
            "eta": remaining,
        }
        if now - self.recorded >= min(5.0, 0.25 + self.seconds / 300) or event.step == event.steps:
            self.recording.event("progress", **shown)  # type: ignore[arg-type]
            self.recorded = now
        return {"kind": "progress", **shown}

    def epoch(self, event: Validated, spent: dict[str, Any]) -> dict[str, Any]:
        """Record the scores and the cost of an epoch."""
        close, near, scores = event.fidelity, event.embedding, {}
        if event.scores is not None and event.fitted is not None:
            scores = {
                "accuracy": event.scores.accuracy,
                "macro_recall": event.scores.macro_recall,
                "nll": event.scores.nll,
                "ece": event.scores.ece,
                "fitted_nll": event.fitted.nll,
                "fitted_ece": event.fitted.ece,
                "agreement": close and close.agreement,
                "kl": close and close.kl,
            }
        elif near is not None:
            scores = {"embedding_loss": near.loss, "cosine": near.cosine}
        shown = {
            "step": event.step,
            "epoch": event.epoch,
            **scores,
            "best": event.best,
            "shares": event.shares,
            "seconds": self.seconds,
            **spent,
        }
        self.recording.event("epoch", **shown)
        return {"kind": "epoch", **shown}


def run_assistant(run: Run, store: Store, world: World, device: str = "auto") -> None:
    """Assist the rank-0 process that `execute`s `run`: compute this process's part of every batch."""
    if world.receive() != OVER:
        with _prepared([run.spec], RunnerConfig(store, device, lambda _: None, threading.Event(), world)) as made:
            made[0].assist()


@contextlib.contextmanager
def _prepared(
    specs: Sequence[RunSpec], config: RunnerConfig, warn: Callable[[str], None] = log.warning
) -> Iterator[tuple[Training, data.Splits]]:
    """Data, teacher and students of runs with identical views."""
    from smallalign_core.training import loop

    set_threads()
    where = loop.pick_device(config.device)
    forget_peak(where.type)
    splits = data.load(specs[0].data, config.store.data_cache)
    # With several processes each computes part of a batch, and the cache holds whole batches.
    cached = config.world.size == 1
    with teacher_loading.of_runs(specs, config.store, splits, where, cached=cached, warn=warn) as taught:
        starts = teacher_loading.starts(specs, config.store)
        yield loop.Training(specs, splits, taught, device=where, world=config.world, starts=starts), splits


def _train(group: list[ActiveRun], config: RunnerConfig) -> None:
    """Train all runs at the step of the first one; sets their results."""
    states = [member.restored() for member in group]
    steps = [state["step"] if state else 0 for state in states]
    joined = [index for index, step in enumerate(steps) if step == steps[0]]
    group, states = [group[index] for index in joined], [states[index] for index in joined]

    def warn(message: str) -> None:
        log.warning(message)
        for member in group:
            if member.ended is None:
                member.recording.event("warning", steps[0], message=message)

    with contextlib.ExitStack() as held:
        config.world.broadcast("begin")
        try:
            specs = [member.run.spec for member in group]
            training, splits = held.enter_context(_prepared(specs, config, warn))
            if steps[0]:
                training.restore(*(state or {} for state in states))
            _announce(training, group, config.store)
            _follow(training, group, config, held.enter_context(HangDetector(group, config.give_up)))
        finally:
            config.world.broadcast(OVER)
        for index, member in enumerate(group):
            if member.ended is None:
                member.ended = finish(member, config.store, splits, training, index)


def _announce(training: Training, group: Sequence[ActiveRun], store: Store) -> None:
    """Record what is known before the first step."""
    import torch

    from smallalign_core import networks

    for member, student in zip(group, training.students, strict=True):
        member.taught = training.teacher if member.run.spec.teacher else None
        facts: dict[str, Any] = {
            "device": machine.device_name(training.device),
            "processor": machine.processor(),
            "capability": machine.capability(),
            "threads": torch.get_num_threads(),
            "processes": training.world.size,
            **asdict(networks.measure(student.classifier)),
            "steps": training.steps,
            "together": len(group),
            "teacher": member.taught and ("live" if member.taught.live else "cache"),
            **teacher_loading.facts(member.run.spec, store, training.splits, training.device),
            "features": student.frozen,
        }
        member.started = member.saved = member.recorded = time.monotonic()
        if moved := machine.difference(member.run.status if training.step else {}, facts):
            member.recording.event("warning", training.step, message=moved)
        facts["moved"] = moved or (member.run.status.get("moved") if training.step else None)
        member.recording.write_status(**facts)
        member.recording.event("resumed" if member.began else "started", training.step, **facts)
        for doubt in (facts["preflight"] or {}).get("warnings", ()):
            member.recording.event("warning", training.step, message=doubt)
        member.began = True
        log.info("run %s: from step %d of %d on %s", member.run.name, training.step, training.steps, facts["device"])


def _follow(training: Training, group: Sequence[ActiveRun], config: RunnerConfig, watch: HangDetector) -> None:
    """Record events, write checkpoints, and stop runs with a pending request."""
    from smallalign_core.training import loop

    for event in training:
        watch.seen(training.step)
        member, index = group[event.student], event.student
        if isinstance(event, loop.Stopped):
            member.end(State.FAILED, event.error)
            continue
        if member.ended is not None:
            continue
        if isinstance(event, loop.Progress):
            config.observe(member.progress(event))
        elif isinstance(event, loop.Waiting):
            config.observe({"kind": "waiting", "step": event.step, "share": event.share})
        else:
            config.observe(member.epoch(event, training.students[index].cost_so_far()))
        pending = member.run.pending_request
        if (pending is not None or config.stop.is_set()) and training.step < training.steps:
            member.save(training.state(index))
            ended = State.CANCELLED if pending == "cancel" else State.PAUSED
            member.recording.write_status(ended=ended, reason=None)
            member.recording.event(str(ended), training.step)
            member.ended = {"id": member.run.id, "state": str(ended), "asked": pending}
            member.recording.release()  # released now: the others may train for hours
            training.drop(index)
        elif time.monotonic() - member.saved >= CHECKPOINT_SECONDS:
            member.save(training.state(index))
