"""Image files are opened and decoded in a separate process with limits on time and memory for each.

A file of a few kB can make a decoder run for hours, use all memory or crash; and a path may be a pipe that never ends.
A failure of the process affects one image, which then counts as unreadable. The process is sandboxed: no network, no
programs, no written files. Only pixels and JSON are returned.

One process serves its parent for its lifetime; it is started for the first image, and restarted after an image that
ended it, and in a fork. Many images get as many processes as there are cores, up to `MOST`, which end with them.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from smallalign_core import errors
from smallalign_core.errors import BadData, SmallAlignError, WorkFailed
from smallalign_core.system import limits
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.files import check_regular
from smallalign_core.system.sandbox import _seccomp

SECONDS = 5
"""Of processor time that one image may take; 25 million pixels take less than one."""

WALL = 20.0
"""Seconds on the clock for one image: what waits for a network or a device ends here."""

STARTUP = 120.0
"""Seconds until the process has imported what it needs, on a machine that is busy."""

MEMORY = 2 * 1024**3
"""Bytes that decoding may map beyond the libraries."""

AHEAD = 32
"""Images that are sent to a process before it answers the first: their paths fit into the pipe, so that neither end
blocks."""

MANY = 16 * AHEAD
"""Images from which on more than one process is started: starting one takes as long as decoding some hundred."""

MOST = 8
"""Processes at the same time: each has some 80 MB, and the parent cannot store the pixels of many more."""

PIPE = 1024**2
"""Bytes of answers that wait in a pipe, where the system allows it: a process goes on while another one is read."""

Result = TypeVar("Result")


class OverLimit(BadData):
    """An image that takes more than the limits to decode."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What came of one image: a value, or why there is none."""

    value: Result | None = None
    error: Exception | None = None

    def get(self) -> Result:
        """The value.

        Raises:
            BadData: a path leads to something else than a file.
            Refused: a path leads out of the folders that may be read.
            OverLimit: it took more than the limits, or ended the process.
            Exception: as the work; one of Python's or of this library's own, else a ValueError with its words.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None is a value too


def each(work: Callable[..., Result], given: Iterable[Sequence[Any]]) -> Iterator[Outcome[Result]]:
    """`work(*one)` for each of `given`, in order and within the limits: a function of a module, that takes paths, bytes
    and plain values, and returns uint8 arrays and plain values. Some are sent ahead, so that no side waits for pipes.

    Raises:
        WorkFailed: the process does not start.
    """
    processes, rest, sent = [_taken()], iter(given), 0
    ahead: deque[tuple[_Process, list[bytes] | Exception]] = deque()
    waiting, last = Counter[_Process](), Counter[_Process]()
    try:
        while True:
            if sent >= MANY and len(processes) == 1:
                processes += [_Process() for _ in range(min(cores(), MOST) - 1)]
            # Once there are several processes, each answer lets one question to each be sent until all have theirs: so
            # they take turns in the order of the answers. Of a long row to one, few would fit into the pipe, and the
            # process would wait while another's row is read.
            most = sent + (AHEAD if len(processes) == 1 else len(processes))
            while len(ahead) < AHEAD * len(processes) and sent < most and (one := next(rest, None)) is not None:
                sent += 1
                process = min(processes, key=lambda each: (waiting[each] >= AHEAD, last[each]))
                ahead.append((process, question := _question(work, one)))
                waiting[process] += 1
                last[process] = sent
                process.send(question)
            if not ahead:
                break
            process, first = ahead.popleft()
            waiting[process] -= 1
            if isinstance(first, Exception):
                yield Outcome(error=first)
                continue
            try:
                reply, payload = process.receive()
            except OverLimit as error:
                anew = processes[processes.index(process)] = _Process()
                waiting[anew], last[anew] = waiting.pop(process), last.pop(process)
                ahead = deque((anew if sent_to is process else sent_to, question) for sent_to, question in ahead)
                for sent_to, question in ahead:
                    if sent_to is anew:
                        anew.send(question)
                yield Outcome(error=error)
                continue
            if "failed" in reply:
                yield Outcome(error=_error(*reply["failed"]))
            else:
                yield Outcome(_incoming(reply["ok"], memoryview(payload)))
    finally:
        if not ahead:
            _free.append(processes.pop(0))
        for process in processes:  # with results that will not be read, or more than the next image needs
            process.end()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def call(work: Callable[..., Result], *given: Any) -> Result:
    """`work(*given)` within the limits: see `each`, and for what it raises `Outcome.get`."""
    (found,) = each(work, [given])
    return found.get()


# --- the parent's end -------------------------------------------------------------------------------------------------


class _Process:
    """The process and the pipes to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
        own = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", "from smallalign_core.data._guarded import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # what stops the parent by Ctrl-C ends this one by the closed pipe
            env=kept | own,
        )
        weakref.finalize(self, _end, self._child, self.owner)
        self._ready = selectors.DefaultSelector()
        assert self._child.stdout is not None
        self._ready.register(self._child.stdout, selectors.EVENT_READ)
        self._started = False
        with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux only, up to a limit of the system
            import fcntl

            fcntl.fcntl(self._child.stdout, fcntl.F_SETPIPE_SZ, PIPE)

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def end(self) -> None:
        """Kill it."""
        _end(self._child, self.owner)

    def send(self, question: list[bytes] | Exception) -> None:
        """Put a question into the pipe, unless it is none."""
        assert self._child.stdin is not None
        if isinstance(question, Exception):
            return
        with contextlib.suppress(OSError):  # it ended: then there is no reply either
            for part in question:
                view = memoryview(part)
                while view:  # a raw pipe takes what it has room for
                    view = view[self._child.stdin.write(view) :]

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next reply, and the bytes that came with it.

        Raises:
            OverLimit: there was none within the limits.
            WorkFailed: the process did not start.
        """
        if not self._started:  # several start at the same time
            try:
                self._read(1, STARTUP)
            except (TimeoutError, EOFError):
                self.end()
                raise WorkFailed("the process that decodes images did not start", do="try again") from None
            self._started = True
        try:
            size, more = struct.unpack("<IQ", self._read(12, WALL))
            return json.loads(self._read(size, WALL)), self._read(more, WALL)
        except TimeoutError:
            self.end()
            raise _too_long(WALL) from None
        except EOFError:
            code = self._child.wait()
        if code == -signal.SIGXCPU:
            raise _too_long(SECONDS)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise OverLimit("decoding the image crashed the decoder process", given=name, do="save it again")

    def _read(self, size: int, seconds: float) -> bytes:
        """So many bytes.

        Raises:
            TimeoutError, EOFError: the time ran out, or the process ended, before they were there.
        """
        assert self._child.stdout is not None
        found, until = bytearray(), time.monotonic() + seconds
        while len(found) < size:
            if not self._ready.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            some = self._child.stdout.read(size - len(found))
            if not some:
                raise EOFError
            found += some
        return bytes(found)


def _too_long(seconds: float) -> OverLimit:
    given = f"more than {seconds:.0f} seconds"
    return OverLimit("the image takes too long to decode", given=given, do="save it again, or remove it")


_free: list[_Process] = []
"""Those that wait for the next image: one, or as many as threads have decoded at the same time."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _free.clear())  # the pipes are the parent's


