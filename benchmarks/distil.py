"""How much faster than the usual ways is our distillation? Ratios of CPU seconds an image, and the share of the peak.

    python benchmarks/distil.py [--pairs ...] [--rounds 6] [--seconds 0.6] [--quick]

Same work for all: Fashion-MNIST, 28x28; crop with padding 2, horizontal flip and rotation by up to 10 degrees
(bilinear), drawn for each image; batch 128; Hinton's loss at T = 4 with weight 0.9; SGD with Nesterov momentum; the
teacher in evaluation mode and without gradients. The ways:

    tutorial      what PyTorch's tutorials show: a Dataset that augments PIL images one by one, a DataLoader, fp32
    kept memory   the same; glibc is told to keep freed memory, as ours is
    torchdistill  DistillationBox of torchdistill 1.1.5 and the loop of its examples, on that Dataset. It never puts
                  the teacher into evaluation mode; that is done for it here, or batch norm would go on learning
    ours          `Training` with a live teacher; the precision is what `auto` chooses
    ours, bank    the same with two fixed views an image, whose answers (and images) an earlier run left in the bank

Each way has a process of its own, is built and warmed up, and then works only when it is its turn: slices in shuffled
order, one a round. CPU seconds are those of the process and its children, on one thread, so that neighbours cost wall
time and not figures. Ratios are of the minima over slices, and beside it the median, least and most of the rounds' own
ratios. The peak is that of the fastest of a few matrix products and convolutions, which take turns like all others.
Nobody validates or writes checkpoints in a slice.

Pairs of teacher and student: MLP 784-1200-1200-10 to MLPs 784-30-30-10 and 784-800-800-10; torchvision's ResNet-18
with a 3x3 stem of stride 1 and no first pooling (11.2 million parameters) to a CNN of 98,682. Teachers have random
weights, and batch norm has seen a few batches: speed does not depend on what they know.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models, transforms

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder

from smallalign_core import data, machine, networks, tuning  # noqa: E402
from smallalign_core.data import ImageSet, Splits  # noqa: E402
from smallalign_core.networks import Classifier  # noqa: E402
from smallalign_core.spec import DataSpec, RunSpec, parse  # noqa: E402
from smallalign_core.teacher import Bank, Shelf, Teacher, Teaching, plan  # noqa: E402
from smallalign_core.train import Training  # noqa: E402
from smallalign_core.train import statistics as channels  # noqa: E402

BATCH, TEMPERATURE, WEIGHT, RATE, PADDING, DEGREES, VIEWS = 128, 4.0, 0.9, 0.01, 2, 10, 2
PEAK = "peak"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student; a teacher of None is ResNet-18."""

    teacher: dict[str, Any] | None
    student: dict[str, Any]


PAIRS = {
    "MLP-1200 > MLP-30": Pair({"kind": "mlp", "width": 1200}, {"kind": "mlp", "width": 30}),
    "MLP-1200 > MLP-800": Pair({"kind": "mlp", "width": 1200}, {"kind": "mlp", "width": 800}),
    "ResNet-18 > CNN": Pair(None, {"kind": "cnn", "width": 16, "depth": 4}),
}
QUICK = {"MLP-64 > MLP-16": Pair({"kind": "mlp", "width": 64}, {"kind": "mlp", "width": 16})}

# --- what all ways share ----------------------------------------------------------------------------------------------


def loaded(images: int) -> Splits:
    """Fashion-MNIST, so many of its training images."""
    return data.load(DataSpec(source="fashion-mnist", images=images), Path("models/cache/data"))


def classifier(network: dict[str, Any] | None, splits: Splits) -> Classifier:
    """A classifier with random weights, equal in every process."""
    mean, std = channels(splits.train)
    if network is not None:
        spec = parse({"data": "-", "network": network}).network
        return networks.build(spec, splits.classes, splits.shape, mean=mean, std=std)
    torch.manual_seed(0)
    body = models.resnet18(num_classes=len(splits.classes))
    body.conv1 = nn.Conv2d(splits.shape[0], 64, 3, 1, 1, bias=False)
    body.maxpool = nn.Identity()
    return Classifier(body, splits.classes, splits.shape, mean, std)


def teacher_of(pair: Pair, splits: Splits) -> Classifier:
    """The pair's teacher; its batch norm has seen a few batches, or its answers would not be of this world."""
    made = classifier(pair.teacher, splits).train()
    with torch.no_grad():
        for start in range(0, 3 * 64, 64):
            made(torch.from_numpy(np.asarray(splits.train.images[start : start + 64])))
    return made.eval().requires_grad_(False)


class Usual(Dataset[tuple[Tensor, int]]):
    """One PIL image at a time."""

    def __init__(self, images: ImageSet) -> None:
        self.images = np.asarray(images.images[:])
        self.labels = images.labels
        height, width = self.images.shape[2:]
        mean, std = channels(images)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop((height, width), padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(DEGREES, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row, 0])), int(self.labels[row])


