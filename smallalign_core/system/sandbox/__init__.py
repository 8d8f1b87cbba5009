"""The sandbox: users' model files are parsed in a separate process with limited memory, time and disk.

The calling process only reads bytes and a JSON reply. The child (`__main__`) limits itself before it opens the file:
memory beyond its own libraries, CPU seconds, wall-clock seconds, and bytes written. It inherits no file descriptors and
a minimal environment. Where the kernel allows it (`abilities` tests it), it has no network (own namespace) and cannot
open sockets or start programs (seccomp); elsewhere only the resource limits apply, and `doctor` reports it.

Accepted ONNX files are also executed in it: `SandboxedSession` keeps such a process; only arrays pass in and out.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallalign_core.errors import BadModel, WorkFailed
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.sandbox._prefix import COUNTERS as COUNTERS, shared as shared
from smallalign_core.system.telemetry import SILENT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Limits:
    """Resource limits of the sandbox.

    Attributes:
        memory: bytes beyond what its libraries map.
        seconds: CPU seconds.
        wall: wall-clock seconds; ends a stopped or starved child.
        file: maximum size of a model file in bytes.
    """

    memory: int = 4 * 1024**3
    seconds: int = 30
    wall: float = 90.0
    file: int = 1024**3


LIMITS = Limits()
LOADING = 1024**2
"""Bytes of a temporary file that libraries of other runtimes may write while they load."""


def inspect(file: Path, size: tuple[int, int] = (224, 224), limits: Limits = LIMITS) -> dict[str, Any]:
    """Facts about a model file: `kind` (onnx, safetensors), `bytes`, `sha256`, `params`; for ONNX its inputs and
    outputs.

    An ONNX file is also run once, on black images, of `size` (height, width) where the file does not fix it.

    Raises:
        BadModel: it is not such a file, needs something that is not allowed, or exceeds the limits.
    """
    return _ask({"verb": "inspect", "file": str(file.resolve()), "size": list(size)}, file, limits)


def convert(file: Path, limits: Limits = LIMITS, *, which: str | None = None) -> tuple[bytes, dict[str, Any]]:
    """The tensors of a PyTorch checkpoint (.pt, .pth) as safetensors bytes, and facts about them.

    The pickle is read with `weights_only=True`, which creates tensors, containers and plain values and calls nothing
    else. Prefixes of wrappers (`module.`, `_orig_mod.`, ...) are removed from the names.

    Args:
        which: the set of weights, such as `state_dict`, where there are several; default: averaged ones (EMA), if any.

    Raises:
        BadModel: it contains objects that would run code, or is a program (TorchScript, exported program).
    """
    with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
        made = Path(folder) / "weights.safetensors"
        question = {
            "verb": "convert",
            "file": str(file.resolve()),
            "to": str(made),
            "which": which,
            "written": 2 * limits.file,
        }
        facts = _ask(question, file, limits)
        return made.read_bytes(), facts


def is_checkpoint(file: Path) -> bool:
    """Whether a file is a PyTorch checkpoint by its first bytes: a zip archive or a pickle."""
    try:
        with file.open("rb") as stream:
            return stream.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def taken(facts: Mapping[str, Any]) -> list[str]:
    """What `convert` took of a checkpoint where there was a choice, and the prefix that it removed, in words."""
    lines = []
    others = [name for name in facts["sets"] if name != facts["taken"]]
    if others:
        lines.append(f"taken: {facts['taken']}; not taken: {', '.join(others)} (--weights chooses)")
    elif facts["taken"] != ".":
        lines.append(f"taken: {facts['taken']}")
    if facts["prefix"]:
        lines.append(f"prefix removed from names: {facts['prefix']}")
    if facts["left"]:
        lines.append(f"left out: {', '.join(facts['left'])}")
    return lines


def accepted_weights(file: Path, limits: Limits = LIMITS) -> str:
    """The SHA-256 of a safetensors file, once the sandbox has accepted it.

    Raises:
        BadModel: as `inspect`, or it is another kind of file.
    """
    facts = inspect(file, limits=limits)
    if facts["kind"] != "safetensors":
        raise BadModel(
            "initial weights must be a safetensors file",
            given=f"{file}, {facts['kind']}",
            do="to use an ONNX file as a teacher, run `import`",
        )
    return str(facts["sha256"])


def _ask(question: dict[str, Any], file: Path, limits: Limits) -> dict[str, Any]:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BadModel(f"the model file cannot be read: {error.strerror}", given=file, do="name a file") from None
    if not file.is_file():
        raise BadModel("the model file cannot be read: it is not a regular file", given=file, do="name a file")
    if not 0 < size <= limits.file:
        raise BadModel(
            f"a model file must have 1 to {limits.file:,} bytes",
            given=f"{file}, {size:,} bytes",
            do="give another file",
        )
    try:
        done = subprocess.run(**_child(question, limits), stdin=subprocess.DEVNULL, timeout=limits.wall)
    except subprocess.TimeoutExpired:
        raise _too_much(f"{limits.wall:.0f} seconds", file) from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _too_much(f"{limits.seconds} seconds of CPU time", file)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BadModel("the process that reads the model file crashed", given=f"{file}, {name}", do="export it again")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        raise WorkFailed("the process that inspects model files did not respond", given=file, do="try again") from None
    if "refused" in reply:
        wrong, given, do = reply["refused"]
        raise BadModel(wrong, given=f"{file}{', ' if given else ''}{given}", do=do)
    facts: dict[str, Any] = reply["facts"]
    return facts


def _child(question: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The command of the sandboxed process, which replies on stdout."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    call = json.dumps(question | {"limits": asdict(limits)})
    return {
        "args": [sys.executable, "-P", "-B", "-m", "smallalign_core.system.sandbox", call],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
        "env": kept | SILENT | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
    }


def abilities() -> dict[str, bool]:
    """The isolation available on this machine, tested inside the sandbox.

    Returns:
        `namespace`, `seccomp`: whether the kernel allowed them; `network`, `programs`: whether a connection to this
        machine could be opened, and a program started, from inside.
    """
    with socket.create_server(("127.0.0.1", 0)) as door:
        question = {"verb": "attempts", "port": door.getsockname()[1]}
        done = subprocess.run(**_child(question, LIMITS), stdin=subprocess.DEVNULL, timeout=LIMITS.wall)
    try:
        found: dict[str, bool] = json.loads(done.stdout)["facts"]
    except (ValueError, KeyError):
        raise WorkFailed("the process that inspects model files did not respond", do="see `doctor`") from None
    return found


class SandboxedSession:
    """An accepted model file, executed in a sandbox process that ends with this object.

    Args:
        content: the file's bytes.
        threads: number of threads it may use.
        limits: memory for the whole session; CPU seconds for each call.
        engine: the Python file whose `opener` loads another runtime than ONNX Runtime.

    Raises:
        BadModel: the runtime cannot open it within the limits.
    """

    def __init__(
        self, content: bytes, *, threads: int = 1, limits: Limits = LIMITS, engine: Path | None = None
    ) -> None:
        question = {"verb": "serve", "bytes": len(content), "threads": threads, "engine": None}
        if engine is not None:
            question |= {"engine": str(engine), "written": LOADING}
        self._process = subprocess.Popen(**_child(question, limits), stdin=subprocess.PIPE)
        weakref.finalize(self, _end, self._process)
        self._exchange(content)

    def run(self, output: str, door: str, given: NDArray[Any]) -> NDArray[np.float32]:
        """The output named `output`, float32, for the array `given` at the input `door`.

        Raises:
            BadModel: it fails on this array, or exceeds the limits.
        """
        return self._call(output, door, given, 0.0)[0]

    def latency(self, output: str, door: str, given: NDArray[Any], seconds: float = 0.5) -> tuple[float, float]:
        """(p50, p95) latency of `run` in milliseconds, measured inside after a warm-up of the same duration.

        Raises:
            BadModel: as `run`.
        """
        return self._call(output, door, given, seconds)[1]

    def _call(
        self, output: str, door: str, given: NDArray[Any], seconds: float
    ) -> tuple[NDArray[np.float32], tuple[float, float]]:
        import numpy as np

        about = {"output": output, "input": door, "dtype": str(given.dtype), "shape": given.shape, "seconds": seconds}
        line = json.dumps(about | {"bytes": given.nbytes}).encode() + b"\n"
        reply = self._exchange(line, np.ascontiguousarray(given).data)
        size = 4 * math.prod(reply["shape"])
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        if len(found) != size:
            raise self._died()
        low, high = reply["ms"]
        return np.frombuffer(found, np.float32).reshape(reply["shape"]), (float(low), float(high))

    def _exchange(self, *parts: bytes | memoryview) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise self._died() from None
        if "refused" in reply:
            wrong, given, do = reply["refused"]
            raise BadModel(wrong, given=given, do=do)
        return reply

    def _died(self) -> BadModel:
        _end(self._process)
        code = self._process.returncode
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return BadModel(
            "the process that runs the model file crashed or exceeded its limits", given=name, do="use another model"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _too_much(what: str, file: Path) -> BadModel:
    return BadModel(
        f"inspecting the model file needs more than {what}", given=file, do="give a smaller or simpler model"
    )
