"""What `quality` finds of known dirt, and whether automatic cleaning helps.

    python benchmarks/quality.py labels [--data digits] [--draws 6] [--noise 0.1] [--teacher RUN --store DIR]
    python benchmarks/quality.py near [--data digits] [--copies 300]
    python benchmarks/quality.py cleaning [--data digits] [--draws 8]

Labels: precision and recall of what is suspected, and of what is sure, where a share of the training labels is wrong.
Near: how many altered copies are found, and what else is. Cleaning: the test error of a logistic regression, in points,
before and after dropping what is sure, on draws of several sizes, with and without wrong labels.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.analysis.data_quality import _near_duplicates
from smallalign_core.data import ImageSet
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec
from smallalign_core.system import resumable

WAYS = ("jpeg 95", "jpeg 90", "jpeg 75", "jpeg 50", "shift", "noise", "dim")
SIZES = (75, 100, 150, 200, 300, 600, 1200, 3000)
MOST_TESTED = 3000


def wrong_ids(store: Store, spec: DataSpec) -> set[int]:
    """The ids of the training images that `noise` mislabelled."""
    clean = data.load(spec.model_copy(update={"noise": 0.0}), store.data_cache).train
    noisy = data.load(spec, store.data_cache).train
    return set(clean.ids[clean.labels != noisy.labels].tolist())


def labels(store: Store, source: str, draws: int, noise: float, teacher: str | None) -> None:
    """Print what is found of wrong labels."""
    rows = []
    for draw in range(1, draws + 1):
        spec = DataSpec(source=source, noise=noise, draw=draw)
        report = data_quality.run_check(store, spec, method="teacher" if teacher else "pixels", teacher=teacher)
        wrong, clean = wrong_ids(store, spec), data.load(DataSpec(source=source), store.data_cache).train
        row = []
        for only_sure in (False, True):
            found = {int(one.id, 16) for one in report.label_issues if one.sure or not only_sure}
            row += [len(found & wrong) / max(1, len(found)), len(found & wrong) / max(1, len(wrong))]
        right = [
            one.suggested == clean.classes[clean.labels[one.row]]
            for one in report.label_issues
            if int(one.id, 16) in wrong
        ]
        rows.append([*row, float(np.mean(right)) if right else 0.0])
        print(f"draw {draw}: precision {row[0]:.3f} recall {row[1]:.3f}; sure {row[2]:.3f} {row[3]:.3f}", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"mean of {draws}: precision {mean[0]:.3f} recall {mean[1]:.3f}; sure {mean[2]:.3f} {mean[3]:.3f}; ", end="")
    print(f"suggested label right {mean[4]:.1%}; {report.method}")


def altered(image: NDArray[np.uint8], way: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image [H, W] that still shows the same."""
    if way == "shift":
        return np.roll(np.pad(image, 1), rng.choice([-1, 1]), axis=int(rng.integers(2)))[1:-1, 1:-1]
    if way == "noise":
        return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    if way == "dim":
        return (image * 0.8).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(image).save(held, "JPEG", quality=int(way.split()[1]))
    return np.asarray(Image.open(held))


def near(store: Store, source: str, copies: int) -> None:
    """Print what is found of altered copies."""
    train, rng = data.load(DataSpec(source=source), store.data_cache).train, np.random.default_rng(0)
    train = train.take(np.arange(min(len(train), 12_000)))

    def found(pixels: NDArray[np.uint8]) -> set[tuple[int, int]]:
        images = ImageSet(pixels, np.zeros(len(pixels), np.int64), np.arange(len(pixels), dtype=np.uint64), ("a",))
        one, other, _ = resumable.finish(
            _near_duplicates.near_duplicates(resumable.finish(_near_duplicates.thumbnails([images])), images.ids)
        )
        return set(zip(one.tolist(), other.tolist(), strict=True))

    natural, rows = found(train.images[:]), rng.choice(len(train), copies, replace=False)
    print(f"{len(train)} images as they are: {len(natural)} pairs")
    for way in WAYS:
        made = np.array([altered(train.images[row][0], way, rng) for row in rows])[:, None]
        put = {(int(row), len(train) + place) for place, row in enumerate(rows)}
        got = found(np.concatenate([train.images[:], made]))
        twins = {row for pair in natural for row in pair}
        others = {pair for pair in got - put - natural if not twins & {pair[0], *rows[[max(0, pair[1] - len(train))]]}}
        print(f"{way}: {len(got & put)} of {copies} copies found, {len(others)} other pairs", flush=True)


def cleaning(store: Store, source: str, draws: int) -> None:
    """Print what automatic cleaning does to a test error."""
    splits = data.load(DataSpec(source=source), store.data_cache)
    test = splits.test.take(np.arange(min(len(splits.test), MOST_TESTED)))

    def flat(images: ImageSet) -> NDArray[np.float64]:
        return images.images[:].reshape(len(images), -1) / 255.0

    def error(images: ImageSet) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 300 iterations are what it gets
            model.fit(flat(images), images.labels)
        return 100 * float((model.predict(flat(test)) != test.labels).mean())

    for noise in (0.1, 0.0):
        for size in (size for size in SIZES if size <= len(splits.train)):
            rows = []
            for draw in range(1, draws + 1):
                spec = DataSpec(source=source, images=size, draw=draw, noise=noise)
                images, wrong = data.load(spec, store.data_cache).train, wrong_ids(store, spec)
                made = resumable.finish(data_quality.automatic(images))
                dropped = {one for one, decision in made.by_image.items() if decision.what == "drop"}
                before, after = error(images), error(data.decided(images, made))
                right = len(dropped & wrong) / max(1, len(dropped))
                rows.append((before, after, after - before, len(dropped) / size, right))
            mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)[2] / np.sqrt(draws)
            half = float(student_t.ppf(0.975, draws - 1)) * spread
            told = f"error {mean[0]:.2f} to {mean[1]:.2f}, {mean[2]:+.2f} ± {half:.2f} points"
            share = f"dropped {mean[3]:.1%}, of which wrong {mean[4]:.0%}"
            print(f"noise {noise:g}, {size} images: {told}; {share}", flush=True)


def main() -> None:
    """Read the command line and run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="labels", choices=["labels", "near", "cleaning"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--draws", type=int, default=0, help="6 for labels, 8 for cleaning")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--teacher", default=None)
    parser.add_argument("--store", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given.store or Path(folder))
        if given.what == "labels":
            labels(store, given.data, given.draws or 6, given.noise, given.teacher)
        elif given.what == "near":
            near(store, given.data, given.copies)
        else:
            cleaning(store, given.data, given.draws or 8)


if __name__ == "__main__":
    main()
