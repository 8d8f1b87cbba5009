"""Robustness to image corruptions: 12 corruptions of SmallAlign, at 5 severities. They are not those of ImageNet-C.

Each corruption is a transform (`smallalign_core.augment`) whose range grows with the severity; the value for an image
is sampled once, with a fixed seed. So all runs get the same corrupted pixels, and differences are paired. The correct
images of a run are cached, so that a comparison with another run does not repeat its inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.analysis.compare import digest_of, folder
from smallalign_core.data import ImageSet, Splits
from smallalign_core.metrics import Z95, wilson
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.augment import (
    Affine,
    Augment,
    Blur,
    Colour,
    Erase,
    Noise,
    Perspective,
    Posterize,
    ResizedCrop,
    Rotate,
    Shift,
)
from smallalign_core.system.files import read_array, write_array
from smallalign_core.system.resumable import Work, part_of

SEVERITIES = (1, 2, 3, 4, 5)
MOST = 1000
"""Max. images, evenly spread over the split."""
BATCH = 250
SEED = 0
FORMAT = 1
"""Version of the corruptions; increased when one changes, so that runs are evaluated again."""
NAME = "SmallAlign corruption suite (12 corruptions, not ImageNet-C)"


CORRUPTIONS: dict[str, Callable[[int, int], Augment]] = {
    "shift": lambda s, side: Shift(pixels=max(1, round(s / 5 * min(64, 0.25 * side)))),
    "rotate": lambda s, _: Rotate(degrees=9.0 * s),
    "scale": lambda s, _: Affine(translate=0, scale=0.1 * s, shear=0),
    "shear": lambda s, _: Affine(translate=0, scale=0, shear=8.0 * s),
    "perspective": lambda s, _: Perspective(distortion=0.15 * s, probability=1),
    "zoom": lambda s, _: ResizedCrop(smallest=1 - 0.15 * s, aspect=1.33),
    "brightness": lambda s, _: Colour(brightness=0.18 * s, contrast=0),
    "contrast": lambda s, _: Colour(brightness=0, contrast=0.18 * s),
    "blur": lambda s, side: Blur(sigma=0.4 + s / 5 * (min(10.0, 0.15 * side) - 0.4), probability=1),
    "noise": lambda s, _: Noise(amount=0.06 * s, probability=1),
    "erase": lambda s, _: Erase(largest=0.1 * s, probability=1),
    "posterize": lambda s, _: Posterize(bits=6 - s, probability=1),
}
"""Name to a transform for a severity and an image side in pixels. An image gets a value up to its maximum."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Level:
    """One run on one corruption at one severity: its accuracy (interval of Wilson, 1927)."""

    corruption: str
    severity: int
    accuracy: Estimate


@dataclass(frozen=True)
class RunRobustness:
    """One run under all corruptions.

    Attributes:
        clean: accuracy on the same images without corruption (interval of Wilson, 1927).
        mean: the mean accuracy over all corruptions and severities. Its interval is over images, each with its mean
            over all corruptions: what corruptions do to one image is not independent.
        change: `mean` minus that of the first run, paired by image; None for the first.
        by_severity: the mean over corruptions at each severity, with intervals as that of `mean`.
        levels: corruption by corruption, each severity by severity.
    """

    id: str
    clean: Estimate
    mean: Estimate
    change: Estimate | None
    by_severity: list[Estimate]
    levels: list[Level]


@dataclass(frozen=True)
class Robustness:
    """The report on several runs; the others are compared with the first.

    Attributes:
        images: number of corrupted images, of `of` in the split.
        seed: seed of the corruptions.
    """

    split: str
    images: int
    of: int
    seed: int
    name: str
    corruptions: tuple[str, ...]
    runs: list[RunRobustness]


def words(found: Robustness, names: Sequence[str]) -> str:
    """A report as text; `names` are display names of the runs."""

    def points(one: Estimate) -> str:
        return f"{100 * one.value:+.2f} points [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"

    lines = [f"{found.name}: {found.images:,} {found.split} images, 5 severities of each"]
    for name, run in zip(names, found.runs, strict=True):
        clean, mean = run.clean, run.mean
        worst = min(run.levels, key=lambda level: level.accuracy.value)
        lines.append(
            f"{name}: clean {clean.value:.2%} [{clean.low:.2%}, {clean.high:.2%}], under corruption "
            f"{mean.value:.2%} [{mean.low:.2%}, {mean.high:.2%}]"
            + (f", {points(run.change)} against {names[0]}" if run.change else "")
            + f"; worst {worst.corruption} {worst.severity}: {worst.accuracy.value:.2%}"
        )
    return "\n".join(lines)


