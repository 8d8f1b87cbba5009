"""The faster precision for a run on this machine: measured once on its own steps, and cached."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from smallalign_core import data
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.spec import CrossEntropy, HintonKd, RunSpec, digest, is_gradient_free
from smallalign_core.system.files import read_json, write_json
from smallalign_core.system.machine import processor
from smallalign_core.training.teacher_loading import load_teacher

if TYPE_CHECKING:
    import torch

    from smallalign_core.training.loop import Training

STEPS = 4
ENOUGH_SECONDS = 4.0
WORTH_MACS = 2_000_000
"""MACs per image, teacher plus student, below which a step is mostly overhead and fp32 is used."""
CLEARLY = 1.15
"""Required speed-up of bf16: it is less exact, and the measurements are noisy."""


def precision(spec: RunSpec, store: Store, splits: data.Splits, device: torch.device) -> str:
    """The precision for `spec` on this machine: `auto` is resolved, any other is returned as it is.

    On GPUs it is bf16 where the hardware has it. On CPUs bf16 doubles the speed of some networks and halves that of
    others (depthwise convolutions), so a few steps of both are timed, unless the networks are too small to gain.
    """
    import torch

    if spec.precision != "auto":
        return spec.precision
    if is_gradient_free(spec.optimizer) or (spec.headless and not spec.epochs):
        return "fp32"
    if device.type != "cpu":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    # Only the shape and number of classes of the data affect the speed.
    like = spec.data.model_copy(update={"source": f"{splits.shape} {len(splits.classes)}", "fingerprint": None})
    if spec.answers != "torch":  # then the student alone has a precision
        alone = {"teacher": None, "answers": "torch", "loss": CrossEntropy(), "shuffled": False, "top": None}
        spec = spec.model_copy(update=alone)
    if isinstance(spec.loss, HintonKd):  # whatever its numbers are, or before they are chosen
        spec = spec.model_copy(update={"loss": HintonKd()})
    plain = spec.model_copy(update={"data": like, "seed": 0, "epochs": 1, "precision": "fp32", "start": None})
    key = f"{digest(plain)} {processor()} {torch.__version__} {torch.get_num_threads()}"
    file = store.root / "cache" / "precision.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(SmallAlignError):  # damaged: measured again
        known = read_json(file, missing={})
    if key not in known:
        known[key] = _faster(plain, store, splits, device)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return str(known[key]["precision"])


def _faster(spec: RunSpec, store: Store, splits: data.Splits, device: torch.device) -> dict[str, Any]:
    from smallalign_core import networks
    from smallalign_core.training import loop

    def prepared(name: str) -> Training:
        chosen = spec.model_copy(update={"precision": name})
        return loop.Training([chosen], splits, load_teacher([chosen], store, splits, device), device=device, keep=False)

    first = prepared("fp32")
    macs = networks.measure(first.students[0].classifier).macs
    taught = [store.finished(name, headless=True).result or {} for name in spec.teachers]
    macs += sum(one.get("macs", 0) for one in taught)  # an import does not say
    if macs < WORTH_MACS:
        return {"precision": "fp32", "macs": macs}
    seconds = race({"fp32": first, "bf16": prepared("bf16")})
    return {"precision": chosen(seconds), "macs": macs, **seconds}


def chosen(seconds: dict[str, float]) -> str:
    """The precision chosen from the measured times."""
    return "bf16" if seconds["fp32"] > CLEARLY * seconds["bf16"] else "fp32"


def race(trainings: dict[str, Training]) -> dict[str, float]:
    """Seconds per step of each: the fastest of a few real steps, alternating, after one warm-up."""
    best, begun = dict.fromkeys(trainings, float("inf")), time.perf_counter()
    for turn in range(1 + STEPS):
        for name, training in trainings.items():
            start = time.perf_counter()
            training.advance()
            taken = time.perf_counter() - start
            if turn or taken > ENOUGH_SECONDS:
                best[name] = min(best[name], taken)
        if turn and time.perf_counter() - begun > ENOUGH_SECONDS:
            break
    return best
