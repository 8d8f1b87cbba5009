"""Removal of redundant multiplications (by zeros) from graphs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

Size = tuple[int, ...]


def simplify(content: bytes) -> bytes:
    """The same answers, up to the order of sums, from a graph of `graph_of` with less to multiply.

    Rows and columns of a convolution that the pooling after it leaves over are not computed: of 7 x 7 pixels, pooling
    by two sees 6 x 6. And where most of a kernel hangs over the edges, the convolution is written as the matrix that
    it is: 3 x 3 weights on 2 x 2 pixels are 16 products, not 36. The file holds the kernel itself: whoever loads it
    unrolls it once, since that part of the graph is of constants.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: tuple(one.dim_value for one in value.type.tensor_type.shape.dim[2:])  # 0 where it is free
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    constants = {one.name: one for one in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Conv":
            _trim(node, graph, sizes)
            nodes += _Unrolled(node, constants).nodes(sizes.get(node.input[0], ())) or [node]
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    tensors = [one for name, one in constants.items() if name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]  # the sizes noted there are those of before
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return bytes(model.SerializeToString())


class _Geometry(NamedTuple):
    """How a convolution or a pooling of two dimensions moves; `odd` is what is left alone."""

    kernel: list[int]
    strides: list[int]
    pads: list[int]
    odd: bool


def _geometry(node: onnx.NodeProto) -> _Geometry:
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    kernel = list(given.get("kernel_shape", []))
    odd = (
        len(kernel) != 2
        or given.get("auto_pad", b"NOTSET") != b"NOTSET"
        or given.get("ceil_mode", 0) != 0
        or any(step != 1 for step in given.get("dilations", []))
    )
    return _Geometry(kernel, list(given.get("strides", [1, 1])), list(given.get("pads", [0] * 4)), odd)


def _trim(conv: onnx.NodeProto, graph: onnx.GraphProto, sizes: dict[str, Size]) -> None:
    """Take from the padding at the end of `conv` what only makes pixels that the pooling after it never sees."""
    made = conv.output[0]
    readers = [node for node in graph.node if made in node.input]
    if [node.op_type for node in readers] == ["Relu"]:
        made = readers[0].output[0]
        readers = [node for node in graph.node if made in node.input]
    if [node.op_type for node in readers] != ["MaxPool"]:
        return
    own, pool = _geometry(conv), _geometry(readers[0])
    have, kept = sizes.get(made, ()), sizes.get(readers[0].output[0], ())
    if own.odd or pool.odd or any(pool.pads) or not (len(have) == len(kept) == 2 and all(have + kept)):
        return
    for axis in (0, 1):
        over = have[axis] - (kept[axis] - 1) * pool.strides[axis] - pool.kernel[axis]
        if 0 < over * own.strides[axis] <= own.pads[2 + axis]:  # below 0: the pooling itself is larger than the map
            own.pads[2 + axis] -= over * own.strides[axis]
    for attribute in conv.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = own.pads


class _Unrolled:
    """A convolution as nodes that make its matrix of the kernel, and multiply by it. Adds to `constants`."""

    def __init__(self, conv: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
        self.conv, self.constants = conv, constants
        self.made: list[onnx.NodeProto] = []

    def nodes(self, size: Size) -> list[onnx.NodeProto]:
        """The nodes for a map of `size` pixels; none where that is no gain, or the convolution not a plain one."""
        conv, own = self.conv, _geometry(self.conv)
        pixels, weight = math.prod(size), conv.input[1]
        few = pixels == 1 or 2 * pixels <= math.prod(own.kernel)
        plain = not own.odd and not self._grouped() and all(name in self.constants for name in conv.input[1:])
        if len(size) != 2 or not pixels or not few or not plain:
            return []
        channels = self.constants[weight].dims[0]
        result = [
            (size[axis] + own.pads[axis] + own.pads[2 + axis] - own.kernel[axis]) // own.strides[axis] + 1
            for axis in (0, 1)
        ]
        # A pixel of the result sees the kernel from here on; before its start and beyond its end are zeros.
        starts = [[own.pads[axis] - own.strides[axis] * to for to in range(result[axis])] for axis in (0, 1)]
        before = [max(0, -min(one)) for one in starts]
        after = [max(0, max(one) + size[axis] - own.kernel[axis]) for axis, one in enumerate(starts)]
        if any(before + after):
            margins = self._constant("margins", np.array([0, 0, *before, 0, 0, *after]))
            weight = self._node("Pad", "padded", [weight, margins])
        axes, views = self._constant("axes", np.array([2, 3])), list[str]()
        for corner in ((row + before[0], column + before[1]) for row in starts[0] for column in starts[1]):
            name = f"view{len(views)}"
            start = self._constant(f"{name}_from", np.array(corner))
            end = self._constant(f"{name}_to", np.add(corner, size))
            views.append(self._node("Slice", name, [weight, start, end, axes]))
        rows = self._constant("rows", np.array([channels * len(views), -1]))
        matrix = self._node("Reshape", "matrix", [self._node("Concat", "views", views, axis=1), rows])
        factors = [self._node("Flatten", "flat", [conv.input[0]], axis=1), matrix]
        if len(conv.input) > 2:
            bias = numpy_helper.to_array(self.constants[conv.input[2]])
            factors.append(self._constant("bias", np.repeat(bias, len(views))))
        product = self._node("Gemm", "product", factors, transB=1)
        self._node("Reshape", "map", [product, self._constant("shape", np.array([-1, channels, *result]))])
        self.made[-1].output[0] = conv.output[0]
        return self.made

    def _grouped(self) -> bool:
        return any(one.name == "group" and one.i != 1 for one in self.conv.attribute)

    def _constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        name = f"{self.conv.name}_{name}"
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def _node(self, operator: str, name: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{self.conv.name}_{name}"
        self.made.append(onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        return name
