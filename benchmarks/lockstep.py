"""What does lockstep save? Six optimizers trained together against six separate runs, as a ratio of CPU time.

Same work both ways: the same student, seed, views, loss and steps; the only difference is that together each view is
made and the teacher asked once for all. That the results are the same is asserted, bit for bit. With a live teacher,
and with a full cache of its logits, which separate runs share too. The two ways take turns; what is divided are the
minima over rounds, beside the least and the most of the rounds' own ratios. The teacher has random weights: its answers
cost the same.

    python benchmarks/lockstep.py [--rounds 5] [--steps 48] [--images 3072]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smallalign_core import data, networks
from smallalign_core.data import Splits, statistics
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.system.machine import keep_freed_memory
from smallalign_core.training.loop import Training
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, plan

OPTIMIZERS = ("adamw", "sgd", "muon", "soap", "lookahead", "schedule_free")
TEACHERS = {"ResNet 24": {"kind": "resnet", "width": 24}, "CNN 16": {"kind": "cnn", "width": 16}}
STUDENTS = {"CNN 8": {"kind": "cnn", "width": 8}, "CNN 16": {"kind": "cnn", "width": 16}}
AUGMENT = [{"kind": "crop"}, {"kind": "flip"}, {"kind": "rotate", "degrees": 10}]
GOAL = 0.35

Opened = Callable[[], contextlib.AbstractContextManager[Teacher | TeacherCache]]


def specs(student: dict[str, object]) -> list[RunSpec]:
    """One run for each optimizer, all with the same views."""
    shared = {"data": "-", "network": student, "teacher": "t", "augment": AUGMENT, "batch": 64, "precision": "fp32"}
    return [parse({**shared, "optimizer": kind, "epochs": 100}) for kind in OPTIMIZERS]


def trained(group: list[RunSpec], splits: Splits, opened: Opened, steps: int) -> tuple[float, list[list[Tensor]]]:
    """(CPU seconds of training these in lockstep, the weights of each)."""
    begun = time.process_time()
    with opened() as teacher:
        training = Training(group, splits, teacher)
        for _ in range(steps):
            training.advance()
    seconds = time.process_time() - begun
    return seconds, [list(student.classifier.state_dict().values()) for student in training.students]


def ratio(
    options: list[RunSpec], splits: Splits, opened: Opened, steps: int, rounds: int
) -> tuple[float, float, float]:
    """(together over separate by minima, the least and the most of the rounds' own ratios)."""
    together, separate = [], []
    for _ in range(rounds):
        seconds, ours = trained(options, splits, opened, steps)
        together.append(seconds)
        alone = [trained([spec], splits, opened, steps) for spec in options]
        separate.append(sum(seconds for seconds, _ in alone))
        for here, (_, (there,)) in zip(ours, alone, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True)), "not the same weights"
    own = np.divide(together, separate)
    return min(together) / min(separate), float(own.min()), float(own.max())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--images", type=int, default=3072)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    whole = data.load(DataSpec(source="fashion-mnist"), Store().data_cache)
    splits = replace(whole, train=whole.train.take(np.arange(options.images)))
    mean, std = statistics(splits.train)
    found: dict[str, float] = {}
    for big, teacher_network in TEACHERS.items():
        network = parse({"data": "-", "network": teacher_network}).network
        live = Teacher(networks.build(network, splits.classes, splits.shape, mean=mean, std=std), splits.classes)
        for small, student_network in STUDENTS.items():
            runs = specs(student_network)
            # As many epochs as the steps need: the cache is then as large as what is trained from it.
            epochs = -(-options.steps * runs[0].batch // options.images)
            runs = [run.model_copy(update={"epochs": epochs}) for run in runs]
            with tempfile.TemporaryDirectory() as folder:
                wanted = plan(runs[0], splits, ["0" * 64], torch.device("cpu"))
                assert wanted is not None
                index = CacheIndex(Path(folder), 2**34)

                def cache(wanted=wanted, index=index, live=live) -> TeacherCache:  # type: ignore[no-untyped-def]
                    return TeacherCache(wanted, index, lambda: live)

                trained(runs[:1], splits, cache, wanted.steps)  # fills it
                trained(runs, splits, cache, 1)  # imports the optimizers' libraries
                for how, opened in (("live", lambda live=live: contextlib.nullcontext(live)), ("cache", cache)):
                    quotient, least, most = ratio(runs, splits, opened, options.steps, options.rounds)
                    name = f"{big} to {small}, {how}"
                    found[name] = round(quotient, 3)
                    goal = f" (goal {GOAL})" if (big, how) == ("ResNet 24", "live") else ""
                    print(f"{name}: {quotient:.3f} ({least:.3f} to {most:.3f}){goal}, weights equal", flush=True)
    print(json.dumps({"optimizers": len(OPTIMIZERS), "together_over_separate": found}))


if __name__ == "__main__":
    main()
