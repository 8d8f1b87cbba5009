"""A training step on photographs at 224 pixels: ours beside a plain loop of ImageFolder and DataLoader, in turns.

    python benchmarks/photo_speed.py [--images 320] [--rounds 4] [--seconds 8]

Same work for all: JPEGs of 500 x 375 (synthetic, quality 90, made here), random resized crop to 224 pixels and
horizontal flip, batches of 32, AdamW; student `mobilenetv3_small_050`, teacher `tf_efficientnet_lite0` (4.7 million
parameters), both from timm with random weights, since speed does not depend on them. The ways:

    plain, labels      torchvision's ImageFolder and transforms v2, a DataLoader, cross-entropy, fp32
    plain, teacher     the same with the teacher in evaluation mode and Hinton's loss
    ours, labels       `Training` on the stored pixels of `data.load`; the precision that `auto` chooses
    ours, teacher      with the teacher, live
    ours, cache        with two fixed views an image, whose logits an earlier run left in the cache

Each way has a process of its own, is built and warmed up, and works only when it is its turn, on one thread. Counted
are processor seconds an image: they change less on a shared machine than seconds on the clock. Plain loops decode each
JPEG in each epoch; ours decoded once, before (`benchmarks/reading.py` measures that). Ratios are of minima over the
slices, in brackets the least and most of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from reading import make
from torch import Tensor
from ways import forever, in_best_precision

from smallalign_core import data, networks
from smallalign_core.data import Splits
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, parse, parse_data
from smallalign_core.system import machine
from smallalign_core.training.loop import Training, statistics as channels
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, plan

SIDE, BATCH, TEMPERATURE, WEIGHT, VIEWS, RATE, DECAY = 224, 32, 4.0, 0.9, 2, 0.001, 0.01
STUDENT = {"kind": "timm", "name": "mobilenetv3_small_050", "size": SIDE}
TEACHER = {"kind": "timm", "name": "tf_efficientnet_lite0", "size": SIDE}

# --- plain ------------------------------------------------------------------------------------------------------------


def batches(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """What PyTorch's ImageNet example loads, without end."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(ImageFolder(folder, transform), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def plain(folder: Path, *, teacher: bool) -> Iterator[int]:
    """The loop of PyTorch's tutorials."""
    import timm

    classes = sum(1 for _ in folder.iterdir())
    student = timm.create_model(STUDENT["name"], num_classes=classes).train()
    told = timm.create_model(TEACHER["name"], num_classes=classes).eval() if teacher else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=DECAY)
    for images, labels in batches(folder):
        logits: Tensor = student(images)
        loss = F.cross_entropy(logits, labels)
        if told is not None:
            with torch.no_grad():
                target = F.softmax(told(images) / TEMPERATURE, 1)
            soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean")
            loss = WEIGHT * TEMPERATURE**2 * soft + (1 - WEIGHT) * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield len(images)


# --- ours -------------------------------------------------------------------------------------------------------------


def spec_of(folder: Path, *, teacher: bool, **fields: Any) -> RunSpec:
    """The work as a spec of ours."""
    soft = {"teacher": "t", "loss": {"kind": "kd", "temperature": TEMPERATURE, "weight": WEIGHT}} if teacher else {}
    return parse(
        {
            "data": source(folder),
            "network": STUDENT,
            "augment": ["resized_crop", "flip"],
            "batch": BATCH,
            "optimizer": {"kind": "adamw", "lr": RATE, "weight_decay": DECAY},
            "schedule": {"kind": "constant", "warmup": 0},
            "epochs": 10_000,
            "precision": "fp32",
            **soft,
            **fields,
        }
    )


def source(folder: Path) -> dict[str, Any]:
    """All images but a few are for training."""
    return {"source": str(folder), "size": SIDE, "validation": 0.1}


def loaded(folder: Path) -> Splits:
    """The stored pixels."""
    return data.load(parse_data(source(folder)), Store(folder.parent / "store").data_cache)


def built(splits: Splits) -> Classifier:
    """The teacher, with random weights that are equal in each process."""
    torch.manual_seed(0)
    mean, std = channels(splits.train)
    network = parse({"data": "-", "network": TEACHER}).network
    made: Classifier = networks.build(network, splits.classes, splits.shape, mean=mean, std=std)
    return made.eval().requires_grad_(False)


