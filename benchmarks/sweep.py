"""A quick scaling study by our driver, against the same runs as separate `train` processes.

    python benchmarks/sweep.py [--alone 10] [--seed 0]

72 runs on digits: 3 widths x 3 numbers of images x 4 replicates x (baseline, distillation). The driver trains all of
them, its imports and preparation counted. Of the same runs a random sample, a few of each size as chance has it, is
trained by a process each, as a user without the study would, one after the other into a store of its own; what a run
takes there times 72 is the other side. Prints the ratio (less is better) and both sides; one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from smallalign_core.runs.store import Store
from smallalign_core.spec import RunSpec, to_yaml
from smallalign_core.studies import lifecycle

ROOT = Path(__file__).resolve().parents[1]
STUDY = {
    "data": "digits",
    "network": {"kind": "cnn", "width": 8, "depth": 2},
    "teacher": "digits-teacher",
    "recipes": ["baseline", "distil"],
    "batch": 64,
    "epochs": 10,
    "precision": "fp32",
    "preset": "quick",
}


def timed(*arguments: object) -> float:
    """Wall-clock seconds of our command line in a process of its own."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "smallalign_core", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - start


def measure(alone: int, seed: int, study: dict[str, object], place: Path) -> dict[str, float]:
    """Both sides in one run: half of the sample before the study and half after it, so that load meets both."""
    file, ours, theirs = place / "study.yaml", place / "ours", place / "theirs"
    file.write_text(yaml.safe_dump(study))
    timed("scale", file, "--queue", "--store", ours)  # what is wanted, nothing trained
    store = Store(ours)
    (found,) = lifecycle.listing(store)
    lifecycle.pause(store, found)
    runs = found.wanted(store)
    chosen = random.Random(seed).sample(runs, alone)
    seconds: list[float] = []

    def separately(some: list[RunSpec]) -> None:
        for run in some:
            spec = place / "run.yaml"
            spec.write_text(to_yaml(run))
            seconds.append(timed("train", spec, "--store", theirs))

    separately(chosen[: alone // 2])
    together = timed("scale", file, "--store", ours)
    separately(chosen[alone // 2 :])
    same = sum(
        (store.find(run).result or {})["weights_sha256"] == (Store(theirs).find(run).result or {})["weights_sha256"]  # type: ignore[union-attr]
        for run in chosen
    )
    each = sum(seconds) / len(seconds)
    return {
        "runs": len(runs),
        "sample": alone,
        "equal_weights": same,
        "ours_seconds": round(together, 1),
        "separate_seconds": round(each * len(runs), 1),
        "ratio": round(together / (each * len(runs)), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, default=10, help="runs to train separately")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given.alone, given.seed, STUDY, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
