"""ExecuTorch: a program (.pte) from the one of `torch.export`, its layers delegated to XNNPACK where it has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.system import extras

WHAT = "export to ExecuTorch"
OUTPUTS = ("logits", "probabilities")


def convert(source: Path, to: Path) -> None:
    """Write `to`.pte from the exported program in the file `source`."""
    import torch

    xnnpack = extras.load("executorch.backends.xnnpack.partition.xnnpack_partitioner", WHAT)
    exir = extras.load("executorch.exir", WHAT)
    program = torch.export.load(source)
    edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    to.with_suffix(".pte").write_bytes(edge.to_executorch().buffer)


def packed(files: dict[str, bytes]) -> bytes:
    """The file, for `opener`."""
    return files[".pte"]


def opener() -> Callable[[bytes, int], Any]:
    """Load the runtime; returns a function of (the file, number of threads)."""
    runtime = extras.load("executorch.runtime", WHAT).Runtime.get()
    threadpool = extras.load("executorch.extension.pybindings.portable_lib", WHAT)

    def opened(content: bytes, threads: int) -> _Session:
        threadpool._unsafe_reset_threadpool(threads)
        return _Session(runtime.load_program(content))

    return opened


class _Session:
    def __init__(self, program: Any) -> None:
        self.program = program  # which a method needs alive
        self.method = program.load_method("forward")

    def run(self, outputs: list[str], given: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Outputs of a batch, image by image: a program has a fixed batch of one."""
        import torch

        (images,) = given.values()
        answers = [self.method.execute([torch.from_numpy(images[at : at + 1].copy())]) for at in range(len(images))]
        places = [OUTPUTS.index(name) for name in outputs]
        return [np.concatenate([np.array(one[place]) for one in answers]) for place in places]
