"""The worker process: trains runs from the queue, or else those of active studies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

import psutil
from filelock import FileLock, Timeout

from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.recovery import MOST, crash_count, requeue_crashed
from smallalign_core.runs.store import Run, Store
from smallalign_core.runs.writer import capture_logs, clean_up
from smallalign_core.search import KIND as SEARCH  # noqa: F401  # its import makes searches known to `lifecycle`
from smallalign_core.service import webhook
from smallalign_core.spec import RunSpec
from smallalign_core.studies import lifecycle
from smallalign_core.system.machine import keep_freed_memory as keep_freed_memory, set_threads as set_threads
from smallalign_core.training.runner import TOGETHER, Observer as Observer, execute as execute, run_lockstep

log = logging.getLogger("smallalign")

POLL_SECONDS = 0.3
HUNG = 75
"""Exit code of a worker that exited because a hung run was cancelled."""


def serve(
    store: Store,
    *,
    device: str = "auto",
    once: bool = False,
    while_pid: int | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Train queued runs, oldest first, until `stop` is set. Returns the number of runs taken.

    Args:
        once: stop when the queue is empty.
        while_pid: stop when the queue is empty and this process has exited (used by the dashboard).
        stop: once set, the current run is checkpointed and queued again, and the worker ends.

    Raises:
        Refused: another worker serves this store on this device.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.worker_lock(device), timeout=1.0)
    try:
        held = lock.acquire()
    except Timeout:
        raise Refused(
            f"another worker serves this store on device {device}",
            given=store.root,
            do="use that worker, or choose another --device",
        ) from None
    with webhook.configured() as hook, held:  # the lock is released first: a receiver may be slow
        keep_freed_memory()
        log.info("worker %d serves %s on %s", os.getpid(), store.root, device)
        # Before the first run, since these are the slowest imports.
        from smallalign_core.system._compat import load_compiler

        load_compiler()

        for run in store.runs():
            if run.finished:  # its worker may have been killed before cleaning up
                clean_up(run)
        for run in requeue_crashed(store):
            log.warning("%s: its worker process stopped; new state: %s", run.name, run.state)
        taken, refused = 0, {""}
        stop = stop or threading.Event()
        while not stop.is_set():
            waiting = [run for run in store.queue() if _marker(run) not in refused]
            if waiting:
                together = _in_step(waiting)
                markers, before = [_marker(run) for run in together], [_own_attempt(run) for run in together]
                serve_some(together, store, device, stop)
                for run, attempt in zip(together, before, strict=True):
                    if _own_attempt(run) != attempt:  # else another worker took it first, or it cannot be taken
                        taken += 1
                        hook.ended(run)
                # A run that cannot be taken (written by a newer version, say) must not block the others.
                refused |= {marker for run, marker in zip(together, markers, strict=True) if marker == _marker(run)}
            elif lifecycle.queue_next(store, device, stop):
                continue
            elif once or (while_pid is not None and not psutil.pid_exists(while_pid)):
                return taken
            else:
                stop.wait(POLL_SECONDS)
        return taken


def _marker(run: Run) -> str:
    """Identifies the submission of a queued run; empty if it is no longer queued."""
    with contextlib.suppress(OSError):
        return f"{run.name} {(run.folder / 'queued').stat().st_mtime_ns}"
    return ""


def _own_attempt(run: Run) -> int | None:
    """The number of the last attempt at `run`, if this process made it."""
    with contextlib.suppress(SmallAlignError, OSError):
        if run.status.get("pid") == os.getpid():
            return int(run.status["attempt"])
    return None


def _in_step(waiting: list[Run]) -> list[Run]:
    """The first run in the queue, and later ones with identical views, which are trained together at little extra
    cost.
    """
    chosen: list[tuple[Run, RunSpec]] = []
    for run in waiting:
        try:
            if crash_count(run) >= MOST:  # the last attempt is alone: another run of the group may be the cause
                if not chosen:
                    return [run]
                continue
            spec = run.spec
        except SmallAlignError:  # a damaged run is taken alone and reports its error
            return [run] if not chosen else [one for one, _ in chosen]
        if all(spec.can_lockstep_with(other) for _, other in chosen):
            chosen.append((run, spec))
        if len(chosen) == TOGETHER:
            break
    return [run for run, _ in chosen]


def serve_some(runs: Sequence[Run], store: Store, device: str, stop: threading.Event) -> None:
    """Train queued runs in lockstep; errors are recorded in their folders and do not end the worker."""
    with capture_logs(runs):
        give_up = partial(os._exit, HUNG)
        ended = run_lockstep(runs, store, device=device, from_queue=True, stop=stop, give_up=give_up)
        for run, how in zip(runs, ended, strict=True):
            if isinstance(how, SmallAlignError):
                log.error("%s: %s", run.name, how)
            elif stop.is_set() and how.get("asked") is None:  # unless a user stopped it
                store.enqueue(run)
        if all(isinstance(how, SmallAlignError) for how in ended):
            time.sleep(POLL_SECONDS)


def stop_on_signals() -> threading.Event:
    """An event set by Ctrl-C and SIGTERM; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def main_log() -> None:
    """Send the log of this process to stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