def usual_bodies(pair: Pair, splits: Splits) -> tuple[nn.Module, nn.Module]:
    """Teacher and student without our preprocessing and memory layout."""
    bodies = (teacher_of(pair, splits).body, classifier(pair.student, splits).body)
    teacher, student = (body.to(memory_format=torch.contiguous_format) for body in bodies)
    return teacher.eval(), student.train()


# --- the ways: each gives the number of images that its last step took ------------------------------------------------


def tutorial(pair: Pair, splits: Splits, _: Path) -> Iterator[int]:
    """PyTorch's tutorial."""
    teacher, student = usual_bodies(pair, splits)
    yield from tutorial_steps(teacher, student, splits)


def tutorial_steps(teacher: nn.Module, student: nn.Module, splits: Splits) -> Iterator[int]:
    """The tutorial's loop, without end."""
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches = DataLoader(Usual(splits.train), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        for images, labels in batches:
            with torch.no_grad():
                answers = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1), F.softmax(answers / TEMPERATURE, 1), reduction="batchmean"
            )
            loss = WEIGHT * TEMPERATURE**2 * soft + (1 - WEIGHT) * F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(images)


def tutorial_keeping_memory(pair: Pair, splits: Splits, folder: Path) -> Iterator[int]:
    """The tutorial with our three calls of mallopt."""
    machine.keep_freed_memory()
    yield from tutorial(pair, splits, folder)


