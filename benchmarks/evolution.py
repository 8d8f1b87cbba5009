"""Does an evolution strategy help where gradients lie? Two-bit students on digits, and a small one without gradients.

Every arm is an ordinary run. For each width: a student of 2 bits learns by straight-through gradients (AdamW, the best
of three rates by validation, for each seed anew), then goes on from those very weights, either with SNES on the rounded
network or with the same gradients (again the best of three rates) for about as many processor seconds; both are
printed. All choices are made on validation; differences are paired by seed, with 95 % t intervals. A quarter of the
training images validates.

    python benchmarks/evolution.py [--seeds 6] [--widths 8,16] [--store FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smallalign_core.runs.store import Run, Store
from smallalign_core.service import worker
from smallalign_core.spec import parse
from smallalign_core.training.resolve import resolve

RATES = (0.002, 0.01, 0.03)
SHORT, LONG, GENERATIONS = 100, 500, 100
"""Epochs: of the first training, of going on with gradients, and of SNES."""
SNES = {"kind": "snes", "sigma": 0.05}


class Arms:
    """Runs in a store, with the processor seconds that this process spent on each."""

    def __init__(self, store: Store, width: int, seed: int) -> None:
        self.store, self.fixed = store, {"network": {"kind": "mlp", "width": width, "depth": 1}, "seed": seed}
        self.seconds = 0.0

    def run(self, **fields: Any) -> Run:
        """Train an arm unless it is there."""
        spec = {"data": {"source": "digits", "validation": 0.25}, **self.fixed, **fields}
        run = self.store.create(resolve(self.store, parse(spec)))
        begun = time.process_time()
        worker.execute(run, self.store, device="cpu")
        self.seconds += time.process_time() - begun
        return run

    def best(self, **fields: Any) -> Run:
        """The best of three rates by validation; `seconds` are those of one."""
        before = self.seconds
        runs = [self.run(optimizer={"kind": "adamw", "lr": rate}, **fields) for rate in RATES]
        self.seconds = before + (self.seconds - before) / len(RATES)
        return max(runs, key=lambda run: (accuracy(run, "val"), -(run.result or {})["val"]["nll"]))


def accuracy(run: Run, split: str = "test") -> float:
    """Percent right."""
    return 100 * float((run.result or {})[split]["accuracy"])


def paired(name: str, ours: list[float], theirs: list[float]) -> str:
    """The mean of differences with its 95 % t interval."""
    differences = np.subtract(ours, theirs)
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return f"{name}: {mean:+.2f} points, 1 seed: not evidence"
    far = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / count**0.5)
    verdict = "within noise" if abs(mean) <= far else "better" if mean > 0 else "worse"
    wins = int((differences > 0).sum())
    return f"{name}: {mean:+.2f} points [{mean - far:+.2f}, {mean + far:+.2f}], up on {wins} of {count}: {verdict}"


def few_bits(store: Store, width: int, seeds: int, bits: int) -> None:
    """Compare the two ways to go on."""
    found: dict[str, list[float]] = {"gradients": [], "gradients again": [], "then SNES": []}
    spent: dict[str, list[float]] = {name: [] for name in found}
    for seed in range(seeds):
        arms = Arms(store, width, seed)

        def note(name: str, run: Run, arms: Arms = arms) -> Run:
            found[name].append(accuracy(run))
            spent[name].append(arms.seconds)
            arms.seconds = 0.0
            return run

        first = note("gradients", arms.best(bits=bits, epochs=SHORT))
        note("gradients again", arms.best(bits=bits, epochs=LONG, start=first.id))
        note("then SNES", arms.run(bits=bits, epochs=GENERATIONS, start=first.id, optimizer=SNES))
        print(f"  width {width} seed {seed}: " + ", ".join(f"{name} {each[-1]:.2f}" for name, each in found.items()))
    print(f"MLP 64-{width}-10, {bits} bits, test accuracy of {seeds} seeds:")
    for name, each in found.items():
        spread = f" ± {np.std(each, ddof=1):.2f}" if seeds > 1 else ""
        print(f"  {name}: {np.mean(each):.2f}{spread} %, {np.mean(spent[name]):.1f} CPU s a run")
    print("  " + paired("SNES against the gradients before it", found["then SNES"], found["gradients"]))
    print("  " + paired("SNES against going on with gradients", found["then SNES"], found["gradients again"]))


def trainers(store: Store, seeds: int) -> None:
    """A small network in full precision, with and without gradients."""
    found: dict[str, list[float]] = {}
    for kind, fields in (
        ("adamw", {"optimizer": {"kind": "adamw", "lr": 0.01}, "epochs": 60}),
        ("snes", {"optimizer": {"kind": "snes", "sigma": 0.1}, "epochs": 60}),
        ("pgpe", {"optimizer": {"kind": "pgpe", "sigma": 0.1}, "epochs": 60}),
    ):
        spent = []
        for seed in range(seeds):
            arms = Arms(store, 32, seed)
            run = arms.run(**fields)
            found.setdefault(kind, []).append(accuracy(run))
            spent.append(arms.seconds)
        result = run.result or {}
        each = found[kind]
        spread = f" ± {np.std(each, ddof=1):.2f}" if seeds > 1 else ""
        counted = f"{result['gradients']:,} gradients, {result['evaluations']:,} evaluations"
        print(f"{kind}: {np.mean(each):.2f}{spread} % of test, {counted}, {np.mean(spent):.1f} CPU s")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--widths", default="8,16")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    worker.set_threads()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given.store or Path(folder) / "models")
        print("MLP 64-32-10 (2,410 weights) in full precision:")
        trainers(store, given.seeds)
        for width in given.widths.split(","):
            few_bits(store, int(width), given.seeds, given.bits)


if __name__ == "__main__":
    main()
