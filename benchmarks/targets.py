"""Network families by export target: top-1 agreement with PyTorch, largest logit gap, bytes; or why there is no file.

    python benchmarks/targets.py STORE [TARGET...]

Each network is trained for two epochs on the digits, so that its logits are not near ties as those of random weights
are; then every test image goes through PyTorch and the target's own runtime. ONNX in fp32 is the line to compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import smallalign_core as sa
from smallalign_core import export
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.target import TARGETS
from smallalign_core.system.machine import set_threads

NETWORKS: dict[str, Any] = {
    "MLP": {"kind": "mlp", "width": 64},
    "CNN": {"kind": "cnn", "width": 12},
    "separable": {"kind": "separable", "width": 16},
    "ResNet": {"kind": "resnet", "width": 8},
    "torchvision mobilenet_v3_small": {"kind": "torchvision", "name": "mobilenet_v3_small", "size": 32},
    "timm vit_tiny_patch16_224": {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32},
    "timm efficientnet_lite0": {"kind": "timm", "name": "efficientnet_lite0", "size": 32},
    "own (attention, group normalization)": {
        "kind": "python",
        "file": str(Path(__file__).with_name("own_network.py").resolve()),
    },
}


def row(family: str, target: str, run: Run, store: Store) -> str:
    """One line of the table."""
    try:
        onnx = target == "onnx"
        report = export.bundle(run, store) if onnx else export.bundle_target(run, store, TARGETS[target])
    except SmallAlignError as error:
        return f"| {family} | {target} | refused: {error} | | |"
    proof = report["parity"]
    runtime = report.get("runtime", "ONNX Runtime")
    return (
        f"| {family} | {runtime} | {proof['top1_agreement']:.2%} of {proof['images']} | {proof['relative_diff']:.1e} | "
        f"{report['bytes']:,} |"
    )


def main() -> None:
    """Print the table, a line as soon as it is known."""
    set_threads()
    store, chosen = Store(Path(sys.argv[1])), sys.argv[2:] or ["onnx", *TARGETS]
    print("| family | runtime | same top-1 as PyTorch | largest gap / std. dev. of logits | bytes |")
    print("|---|---|---|---|---|", flush=True)
    for target in chosen:
        for family, network in NETWORKS.items():
            spec = {"data": "digits", "network": network, "epochs": 2, "batch": 64}
            run = sa.fit(spec, store=str(store.root), device="cpu")
            print(row(family, target, run, store), flush=True)


if __name__ == "__main__":
    main()
