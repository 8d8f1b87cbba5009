"""What do unlabeled images add to few labeled ones? Paired seeds and draws, at equal steps.

    python benchmarks/unlabeled.py [--images 50 100 300] [--seeds 3] [--steps 600] [--to FOLDER]

Digits: of the training images, `--images` have labels, and the rest (`data.unlabeled: rest`) have none. A CNN of width
8 learns from the labels, from the labels and `digits-teacher` (`loss: kd` with weight 0.9 at T = 4), or from these and
the unlabeled images too. Batch 32, and as many steps for all. The teacher was trained with the labels of all training
images: it stands for a large model that is given, not for one of these few labels. Each seed has another draw of
labeled images. Shown are test errors in % and paired differences from the row above with 95 % t intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[1]))

import smallalign_core as sa

BATCH = 32
TAUGHT: dict[str, Any] = {"teacher": "digits-teacher", "loss": {"kind": "kd", "temperature": 4, "weight": 0.9}}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "labels": ({}, {}),
    "and teacher": ({}, TAUGHT),
    "and unlabeled images": ({"unlabeled": "rest"}, TAUGHT),
}


def main() -> None:
    """Train all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--to", type=Path, default=Path(tempfile.gettempdir()) / "unlabeled")
    given = parser.parse_args()
    teacher = sa.Store(Path(__file__).resolve().parents[1] / "models").run("digits-teacher").folder
    every = len(sa.load("digits", store=given.to).train)
    found: dict[str, list[float]] = {}
    print("| labeled images | learns from | test errors in % | difference |\n|---|---|---|---|")
    for images in given.images:
        before: list[float] = []
        for name, (more, fields) in ARMS.items():
            pool = every if more else images
            now = []
            for seed in range(given.seeds):
                spec = {
                    "data": {"source": "digits", "images": images, "draw": seed, **more},
                    "network": {"kind": "cnn", "width": 8},
                    "epochs": max(1, round(given.steps * BATCH / pool)),
                    "batch": BATCH,
                    "seed": seed,
                    **fields,
                    **({"teacher": str(teacher)} if fields else {}),
                }
                result = sa.fit(spec, store=given.to).result or {}
                now.append(100 * (1 - result["test"]["accuracy"]))
            cells = [f"{np.mean(now):.1f} ± {np.std(now, ddof=1):.1f}", _change(now, before) if before else ""]
            print(f"| {images} | {name} | {' | '.join(cells)} |", flush=True)
            found[f"{images} {name}"] = before = now
    (given.to / "unlabeled.json").write_text(json.dumps(found, indent=1))


def _change(now: list[float], before: list[float]) -> str:
    """The mean paired difference with its 95 % t interval."""
    change = np.subtract(now, before)
    half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    return f"{change.mean():+.1f} ({change.mean() - half:+.1f} to {change.mean() + half:+.1f})"


if __name__ == "__main__":
    main()
