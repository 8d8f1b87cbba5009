"""Peak activation memory and multiply-accumulates of a graph, for one image of the training size.

A tensor lives from the node that makes it to the last one that reads it, in the order of the graph; the peak is the
largest sum of those that live at once. A runtime that neither fuses nor works in place needs at least that much;
alignment, fragmentation and scratch memory (such as unfolded convolutions) come on top, and fusing or working in place
takes off. Constants are not activations: they are the file. Reshaped tensors share their memory. Where a tensor is
quantized at once, it counts as integers, since runtimes fuse that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime

from smallalign_core.runs.export_report import Footprint

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DequantizeLinear"}
"""Operators whose output is their input in memory, or would be in a runtime that fuses quantization."""


def footprint(graph: bytes, shape: tuple[int, int, int]) -> Footprint:
    """The footprint of an ONNX file of `graph_of`, in any precision.

    Args:
        shape: (channels, height, width) of the image.
    """
    model = onnx.load_model_from_string(graph)
    constants = _constants(model.graph)
    nodes = [node for node in model.graph.node if not constants >= set(_outputs(node))]
    sizes = _run(model, shape)
    read = [{name for name in node.input if name and name not in constants} for node in nodes]
    place = _places(nodes, constants)
    last: dict[str, int] = {}
    for at, names in enumerate(read):
        last |= {place[name]: at for name in names}
    last |= {place[one.name]: len(nodes) for one in model.graph.output}
    held = _bytes(nodes, place, sizes)

    live = {place[one.name] for one in model.graph.input if one.name in place}
    peak = sum(held[name] for name in live)
    for at, node in enumerate(nodes):
        live |= {place[name] for name in _outputs(node) if name in place}
        peak = max(peak, sum(held[name] for name in live))
        live -= {name for name in live if last.get(name, -1) <= at}
    macs = sum(_macs(node, sizes) for node in nodes)
    return Footprint(peak, macs)


def _outputs(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.output if name]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that do not depend on the pixels, but on sizes at most."""
    known = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Shape", "Size", "Constant") or all(name in known for name in node.input if name):
            known |= set(_outputs(node))
    return known


def _run(model: onnx.ModelProto, shape: tuple[int, int, int]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes a number of every tensor, by running one black image: free sizes are known only then."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    there = {one.name for one in opened.graph.output}
    names = [name for node in opened.graph.node for name in _outputs(node)]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    channels, height, width = shape
    image = np.zeros((1, height, width, channels), np.uint8)
    outputs = [one.name for one in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, {"images": image}), strict=True)) | {"images": image}
    sizes = {name: (tuple(np.shape(one)), np.asarray(one).itemsize) for name, one in found.items()}
    return sizes | {one.name: (tuple(one.dims), 4) for one in model.graph.initializer}


def _places(nodes: Iterable[onnx.NodeProto], constants: set[str]) -> dict[str, str]:
    """The tensor in whose memory each tensor lies."""
    readers = _readers(nodes)
    place = {"images": "images"}
    for node in nodes:
        for name in _outputs(node):
            first = node.input[0] if node.input else ""
            fused = node.op_type == "QuantizeLinear" and _fused(first, readers) and place.get(first) == first
            shared = (fused or node.op_type in VIEWS) and first not in constants
            place[name] = place.get(first, name) if shared else name
    return place


def _readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, set[str]]:
    """The kinds of operators that read each tensor."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return found


def _fused(name: str, readers: dict[str, set[str]]) -> bool:
    """Whether only integers of a tensor are ever needed."""
    return name != "images" and readers.get(name) == {"QuantizeLinear"}


def _bytes(
    nodes: list[onnx.NodeProto], place: dict[str, str], sizes: dict[str, tuple[tuple[int, ...], int]]
) -> dict[str, int]:
    """Bytes of every place; of one that is quantized at once, those of its integers."""
    width = {name: sizes[name][1] for name in place}
    readers = _readers(nodes)
    for node in nodes:
        if node.op_type == "QuantizeLinear" and _fused(node.input[0], readers):
            width[node.input[0]] = sizes[node.output[0]][1]
    return {name: math.prod(sizes[name][0]) * width[name] for name in set(place.values())}


def _macs(node: onnx.NodeProto, sizes: dict[str, tuple[tuple[int, ...], int]]) -> int:
    made = math.prod(sizes[node.output[0]][0])
    if node.op_type == "Conv":
        return made * math.prod(sizes[node.input[1]][0][1:])
    if node.op_type == "Gemm":
        flipped = any(one.name == "transA" and one.i for one in node.attribute)
        return made * sizes[node.input[0]][0][0 if flipped else 1]
    return made * sizes[node.input[0]][0][-1] if node.op_type == "MatMul" else 0