def ours(folder: Path, *, teacher: bool) -> Iterator[int]:
    """Ours, with a live teacher or none."""
    splits = loaded(folder)

    def begin(precision: str) -> Training:
        live = Teacher(built(splits), splits.classes, precision=precision) if teacher else None
        return Training([spec_of(folder, teacher=teacher, precision=precision)], splits, live)

    yield from forever(in_best_precision(begin))


def ours_with_cache(folder: Path) -> Iterator[int]:
    """Ours with the logits that an earlier run has left."""
    splits = loaded(folder)
    with ExitStack() as held:

        def begin(precision: str, epochs: int = 10_000) -> Training:
            spec = spec_of(folder, teacher=True, precision=precision, views=VIEWS, epochs=epochs)
            wanted = plan(spec, splits, ["teacher"], torch.device("cpu"))
            assert wanted is not None
            caches = CacheIndex(folder.parent / "cache", limit=2**34)
            load: Callable[[], Teacher] = lambda: Teacher(built(splits), splits.classes, precision=precision)  # noqa: E731
            return Training([spec], splits, held.enter_context(TeacherCache(wanted, caches, load)))

        earlier = begin("fp32", epochs=VIEWS)
        while earlier.step < earlier.steps:
            earlier.advance()
        held.pop_all().close()
        training = begin("fp32")
        for images in forever(training):
            assert training.teacher is not None
            assert not training.teacher.answered, "the cache was full"
            yield images


WAYS: dict[str, Callable[[Path], Iterator[int]]] = {
    "plain, labels": lambda folder: plain(folder, teacher=False),
    "plain, teacher": lambda folder: plain(folder, teacher=True),
    "ours, labels": lambda folder: ours(folder, teacher=False),
    "ours, teacher": lambda folder: ours(folder, teacher=True),
    "ours, cache": ours_with_cache,
}
AGAINST = {"ours, labels": "plain, labels", "ours, teacher": "plain, teacher", "ours, cache": "plain, teacher"}

# --- measuring --------------------------------------------------------------------------------------------------------


def work(way: str, folder: Path, asks: Connection) -> None:
    """A process: build and warm up, then work a slice of so many CPU seconds whenever it is sent their number."""
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    steps = WAYS[way](folder)
    for _ in range(3):
        next(steps)
    asks.send("ready")
    while seconds := asks.recv():
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds:
            count += next(steps)
        asks.send((time.process_time() - start) / count)


def main() -> None:
    """Measure all ways in turns; a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0, help="CPU seconds of a slice")
    given = parser.parse_args()
    context = multiprocessing.get_context("forkserver")  # imports torch once
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        make(folder, given.images, 500, 375)
        loaded(folder)
        processes: dict[str, tuple[Any, Connection]] = {}
        for way in WAYS:
            here, there = context.Pipe()
            process = context.Process(target=work, args=(way, folder, there), daemon=True)
            process.start()
            there.close()
            assert here.recv() == "ready"
            processes[way] = process, here
            print(f"{way}: warmed up", file=sys.stderr, flush=True)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        order = random.Random(0)
        for turn in range(given.rounds):
            for way in order.sample(list(WAYS), len(WAYS)):
                processes[way][1].send(given.seconds)
                seconds[way].append(processes[way][1].recv())
            print(f"round {turn + 1} of {given.rounds}", file=sys.stderr, flush=True)
        for process, pipe in processes.values():
            pipe.send(0)
            process.join()

    print(f"\n{machine.processor()}, {platform.machine()}, torch {torch.__version__}, one thread")
    print("\n| | CPU ms an image | times faster than plain |\n|---|---|---|")
    ratios: dict[str, tuple[float, float, float]] = {}
    for way, found in seconds.items():
        text = ""
        if plain_way := AGAINST.get(way):
            each = [base / own for base, own in zip(seconds[plain_way], found, strict=True)]
            ratios[way] = min(seconds[plain_way]) / min(found), min(each), max(each)
            text = "{:.2f} ({:.2f} to {:.2f})".format(*ratios[way])
        print(f"| {way} | {1000 * min(found):.1f} | {text} |")
    print(json.dumps({"seconds": seconds, "ratios": ratios, "images": given.images}))


if __name__ == "__main__":
    main()
