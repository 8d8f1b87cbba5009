"""Distilling on a GPU, ours against the tutorial and torchdistill: the sections `small` and `photos` of `gpu.py`."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu_section import BUSY_GOAL, Lane, Missing, NoTime, Section, forever, goal, kinds, pictures, product, spec_of

SMALL_GOAL, PHOTOS_GOAL = 20.0, 5.0
"""Times the images per second of the tutorial's loop."""
COMPILED = "ours, cache, bf16, compiled"


def times(ratio: float) -> str:
    """A ratio as text."""
    return f"{ratio:,.{0 if ratio >= 100 else 1}f}x"


class Ways:
    """One pair of networks on one dataset: functions that begin each way of distilling it."""

    def __init__(self, here: Section, pair: tuple[Any, Any], splits: Any, batch: int, folder: Path) -> None:
        import torch

        self.here, self.splits, self.batch, self._folder = here, splits, batch, folder
        self.pair, self._made = pair, [self._built(one) for one in pair]
        with torch.no_grad():  # or the batch norms' answers would not be of this world
            self._made[0].train()(torch.from_numpy(splits.train.images[:32]))

    def _built(self, network: Any) -> Any:
        from smallalign_core import networks
        from smallalign_core.data import statistics
        from smallalign_core.spec import parse

        mean, std = statistics(self.splits.train)
        spec = parse({"data": "-", "network": network}).network
        return networks.build(spec, self.splits.classes, self.splits.shape, mean=mean, std=std)

    def flops(self) -> tuple[float, float]:
        """Of an image: the teacher's answer, and a step of the student."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        teacher, student = copy.deepcopy(self._made)
        images = torch.zeros((2, *self.splits.shape), dtype=torch.uint8)
        with FlopCounterMode(display=False) as answering, torch.no_grad():
            teacher.eval()(images)
        with FlopCounterMode(display=False) as learning:
            student.train()(images).sum().backward()
        return answering.get_total_flops() / 2, learning.get_total_flops() / 2

    def _bodies(self) -> tuple[Any, Any]:
        import torch

        plain = torch.contiguous_format
        made = [one.body.to(self.here.device, memory_format=plain) for one in copy.deepcopy(self._made)]
        return made[0].eval(), made[1].train()

    def tutorial(self, workers: int) -> Iterator[int]:
        """PyTorch's tutorial."""
        import ways

        how: dict[str, Any] = {"device": self.here.device.type, "batch": self.batch, "workers": workers}
        return ways.tutorial_steps(*self._bodies(), self.splits, **how)

    def torchdistill(self, workers: int) -> Iterator[int]:
        """The example of torchdistill."""
        import ways

        if importlib.util.find_spec("torchdistill") is None:
            raise Missing("torchdistill is not installed")
        how: dict[str, Any] = {"on": self.here.device.type, "batch": self.batch, "workers": workers}
        return ways.torchdistill_steps(*self._bodies(), self.splits, **how)

    def _teacher(self, precision: str) -> Any:
        from smallalign_core.training.teacher import Teacher

        made = copy.deepcopy(self._made[0])
        return Teacher(made, self.splits.classes, self.here.device, precision=precision)

    def live(self, precision: str = "bf16") -> Iterator[int]:
        """Ours, with the teacher run at each step."""
        from smallalign_core.training.loop import Training

        spec = spec_of(self.pair[1], self.batch, precision=precision)
        yield from forever(Training([spec], self.splits, self._teacher(precision), device=self.here.device))

    @contextlib.contextmanager
    def _cached(self, **fields: Any) -> Iterator[tuple[Any, Any, int]]:
        from smallalign_core.training.loop import Training
        from smallalign_core.training.teacher import CacheIndex, TeacherCache, plan

        spec = spec_of(self.pair[1], self.batch, precision="bf16", views=2, **fields)
        wanted = plan(spec, self.splits, [str(self.pair[0])], self.here.device)
        assert wanted is not None
        with TeacherCache(wanted, CacheIndex(self._folder, 2**36), lambda: self._teacher("bf16")) as cache:
            yield cache, Training([spec], self.splits, cache, device=self.here.device), wanted.steps

    def cached(self, **fields: Any) -> Iterator[int]:
        """Ours, from a full cache, which is filled first where it is not."""
        with self._cached(**fields) as (cache, training, steps):
            while training.step < steps:
                training.advance()
            before = cache.answered
            for images in forever(training):
                if cache.answered > before:
                    raise RuntimeError("the teacher was run, although its cache is full")
                yield images

    def reading(self) -> Iterator[int]:
        """The batches of a full cache, which no student is trained on."""
        with self._cached() as (cache, training, step):
            while True:
                cache.batch_with_targets(training.views, step)
                if cache.answered:
                    raise RuntimeError("the cache is not full")
                step += 1
                yield self.batch


