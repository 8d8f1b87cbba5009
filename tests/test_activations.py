"""Peak activation memory and multiply-accumulates: against a brute force, and against counts by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from smallalign_core import networks
from smallalign_core.data import Splits
from smallalign_core.export import _activations, _file
from smallalign_core.runs.store import Store
from smallalign_core.spec import parse


def graph(nodes: list[Any], constants: dict[str, Any] | None = None, side: int = 4) -> bytes:
    """A graph from `images` uint8 [1, side, side, 1] to `logits`."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString())


def brute_force(nodes: list[tuple[list[str], str]], sizes: dict[str, int]) -> int:
    """The peak by definition: at each node, what exists already or is made now, and is read now or later."""
    names = ["images", *(made for _, made in nodes)]
    peak = sizes["images"]
    for at in range(len(nodes)):
        alive = 0
        for name in names:
            born = -1 if name == "images" else next(i for i, (_, made) in enumerate(nodes) if made == name)
            read = [i for i, (given, _) in enumerate(nodes) if name in given]
            dies = len(nodes) if name == "logits" else max(read, default=born)
            alive += sizes[name] if born <= at <= dies else 0
        peak = max(peak, alive)
    return peak


SHAPES = list(itertools.product(("a", "b", "images"), repeat=2))


@pytest.mark.parametrize("reads", SHAPES, ids="-".join)
def test_the_peak_is_that_of_a_brute_force(reads: tuple[str, str]) -> None:
    """Two chains over the pixels whose tensors are read late or early."""
    first = helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT)
    second = helper.make_node("Concat", ["a", "a", "a"], ["b"], axis=3)
    cast = [helper.make_node("Cast", [name], [f"c{at}"], to=TensorProto.DOUBLE) for at, name in enumerate(reads)]
    sums = [helper.make_node("ReduceSum", [f"c{at}"], [f"s{at}"], keepdims=0) for at in range(2)]
    last = [helper.make_node("Add", ["s0", "s1"], ["s"]), helper.make_node("Cast", ["s"], ["logits"], to=1)]
    nodes = [first, second, cast[0], sums[0], cast[1], sums[1], *last]
    pixels = {"images": 16, "a": 64, "b": 192}
    sizes = pixels | {f"c{at}": 8 * (48 if name == "b" else 16) for at, name in enumerate(reads)}
    sizes |= {"s0": 8, "s1": 8, "s": 8, "logits": 4}
    expected = brute_force([(list(node.input), node.output[0]) for node in nodes], sizes)
    assert _activations.footprint(graph(nodes), (1, 4, 4)).peak_bytes == expected


def test_constants_views_and_fused_integers_take_no_memory() -> None:
    constants = {
        "scale": np.float32(0.5),
        "zero": np.int8(0),
        "flat": np.array([1, -1]),
        "w": np.ones((16, 3), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT),  # 16 + 64
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),  # a is fused: 16 + 16
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),  # in q
        helper.make_node("Reshape", ["d", "flat"], ["f"]),  # in q
        helper.make_node("Add", ["w", "w"], ["ww"]),  # of constants
        helper.make_node("MatMul", ["f", "ww"], ["logits"]),  # 16 + 12
    ]
    found = _activations.footprint(graph(nodes, constants), (1, 4, 4))
    assert found.peak_bytes == 16 + 16
    assert found.macs == 16 * 3


def test_multiply_accumulates_are_those_counted_by_hand() -> None:
    constants = {
        "k": np.ones((6, 1, 3, 3), np.float32),
        "g": np.ones((6, 1, 3, 3), np.float32),
        "w": np.ones((5, 96), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "g"], ["e"], pads=[1, 1, 1, 1], group=6),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["logits"], transB=1),
    ]
    assert _activations.footprint(graph(nodes, constants), (1, 4, 4)).macs == 16 * 6 * 9 + 16 * 6 * 9 + 5 * 96


@pytest.mark.parametrize("kind", ["mlp", "cnn", "separable", "resnet"])
def test_a_networks_graph_has_the_multiply_accumulates_that_pytorch_counts(kind: str, digits: Splits) -> None:
    network = parse({"data": "digits", "network": {"kind": kind, "width": 8}}).network
    classifier = networks.build(network, digits.classes, digits.shape, mean=[0.3], std=[0.4], seed=1).eval()
    found = _activations.footprint(_file.graph_of(classifier, 1.5), digits.shape)
    assert found.macs == networks.measure(classifier).macs
    assert found.peak_bytes >= math.prod(digits.shape) * (1 + 4), "pixels, and the same as floats"


def test_a_run_states_what_one_image_costs(store: Store) -> None:
    run = store.run("digits-student")
    costs = {precision: _file.make(run, store, precision).facts["footprint"] for precision in ("fp32", "int8")}
    assert 0 < costs["int8"]["peak_bytes"] < costs["fp32"]["peak_bytes"]
    assert costs["int8"]["macs"] > 0
