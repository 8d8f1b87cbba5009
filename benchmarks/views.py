"""How fast are our views? Images a second for one policy against torchvision v2 and kornia, as ratios.

Same work: colour images of 32x32, uint8 in and uint8 out, batch 128, one thread: crop with padding 4, horizontal flip,
rotation by up to 15 degrees (bilinear), brightness, contrast and saturation by up to 20 %, hue by up to 0.05. Every way
draws for each image, except torchvision on the batch, which draws once a batch and so augments less; it is listed to
show what that saves. They take turns in slices, so that a noisy machine is noisy for all; the minimum over slices of
CPU time (with child processes) is what the code costs. kornia is measured where it is installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smallalign_core.augment import Views
from smallalign_core.data import ImageSet
from smallalign_core.spec import parse_policy

BATCH, ROUNDS, STEPS, IMAGES, SIDE = 128, 8, 4, 5120, 32
POLICY = parse_policy(
    [
        {"kind": "crop", "padding": 4},
        {"kind": "flip"},
        {"kind": "rotate", "degrees": 15},
        {"kind": "colour", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05},
    ]
)


def theirs() -> v2.Transform:
    """The policy in torchvision v2."""
    return v2.Compose(
        [
            v2.RandomCrop(SIDE, padding=4),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        ]
    )


class Samples(Dataset[tuple[Tensor, int]]):
    """One image at a time, as tutorials do it."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.labels = torch.from_numpy(np.asarray(images.images[:])), images.labels
        self.transform = theirs()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.images[row]), int(self.labels[row])


def ours(images: ImageSet) -> Callable[[], object]:
    """A step of ours, with the draws of a whole epoch in it as they come."""
    views, step = Views(images, POLICY, batch=BATCH, seed=0), iter(range(10**9))
    return lambda: views(next(step))


def loader(images: ImageSet, workers: int) -> Callable[[], object]:
    """A batch of a DataLoader that never ends."""

    def endless() -> Iterator[object]:
        batches = DataLoader(
            Samples(images), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        while True:
            yield from batches

    source = endless()
    return lambda: next(source)


def on_the_batch(images: ImageSet) -> Callable[[], object]:
    """Torchvision v2 on the batch: one draw for all of its images."""
    held, transform = torch.from_numpy(np.asarray(images.images[:])), theirs()
    return lambda: transform(held[torch.randint(len(held), (BATCH,))])


def with_kornia(images: ImageSet) -> Callable[[], object] | None:
    """Kornia on the batch, a draw an image; None where it is not installed."""
    try:
        import kornia.augmentation as augmentation
    except ImportError:
        return None
    held = torch.from_numpy(np.asarray(images.images[:]))
    transform = augmentation.AugmentationSequential(
        augmentation.RandomCrop((SIDE, SIDE), padding=4),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomRotation(15.0, p=1.0),
        augmentation.ColorJiggle(0.2, 0.2, 0.2, 0.05, p=1.0),
        data_keys=["input"],
    )

    def step() -> object:
        made = transform(held[torch.randint(len(held), (BATCH,))].float() / 255)
        return (made * 255).round().clamp(0, 255).to(torch.uint8)

    return step


def spent() -> float:
    """CPU seconds of this process and of its children."""
    total = time.process_time()
    for child in psutil.Process(os.getpid()).children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(IMAGES) % 10, np.arange(IMAGES).astype(np.uint64), tuple("0123456789"))
    ways = {
        "ours": ours(images),
        "torchvision v2 a sample, DataLoader 0": loader(images, 0),
        "torchvision v2 on the batch (one draw)": on_the_batch(images),
        "kornia on the batch": with_kornia(images),
    }
    best = {name: float("inf") for name, step in ways.items() if step is not None}
    for _ in range(ROUNDS):
        for name in best:
            step = ways[name]
            assert step is not None
            step()
            start = spent()
            for _ in range(STEPS):
                step()
            best[name] = min(best[name], (spent() - start) / STEPS / BATCH)
    # Workers run ahead of whoever asks, so they cannot take turns: theirs is one long slice after the others.
    step, name = loader(images, 2), "torchvision v2 a sample, DataLoader 2"
    step()
    start, count = spent(), 3 * IMAGES // BATCH
    for _ in range(count):
        step()
    best[name] = (spent() - start) / count / BATCH
    for name, seconds in best.items():
        print(
            f"{name}: {1 / seconds:,.0f} images a CPU second, {seconds * 1e6:.1f} us an image, "
            f"ours is {seconds / best['ours']:.2f}x as fast"
        )
    print(json.dumps({name: round(seconds / best["ours"], 2) for name, seconds in best.items()}))


if __name__ == "__main__":
    main()