def sample(images: ImageSet) -> ImageSet:
    """The images that are corrupted: all, or 1,000 evenly spread ones."""
    if len(images) <= MOST:
        return images
    return images.take(np.linspace(0, len(images) - 1, MOST).astype(np.int64))


def corrupted(images: ImageSet, corruption: str, severity: int) -> Callable[[NDArray[np.int64]], Any]:
    """A function of rows that gives them corrupted: uint8 tensor [len(rows), C, H, W]; the same at every call."""
    from smallalign_core.augment import Views

    part = CORRUPTIONS[corruption](severity, min(images.shape[1:]))
    views = Views(images, (part,), batch=BATCH, seed=SEED)
    return lambda rows: views.augmented(rows, np.zeros(len(rows), np.int64))


def assess(runs: Sequence[Run], splits: Splits, split: str, store: Store) -> Work[Robustness]:
    """Evaluate all of `runs` on the corrupted images of a split; yields progress in 0..1.

    A test-set evaluation is counted once, and only if a run had to be evaluated.

    Raises:
        BadInput: a run has other classes. BadModel: its weights cannot be read.
    """
    looked, right = False, []
    for place, run in enumerate(runs):
        known = kept(run, splits, split, store)
        if known is None:
            looked = True
            known = yield from part_of(_ask(run, splits, split, store), place, len(runs))
        right.append(known)
    if looked and split == "test":
        store.count_test_look(splits.fingerprint, " ".join(run.id for run in runs), "robustness")
    return _report([run.id for run in runs], right, split, len(getattr(splits, split)))


def _file(run: Run, splits: Splits, split: str, store: Store) -> Path:
    return folder(store) / f"{run.id}.{digest_of(run)}-{splits.fingerprint[:12]}-{split}-corrupted-{FORMAT}.npy"


def kept(run: Run, splits: Splits, split: str, store: Store) -> NDArray[np.bool_] | None:
    """Bool [1 + 60, N]: correct images of a run, clean and corrupted; None if not evaluated yet."""
    return read_array(_file(run, splits, split, store))


def _ask(run: Run, splits: Splits, split: str, store: Store) -> Work[NDArray[np.bool_]]:
    """As `kept`, computed now."""
    import torch

    from smallalign_core.runs import imported
    from smallalign_core.system.batching import in_batches

    model = imported.classifier(run, splits.classes)
    images = sample(getattr(splits, split))
    starts = range(0, len(images), BATCH)
    conditions = [None, *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    right = np.zeros((len(conditions), len(images)), bool)
    for number, condition in enumerate(conditions):
        shown = corrupted(images, *condition) if condition else lambda rows: torch.from_numpy(images.images[rows])
        for start in starts:
            rows = np.arange(start, min(start + BATCH, len(images)))
            said = in_batches(model, shown(rows)).argmax(1).numpy()
            right[number, rows] = said == images.labels[rows]
            yield (number * len(starts) + start // BATCH + 1) / (len(conditions) * len(starts))
    write_array(_file(run, splits, split, store), right)
    return right


def _report(ids: Sequence[str], right: Sequence[NDArray[np.bool_]], split: str, of: int) -> Robustness:
    """The report from the correct images of each run: [1 + 60, N]."""
    grid = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    first, runs = right[0][1:].mean(0), []
    for place, (id, hits) in enumerate(zip(ids, right, strict=True)):
        under = hits[1:].mean(0)
        at_severity = hits[1:].reshape(len(CORRUPTIONS), len(SEVERITIES), -1).mean(0)
        runs.append(
            RunRobustness(
                id,
                clean=_share(hits[0]),
                mean=_mean(under, 0.0),
                change=_mean(under - first, -1.0) if place else None,
                by_severity=[_mean(row, 0.0) for row in at_severity],
                levels=[Level(*at, _share(row)) for at, row in zip(grid, hits[1:], strict=True)],
            )
        )
    return Robustness(split, right[0].shape[1], of, SEED, NAME, tuple(CORRUPTIONS), runs)


def _share(hits: NDArray[np.bool_]) -> Estimate:
    return Estimate(float(hits.mean()), *wilson(int(hits.sum()), len(hits)))


def _mean(values: NDArray[np.float64], least: float) -> Estimate:
    """A mean over images with its normal 95% interval, kept within `least` and 1."""
    middle = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 1.0
    return Estimate(middle, max(least, middle - half), min(1.0, middle + half))
