"""Starting backends: forked from a process that has imported the libraries, or as new interpreters."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from smallalign_core.service.backends._pool import Backend

FORKS = sys.platform == "linux"
"""Whether backends are forked. Otherwise each is a new interpreter, which imports for seconds."""

LONGEST = 64
"""Size in bytes of a message to the forking process."""


class Starter:
    """Starts backends: forks them from a process that has imported the libraries, or starts interpreters.

    Args:
        command: the program that serves lines of standard input; with `--fork` it forks one per socket received.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.command, self.log, self.environment = command, log, environment
        self._turn = threading.Lock()
        self._forking: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __call__(self) -> Backend:
        """One more backend."""
        ours, theirs = socket.socketpair()
        with theirs:
            if not FORKS:
                process = self._popen(self.command, theirs, stdout=theirs)
                return Backend(process.pid, ours, functools.partial(_end, process))
            with self._turn:
                for _ in range(2):
                    control = self._alive()
                    with contextlib.suppress(OSError, ValueError):
                        socket.send_fds(control, [b"fork"], [theirs.fileno()])
                        pid = int(control.recv(LONGEST))
                        return Backend(pid, ours, functools.partial(self._kill, control, pid))
                    self._close()
        raise OSError("no backend could be started")

    def _alive(self) -> socket.socket:
        if self._control is None or self._forking is None or self._forking.poll() is not None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._forking = self._popen([*self.command, "--fork"], theirs, stdout=subprocess.DEVNULL)
        return self._control

    def _popen(self, command: list[str], stdin: Any, stdout: Any) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=log, env=self.environment)

    def _kill(self, control: socket.socket, pid: int) -> None:
        # By the parent, since only there the pid cannot have been reused.
        with contextlib.suppress(OSError):
            control.send(b"%d" % pid)

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._forking is not None:
            _end(self._forking)
            self._forking = None

    def close(self) -> None:
        """End the forking process, and with it all forked backends."""
        with self._turn:
            self._close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def fork_on_request(libraries: Iterable[Callable[[], object]], answer: Callable[[TextIO, TextIO], None]) -> None:
    """Fork a process for each socket that comes in at standard input, until that closes.

    Args:
        libraries: imports, one after the other: the first before any fork, the others while there is nothing to do.
        answer: the work of a forked process, given its streams of requests and replies.
    """
    import gc

    control = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    left, children = iter(libraries), set[int]()
    more: Callable[[], object] | None = next(left, None)
    if more is not None:
        more()
        more = next(left, None)
    gc.collect()
    gc.freeze()
    while True:
        while children and (gone := os.waitpid(-1, os.WNOHANG)[0]):
            children.discard(gone)
        if not select.select([control], [], [], 0.0 if more is not None else 5.0)[0]:
            if more is not None:
                with contextlib.suppress(ImportError):
                    more()
                gc.freeze()
                more = next(left, None)
            continue
        message, sockets, *_ = socket.recv_fds(control, LONGEST, 1)
        if not message:
            break
        if not sockets:
            if (known := int(message)) in children:
                os.kill(known, signal.SIGKILL)
                os.waitpid(known, 0)
                children.discard(known)
            continue
        pid = os.fork()
        if not pid:
            control.close()
            _serve(sockets[0], answer)
        os.close(sockets[0])
        children.add(pid)
        control.send(b"%d" % pid)
    for child in children:
        os.kill(child, signal.SIGKILL)


def _serve(descriptor: int, answer: Callable[[TextIO, TextIO], None]) -> None:
    """The forked process: serves until its socket closes, and exits without its parent's cleanup."""
    code = 1
    try:
        with (
            socket.socket(fileno=descriptor) as line,
            line.makefile("r", encoding="utf-8") as questions,
            line.makefile("w", encoding="utf-8") as answers,
        ):
            answer(questions, answers)
        code = 0
    finally:
        os._exit(code)
