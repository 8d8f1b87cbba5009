"""How much faster is our loop than the usual one on the same work? Prints ratios of CPU seconds per image.

Same work: Fashion-MNIST, horizontal flip and rotation with a parameter per image, a live CNN teacher in evaluation
mode, Hinton's loss, AdamW, batch 128, one thread. The usual loop is what tutorials show: a Dataset that augments PIL
images one by one, a DataLoader, fp32, memory as it comes. Both take turns in slices, so that a noisy machine is noisy
for both; the minimum over slices is what the code costs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smallalign_core import data, networks
from smallalign_core.data import ImageSet, Splits
from smallalign_core.spec import DataSpec, parse
from smallalign_core.teacher import Teacher
from smallalign_core.train import Training, statistics

BATCH, ROUNDS, STEPS = 128, 6, 6


class Usual(Dataset[tuple[torch.Tensor, int]]):
    """One PIL image at a time."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        mean, std = statistics(images)
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(10, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(torch.from_numpy(self.images.images[row])), int(self.images.labels[row])


def usual_loop(splits: Splits, teacher_spec: dict[str, object], student_spec: dict[str, object]) -> Callable[[], None]:
    """A step of the tutorial's loop."""
    mean, std = statistics(splits.train)

    def body(network: dict[str, object]) -> torch.nn.Module:
        spec = parse({"data": "-", "network": network}).network
        classifier = networks.build(spec, splits.classes, splits.shape, mean=mean, std=std)
        return classifier.body.to(memory_format=torch.contiguous_format)

    teacher, student = body(teacher_spec).eval(), body(student_spec).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from DataLoader(Usual(splits.train), batch_size=BATCH, shuffle=True, drop_last=True)

    source = batches()

    def step() -> None:
        images, labels = next(source)
        with torch.no_grad():
            answers = teacher(images)
        logits = student(images)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(answers / 4, 1), reduction="batchmean") * 16
        loss = 0.9 * soft + 0.1 * F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_loop(splits: Splits, teacher_spec: dict[str, object], student_spec: dict[str, object]) -> Callable[[], None]:
    """A step of ours."""
    mean, std = statistics(splits.train)
    network = parse({"data": "-", "network": teacher_spec}).network
    teacher = Teacher(networks.build(network, splits.classes, splits.shape, mean=mean, std=std), splits.classes)
    spec = parse({"data": "-", "network": student_spec, "teacher": "t", "augment": ["flip", "rotate"], "batch": BATCH})
    return Training([spec], splits, teacher).advance


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    splits = data.load(DataSpec(source="fashion-mnist"), Path("models/cache/data"))
    pairs: dict[str, tuple[dict[str, object], dict[str, object]]] = {
        "MLP 800 -> MLP 30": ({"kind": "mlp", "width": 800}, {"kind": "mlp", "width": 30}),
        "CNN 32 -> CNN 8": ({"kind": "cnn", "width": 32}, {"kind": "cnn", "width": 8}),
        "ResNet 16 -> CNN 16": ({"kind": "resnet", "width": 16}, {"kind": "cnn", "width": 16}),
    }
    found = {}
    for name, pair in pairs.items():
        loops = {"usual": usual_loop(splits, *pair), "ours": our_loop(splits, *pair)}
        best = dict.fromkeys(loops, float("inf"))
        for _ in range(ROUNDS):
            for which, step in loops.items():
                step()
                start = time.process_time()
                for _ in range(STEPS):
                    step()
                best[which] = min(best[which], (time.process_time() - start) / STEPS / BATCH * 1e6)
        found[name] = {**{k: round(v, 1) for k, v in best.items()}, "ratio": round(best["usual"] / best["ours"], 2)}
        print(
            f"{name}: usual {best['usual']:.1f} us/image, ours {best['ours']:.1f}, {best['usual'] / best['ours']:.2f}x"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
