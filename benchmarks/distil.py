"""How much faster than the usual ways is our distillation? Ratios of CPU seconds an image, and the share of the peak.

    python benchmarks/distil.py [--pairs ...] [--rounds 6] [--seconds 0.6] [--quick]
    python benchmarks/distil.py --accuracy [--seeds 3] [--epochs 8]

Same work for all: Fashion-MNIST, 28x28; crop with padding 2, horizontal flip and rotation by up to 10 degrees
(bilinear), drawn for each image; batch 128; Hinton's loss at T = 4 with weight 0.9; SGD with Nesterov momentum; the
teacher in evaluation mode and without gradients. The ways:

    tutorial      what PyTorch's tutorials show: a Dataset that augments PIL images one by one, a DataLoader, fp32
    kept memory   the same; glibc is told to keep freed memory, as ours is
    torchdistill  DistillationBox of torchdistill 1.1.5 and the loop of its examples, on that Dataset. It never puts
                  the teacher into evaluation mode; that is done for it here, or batch norm would go on learning
    ours          `Training` with a live teacher; the precision is what `auto` chooses
    ours, cache    with two fixed views an image, whose logits (and images) an earlier run left in the cache; in
                  the precision that suits the student alone, since nobody asks the teacher (`auto` looks at steps
                  that do: where it chooses otherwise, `precision` has to be named)

Each way has a process of its own, is built and warmed up, and then works only when it is its turn: slices in shuffled
order, one a round. CPU seconds are those of the process and its children, on one thread, so that neighbours cost wall
time and not figures. Ratios are of the minima over slices, and beside it the median, least and most of the rounds' own
ratios. The peak is that of the fastest of a few matrix products and convolutions, which take turns like all others.
Nobody validates or writes checkpoints in a slice.

Pairs of teacher and student: MLP 784-1200-1200-10 to MLPs 784-30-30-10 and 784-800-800-10; torchvision's ResNet-18
with a 3x3 stem of stride 1 and no first pooling (11.2 million parameters) to a CNN of 98,682. Teachers have random
weights, and batch norm has seen a few batches: speed does not depend on what they know.

`--accuracy` trains the teacher (for the CNN a ResNet of width 16, since ResNet-18 takes hours here) and then students
by the tutorial's loop and by ours, live and from the cache, for equally many epochs on the same images. Shown are test
accuracies of the last weights over seeds, and how many standard errors of the difference ours is away.

`--batch 512 1024` adds ours from a full cache with these batches, and, with `--accuracy`, compares their accuracy with
that of batch 128 instead: the learning rate grows with the batch, the number of images that are seen does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from ways import (
    BATCH,
    OURS,
    PAIRS,
    QUICK,
    VIEWS,
    WAYS,
    Pair,
    classifier,
    in_integers,
    larger,
    loaded,
    our_spec,
    teacher_of,
    tutorial_steps,
    way_of,
    with_batch,
)

from smallalign_core import networks
from smallalign_core.data import Splits
from smallalign_core.metrics import logits_of, score
from smallalign_core.networks import Classifier
from smallalign_core.networks.onnx_graph import Graph
from smallalign_core.spec import RunSpec
from smallalign_core.system import machine
from smallalign_core.training.loop import Training, statistics as channels
from smallalign_core.training.student import Student
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, TeacherSource, plan

PEAK = "peak"
KNOWN = {"kind": "resnet", "width": 16}
"""The teacher in place of ResNet-18 where it has to learn."""

# --- measuring --------------------------------------------------------------------------------------------------------


def spent() -> float:
    """CPU seconds of this process and of its children."""
    children = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + sum(one.user + one.system for one in children)


def work(way: str, pair: Pair, images: int, folder: Path, asks: Connection) -> None:
    """A process: build and warm up, then work a slice of so many CPU seconds whenever asked."""
    torch.set_num_threads(1)
    if way == PEAK:
        kernels = peaks()
        asks.send("ready")
        while seconds := asks.recv():
            asks.send({name: fastest(kernel, flops, seconds) for name, (kernel, flops) in kernels.items()})
        return
    steps = way_of(way)(pair, loaded(images), folder)
    warm = time.process_time()
    for count, _ in enumerate(steps):
        if count >= 3 and (count >= 12 or time.process_time() - warm > 4):
            break
    asks.send("ready")
    while seconds := asks.recv():
        next(steps)
        begun, count, start = spent(), 0, time.process_time()
        while time.process_time() - start < seconds:
            count += next(steps)
        asks.send((spent() - begun) / count)


def peaks() -> dict[str, tuple[Callable[[], object], float]]:
    """Matrix products and convolutions and their floating point operations: what this core can do at most."""
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(1024, 1024).to(kind) for _ in range(2))
        found[f"{name} product"] = (lambda a=a, b=b: a @ b), 2 * 1024**3
        x = torch.randn(32, 128, 14, 14).to(kind).to(memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3).to(kind).to(memory_format=torch.channels_last)
        found[f"{name} convolution"] = (lambda x=x, w=w: F.conv2d(x, w, padding=1)), 2 * 32 * 14**2 * 128**2 * 9
    return found


def fastest(kernel: Callable[[], object], flops: float, seconds: float) -> float:
    """Operations a CPU second."""
    kernel()
    begun, best = time.process_time(), float("inf")
    while time.process_time() - begun < seconds / 8:
        start = time.process_time()
        for _ in range(4):
            kernel()
        best = min(best, (time.process_time() - start) / 4)
    return flops / best


def operations(pair: Pair, splits: Splits) -> tuple[float, float]:
    """Floating point operations an image: of the teacher's answer, and of the student's forward and backward pass."""
    images = torch.from_numpy(np.asarray(splits.train.images[:BATCH]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher_of(pair, splits)(images)
    answering = counter.get_total_flops() * BATCH / (BATCH + 3 * 64)  # the batches of its batch norm were counted too
    with FlopCounterMode(display=False) as counter:
        classifier(pair.student, splits).train()(images).sum().backward()
    return answering / BATCH, counter.get_total_flops() / BATCH


def duel(pair: Pair, options: argparse.Namespace) -> dict[str, Any]:
    """All ways in turns."""
    context = multiprocessing.get_context("forkserver")  # imports torch once
    lines: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for way in (*options.ways, *map(larger, options.batch), PEAK):
            lines[way], theirs = context.Pipe()
            process = context.Process(target=work, args=(way, pair, options.images, Path(folder), theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            lines[way].recv()  # one after the other: fillings of a cache and races are slow enough alone
        slices: dict[str, list[Any]] = {way: [] for way in lines}
        for _ in range(options.rounds):
            for way in random.sample(list(lines), len(lines)):
                lines[way].send(options.seconds)
                slices[way].append(lines[way].recv())
        for line in lines.values():
            line.send(0)
        for process in processes:
            process.join()
    rounds = slices.pop(PEAK)
    peak = {name: max(one[name] for one in rounds) for name in rounds[0]}
    answering, learning = operations(pair, loaded(options.images))
    best = {way: min(found) for way, found in slices.items()}
    return {
        "us an image": {way: 1e6 * one for way, one in best.items()},
        "times": {
            mine: {
                other: {
                    "minima": best[other] / best[mine],
                    "rounds": sorted(b / a for a, b in zip(slices[mine], slices[other], strict=True)),
                }
                for other in best
                if not other.startswith("ours")
            }
            for mine in best
            if mine.startswith("ours")
        },
        "share of peak": {
            way: (learning + (0 if way.startswith("ours, cache") else answering)) / one / max(peak.values())
            for way, one in best.items()
            if way != "ours, int8"  # integers have another peak, which is not measured
        },
        "peak GFLOP/s": {name: one / 1e9 for name, one in peak.items()},
        "MFLOP an image": {"teacher": answering / 1e6, "student": learning / 1e6},
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print what was measured of one pair."""
    print(f"\n{name}: peak {', '.join(f'{key} {one:.0f}' for key, one in found['peak GFLOP/s'].items())} GFLOP/s")
    for way, one in found["us an image"].items():
        share = found["share of peak"].get(way)
        print(f"  {way:<14}{one:>10.1f} us an image", end="" if share is None else f"{share:>8.0%} of the peak")
        for other, times in found["times"].get(way, {}).items():
            low, middle, high = times["rounds"][0], statistics.median(times["rounds"]), times["rounds"][-1]
            print(f"   {times['minima']:.1f}x {other} (rounds {middle:.1f} [{low:.1f} to {high:.1f}])", end="")
        print()


