"""Quantization of an ONNX graph to 8-bit integers, with any of its layers left in float.

A layer is a product of weights (convolution, linear map) with what follows it up to the next one. In integers, its
activations have 8 bits and its weights 7, from -64 to 64 (QDQ, written by ONNX Runtime's quantizer): two products of 8
bits by 8 do not fit the 16 bits in which x86-64 processors without VNNI add them, and saturate. Left in float, its
arithmetic is in float32, and its weights are stored in 8 bits by channel: what costs accuracy are nearly always
activations.
An activation between a layer in integers and one in float is rounded to 8 bits.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from smallalign_core.networks.onnx_graph import FEW, PRODUCTS, quiet
from smallalign_core.spec.precision import Calibration

BINS = 2048
LEVELS = 255
AT_ONCE = 16  # images of which all activations are held
CUT = 0.0001
"""Share of the values of an activation that percentile calibration clips, half of it at each end."""
CLIPPED = np.linspace(1.0, 0.1, 19)
"""What calibration by MSE compares: shares of the range, at each end."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """A product of weights, with what follows it.

    Attributes:
        name: of its weights, as in the network.
        nodes: names of its nodes in the graph.
        numbers: how many weights it has.
    """

    name: str
    nodes: tuple[str, ...]
    numbers: int


class Quantizer:
    """A graph whose activations have the ranges of some batches of inputs.

    What stands before the first product of weights and after `logits` stays in floats, and so do the logits. Of a
    transformer only the products are in integers: its residual stream spans too wide a range (measured on timm's
    vit_tiny with random weights: 94% of the top-1 stay the same, with all of it in integers 76%).

    Args:
        content: the graph in float32.
        batches: what the input named `input` gets.
    """

    def __init__(self, content: bytes, batches: Sequence[NDArray[Any]], *, input: str = "input") -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._input, self._batches = input, batches
        self._ranges: dict[Calibration, dict[str, Range]] = {}
        with tempfile.TemporaryDirectory() as folder, quiet():
            whole, prepared = Path(folder) / "whole.onnx", Path(folder) / "prepared.onnx"
            whole.write_bytes(content)
            quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
            self._model: onnx.ModelProto = load_model_with_shape_infer(prepared)
        nodes = self._model.graph.node
        transformer = any(node.op_type == "LayerNormalization" for node in nodes)
        self._kinds = list(PRODUCTS) if transformer else sorted({*QLinearOpsRegistry, *QDQRegistry})
        self._float = _around(self._model.graph)
        self.layers = self._found()

    def _found(self) -> tuple[Layer, ...]:
        held = {one.name: one for one in self._model.graph.initializer}
        groups: list[list[onnx.NodeProto]] = []
        for node in self._model.graph.node:
            if node.name in self._float:
                continue
            if node.op_type in PRODUCTS and node.input[1] in held:
                groups.append([])
            if groups:
                groups[-1].append(node)
        return tuple(
            Layer(
                _name(group[0]),
                tuple(node.name for node in group),
                int(np.prod(held[group[0].input[1]].dims)),
            )
            for group in groups
        )

    @cached_property
    def _smallest_and_largest(self) -> Any:
        """ONNX Runtime's own ranges of all activations."""
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self, batches: Sequence[NDArray[Any]], input: str) -> None:
                self.left, self.input = iter(batches), input

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.left, None)
                return None if batch is None else {self.input: batch}

        with tempfile.TemporaryDirectory() as folder, quiet():
            file = Path(folder) / "model.onnx"
            onnx.save(self._model, file)
            calibrator = create_calibrator(
                file,
                self._kinds,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(Reader(self._batches, self._input))
            return calibrator.compute_data()

    @cached_property
    def _histograms(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Edges and counts of the values of each activation between its smallest and its largest."""
        ends = {name: _floats(one.range_value) for name, one in self._smallest_and_largest.items()}
        edges = {name: np.linspace(low, high, BINS + 1) for name, (low, high) in ends.items() if high > low}
        counts = {name: np.zeros(BINS, np.int64) for name in edges}
        for values in self._activations(sorted(edges)):
            for name, one in values.items():
                counts[name] += np.histogram(one, edges[name])[0]
        return {name: (edges[name], counts[name]) for name in edges}

    def _activations(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
        model = copy.deepcopy(self._model)
        known = {one.name for one in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for batch in self._batches:
            for at in range(0, len(batch), AT_ONCE):
                found = session.run(list(names), {self._input: batch[at : at + AT_ONCE]})
                yield dict(zip(names, found, strict=True))

    def ranges(self, calibration: Calibration) -> dict[str, Range]:
        """The range of each activation, by its name."""
        if calibration not in self._ranges:
            self._ranges[calibration] = self._computed(calibration)
        return self._ranges[calibration]

    def _computed(self, calibration: Calibration) -> dict[str, Range]:
        ends = {name: _floats(one.range_value) for name, one in self._smallest_and_largest.items()}
        if calibration == "minmax":
            return ends
        choose = percentile if calibration == "percentile" else least_error
        return ends | {name: choose(*one) for name, one in self._histograms.items()}

    def write(self, calibration: Calibration = "minmax", *, floats: Collection[int] = ()) -> bytes:
        """The graph in integers, but for the layers of these numbers."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        ranges = {
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in self.ranges(calibration).items()
        }
        kept = [name for at in sorted(floats) for name in self.layers[at].nodes]
        model = copy.deepcopy(self._model)
        with quiet():
            quantizer = QDQQuantizer(
                model,
                True,  # weights by channel
                True,  # weights of 7 bits: where a processor has no VNNI, ONNX Runtime adds two products in 16 bits
                QuantType.QInt8,
                QuantType.QUInt8,  # unsigned by signed is what processors multiply fastest
                TensorsData(CalibrationMethod.MinMax, ranges),
                [],
                [*self._float, *kept],
                self._kinds,
                {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            made = quantizer.model.model
        _narrow(made.graph, {self.layers[at].nodes[0] for at in floats})
        return bytes(made.SerializeToString())


def _floats(pair: tuple[Any, Any]) -> Range:
    return float(np.asarray(pair[0]).reshape(-1)[0]), float(np.asarray(pair[1]).reshape(-1)[0])


def _around(graph: onnx.GraphProto) -> list[str]:
    """The nodes before the first product, and those that use the logits. Nodes stand in the order they run in."""
    first = next((at for at, node in enumerate(graph.node) if node.op_type in PRODUCTS), 0)
    reached, after = {"logits"}, []
    for node in graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
            after.append(node.name)
    return [node.name for node in graph.node[:first]] + after


def _name(product: onnx.NodeProto) -> str:
    return product.input[1].removeprefix("classifier.").removeprefix("body.").removesuffix(".weight")


def percentile(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> Range:
    """The range that clips `CUT` of the values (Wu et al., 2020); an end beyond which nothing is stays.

    Args:
        edges: [bins + 1] of a histogram.
        counts: [bins].
    """
    share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    low = edges[max(0, int(np.searchsorted(share, CUT / 2, side="right")) - 1)]
    high = edges[min(len(edges) - 1, int(np.searchsorted(share, 1 - CUT / 2, side="left")))]
    return float(low), float(high)


def least_error(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> Range:
    """The range whose 8-bit steps have the least mean squared error, clipped values included (Nagel et al., 2021).

    Args:
        edges: [bins + 1] of a histogram.
        counts: [bins].
    """
    used = counts > 0
    values, weights = ((edges[:-1] + edges[1:]) / 2)[used], counts[used]
    low, high = min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)
    lows, highs = (CLIPPED * end if end else np.zeros(1) for end in (low, high))
    best = (np.inf, (low, high))
    for one in lows:
        for other in highs:
            scale = (other - one) / LEVELS
            zero = np.round(-one / scale)
            stored = np.clip(np.round(values / scale) + zero, 0, LEVELS)
            error = float((((stored - zero) * scale - values) ** 2) @ weights)
            best = min(best, (error, (float(one), float(other))))
    return best[1]


def _narrow(graph: onnx.GraphProto, products: Collection[str]) -> None:
    """Store the weights of these products in 8 bits by channel; runtimes widen them once, when they load the file."""
    held = {one.name: one for one in graph.initializer}
    widened: list[onnx.NodeProto] = []
    for node in graph.node:
        tensor = held.get(node.input[1]) if node.name in products else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < FEW:
            continue
        rest = tuple(axis for axis in range(values.ndim) if axis != _channels(node, values.ndim))
        scale = np.maximum(np.abs(values).max(axis=rest, keepdims=True) / 127, np.finfo(np.float32).tiny)
        stored = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(stored, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_step"))
        cast = onnx.helper.make_node(
            "Cast", [f"{name}_int8"], [f"{name}_wide"], f"widen_{name}", to=onnx.TensorProto.FLOAT
        )
        widened += [cast, onnx.helper.make_node("Mul", [f"{name}_wide", f"{name}_step"], [name], f"scale_{name}")]
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _channels(product: onnx.NodeProto, dimensions: int) -> int:
    """The axis of a product's weights that its outputs lie on."""
    if product.op_type == "Conv":
        return 0
    turned = any(one.name == "transB" and one.i for one in product.attribute)
    return 0 if turned else dimensions - 1
