"""What does the cache of teacher logits save? CPU microseconds an image of a training step, as ratios in one run.

Same work as in `distil.py`, on smaller networks and in fp32: the views, the loss, the optimizer. Measured are
its tutorial loop (PIL, DataLoader), a live teacher, a cache that is being filled (writing, checksums and the 1 % check
included), and full caches that keep images, or render them. Steps with fresh views are read in the order in which they
were written; with 2 fixed views rows are gathered from all over the cache. All take turns in slices, so that a noisy
machine is noisy for all; the minimum over slices is what the code costs, except for filling: chunks are written now and
then, so that is the mean over all its steps.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ways import BATCH, Pair, our_spec, tutorial

from smallalign_core import data, networks
from smallalign_core.data import Splits, statistics
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.system.machine import keep_freed_memory
from smallalign_core.training.loop import Training
from smallalign_core.training.teacher import CacheIndex, CachePlan, Teacher, TeacherCache, plan

ROUNDS, STEPS, IMAGES = 6, 24, 2048
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MLP 1200 -> MLP 30": ({"kind": "mlp", "width": 1200}, {"kind": "mlp", "width": 30}),
    "ResNet 16 -> CNN 16": ({"kind": "resnet", "width": 16}, {"kind": "cnn", "width": 16}),
    "ResNet 64 -> CNN 16": ({"kind": "resnet", "width": 64}, {"kind": "cnn", "width": 16}),
}


def caches(
    spec: RunSpec, splits: Splits, teacher: Teacher, folder: Path, held: contextlib.ExitStack
) -> tuple[dict[str, Callable[[], object]], float]:
    """(steps with full caches that keep or render images, CPU seconds an image of filling one)."""
    wanted = plan(spec, splits, ["0" * 64], torch.device("cpu"))
    assert wanted is not None
    steps: dict[str, Callable[[], object]] = {}
    filling = 0.0
    for name, limit in (("stored", 2**34), ("rendered", wanted.answer_bytes + 1)):
        shelf = CacheIndex(folder / name, limit)

        def opened(shelf: CacheIndex = shelf, wanted: CachePlan = wanted) -> TeacherCache:
            return TeacherCache(wanted, shelf, lambda: teacher)

        with opened() as cache:
            training = Training([spec], splits, cache)
            start = time.process_time()
            for _ in range(wanted.steps):
                training.advance()
        if name == "stored":
            filling = (time.process_time() - start) / wanted.steps / spec.batch
        full = held.enter_context(opened())
        again = Training([spec], splits, full)
        again.step = wanted.steps - 1 if spec.views else 0
        steps[name] = again.advance
    return steps, filling


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    keep_freed_memory()
    whole = data.load(DataSpec(source="fashion-mnist"), Store().data_cache)
    splits = replace(whole, train=whole.train.take(np.arange(IMAGES)))
    mean, std = statistics(splits.train)
    found: dict[str, dict[str, float]] = {}
    for pair, (big, small) in PAIRS.items():
        network = parse({"data": "-", "network": big}).network
        teacher = Teacher(networks.build(network, splits.classes, splits.shape, mean=mean, std=std), splits.classes)
        for fixed in (0, 2):
            spec = our_spec(Pair(big, small), views=fixed, epochs=12)
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
                steps, filling = caches(spec, splits, teacher, Path(folder), held)
                steps["usual"] = partial(next, tutorial(Pair(big, small), splits, Path()))
                steps["live"] = Training([spec], splits, teacher).advance
                best = turns(steps)
            best["filling"] = filling
            name = f"{pair}, {'2 fixed views' if fixed else 'fresh views'}"
            order = ("usual", "live", "filling", "rendered", "stored")
            found[name] = {which: round(best["usual"] / best[which], 2) for which in order}
            costs = ", ".join(f"{which} {best[which] * 1e6:.1f} us ({found[name][which]}x)" for which in order)
            print(f"{name}: {costs}", flush=True)
    print(json.dumps(found))


def turns(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds an image of each, the minimum over slices in turns."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            count = 3 if name in ("usual", "live") else STEPS
            start = time.process_time()
            for _ in range(count):
                step()
            best[name] = min(best[name], (time.process_time() - start) / count / BATCH)
    return best


if __name__ == "__main__":
    main()
