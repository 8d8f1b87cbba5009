"""The worker: takes runs from the queue and trains them, in a process of its own.

`execute` trains one run from wherever it stands to its result; the foreground command `train` calls it too. `serve`
does so for one queued run after another.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from smallalign_core import data
from smallalign_core.errors import BadModel, Refused, SmallAlignError, WorkFailed
from smallalign_core.recording import Recording
from smallalign_core.store import Run, State, Store

log = logging.getLogger("smallalign")

CHECKPOINT_SECONDS = 10.0
POLL_SECONDS = 0.3

Observer = Callable[[dict[str, Any]], None]


def set_threads() -> int:
    """How many threads torch may use: OMP_NUM_THREADS if set; else one on small machines, half the cores on larger.

    Two OpenMP threads that share cores with a dashboard, a browser or a neighbour spin against each other: on two
    shared cores that was measured 4 to 300 times slower than one thread.
    """
    import torch

    cores = os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or (1 if cores <= 4 else cores // 2)
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: giving them back and faulting them in again costs up to 1.8x at batch 512."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 1024**2)


def execute(
    run: Run,
    store: Store,
    *,
    device: str = "auto",
    from_queue: bool = False,
    observe: Observer = lambda _: None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Train `run` from its last checkpoint, or from the start, to its result.

    Args:
        from_queue: train it only if it still waits in the queue.
        observe: is shown every event as it happens, recorded or not.
        stop: once set, the run is paused at its next event, with a checkpoint.

    Returns:
        Its result; with only `id` and `state` if it was asked to pause or cancel.

    Raises:
        Refused: another process is training it, or the disk is full (it is then paused).
        SmallAlignError: it failed; the reason is kept in its folder.
    """
    if run.finished:
        return run.result or {}
    with Recording(run, from_queue=from_queue) as recording:
        if run.finished:  # by another worker, while we waited for the lock
            return run.result or {}
        try:
            return _train(recording, store, device, observe, stop or threading.Event())
        except SmallAlignError as error:
            ended = State.PAUSED if isinstance(error, Refused) else State.FAILED
            _say_ended(recording, ended, str(error))
            raise
        except Exception as error:  # whatever went wrong: the run says so, and its worker lives on
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            _say_ended(recording, State.FAILED, reason)
            log.exception("run %s failed", run.name)
            raise WorkFailed("the run failed", given=reason, do="change the spec, or report it with its log") from error
        except KeyboardInterrupt:
            _say_ended(recording, State.PAUSED, "interrupted at the keyboard")
            raise


def _say_ended(recording: Recording, ended: State, reason: str) -> None:
    try:
        recording.say(ended=ended, reason=reason)
    except Refused:  # the disk is so full that not even this fits: the released lock will say "interrupted"
        log.warning("could not record why %s stopped: %s", recording.run.name, reason)


def _train(recording: Recording, store: Store, device: str, observe: Observer, stop: threading.Event) -> dict[str, Any]:
    import torch

    from smallalign_core import networks, train
    from smallalign_core.teacher import Teacher

    run = recording.run
    spec, threads, where = run.spec, set_threads(), train.pick_device(device)
    splits = data.load(spec.data, store.data_cache)
    teacher = None
    if spec.teacher is not None:
        answering = networks.from_file(store.finished(spec.teacher).weights)
        teacher = Teacher(answering, splits.classes, where)
    training = train.Training([spec], splits, teacher, device=where)
    seconds = _restore(recording, training)
    size = networks.measure(training.students[0].classifier)
    facts = {
        "device": str(where)
        if where.type == "cpu"
        else f"{where} ({torch.cuda.get_device_name(where)})"
        if where.type == "cuda"
        else str(where),
        "threads": threads,
        "params": size.params,
        "macs": size.macs,
        "steps": training.steps,
    }
    recording.say(**facts)
    recording.event("resumed" if recording.attempt > 1 else "started", training.step, **facts)
    log.info(
        "run %s: attempt %d from step %d of %d on %s",
        run.name,
        recording.attempt,
        training.step,
        training.steps,
        facts["device"],
    )

    def save() -> None:
        buffer = io.BytesIO()
        torch.save({"training": training.state(), "seconds": seconds + time.monotonic() - started}, buffer)
        recording.checkpoint(buffer.getvalue(), training.step)

    started = saved = recorded = time.monotonic()

    def obey() -> dict[str, Any] | None:
        """Stop if that was asked, with a checkpoint."""
        asked = run.asked or ("pause" if stop.is_set() else None)
        if asked is None or training.step >= training.steps:
            return None
        save()
        ended = State.CANCELLED if asked == "cancel" else State.PAUSED
        recording.say(ended=ended, reason=None)
        recording.event(str(ended), training.step)
        return {"id": run.id, "state": str(ended)}

    for event in training:
        now = time.monotonic()
        elapsed = seconds + now - started
        if isinstance(event, train.Progress):
            losses = event.losses[0]
            remaining = (event.steps - event.step) * elapsed / max(1, event.step)
            shown = {
                "kind": "progress",
                "step": event.step,
                "steps": event.steps,
                "epoch": event.epoch,
                "loss": losses.pop("total"),
                "terms": losses,
                "images_per_second": event.images_per_second,
                "seconds": elapsed,
                "eta": remaining,
            }
            if (
                now - recorded >= min(5.0, 0.25 + elapsed / 300) or event.step == event.steps
            ):  # long runs: sparser lines
                recording.event(**shown)  # type: ignore[arg-type]
                recorded = now
        else:
            scores = event.scores[0]
            shown = {
                "kind": "epoch",
                "step": event.step,
                "epoch": event.epoch,
                "accuracy": scores.accuracy,
                "nll": scores.nll,
                "ece": scores.ece,
                "best": event.best[0],
                "seconds": elapsed,
            }
            recording.event(**shown)  # type: ignore[arg-type]
        observe(shown)
        if (stopped := obey()) is not None:
            return stopped
        if now - saved >= CHECKPOINT_SECONDS:
            save()
            saved = time.monotonic()
    return _finish(recording, store, splits, training, {**facts, "seconds": seconds + time.monotonic() - started})


