"""A pretrained network on photographs: a linear probe and fine-tuning, by the library and by plain PyTorch in turns.

    python benchmarks/finetune.py FOLDER lite0.safetensors --size 64 --seeds 3

FOLDER has one sub-folder of photographs a class; the weights have timm's names for `tf_efficientnet_lite0` (`convert`
makes a safetensors file of a checkpoint). `plain` shares no code with the library: torch, timm, and an ordinary loop.
Both get the same images, split, order, weights, optimizer (AdamW), schedule and batch; rounding is all that is meant to
differ, and training amplifies it. Plain PyTorch runs a second time with the head as timm draws it, 10 times as large as
a linear layer's usual start: the difference is what starting at zero is worth. Of one person's photographs some may be
in training and others in the test: a random split of a folder cannot know.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NAME = "tf_efficientnet_lite0"
LR, DECAY, WARMUP = 0.002, 0.01, 0.05  # the library's defaults, written out


def plain(
    images: dict[str, Tensor], labels: dict[str, Tensor], order: Tensor, given: argparse.Namespace, **how: Any
) -> float:
    """Test accuracy after training on `train`, with the weights that are best on `val`: PyTorch and timm, nothing else.

    Args:
        images, labels: uint8 [N, 3, H, W] and int64 [N] by split.
        order: int64 [epochs * N], the training images one after the other.
        how: `seed`, `epochs`, `frozen`, and `zero`: whether the head starts at zero.
    """
    import timm

    torch.manual_seed(how["seed"])
    network = timm.create_model(NAME, num_classes=int(labels["train"].max()) + 1)
    held = {name: tensor for name, tensor in load_file(given.weights).items() if not name.startswith("classifier.")}
    network.load_state_dict(held, strict=False)
    network = network.to(memory_format=torch.channels_last)
    head: Any = network.classifier
    if how["zero"]:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def seen(pixels: Tensor) -> Tensor:
        scaled = F.interpolate(pixels.float() / 255, (given.size, given.size), mode="bilinear", antialias=True)
        return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)

    model: nn.Module = network
    inputs = {name: seen(pixels) for name, pixels in images.items()}
    if how["frozen"]:
        network.eval().reset_classifier(0)
        with torch.no_grad():
            inputs = {name: torch.cat([network(part) for part in whole.split(64)]) for name, whole in inputs.items()}
        model = head

    def logits(name: str) -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(part) for part in inputs[name].split(64)])

    weights = list(model.parameters())
    decayed, others = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=LR
    )
    count = len(inputs["train"])
    steps = math.ceil(how["epochs"] * count / given.batch)
    best, kept, warm = (-1.0, 0.0), dict[str, Tensor](), round(WARMUP * steps)
    for step in range(steps):
        share = (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
        for group in optimizer.param_groups:
            group["lr"] = LR * ((step + 1) / (warm + 1) if step < warm else share)
        rows = order[step * given.batch : (step + 1) * given.batch]
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs["train"][rows]), labels["train"][rows]).backward()
        optimizer.step()
        if (step + 1) * given.batch // count > step * given.batch // count or step + 1 == steps:
            said = logits("val")
            rank = (
                float((said.argmax(1) == labels["val"]).double().mean()),
                -float(F.cross_entropy(said, labels["val"])),
            )
            if rank > best:
                best, kept = rank, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return float((logits("test").argmax(1) == labels["test"]).double().mean())


def ours(splits: Any, given: argparse.Namespace, **how: Any) -> float:
    """The same by the library's own loop."""
    from smallalign_core.metrics import logits_of, score
    from smallalign_core.spec import parse
    from smallalign_core.training.loop import Training

    network = {"kind": "timm", "name": NAME, "size": given.size, "weights": str(given.weights)}
    written = {"network": network | {"frozen": how["frozen"]}, "epochs": how["epochs"], "batch": given.batch}
    fixed = {"data": str(given.folder), "seed": how["seed"], "precision": "fp32"}
    training = Training([parse(written | fixed)], splits)
    for _ in training:
        pass
    said = logits_of(training.students[0].best(), splits.test)
    return score(said, splits.test.labels, splits.classes).accuracy


def _tensors(splits: Any, what: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(getattr(getattr(splits, name), what))) for name in ("train", "val", "test")}


def main() -> None:
    """Both tasks, three ways, in turns; a line as each ends, then means with standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--size", type=int, default=64, help="pixels a side that the network sees")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning; the probe takes --probe-epochs")
    parser.add_argument("--images", type=int, help="training photographs of fine-tuning; without, all")
    parser.add_argument("--probe-images", type=int, default=103)
    parser.add_argument("--probe-epochs", type=int, default=100)
    parser.add_argument("--only", choices=["probe", "fine-tuning"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    from smallalign_core import data
    from smallalign_core.augment import Views
    from smallalign_core.runs.store import Store
    from smallalign_core.spec import DataSpec
    from smallalign_core.system.machine import set_threads

    set_threads()
    cache, found = Store().data_cache, dict[str, list[float]]()
    for task in ("probe", "fine-tuning"):
        if given.only not in (None, task):
            continue
        probes = task == "probe"
        spec = DataSpec(source=str(given.folder), images=given.probe_images if probes else given.images)
        splits = data.load(spec, cache)
        images, labels = _tensors(splits, "images"), _tensors(splits, "labels")
        for seed in range(given.seeds):
            how: dict[str, Any] = {"seed": seed, "frozen": probes}
            how["epochs"] = given.probe_epochs if probes else given.epochs
            met = Views(splits.train, (), batch=given.batch, seed=seed)
            order = torch.from_numpy(np.concatenate([met.order(epoch) for epoch in range(how["epochs"] + 1)]))
            for way in ("ours", "plain, head at zero", "plain, head as timm draws it"):
                start = time.perf_counter()
                zero = "zero" in way
                if way == "ours":
                    right = ours(splits, given, **how)
                else:
                    right = plain(images, labels, order, given, zero=zero, **how)
                found.setdefault(f"{task}, {len(splits.train):,} photographs: {way}", []).append(100 * right)
                seconds = time.perf_counter() - start
                print(f"{task} seed {seed} {way}: {100 * right:.2f} % in {seconds:.0f} s", file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        print(f"{name}: {np.mean(values):.2f}{spread} % ({', '.join(f'{value:.2f}' for value in values)})")


if __name__ == "__main__":
    main()