def race(here: Section, pairs: dict[str, tuple[Any, Any]], splits: Any, batch: int, wanted: float) -> None:
    """Images per second of every pair and way, in turns; ratios to the tutorial, share of the peak, memory, waiting."""
    few, many = (0, 0) if here.tiny else (2, min(16, os.cpu_count() or 2))
    tutorials = {f"tutorial, {count} workers, fp32": count for count in sorted({few, many})}
    named = [*tutorials, "torchdistill", "ours, live, fp32", "ours, live, bf16", "ours, cache, bf16"]
    alone = ["reading the cache alone", "best of ours, in turns / tutorial", "GPU busy, live", COMPILED]
    for pair in pairs:
        here.expect(*(f"{pair}: {one}" for one in [*named, *alone]))
    best = max(product(here, kind, 0.2) for kind in kinds(here)) * 1e12
    for number, (name, pair) in enumerate(pairs.items()):
        until = time.time() + here.left(len(pairs) - number)
        with here.trying(f"{name}: {named[0]}"), tempfile.TemporaryDirectory() as folder:
            compare(here, name, Ways(here, pair, splits, batch, Path(folder)), tutorials, best, wanted, until)


def compare(
    here: Section,
    name: str,
    ways: Ways,
    tutorials: dict[str, int],
    best: float,
    wanted: float,
    until: float,
) -> None:
    """One pair: the tutorial, torchdistill and ours in turns, then what is measured alone."""
    answering, learning = ways.flops()
    made = {
        one: Lane(partial(ways.tutorial, count), deterministic=False, ahead=2 * count)
        for one, count in tutorials.items()
    }
    many = max(tutorials.values())
    made["torchdistill"] = Lane(partial(ways.torchdistill, many), deterministic=False, ahead=2 * many)
    made["ours, live, fp32"] = Lane(partial(ways.live, "fp32"))
    made |= {"ours, live, bf16": Lane(ways.live), "ours, cache, bf16": Lane(ways.cached)}
    lanes = {f"{name}: {way}": lane for way, lane in made.items()}
    here.in_turns(lanes, time.time() + 0.6 * max(0.0, until - time.time()))
    base = lanes[first].rate if (first := f"{name}: {next(iter(made))}") in lanes else None

    def put(row: str, lane: Lane) -> None:
        work = 0.0 if "alone" in row else learning if "cache" in row else learning + answering
        notes = [f"{times(lane.rate / base)} the tutorial"] if base else []
        notes += [f"{lane.rate * work / best:.1%} of the peak product"] if work else []
        here.put(row, lane.rate, "images/s", ", ".join(notes + lane.notes))

    for row, lane in lanes.items():
        put(row, lane)
    ratio = f"{name}: best of ours, in turns / tutorial"
    with here.trying(ratio):
        found = [lane.rate for row, lane in lanes.items() if ": ours" in row]
        if not base or not found:
            raise NoTime
        here.put(ratio, max(found) / base, "x", goal(here, max(found) / base >= wanted, f"{wanted:g}x"))
    trained = lanes.get(f"{name}: ours, cache, bf16")
    for lane in lanes.values():
        if lane is not trained:
            lane.close()
    row = f"{name}: reading the cache alone"
    with here.trying(row):
        if trained is None:
            raise Missing("the cache was not filled")
        trained.close()
        reading = {row: Lane(ways.reading)}
        here.in_turns(reading, time.time() + 0.3 * max(0.0, until - time.time()))
        if row in reading:
            rate = reading[row].rate
            ahead = goal(here, rate > trained.rate, "faster than the student trains")
            here.put(row, rate, "images/s", ", ".join([f"{times(rate / trained.rate)} the student", ahead]))
    row = f"{name}: GPU busy, live"
    with here.trying(row):
        share = here.busy(ways.live)
        here.put(row, share, "", goal(here, share > BUSY_GOAL, f"above {BUSY_GOAL:.0%}"))
    row = f"{name}: {COMPILED}"
    with here.trying(row):  # last: it may take a minute to compile
        if here.tiny:
            raise Missing("compilation takes a minute; tests/test_gpu.py compares its losses")
        compiled = {row: Lane(lambda: ways.cached(compile=True))}
        here.in_turns(compiled, until)
        if row in compiled:
            put(row, compiled[row])
            compiled[row].close()


def small(here: Section) -> None:
    """Images of 32 pixels."""
    if here.tiny:
        pairs: dict[str, Any] = {"CNN-8 > CNN-4": ({"kind": "cnn", "width": 8}, {"kind": "cnn", "width": 4})}
        race(here, pairs, pictures(256, 16), 32, SMALL_GOAL)
        return
    student = {"kind": "cnn", "width": 32, "depth": 3}
    pairs = {
        "ResNet of width 64 > CNN-32": ({"kind": "resnet", "width": 64, "depth": 2}, student),
        "ResNet-18 > CNN-32": ({"kind": "torchvision", "name": "resnet18", "size": 64}, student),
    }
    race(here, pairs, pictures(50_000, 32), 512, SMALL_GOAL)


def photos(here: Section) -> None:
    """Images of 224 pixels, decoded."""
    if here.tiny:
        student = {"kind": "torchvision", "name": "mobilenet_v3_small", "size": 32}
        teacher = {"kind": "torchvision", "name": "resnet18", "size": 32}
        race(here, {"ResNet-18 > MobileNetV3-small": (teacher, student)}, pictures(16, 32), 4, PHOTOS_GOAL)
        return
    student = {"kind": "torchvision", "name": "mobilenet_v3_small"}
    pairs = {
        f"{name} > MobileNetV3-small": ({"kind": "torchvision", "name": name}, student)
        for name in ("resnet50", "efficientnet_b0")
    }
    race(here, pairs, pictures(4_096, 224), 128, PHOTOS_GOAL)
