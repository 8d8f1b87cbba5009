"""Do two special ways still pay: torch's fused steps called directly, and simplified graphs in ONNX Runtime?

    python benchmarks/kept.py [--only steps|graphs] [--rounds 40] [--seconds 0.15]

Fused steps: `Training` with SGD and with AdamW, once with torch's private kernels and once with the public step of
`fused=True`, without a teacher, where the step has its largest share. Graphs: the
file's graph as the exporter writes it, only trimmed, and simplified (trimmed and unrolled), fp32, one thread.

All ways of one row are built in one process and take turns in shuffled order; slices last `--seconds`. Ratios are of
the minima over rounds, beside the quartiles of the rounds' own ratios. CPU seconds for training, one thread; wall time
for single images, the best tenth of each slice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smallalign_core import data, networks
from smallalign_core.data import statistics
from smallalign_core.export import _file, _simplify
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, parse
from smallalign_core.system import _compat
from smallalign_core.system.machine import keep_freed_memory
from smallalign_core.training.loop import Training
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, plan

AUGMENT = [{"kind": "crop"}, {"kind": "flip"}, {"kind": "rotate", "degrees": 10}]
STUDENTS = {
    "MLP 784-30-30-10": {"kind": "mlp", "width": 30, "depth": 2},
    "CNN 16": {"kind": "cnn", "width": 16},
}


def turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way's figure of each round; the order is shuffled."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for name in ways:
        ways[name]()  # warm-up
    for turn in range(rounds):
        order = list(ways)
        random.Random(turn).shuffle(order)
        for name in order:
            found[name].append(ways[name]())
    return found


def ratio(found: list[float], to: list[float]) -> tuple[float, float, float]:
    """(ratio of minima, quartiles of the rounds' own ratios)."""
    low, high = np.quantile(np.divide(found, to), [0.25, 0.75])
    return round(min(found) / min(to), 3), round(float(low), 3), round(float(high), 3)


def training_of(
    network: dict[str, Any], optimizer: str, splits: data.Splits, held: contextlib.ExitStack | None
) -> Training:
    """A training that never ends; with `held`, from a full cache of logits, as in `benchmarks/distil.py`."""
    fields = {"data": "-", "network": network, "optimizer": optimizer, "precision": "fp32", "batch": 128}
    device = torch.device("cpu")
    if held is None:
        return Training([parse(fields | {"epochs": 10_000})], splits, None, device=device)
    fields |= {"teacher": "t", "augment": AUGMENT, "views": 2}
    mean, std = statistics(splits.train)
    big = parse({"data": "-", "network": {"kind": "mlp", "width": 1200, "depth": 2}}).network
    live = Teacher(networks.build(big, splits.classes, splits.shape, mean=mean, std=std), splits.classes)
    folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
    wanted = plan(parse(fields | {"epochs": 10_000}), splits, ["0" * 64], device)
    assert wanted is not None
    with TeacherCache(wanted, CacheIndex(folder, 2**34), lambda: live) as cache:
        earlier = Training([parse(fields | {"epochs": 2})], splits, cache)
        while earlier.step < earlier.steps:
            earlier.advance()
    cache = held.enter_context(TeacherCache(wanted, CacheIndex(folder, 2**34), lambda: live))
    return Training([parse(fields | {"epochs": 10_000})], splits, cache)


def steps(rounds: int, seconds: float) -> dict[str, Any]:
    """CPU time of a training step by the public fused step, over that by the private kernels."""
    whole = data.load(DataSpec(source="fashion-mnist"), Store().data_cache)
    splits = replace(whole, train=whole.train.take(np.arange(4096)))
    result: dict[str, Any] = {}
    cases = [(name, cached) for name in STUDENTS for cached in ((False, True) if "MLP" in name else (False,))]
    for name, cached in cases:
        for optimizer, private in (("sgd", "fused_sgd"), ("adamw", "fused_adamw")):
            with contextlib.ExitStack() as held:
                made = [training_of(STUDENTS[name], optimizer, splits, held if cached else None) for _ in range(2)]
                training = dict(zip(("private", "public"), made, strict=True))

                def slice_of(way: str, private: str = private, training: dict[str, Training] = training) -> float:
                    kernel = (lambda: None) if way == "public" else getattr(_compat, private)
                    with mock.patch.object(_compat, private, kernel):
                        begun, taken = time.process_time(), 0
                        while time.process_time() - begun < seconds:
                            training[way].advance()
                            taken += 1
                        return (time.process_time() - begun) / taken

                found = turns({way: lambda way=way: slice_of(way) for way in training}, rounds)  # type: ignore[misc]
            row = f"{name}, {optimizer}{', full cache' * cached}"
            result[row] = {
                "public_over_private": ratio(found["public"], found["private"]),
                "private_ms": round(1e3 * min(found["private"]), 4),
            }
            print(f"{row}: {result[row]}", flush=True)
    return result


def graphs(rounds: int, seconds: float) -> dict[str, Any]:
    """Latency of one image in ONNX Runtime: trimmed and simplified graphs over the whole one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    store, result = Store(), {}
    cases = {zoo: networks.from_file(store.finished(zoo).weights) for zoo in ("digits-student", "digits-teacher")}
    for name, network, side in (
        ("CNN 16, 28x28", {"kind": "cnn", "width": 16}, 28),
        ("ResNet 24, 28x28", {"kind": "resnet", "width": 24}, 28),
    ):
        spec = parse({"data": "-", "network": network}).network
        cases[name] = networks.build(spec, tuple("0123456789"), (1, side, side), mean=[0.3], std=[0.3])
    for name, classifier in cases.items():
        whole = _file.graph_of(classifier, 1.0)
        with mock.patch.object(_simplify._Unrolled, "nodes", return_value=[]):
            trimmed = _simplify.simplify(whole)
        sides = classifier.input_shape[1:]
        image = np.random.default_rng(0).integers(0, 256, (1, *sides, classifier.input_shape[0]), np.uint8)
        sessions = {
            way: onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            for way, content in (("whole", whole), ("trimmed", trimmed), ("simplified", _simplify.simplify(whole)))
        }

        def slice_of(way: str, sessions: dict[str, Any] = sessions, image: Any = image) -> float:
            session, times = sessions[way], []
            feed, until = {session.get_inputs()[0].name: image}, time.perf_counter() + seconds
            while time.perf_counter() < until:
                begun = time.perf_counter()
                session.run(None, feed)
                times.append(time.perf_counter() - begun)
            return float(np.quantile(times, 0.1))

        found = turns({way: lambda way=way: slice_of(way) for way in sessions}, rounds)  # type: ignore[misc]
        result[name] = {f"{way}_over_whole": ratio(found[way], found["whole"]) for way in ("trimmed", "simplified")} | {
            "whole_ms": round(1e3 * min(found["whole"]), 4)
        }
        print(f"{name}: {result[name]}", flush=True)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["graphs", "steps"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    parts = {"graphs": graphs, "steps": steps}
    shown = {name: part for name, part in parts.items() if options.only in (None, name)}
    print(json.dumps({name: part(options.rounds, options.seconds) for name, part in shown.items()}))


if __name__ == "__main__":
    main()