def _taken() -> _Process:
    while True:
        try:
            process = _free.pop()
        except IndexError:
            return _Process()
        if process.alive:
            return process


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # a fork lets go of its copy only
        child.kill()
        child.wait()


def _question(work: Callable[..., Any], given: Sequence[Any]) -> list[bytes] | Exception:
    """What is sent for one image; an error where its path may not be read."""
    plain: list[Any] = []
    blobs: list[bytes] = []
    for one in given:
        if isinstance(one, Path):
            try:
                limits.check_path(one, "an image")
            except (SmallAlignError, OSError, RuntimeError) as error:  # a loop of links
                return error
            plain.append({"path": os.path.abspath(one)})  # noqa: PTH100  # `Path.absolute` keeps `..`
        elif isinstance(one, bytes):
            blobs.append(one)
            plain.append({"bytes": len(one)})
        else:
            plain.append(one)
    call = {"module": work.__module__, "name": work.__name__, "given": plain, "seconds": SECONDS}
    return [_packed(call), *blobs]


def _error(kind: str, text: str, parts: list[str]) -> Exception:
    """What was raised inside, as far as it is one of Python's or of this library's own."""
    ours, plain = getattr(errors, kind, None), getattr(builtins, kind, None)
    if isinstance(ours, type) and issubclass(ours, SmallAlignError) and len(parts) == 3:
        return ours(parts[0], given=parts[1], do=parts[2])
    if isinstance(plain, type) and issubclass(plain, Exception) and not issubclass(plain, UnicodeError):
        return plain(text)
    return ValueError(text)


# --- both ends --------------------------------------------------------------------------------------------------------


def _packed(value: dict[str, Any], more: int = 0) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<IQ", len(text), more) + text


def _incoming(value: Any, payload: memoryview) -> Any:
    """Plain values and arrays; what was a tuple is one again."""
    if isinstance(value, dict):
        shape, start = value["array"], value["at"]
        return np.frombuffer(payload, np.uint8, int(np.prod(shape)), start).reshape(shape).copy()
    return tuple(_incoming(one, payload) for one in value) if isinstance(value, list) else value


# --- the process ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer until the pipe closes. Libraries come first, limits second, files last."""
    import importlib

    from PIL import Image

    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    Image.init()
    importlib.import_module("smallalign_core.data._decode")
    importlib.import_module("smallalign_core.data._pixels").prepare()
    _seccomp.leave_network()
    _seccomp.refuse_calls()
    _seccomp.limit(None, 0)
    _seccomp.limit_memory(MEMORY)
    answers.write(b"\n")
    answers.flush()
    while head := questions.read(12):
        call = json.loads(questions.read(struct.unpack("<IQ", head)[0]))
        given = [_received(one, questions.read) for one in call["given"]]
        _seccomp.limit_next(call["seconds"])
        blobs: list[bytes] = []
        try:
            for one in given:
                if isinstance(one, Path):
                    check_regular(one)
            work = getattr(importlib.import_module(call["module"]), call["name"])
            reply: dict[str, Any] = {"ok": _plain(work(*given), blobs)}
        except Exception as error:  # noqa: BLE001  # Pillow's parsers raise what they like on a damaged file
            parts = [error.wrong, error.given, error.do] if isinstance(error, SmallAlignError) else []
            reply = {"failed": [type(error).__name__, str(error)[:500], [str(part or "") for part in parts]]}
            blobs = []
        answers.write(_packed(reply, sum(map(len, blobs))))
        for blob in blobs:
            answers.write(blob)
        answers.flush()


def _received(value: Any, read: Callable[[int], bytes]) -> Any:
    if isinstance(value, dict):
        return Path(value["path"]) if "path" in value else read(value["bytes"])
    return tuple(_received(one, read) for one in value) if isinstance(value, list) else value


def _plain(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, np.ndarray):
        at = sum(map(len, blobs))
        blobs.append(np.ascontiguousarray(value, np.uint8).tobytes())
        return {"array": list(value.shape), "at": at}
    if isinstance(value, tuple | list):
        return [_plain(one, blobs) for one in value]
    return value.item() if isinstance(value, np.generic) else value
