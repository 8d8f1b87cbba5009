"""One run: a view of its folder, from which its state is derived."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smallalign_core.errors import BadModel, Refused
from smallalign_core.runs import python_files
from smallalign_core.runs.queue import UNRESTRICTED, Access
from smallalign_core.runs.store import _notes
from smallalign_core.spec import DataSpec, Import, RunSpec, parse, read, title
from smallalign_core.system.files import is_held, read_json, read_lines, write, write_json


class State(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"  # its worker died; can be resumed
    FAILED = "failed"
    CANCELLED = "cancelled"
    FINISHED = "finished"

    @property
    def active(self) -> bool:
        """Whether it may change by itself."""
        return self in (State.QUEUED, State.RUNNING)

    @property
    def resumable(self) -> bool:
        """Whether `resume` makes sense."""
        return self in (State.PAUSED, State.INTERRUPTED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Run:
    """A view of a run's folder; never a copy."""

    folder: Path
    by: Access = field(default=UNRESTRICTED, compare=False)  # the user that changes its state

    @property
    def record(self) -> Path:
        """The file of its spec; written first, and never changed."""
        names = [self.folder / name for name in ("spec.yaml", "import.json")]
        return next((file for file in names if file.is_file()), self.folder / "spec.json")

    @cached_property
    def imported(self) -> Import | None:
        """What is known of a classifier that was made elsewhere; None for a run that was trained here."""
        if self.record.name != "import.json":
            return None
        try:
            return Import.model_validate(read_json(self.record)["import"])
        except (ValueError, KeyError, TypeError):
            raise BadModel("the import's import.json is damaged", given=self.name, do="delete it") from None

    @cached_property
    def spec(self) -> RunSpec:
        """What it trains.

        Raises:
            Refused: it was imported, so there is no spec that would make it again.
            BadModel: the file is damaged.
        """
        if self.imported is not None:
            raise Refused("the model was imported, not trained here", given=self.name, do="choose a SmallAlign run")
        if self.in_zoo:  # written for people: what the images were is kept in the result
            spec = read(self.folder / "spec.yaml")
            known = (self.result or {}).get("fingerprint")
            spec = python_files.located(spec, self.folder)
            return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": known})})
        written = read_json(self.folder / "spec.json")
        if not isinstance(written, dict) or not isinstance(written.get("spec"), dict):
            raise BadModel("the run's spec.json is damaged", given=self.name, do="delete the run")
        return python_files.located(parse(written["spec"]), self.folder)

    @cached_property
    def id(self) -> str:
        """Digest of its resolved spec. A finished run keeps it in its result too: its folder may have been renamed."""
        return str((self.result or {}).get("id", self.folder.name))

    @property
    def data(self) -> DataSpec:
        """The labeled images that it was trained or, if it was imported, scored on. Unlabeled ones are in its spec:
        only training needs them, so everything else works where they are gone."""
        return (self.imported.data if self.imported is not None else self.spec.data).labeled()

    @property
    def in_zoo(self) -> bool:
        return self.record.name == "spec.yaml" or (
            self.record.name == "import.json" and self.folder.parent.name == "zoo"
        )

    @property
    def name(self) -> str:
        """What to call it: its zoo name, or its id."""
        return self.folder.name

    @property
    def title(self) -> str:
        if self.imported is not None:
            return f"{self.imported.file} · imported · {Path(self.data.source).name}"
        return title(self.spec)

    @property
    def notes(self) -> _notes.Notes:
        """Its name, notes and tags.

        Raises:
            BadModel: the file is damaged.
        """
        return _notes.read(self.folder)

    @property
    def state(self) -> State:
        """Derived now. Asked in the order that a run lives, so that no step can slip between two looks."""
        queued = (self.folder / "queued").exists()
        held = not self.in_zoo and is_held(self.folder / "lock")
        if self.finished:
            return State.FINISHED
        if held:
            return State.RUNNING
        if queued:
            return State.QUEUED
        ended = self.status.get("ended")
        return State(ended) if ended in set(State) else State.INTERRUPTED

    @property
    def finished(self) -> bool:
        """Whether result and weights are there; the result is written last."""
        return (self.folder / "result.json").exists() and self.weights.exists()

    @property
    def headless(self) -> bool:
        """Whether it is finished and its network has no head: it then gives features, and no class."""
        return (self.result or {}).get("classes") == []

    def require_finished(self, *, headless: bool) -> None:
        """Check that it is finished, and has a head unless it may be `headless`.

        Raises:
            Refused: it is not.
        """
        if self.state is not State.FINISHED:
            raise Refused(f"the run is {self.state}, not finished", given=self.name, do="wait for it, or resume it")
        if self.headless and not headless:
            raise Refused(
                "the network of this run has no head: it gives features, and no class",
                given=self.name,
                do=f"train a head on labels first, with `start: {self.id}`, or use it as a teacher with loss embedding",
            )

    @property
    def status(self) -> dict[str, Any]:
        """The last status of its worker; empty before the first, or if it cannot be read."""
        try:
            said = read_json(self.folder / "state.json", missing={})
        except BadModel:  # nothing in it decides what training does, so the run can still be resumed
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def result(self) -> dict[str, Any] | None:
        """Scores and facts of a finished run; None before."""
        if isinstance(found := read_json(self.folder / "result.json", missing=None), dict | None):
            return found
        raise BadModel("the run's result.json is damaged", given=self.name, do="delete the run")

    @property
    def created(self) -> float:
        """Unix time at which it was first submitted."""
        with contextlib.suppress(OSError):
            return self.record.stat().st_mtime
        return 0.0

    @property
    def weights(self) -> Path:
        return self.folder / ("model.onnx" if self.record.name == "import.json" else "weights.safetensors")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Its events so far, oldest first. What an earlier attempt did beyond the point of a resume is left out."""
        kept: list[dict[str, Any]] = []
        for event in read_lines(self.folder / "events.jsonl")[0]:
            with contextlib.suppress(TypeError, KeyError):  # of no kind, or at no step
                if event["kind"] == "resumed":
                    kept = [earlier for earlier in kept if earlier["step"] <= event["step"]]
                _ = event["step"]
                kept.append(event)
        return [event for event in kept if kind in (None, event["kind"])]

    def request(self, request: str) -> None:
        """Ask its worker to `pause` or `cancel`; without one, do it now.

        Raises:
            Refused: it is finished, or already stopped; read-only user.
        """
        self.by.require(f"{request} runs")
        state = self.state
        if not state.active and not (request == "cancel" and state in (State.PAUSED, State.INTERRUPTED)):
            raise Refused(f"there is nothing to {request}: the run is {state}", given=self.name)
        if state is not State.RUNNING:
            with contextlib.suppress(Timeout), self.lock(timeout=0.5):
                if not self.finished:
                    ended = State.PAUSED if request == "pause" else State.CANCELLED
                    write_json(self.folder / "state.json", {**self.status, "ended": ended, "reason": None})
                    (self.folder / "queued").unlink(missing_ok=True)
                return
        write(self.folder / "request", request)  # a worker has it, or took it just now: it will obey

    def lock(self, timeout: float) -> FileLock:
        """The right to change its folder: held by its worker while it trains, and by others for a moment."""
        return FileLock(self.folder / "lock", timeout=timeout, thread_local=False)

    @property
    def pending_request(self) -> str | None:
        """The pending request to its worker."""
        try:
            return (self.folder / "request").read_text().strip()
        except FileNotFoundError:
            return None
