"""The ways of distilling that `distil.py` compares: the tutorial's, torchdistill's and ours, on the same work.

Each is a generator that is built and then takes a step whenever it is asked for the next number of images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import models, transforms

sys.path.append(str(Path(__file__).resolve().parents[1]))

from smallalign_core import data, networks
from smallalign_core.data import ImageSet, Splits
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.system import machine
from smallalign_core.training import precision_tuning, teacher_loading
from smallalign_core.training.loop import Training, statistics as channels
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, TeacherSource, plan

BATCH, TEMPERATURE, WEIGHT, RATE, PADDING, DEGREES, VIEWS = 128, 4.0, 0.9, 0.01, 2, 10, 2


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
    return data.load(DataSpec(source="fashion-mnist", images=images), Store().data_cache)


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
        pixels = np.asarray(images.images[:]).transpose(0, 2, 3, 1)
        self.images = np.ascontiguousarray(pixels[..., 0] if images.shape[0] == 1 else pixels)
        self.labels = images.labels
        height, width = images.shape[1:]
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
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])


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


def tutorial_steps(
    teacher: nn.Module,
    student: nn.Module,
    splits: Splits,
    *,
    device: str = "cpu",
    batch: int = BATCH,
    workers: int = 0,
) -> Iterator[int]:
    """The tutorial's loop, without end."""
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    how: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device != "cpu"}
    batches = DataLoader(Usual(splits.train), batch_size=batch, shuffle=True, drop_last=True, **how)
    while True:
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
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
    yield from torchdistill_steps(*usual_bodies(pair, splits), splits)


def torchdistill_steps(
    teacher: nn.Module, student: nn.Module, splits: Splits, *, on: str = "cpu", batch: int = BATCH, workers: int = 0
) -> Iterator[int]:
    """The loop of torchdistill's example, without end."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    paths = {"student_module_path": ".", "student_module_io": "output"}
    paths |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    matched = {**paths, "temperature": TEMPERATURE, "alpha": 1 - WEIGHT, "reduction": "batchmean"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": matched}, "weight": 1.0}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": batch, "num_workers": workers, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9, "nesterov": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    device = torch.device(on)
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
            **with_batch(BATCH),
            "schedule": {"kind": "constant", "warmup": 0},
            "epochs": 10_000,
            "precision": "fp32",
            **fields,
        }
    )


def with_batch(batch: int) -> dict[str, Any]:
    """Fields of a spec: the batch, and a learning rate in proportion to it (Goyal et al., 2017)."""
    return {"batch": batch, "optimizer": {"kind": "sgd", "lr": RATE * batch / BATCH, "weight_decay": 0}}


def in_best_precision(begin: Callable[[str], Training]) -> Training:
    """What `auto` makes of it."""
    raced = {name: begin(name) for name in ("fp32", "bf16")}
    return raced[precision_tuning.chosen(precision_tuning.race(raced))]


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


def in_integers(whole: Classifier, pair: Pair, splits: Splits) -> Classifier:
    """A teacher of 8-bit integers, run by ONNX Runtime: what `answers: int8` makes of it."""
    content, _ = teacher_loading.as_graph(whole, our_spec(pair, answers="int8"), splits)
    return teacher_loading.by_graph(whole, content)


def ours_in_integers(pair: Pair, splits: Splits, _: Path) -> Iterator[int]:
    """Ours with a live teacher of 8-bit integers."""
    machine.keep_freed_memory()
    whole = in_integers(teacher_of(pair, splits), pair, splits)

    def begin(precision: str) -> Training:
        return Training([our_spec(pair, precision=precision)], splits, Teacher(whole, splits.classes))

    yield from forever(in_best_precision(begin))


def ours_with_cache(pair: Pair, splits: Splits, folder: Path, batch: int = BATCH) -> Iterator[int]:
    """Ours with the answers that an earlier run has left."""
    machine.keep_freed_memory()
    with ExitStack() as held:

        def begin(precision: str, epochs: int = 10_000) -> Training:
            spec = our_spec(pair, precision=precision, views=VIEWS, epochs=epochs, **with_batch(batch))
            wanted = plan(spec, splits, [f"teacher {pair.teacher}"], torch.device("cpu"))
            assert wanted is not None

            def load() -> Teacher:
                return Teacher(teacher_of(pair, splits), splits.classes, precision=precision)

            cache: TeacherSource = held.enter_context(TeacherCache(wanted, CacheIndex(folder, limit=2**34), load))
            return Training([spec], splits, cache)

        alone = {"teacher": None, "loss": None, **with_batch(batch)}  # the teacher of a full cache is not run
        raced = {name: Training([our_spec(pair, precision=name, **alone)], splits) for name in ("fp32", "bf16")}
        precision = precision_tuning.chosen(precision_tuning.race(raced))
        earlier = begin(precision, epochs=VIEWS)
        while earlier.step < earlier.steps:
            earlier.advance()
        held.pop_all().close()
        training = begin(precision)
        teacher = training.teacher
        for images in forever(training):
            assert teacher is not None
            assert not teacher.answered, "the cache was full"
            yield images


WAYS: dict[str, Callable[[Pair, Splits, Path], Iterator[int]]] = {
    "tutorial": tutorial,
    "kept memory": tutorial_keeping_memory,
    "torchdistill": torchdistill,
    "ours": ours,
    "ours, int8": ours_in_integers,
    "ours, cache": ours_with_cache,
}
OURS = ("ours", "ours, int8", "ours, cache")


def larger(batch: int) -> str:
    """The name of `ours, cache` with another batch: not the same work, so it is no way like the others."""
    return f"ours, cache, {batch}"


def way_of(name: str) -> Callable[[Pair, Splits, Path], Iterator[int]]:
    """The way of that name."""
    return WAYS[name] if name in WAYS else partial(ours_with_cache, batch=int(name.rpartition(" ")[2]))
