"""What does each class balance do to a long-tailed training set? Paired seeds, on the standard test images.

    python benchmarks/imbalance.py [--most 600] [--factor 100] [--seeds 3] [--epochs 20] [--to FOLDER]

Fashion-MNIST with an exponential profile as in Cui et al. (2019): class c has `most` x `factor`^(-c/9) training images,
the first of each in the order of the files. Test are the 10,000 standard images, 1,000 of each class, so that accuracy
and macro recall are equal there; ECE shows what a balance does to probabilities on classes of equal size. One CNN of
width 8, from labels, and distilled (`loss: kd` with automatic temperature and weight) from a ResNet of width 16 that
was trained on the same images without a balance. Shown are means and standard deviations over seeds, and the paired
difference from the first row with its 95% t interval.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[1]))

import smallalign_core as sa

FILES = Path("/usr/share/datasets/fashion-mnist")
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "none, `select: macro`": {"select": "macro"},
    "class_weights": {"balance": "class_weights"},
    "class_weights, power 0.5": {"balance": {"kind": "class_weights", "power": 0.5}},
    "effective_number, β 0.999": {"balance": "effective_number"},
    "sampling, q 0": {"balance": "sampling"},
    "sampling, q 0.5": {"balance": {"kind": "sampling", "q": 0.5}},
    "logit_adjustment": {"balance": "logit_adjustment"},
}
DISTILLED = ("none", "class_weights", "sampling, q 0", "logit_adjustment")


def long_tail(folder: Path, most: int, factor: float) -> list[int]:
    """Write the data set as IDX files; returns the training images of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (gzip.decompress((FILES / f"{name}.gz").read_bytes()) for name in TRAIN)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    counts = [round(most * factor ** (-place / 9)) for place in range(10)]
    rows = np.sort(np.concatenate([np.flatnonzero(classes == place)[:count] for place, count in enumerate(counts)]))
    size = np.array([len(rows)], ">u4").tobytes()
    (folder / TRAIN[0]).write_bytes(images[:4] + size + images[8:16] + pixels[rows].tobytes())
    (folder / TRAIN[1]).write_bytes(labels[:4] + size + classes[rows].tobytes())
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(FILES / name, folder / name)
    return counts


def main() -> None:
    """Train all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=600)
    parser.add_argument("--factor", type=float, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--to", type=Path, default=Path(tempfile.gettempdir()) / "imbalance")
    given = parser.parse_args()
    counts = long_tail(given.to / "data", given.most, given.factor)
    print(f"training images per class: {counts}, with those of validation", flush=True)
    common = {"data": str(given.to / "data"), "epochs": given.epochs, "batch": 64}
    student = {"kind": "cnn", "width": 8}

    def fit(**fields: Any) -> dict[str, Any]:
        return sa.fit({**common, "network": student, **fields}, store=given.to / "models").result or {}

    teacher = fit(network={"kind": "resnet", "width": 16})
    print(f"teacher: {teacher['test']['macro_recall']:.2%}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for taught in (False, True):
        for name in DISTILLED if taught else ARMS:
            fields = ARMS[name] | ({"teacher": teacher["id"]} if taught else {})
            label = f"distilled: {name}" if taught else name
            found[label] = [fit(**fields, seed=seed) for seed in range(given.seeds)]
            _show(label, found)
    scores = {label: [run["test"] for run in runs] for label, runs in found.items()}
    (given.to / "imbalance.json").write_text(json.dumps({"counts": counts, "scores": scores}, indent=1))


def _show(label: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """One row of a Markdown table."""
    if len(found) == 1:
        print("| balance | macro recall | difference | least recall | macro F1 | test ECE | validation accuracy |")
        print("|---|---|---|---|---|---|---|")
    runs = found[label]
    macro, first = ([100 * run["test"]["macro_recall"] for run in some] for some in (runs, found["none"]))
    gain = ""
    if label != "none" and len(runs) > 1:
        change = np.subtract(macro, first)
        half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
        gain = f"{change.mean():+.1f} ({change.mean() - half:+.1f} to {change.mean() + half:+.1f})"
    mean = {
        name: 100 * float(np.mean([run["test"][name] for run in runs])) for name in ("worst_recall", "macro_f1", "ece")
    }
    validation = 100 * float(np.mean([run["val"]["accuracy"] for run in runs]))
    spread = f" ± {np.std(macro, ddof=1):.1f}" if len(runs) > 1 else ""
    cells = [f"{np.mean(macro):.1f}{spread}", gain, *(f"{mean[name]:.1f}" for name in mean), f"{validation:.1f}"]
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