# --- is it as good? ---------------------------------------------------------------------------------------------------


def accuracies(pair: Pair, splits: Splits, options: argparse.Namespace) -> dict[str, list[float]]:
    """Test accuracy by way and seed; the first way is the one that others are compared with."""
    teacher = taught(our_spec(pair, network=pair.teacher or KNOWN, teacher=None, loss=None, epochs=8), splits).best()
    if options.batch:
        return {
            larger(batch): [
                tested(distilled(pair, splits, teacher, options, seed, VIEWS, **with_batch(batch)), splits)
                for seed in range(options.seeds)
            ]
            for batch in (BATCH, *options.batch)
        }
    said: dict[str, list[float]] = {way: [] for way in ("tutorial", *OURS)}
    small = in_integers(teacher, pair, splits)
    mean, std = channels(splits.train)
    for seed in range(options.seeds):
        network = our_spec(pair).network
        student = networks.build(network, splits.classes, splits.shape, mean=mean, std=std, seed=seed)
        torch.manual_seed(seed)
        steps = tutorial_steps(teacher.body, student.train().body, splits)
        for _ in range(options.epochs * (len(splits.train) // BATCH)):
            next(steps)
        said["tutorial"].append(tested(student, splits))
        for way, views, whole in zip(OURS, (0, 0, VIEWS), (teacher, small, teacher), strict=True):
            said[way].append(tested(distilled(pair, splits, whole, options, seed, views), splits))
    return said


def taught(spec: RunSpec, splits: Splits, teaching: TeacherSource | None = None) -> Student:
    """The student at the end of a run."""
    training = Training([spec], splits, teaching)
    for _ in training:
        pass
    return training.students[0]


def distilled(
    pair: Pair,
    splits: Splits,
    teacher: Classifier,
    options: argparse.Namespace,
    seed: int,
    views: int,
    **fields: Any,
) -> Classifier:
    """The pair's student, taught by `teacher` live, or through a cache where there are fixed views."""
    spec = our_spec(pair, precision="bf16", views=views, seed=seed, epochs=options.epochs, **fields)
    knows = Teacher(teacher, splits.classes, precision="fp32" if isinstance(teacher.body, Graph) else "bf16")
    if not views:
        return taught(spec, splits, knows).classifier
    wanted = plan(spec, splits, ["teacher"], torch.device("cpu"))
    assert wanted is not None
    with (
        tempfile.TemporaryDirectory() as folder,
        TeacherCache(wanted, CacheIndex(Path(folder)), lambda: knows) as cache,
    ):
        return taught(spec, splits, cache).classifier


def tested(student: Classifier, splits: Splits) -> float:
    """Test accuracy in percent."""
    return 100 * score(logits_of(student.eval(), splits.test), splits.test.labels, splits.classes).accuracy


def compare_accuracy(pairs: dict[str, Pair], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Print a line a pair and way."""
    splits, found = loaded(options.images), {}
    for name, pair in pairs.items():
        found[name] = accuracies(pair, splits, options)
        (first, usual), *_ = found[name].items()
        for way, ours in found[name].items():
            line = f"{name:<22}{way:<18}{statistics.mean(ours):6.2f} ± {statistics.stdev(ours):.2f}"
            if way != first:
                error = ((statistics.variance(usual) + statistics.variance(ours)) / options.seeds) ** 0.5
                gap = statistics.mean(ours) - statistics.mean(usual)
                line += f"   {gap:+.2f} = {gap / error:+.1f} standard errors"
            print(line, flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--batch", nargs="+", type=int, default=[], help="larger batches, from a full cache")
    parser.add_argument("--images", type=int, default=12_000, help="training images, before validation is held out")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.6, help="CPU seconds of a slice, at least one step")
    parser.add_argument("--quick", action="store_true", help="does everything work? Tiny networks, short slices")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracy instead of speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    pairs = {name: PAIRS[name] for name in options.pairs}
    if options.quick:
        pairs, options.images, options.rounds, options.seconds = QUICK, 1000, 2, 0.05
    loaded(options.images)  # decoded once, before there are many
    found: dict[str, Any] = {}
    if options.accuracy:
        machine.set_threads()
        machine.keep_freed_memory()
        found = compare_accuracy(pairs, options)
    for name, pair in () if options.accuracy else pairs.items():
        found[name] = duel(pair, options)
        show(name, found[name])
    load = os.getloadavg()[0]
    print(f"\n{machine.processor()}, torch {torch.__version__}, Python {platform.python_version()}, load {load:.1f}")
    json.dump(found, sys.stdout)
    print()


if __name__ == "__main__":
    main()
