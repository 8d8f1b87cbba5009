"""The jail: users' model files are parsed here, in a process that may use little memory, time and disk.

The caller's process only reads bytes and an answer in JSON. The child (`__main__`) is limited before it opens the file:
memory beyond its own libraries, processor seconds, wall seconds, and what it may write. It inherits no descriptors and
no environment to speak of. It is not kept from the network: a parser that was taken over could still call out.

An imported teacher that is accepted here is later run by ONNX Runtime in the process that trains, from the same bytes,
by their SHA-256. A file that is only verified never is: `answers` runs it in here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import BadModel, WorkFailed


@dataclass(frozen=True)
class Limits:
    """What the jail may use.

    Attributes:
        memory: bytes beyond what its libraries map.
        seconds: of processor time.
        wall: seconds on the clock; a stopped or starved child ends here.
        file: bytes that a model file may have.
    """

    memory: int = 4 * 1024**3
    seconds: int = 30
    wall: float = 90.0
    file: int = 1024**3


LIMITS = Limits()
ANSWERING = Limits(seconds=900, wall=1800.0)  # thousands of images, perhaps through a large network


def inspect(file: Path, size: tuple[int, int] = (224, 224), limits: Limits = LIMITS) -> dict[str, Any]:
    """Facts about a model file: `kind` (onnx, safetensors), `bytes`, `sha256`, `params`; for ONNX its doors.

    An ONNX file is also run once, on black images of `size` (height, width) where it leaves that open.

    Raises:
        BadModel: it is no such file, asks for something that is refused, or for more than the limits.
    """
    return _ask({"verb": "inspect", "file": str(file.resolve()), "size": list(size)}, file, limits)


def answers(
    file: Path,
    images: NDArray[Any],
    *,
    sha256: str,
    input: str,
    output: str,
    batch: int,
    fixed: bool = False,
    timing: float = 0.0,
    limits: Limits = ANSWERING,
) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    """What an ONNX file that `inspect` accepted answers to prepared `images`, run in the jail on one thread.

    Args:
        sha256: of the file, as `inspect` told it.
        input, output: the names of its doors.
        batch: how many images it gets at once; `fixed`: always so many, so the last ones are filled up.
        timing: seconds to measure the latency of the first image for, after as long a warm-up; 0 does not.

    Returns:
        Answers float32 [N, ...], and (p50, p95) milliseconds if they were asked for.

    Raises:
        BadModel: the file has changed since, or fails on these images.
    """
    with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
        given, made = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        np.save(given, images, allow_pickle=False)
        question = {"verb": "answer", "file": str(file.resolve()), "images": str(given), "to": str(made)}
        doors = {"sha256": sha256, "input": input, "output": output, "batch": batch, "fixed": fixed, "timing": timing}
        facts = _ask(question | doors, file, limits)
        found = np.load(made, allow_pickle=False)
    if found.dtype != np.float32 or found.ndim < 2 or len(found) != len(images):
        raise BadModel("the model does not answer each image", given=f"{file}, {found.shape}", do="export it again")
    return found, tuple(facts["latency"]) if facts["latency"] else None


def convert(file: Path, limits: Limits = LIMITS) -> tuple[bytes, dict[str, Any]]:
    """The tensors of a PyTorch checkpoint (.pt, .pth) as safetensors bytes, and facts about them.

    The pickle is read with `weights_only=True`, which makes tensors and containers and calls nothing else.

    Raises:
        BadModel: it holds anything but tensors, or is TorchScript or an exported program: those are programs.
    """
    with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
        made = Path(folder) / "weights.safetensors"
        facts = _ask({"verb": "convert", "file": str(file.resolve()), "to": str(made)}, file, limits)
        return made.read_bytes(), facts


def accepted_weights(file: Path, limits: Limits = LIMITS) -> str:
    """The SHA-256 of a safetensors file that the jail accepted.

    Raises:
        BadModel: as `inspect`, or it is another kind of file.
    """
    facts = inspect(file, limits=limits)
    if facts["kind"] != "safetensors":
        raise BadModel(
            "weights to start from are a safetensors file",
            given=f"{file}, {facts['kind']}",
            do="to teach with an ONNX file, give it to `import`",
        )
    return str(facts["sha256"])


def _ask(question: dict[str, Any], file: Path, limits: Limits) -> dict[str, Any]:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BadModel(f"the model file cannot be read: {error.strerror}", given=file, do="name a file") from None
    if not file.is_file():
        raise BadModel("the model file cannot be read: it is no file", given=file, do="name a file")
    if not 0 < size <= limits.file:
        raise BadModel(
            f"a model file has 1 to {limits.file:,} bytes", given=f"{file}, {size:,} bytes", do="give another file"
        )
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-B",
                "-m",
                "smallalign_core.jail",
                json.dumps(question | {"limits": asdict(limits)}),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.wall,
            start_new_session=True,
            env=kept | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise _too_much(f"{limits.wall:.0f} seconds", file) from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _too_much(f"{limits.seconds} seconds of processor time", file)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BadModel("the model file crashes what reads it", given=f"{file}, {name}", do="export it again")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        raise WorkFailed("the process that inspects model files did not answer", given=file, do="try again") from None
    if "refused" in reply:
        wrong, given, do = reply["refused"]
        raise BadModel(wrong, given=f"{file}{', ' if given else ''}{given}", do=do)
    facts: dict[str, Any] = reply["facts"]
    return facts


def _too_much(what: str, file: Path) -> BadModel:
    return BadModel(
        f"the model file needs more than {what} to be looked at", given=file, do="give a smaller or simpler model"
    )
