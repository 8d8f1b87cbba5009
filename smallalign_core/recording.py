"""Recording: the right to write into a run's folder, and what its holder writes: events, checkpoints, the result."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from typing import Any, Self

from filelock import Timeout

from smallalign_core.errors import BadModel, Refused
from smallalign_core.files import append, read_json, write, write_json
from smallalign_core.store import SCHEMA, Run

KEPT_CHECKPOINTS = 2


class Recording:
    """The right to write into a run's folder; one process at a time holds it.

    Use as a context manager. On entering, the lock is taken and the attempt is counted; on leaving, it is let go.

    Raises:
        Refused: another process is training this run.
    """

    def __init__(self, run: Run, *, from_queue: bool = False) -> None:
        self.run, self.attempt, self._synced, self._from_queue = run, 0, 0.0, from_queue
        self._lock = run.lock(timeout=1.0)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            raise Refused(
                "another worker is training this run", given=self.run.name, do="wait for it, or cancel it there"
            ) from None
        if self._from_queue and not (self.run.folder / "queued").exists():  # cancelled since it was listed
            self._lock.release()
            raise Refused("the run is no longer in the queue", given=self.run.name)
        _remove_leftovers(self.run)
        earlier = [int(event.get("attempt", 0)) for event in self.run.events()]
        self.attempt = max([int(self.run.said.get("attempt", 0)), *earlier]) + 1
        if not self.run.finished:
            self.say(ended=None, reason=None, diverged=None)
        (self.run.folder / "queued").unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Give the right back before the end; nothing may be written afterwards."""
        if self._lock.is_locked:
            (self.run.folder / "request").unlink(missing_ok=True)  # obeyed, or too late
            self._lock.release()

    def say(self, **facts: object) -> None:
        """Write what this worker has to say of itself."""
        said = {
            **self.run.said,
            "schema": SCHEMA,
            "attempt": self.attempt,
            "pid": os.getpid(),
            "time": time.time(),
            **facts,
        }
        write_json(self.run.folder / "state.json", said)

    def event(self, kind: str, step: int, **values: object) -> None:
        """Append one event. When this returns, no kill can lose it."""
        sync = time.monotonic() - self._synced > 5
        append(
            self.run.folder / "events.jsonl",
            {"kind": kind, "step": step, "attempt": self.attempt, "time": time.time(), **values},
            sync=sync,
        )
        if sync:
            self._synced = time.monotonic()

    def checkpoint(self, content: bytes, step: int) -> None:
        """Keep `content` as the newest checkpoint, and the one before it."""
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"checkpoint-{step}-{sha256[:8]}.pt"  # by content: a kill before the list is written spoils no old one
        write(self.run.folder / name, content)
        known = [
            entry for entry in read_json(self.run.folder / "checkpoints.json", missing=[]) if entry["file"] != name
        ]
        entries = [*known, {"file": name, "step": step, "sha256": sha256}][-KEPT_CHECKPOINTS:]
        write_json(self.run.folder / "checkpoints.json", entries)
        for stale in self.run.folder.glob("checkpoint-*.pt"):
            if stale.name not in {entry["file"] for entry in entries}:
                stale.unlink(missing_ok=True)

    def last_checkpoint(self) -> bytes | None:
        """The newest checkpoint whose digest is right; None if none was ever kept.

        Raises:
            BadModel: there were some, and all are damaged.
        """
        entries = read_json(self.run.folder / "checkpoints.json", missing=[])
        for entry in reversed(entries):
            with contextlib.suppress(OSError):
                content = (self.run.folder / entry["file"]).read_bytes()
                if hashlib.sha256(content).hexdigest() == entry["sha256"]:
                    return content
            # Step 0: an event of a later step would be taken for one that the resume undoes.
            self.event("warning", 0, message=f"{entry['file']} is damaged; the one before it is used")
        if entries:
            raise BadModel(
                "every checkpoint of this run is damaged",
                given=self.run.name,
                do="delete the run and submit its spec again",
            )
        return None

    def finish(self, weights: bytes, logits: bytes, result: dict[str, Any]) -> None:
        """Keep weights, answers and result; the result last, since its existence means finished."""
        write(self.run.folder / "weights.safetensors", weights)
        write(self.run.folder / "logits.safetensors", logits)
        write_json(self.run.folder / "result.json", {"schema": SCHEMA, **result})
        clean_up(self.run)


def clean_up(run: Run) -> None:
    """Remove what a finished run no longer needs: its checkpoints, and files that were never finished."""
    for checkpoint in run.folder.glob("checkpoint*"):
        checkpoint.unlink(missing_ok=True)
    _remove_leftovers(run)


def _remove_leftovers(run: Run) -> None:
    for leftover in run.folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 60:  # younger ones may be somebody's, writing now
                leftover.unlink()
