"""Processes that tests start: a time limit, a process group, and nothing of them outlives the file that started them.

Everything that a test starts, and everything that those start, whatever session or group they move to, inherits an
environment variable with this process's mark. So what is still there can be found and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240.0
"""Seconds; below pytest's own limit for a test."""
PATIENCE = 20.0
"""Seconds that a process has to end after SIGTERM."""
MARK = "SMALLALIGN_TESTS"


def mark() -> str:
    """Mark what this process starts from now on; an xdist worker's mark begins with that of its controller."""
    above = os.environ.get(MARK, "") if "PYTEST_XDIST_WORKER" in os.environ else ""
    os.environ[MARK] = f"{above}/{uuid.uuid4().hex}"
    return os.environ[MARK]


def marked(by: str) -> list[psutil.Process]:
    """Processes that were started under a mark, or under one that begins with it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(by) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(*processes: psutil.Process, patience: float = PATIENCE) -> None:
    """SIGTERM, and SIGKILL for what does not end by that."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, patience)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, patience)


def end_family(leader: int) -> None:
    """Kill a process, its group, and all that descends from it."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(leader).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()


def python(*arguments: object) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *map(str, arguments)]


@contextlib.contextmanager
def started(
    command: Sequence[object],
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    **how: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """A process in a group of its own, silent unless told otherwise. It and its family are killed in the end.

    Args:
        environment: what to set besides the present environment and one thread.
        how: of `subprocess.Popen`.
    """
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    kept = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
    process = subprocess.Popen(list(map(str, command)), cwd=cwd, env=kept, start_new_session=True, **(silent | how))
    try:
        yield process
    finally:
        end_family(process.pid)
        process.wait()


FORKING = """
import json, os, signal, sys
from smallalign_core.cli._main import main
from smallalign_core.service import worker
from smallalign_core.system._compat import load_compiler

load_compiler()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        os._exit(main(json.loads(line)))
    print(pid, flush=True)
"""
Forks = Callable[..., contextlib.AbstractContextManager[Callable[[], bool]]]


@contextlib.contextmanager
def forking() -> Iterator[Forks]:
    """Starts command lines as forks of a process that has imported torch and computed nothing: no seconds of imports.

    Not forks of this process: once torch has started threads of its autograd here, a fork cannot train.

    Given is a context of arguments: the process, silent and in a session of its own, killed in the end with its
    family. What that gives is whether it still runs.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started(python("-c", FORKING), **pipes) as server:

        @contextlib.contextmanager
        def fork(*arguments: object) -> Iterator[Callable[[], bool]]:
            server.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
            server.stdin.flush()
            process = psutil.Process(int(server.stdout.readline()))
            try:
                yield process.is_running
            finally:
                end_family(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.kill()  # if it has no session yet
                process.wait(PATIENCE)

        yield fork


def run(
    command: Sequence[object],
    *,
    timeout: float = LIMIT,
    check: bool = False,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, at most `timeout` seconds, and return what it printed, decoded.

    Raises:
        AssertionError: it took longer, with what it had printed; or, with `check`, its exit code was not 0.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, cwd=cwd, environment=environment, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_family(process.pid)
            out, err = process.communicate()
            raise AssertionError(
                f"it took longer than {timeout:.0f} s: {process.args}\n{out[-4000:]}\n{err[-4000:]}"
            ) from None
    assert not check or process.returncode == 0, f"it ended with {process.returncode}: {process.args}\n{err[-4000:]}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def family_of(mark: str) -> list[psutil.Process]:
    """What was started under a mark, less what Python and torch keep for as long as this process lives."""
    kept = ("resource_tracker", "compile_worker")
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            if not any(word in " ".join(process.cmdline()) for word in kept):
                found.append(process)
    return found


def stacks(folder: Path) -> str:
    """The stacks of all threads of the processes that were started with `with_stacks(folder)` and live."""
    living = {process.pid for process in marked(os.environ[MARK])}
    files = [file for file in sorted(folder.glob("*.stacks")) if int(file.stem) in living]
    for file in files:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.stem), signal.SIGUSR1)
    time.sleep(1)  # they are written by a signal handler, at once
    found = []
    for file in files:
        with contextlib.suppress(psutil.Error):
            found.append(f"--- {' '.join(psutil.Process(int(file.stem)).cmdline())}\n{file.read_text()}")
    return "\n".join(found)


def with_stacks(folder: Path) -> dict[str, str]:
    """An environment in which Python processes write their stacks into `folder` at SIGUSR1."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import faulthandler, os, pathlib, signal\n"
        "try:\n"
        "    file = pathlib.Path(__file__).with_name(f'{os.getpid()}.stacks').open('w')\n"
        "    faulthandler.register(signal.SIGUSR1, file, all_threads=True)\n"
        "except OSError:\n"
        "    pass  # behind the walls of a jail\n"
    )
    above = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{above}" if above else str(folder)}
