"""Writing of run folders: the exclusive lock, events, checkpoints and the result."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from filelock import Timeout

from smallalign_core.errors import BadModel, Refused
from smallalign_core.runs.store import Run
from smallalign_core.system.files import SCHEMA, append, read_json, read_lines, write, write_json
from smallalign_core.system.machine import boot, memory_kills

KEPT_CHECKPOINTS = 2
RESERVE = ".reserve"
"""Held while a run trains, and let go to say why it stopped where the disk is full."""
RESERVED = 64 * 1024
NAMED = re.compile(r"checkpoint-(\d+)-([0-9a-f]{8})\.pt")


class RunWriter:
    """The exclusive writer of a run's folder; holds its lock.

    Use as a context manager. On entering, the lock is taken and the attempt is counted; on leaving, it is let go.

    Raises:
        Refused: another process is training this run.
    """

    def __init__(self, run: Run, *, from_queue: bool = False) -> None:
        self.run, self.attempt, self._synced, self._from_queue = run, 0, 0.0, from_queue
        self._saying = threading.Lock()  # the hang detector writes too
        self._lock = run.lock(timeout=1.0)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            raise Refused(
                "another worker is training this run", given=self.run.name, do="wait for it, or cancel the run"
            ) from None
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _begin(self) -> None:
        """Count the attempt. A folder that a newer version wrote is refused before anything is written into it."""
        if self._from_queue and not (self.run.folder / "queued").exists():  # cancelled since it was listed
            raise Refused("the run is no longer in the queue", given=self.run.name)
        events, said, _ = self.run.events(), self.run.status, checkpoints(self.run)
        for file in (self.run.record, self.run.folder / "result.json"):
            with contextlib.suppress(BadModel):  # damaged: reported later
                read_json(file, missing=None)
        _remove_leftovers(self.run)
        self.attempt = max([int(said.get("attempt", 0)), *(int(event.get("attempt", 0)) for event in events)]) + 1
        if not self.run.finished:
            where = {"boot": boot(), "memory_kills": memory_kills()}
            self.write_status(ended=None, reason=None, diverged=None, served=self._from_queue, **where)
            write(self.run.folder / RESERVE, os.urandom(RESERVED))  # what compresses would hold no room
            if damaged := read_lines(self.run.folder / "events.jsonl")[1]:
                lines = "damaged line of events.jsonl was" if damaged == 1 else "damaged lines of events.jsonl were"
                self.event("warning", 0, message=f"{damaged} {lines} skipped")
        (self.run.folder / "queued").unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the right back before the end; nothing may be written afterwards."""
        with self._saying:
            if self._lock.is_locked:
                (self.run.folder / "request").unlink(missing_ok=True)  # obeyed, or too late
                (self.run.folder / RESERVE).unlink(missing_ok=True)
                self._lock.release()

    def write_status(self, **facts: object) -> None:
        """Write what this worker has to say of itself."""
        with self._saying:
            if self._lock.is_locked:
                now = {"attempt": self.attempt, "pid": os.getpid(), "time": time.time()}
                state = {**self.run.status, **now, **facts}
                try:
                    write_json(self.run.folder / "state.json", state)
                except Refused:
                    (self.run.folder / RESERVE).unlink(missing_ok=True)
                    write_json(self.run.folder / "state.json", state)

    def event(self, kind: str, step: int, **values: object) -> None:
        """Append one event. When this returns, no kill can lose it."""
        if kind in ("started", "resumed"):
            values["schema"] = SCHEMA
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
        known = [entry for entry in checkpoints(self.run) if entry["file"] != name]
        entries = [*known, {"file": name, "step": step, "sha256": sha256}][-KEPT_CHECKPOINTS:]
        write_json(self.run.folder / "checkpoints.json", {"checkpoints": entries})
        for stale in self.run.folder.glob("checkpoint-*.pt"):
            if stale.name not in {entry["file"] for entry in entries}:
                stale.unlink(missing_ok=True)

    def last_checkpoint(self) -> bytes | None:
        """The newest checkpoint with a matching digest; None if there never was one.

        Raises:
            BadModel: there were some, and all are damaged.
        """
        entries = checkpoints(self.run)
        for entry in reversed(entries):
            with contextlib.suppress(OSError):
                content = (self.run.folder / entry["file"]).read_bytes()
                if hashlib.sha256(content).hexdigest().startswith(entry["sha256"]):
                    return content
            # Step 0: an event of a later step would be taken for one that the resume undoes.
            self.event("warning", 0, message=f"{entry['file']} is damaged; the previous one is used")
        if entries:
            raise BadModel(
                "every checkpoint of this run is damaged",
                given=self.run.name,
                do="delete the run and submit its spec again",
            )
        return None

    def finish(self, weights: bytes, logits: bytes | None, result: dict[str, Any]) -> None:
        """Keep weights, answers (if there are any) and result; the result last, since its existence means finished."""
        write(self.run.folder / "weights.safetensors", weights)
        if logits is not None:
            write(self.run.folder / "logits.safetensors", logits)
        write_json(self.run.folder / "result.json", result)
        clean_up(self.run)


@contextlib.contextmanager
def capture_logs(runs: Sequence[Run]) -> Iterator[None]:
    """Keep what is logged meanwhile in each run's log.txt: warnings and errors at least, whatever the program that this
    library is part of, or `logging.config` in one of its packages, did to loggers before."""
    log = logging.getLogger("smallalign")
    with contextlib.ExitStack() as logs:
        logs.callback(setattr, log, "disabled", log.disabled)
        logs.callback(log.setLevel, log.level)
        log.disabled = False
        if log.getEffectiveLevel() > logging.WARNING:
            log.setLevel(logging.WARNING)
        for run in runs:
            with contextlib.suppress(OSError):  # deleted since it was listed
                handler = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
                handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
                log.addHandler(handler)
                logs.callback(handler.close)
                logs.callback(log.removeHandler, handler)
        yield


def checkpoints(run: Run) -> list[dict[str, Any]]:
    """The checkpoints of a run, oldest first: file, step and SHA-256.

    Where the list is damaged, they are found by their names, which hold the step and the beginning of the digest.

    Raises:
        Refused: a newer version wrote the list.
    """
    try:
        listed = read_json(run.folder / "checkpoints.json", missing={"checkpoints": []})
        entries = listed["checkpoints"] if isinstance(listed, dict) else listed  # version 1 wrote the list alone
        return [{"file": str(one["file"]), "step": int(one["step"]), "sha256": str(one["sha256"])} for one in entries]
    except (BadModel, KeyError, TypeError, ValueError):
        named = (NAMED.fullmatch(file.name) for file in run.folder.glob("checkpoint-*.pt"))
        found = [{"file": name[0], "step": int(name[1]), "sha256": name[2]} for name in named if name]
        return sorted(found, key=lambda one: one["step"])


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