def _restore(recording: Recording, training: Any) -> float:
    """Go on from the last good checkpoint; returns the seconds trained before it."""
    import torch

    content = recording.last_checkpoint()
    if content is None:
        return 0.0
    try:
        kept = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        training.restore(kept["training"])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise BadModel(
            "the checkpoint cannot be read", given=type(error).__name__, do="delete the run and submit its spec again"
        ) from None
    return float(kept["seconds"])


def _finish(
    recording: Recording, store: Store, splits: data.Splits, training: Any, facts: dict[str, Any]
) -> dict[str, Any]:
    """Score the best weights: temperature by validation, then one look at test."""
    import hashlib

    import torch

    from smallalign_core import networks
    from smallalign_core.evaluate import fit_temperature, logits_of, score

    run, student = recording.run, training.students[0]
    classifier = student.best()
    val_logits = logits_of(classifier, splits.val, device=training.device)
    test_logits = logits_of(classifier, splits.test, device=training.device)
    store.count_test_look(splits.fingerprint, run.id, "training finished")
    temperature = fit_temperature(val_logits, splits.val.labels)
    weights = networks.to_bytes(classifier, run.spec)
    result = {
        "id": run.id,
        "state": str(State.FINISHED),
        "test": score(test_logits, splits.test.labels, splits.classes).as_dict(),
        "val": score(val_logits, splits.val.labels, splits.classes).as_dict(),
        "temperature": temperature,
        "test_calibrated": score(test_logits, splits.test.labels, splits.classes, temperature).as_dict(),
        "best_epoch": student.best_epoch,
        "classes": list(splits.classes),
        "input_shape": list(splits.shape),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "images_per_second": training.steps * training.views.batch / max(1e-9, facts["seconds"]),
        "attempts": recording.attempt,
        "torch": torch.__version__,
        "processor": _processor(),
        **facts,
    }
    recording.event("finished", training.step, accuracy=result["test"]["accuracy"])
    recording.finish(weights, result)
    log.info("run %s: test accuracy %.4f", run.name, result["test"]["accuracy"])
    return run.result or result


def _processor() -> str:
    """The processor's model: equal weights are promised only on equal processors."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# --- serving the queue ------------------------------------------------------------------------------------------------


def serve(
    store: Store,
    *,
    device: str = "auto",
    once: bool = False,
    while_pid: int | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Train queued runs, oldest first, until told to stop. Returns how many were taken.

    Args:
        once: stop when the queue is empty.
        while_pid: stop when the queue is empty and that process is gone (the dashboard starts its worker so).
        stop: once set, the run in training gets a checkpoint and goes back into the queue, and the worker ends.

    Raises:
        Refused: another worker serves this store on this device.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.root / f"worker-{device.replace(':', '-')}.lock", timeout=1.0)
    try:
        lock.acquire()
    except Timeout:
        raise Refused(
            f"another worker serves this store on device {device}",
            given=store.root,
            do="let it work, or name another --device",
        ) from None
    with lock:
        keep_freed_memory()
        log.info("worker %d serves %s on %s", os.getpid(), store.root, device)
        import torch  # noqa: F401  # before the first run: it is the slowest import, and the first click should not wait

        taken = 0
        stop = stop or threading.Event()
        while not stop.is_set():
            waiting = store.queue()
            if waiting:
                taken += 1
                serve_one(waiting[0], store, device, stop)
            elif once or (while_pid is not None and not psutil.pid_exists(while_pid)):
                return taken
            else:
                stop.wait(POLL_SECONDS)
        return taken


def serve_one(run: Run, store: Store, device: str, stop: threading.Event) -> None:
    """Train one queued run; whatever happens is kept in its folder, and the worker lives on."""
    try:
        handler = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    except OSError:  # deleted since it was listed
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        execute(run, store, device=device, from_queue=True, stop=stop)
        if stop.is_set():
            store.enqueue(run)
    except SmallAlignError as error:
        log.error("%s", error)
        time.sleep(POLL_SECONDS)
    finally:
        log.removeHandler(handler)
        handler.close()


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def asked(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)
    return stop


def main_log() -> None:
    """Send the log of this process to stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