def torchdistill(pair: Pair, splits: Splits, _: Path) -> Iterator[int]:
    """Matsubara's framework (2021), its box and the loop of its image classification example."""
    import logging

    logging.disable(logging.CRITICAL)
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    teacher, student = usual_bodies(pair, splits)
    paths = {"student_module_path": ".", "student_module_io": "output"}
    paths |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    matched = {**paths, "temperature": TEMPERATURE, "alpha": 1 - WEIGHT, "reduction": "batchmean"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": matched}, "weight": 1.0}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": 0, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9, "nesterov": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    device = torch.device("cpu")
    box = get_distillation_box(teacher, student, {"train": Usual(splits.train)}, config, device, None, False, 1)
    epoch = 0
    while True:
        box.pre_epoch_process(epoch=epoch)
        box.teacher_model.eval()
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, labels, further in log.log_every(box.train_data_loader, 10**6, ""):
            begun = time.time()
            loss = box.forward_process(images.to(device), labels.to(device), further)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            log.meters["img/s"].update(len(images) / (time.time() - begun))
            yield len(images)
        box.post_epoch_process()
        epoch += 1


def our_spec(pair: Pair, **fields: Any) -> RunSpec:
    """The work as a spec of ours."""
    augment = [{"kind": "crop", "padding": PADDING}, "flip", {"kind": "rotate", "degrees": DEGREES}]
    return parse(
        {
            "data": "fashion-mnist",
            "network": pair.student,
            "teacher": "t",
            "loss": {"kind": "kd", "temperature": TEMPERATURE, "weight": WEIGHT},
            "augment": augment,
            "optimizer": {"kind": "sgd", "lr": RATE, "weight_decay": 0},
            "schedule": {"kind": "constant", "warmup": 0},
            "batch": BATCH,
            "epochs": 10_000,
            "precision": "fp32",
            **fields,
        }
    )


def in_best_precision(begin: Callable[[str], Training]) -> Training:
    """What `auto` makes of it."""
    raced = {name: begin(name) for name in ("fp32", "bf16")}
    return raced[tuning.chosen(tuning.race(raced))]


def forever(training: Training) -> Iterator[int]:
    """Its steps."""
    while True:
        training.advance()
        yield training.views.batch


def ours(pair: Pair, splits: Splits, _: Path) -> Iterator[int]:
    """Ours with a live teacher."""
    machine.keep_freed_memory()

    def begin(precision: str) -> Training:
        teacher = Teacher(teacher_of(pair, splits), splits.classes, precision=precision)
        return Training([our_spec(pair, precision=precision)], splits, teacher)

    training = in_best_precision(begin)
    yield from forever(training)


def ours_with_bank(pair: Pair, splits: Splits, folder: Path) -> Iterator[int]:
    """Ours with the answers that an earlier run has left."""
    machine.keep_freed_memory()
    with ExitStack() as held:

        def begin(precision: str, epochs: int = 10_000) -> Training:
            spec = our_spec(pair, precision=precision, views=VIEWS, epochs=epochs)
            wanted = plan(spec, splits, [f"teacher {pair.teacher}"], torch.device("cpu"))
            assert wanted is not None

            def load() -> Teacher:
                return Teacher(teacher_of(pair, splits), splits.classes, precision=precision)

            bank: Teaching = held.enter_context(Bank(wanted, Shelf(folder, limit=2**34), load))
            return Training([spec], splits, bank)

        raced = {name: begin(name) for name in ("fp32", "bf16")}
        precision = tuning.chosen(tuning.race(raced))
        earlier = begin(precision, epochs=VIEWS)
        while earlier.step < earlier.steps:
            earlier.advance()
        held.pop_all().close()
        training = begin(precision)
        asked = training.teacher
        for images in forever(training):
            assert asked is not None
            assert not asked.answered, "the bank was full"
            yield images


WAYS: dict[str, Callable[[Pair, Splits, Path], Iterator[int]]] = {
    "tutorial": tutorial,
    "kept memory": tutorial_keeping_memory,
    "torchdistill": torchdistill,
    "ours": ours,
    "ours, bank": ours_with_bank,
}
OURS = ("ours", "ours, bank")

# --- measuring --------------------------------------------------------------------------------------------------------


def spent() -> float:
    """CPU seconds of this process and of its children."""
    mine = psutil.Process()
    times = [mine.cpu_times(), *(child.cpu_times() for child in mine.children(recursive=True))]
    return sum(one.user + one.system for one in times) if len(times) > 1 else time.process_time()


def work(way: str, pair: Pair, images: int, folder: Path, asks: Connection) -> None:
    """A process: build and warm up, then work a slice of so many CPU seconds whenever asked."""
    torch.set_num_threads(1)
    if way == PEAK:
        kernels = peaks()
        asks.send("ready")
        while seconds := asks.recv():
            asks.send({name: fastest(kernel, flops, seconds) for name, (kernel, flops) in kernels.items()})
        return
    steps = WAYS[way](pair, loaded(images), folder)
    warm = time.process_time()
    for count, _ in enumerate(steps):
        if count >= 3 and (count >= 12 or time.process_time() - warm > 4):
            break
    asks.send("ready")
    while seconds := asks.recv():
        next(steps)
        begun, count = spent(), 0
        while spent() - begun < seconds:
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
    with FlopCounterMode(display=False) as asked, torch.no_grad():
        teacher_of(pair, splits)(images)
    answering = asked.get_total_flops() * BATCH / (BATCH + 3 * 64)  # the batches of its batch norm were counted too
    with FlopCounterMode(display=False) as asked:
        classifier(pair.student, splits).train()(images).sum().backward()
    return answering / BATCH, asked.get_total_flops() / BATCH


def duel(pair: Pair, asked: argparse.Namespace) -> dict[str, Any]:
    """All ways in turns."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for way in (*asked.ways, PEAK):
            lines[way], theirs = context.Pipe()
            process = context.Process(target=work, args=(way, pair, asked.images, Path(folder), theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            lines[way].recv()  # one after the other: fillings of a bank and races are slow enough alone
        slices: dict[str, list[Any]] = {way: [] for way in lines}
        for _ in range(asked.rounds):
            for way in random.sample(list(lines), len(lines)):
                lines[way].send(asked.seconds)
                slices[way].append(lines[way].recv())
        for line in lines.values():
            line.send(0)
        for process in processes:
            process.join()
    rounds = slices.pop(PEAK)
    peak = {name: max(one[name] for one in rounds) for name in rounds[0]}
    answering, learning = operations(pair, loaded(asked.images))
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
                if other not in OURS
            }
            for mine in OURS
            if mine in best
        },
        "share of peak": {
            way: (learning + (0 if way == OURS[1] else answering)) / one / max(peak.values())
            for way, one in best.items()
        },
        "peak GFLOP/s": {name: one / 1e9 for name, one in peak.items()},
        "MFLOP an image": {"teacher": answering / 1e6, "student": learning / 1e6},
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print what was measured of one pair."""
    print(f"\n{name}: peak {', '.join(f'{key} {one:.0f}' for key, one in found['peak GFLOP/s'].items())} GFLOP/s")
    for way, one in found["us an image"].items():
        share = found["share of peak"][way]
        print(f"  {way:<14}{one:>10.1f} us an image{share:>8.0%} of the peak", end="")
        for other, times in found["times"].get(way, {}).items():
            low, middle, high = times["rounds"][0], statistics.median(times["rounds"]), times["rounds"][-1]
            print(f"   {times['minima']:.1f}x {other} (rounds {middle:.1f} [{low:.1f} to {high:.1f}])", end="")
        print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--images", type=int, default=12_000, help="training images, before validation is held out")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.6, help="CPU seconds of a slice, at least one step")
    parser.add_argument("--quick", action="store_true", help="does everything work? Tiny networks, short slices")
    asked = parser.parse_args()
    pairs = {name: PAIRS[name] for name in asked.pairs}
    if asked.quick:
        pairs, asked.images, asked.rounds, asked.seconds = QUICK, 1000, 2, 0.05
    loaded(asked.images)  # decoded once, before there are many
    found = {}
    for name, pair in pairs.items():
        found[name] = duel(pair, asked)
        show(name, found[name])
    load = os.getloadavg()[0]
    print(f"\n{machine.processor()}, torch {torch.__version__}, Python {platform.python_version()}, load {load:.1f}")
    json.dump(found, sys.stdout)
    print()


if __name__ == "__main__":
    main()
