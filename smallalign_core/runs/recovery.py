"""Recovery of runs whose worker process died: queued again at most twice, then failed with the reason."""

from __future__ import annotations

import contextlib
import time

from filelock import Timeout

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.queue import QueueTicket, queued
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.system.files import write_json
from smallalign_core.system.machine import boot, memory_kills

MOST = 2
"""How often a run is resumed automatically. Resuming it by hand resets the count."""

LAST_WORDS = 3
"""Number of lines of a run's log in the reason."""


def requeue_crashed(store: Store, cause: str = "") -> list[Run]:
    """Queue every run again that lost its worker; after more than `MOST` times it has failed.

    Only runs that a worker took from the queue: a run in the foreground ends with an error and can be repeated.

    Args:
        cause: how the worker ended, if the caller saw it.

    Returns:
        Those that were found dead.
    """
    found = []
    for run in store.runs():
        with contextlib.suppress(SmallAlignError, OSError, Timeout):  # damaged, or somebody has it
            if _lies_dead(run) and run.state is State.INTERRUPTED:
                with run.lock(timeout=0.5):
                    if _lies_dead(run):
                        _revive(run, store, cause)
                        found.append(run)
    return found


def crash_count(run: Run) -> int:
    """How often its worker died since a person last queued it."""
    return int(run.status.get("deaths") or 0)


def _lies_dead(run: Run) -> bool:
    if run.finished or (run.folder / "queued").exists():
        return False
    said = run.status
    return bool(said.get("served")) and said.get("ended") is None


def _revive(run: Run, store: Store, cause: str) -> None:
    count, said, why = crash_count(run) + 1, run.status, _why(run, cause)
    if run.pending_request:  # of the worker that died before it could obey
        ended = State.CANCELLED if run.pending_request == "cancel" else State.PAUSED
        write_json(run.folder / "state.json", {**said, "ended": ended, "reason": None})
        (run.folder / "request").unlink(missing_ok=True)
    elif count > MOST:
        reason = f"Its worker died {count} times. {why} Resume goes on from its last checkpoint."
        write_json(run.folder / "state.json", {**said, "deaths": count, "ended": State.FAILED, "reason": reason})
    else:
        reason = f"Resumed by itself ({count} of {MOST}): its worker died. {why}"
        write_json(run.folder / "state.json", {**said, "deaths": count, "reason": reason})
        # It had its turn: it is due with those that are served now, and does not delay other users.
        turns = queued(store.root).values()
        QueueTicket(min((turn.number for turn in turns), default=0), time.time()).write(run.folder / "queued")


def _why(run: Run, cause: str) -> str:
    """What is known of the last death: how, where, whether memory was short, and the last lines of the log."""
    said, parts = run.status, []
    last = next((event for event in reversed(run.events()) if event["step"]), None)
    step = f"after step {last['step']}" if last else "before its first step was recorded"
    parts.append(f"The last time {step}{f': {cause}' if cause else ''}.")
    if said.get("boot") not in (None, boot()):
        parts.append("The machine was started again since.")
    elif killed := memory_kills() - int(said.get("memory_kills") or 0):
        parts.append(
            f"Meanwhile the system killed {killed} process{'es' if killed > 1 else ''} here for lack of memory: "
            "a smaller `batch` or network may be what it needs."
        )
    with contextlib.suppress(OSError):
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        if told := [line.strip()[:160] for line in lines if line.strip()][-LAST_WORDS:]:
            parts.append(f"Its log ends: {' / '.join(told)}.")
    return " ".join(parts)
