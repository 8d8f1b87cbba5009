"""Networks as ONNX graphs: written by torch's exporter, in 8-bit integers by ONNX Runtime's quantizer, or in halves."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from smallalign_core.errors import BadModel
from smallalign_core.system import usercode
from smallalign_core.system._compat import one_operator_table
from smallalign_core.system.batching import by_pixels

OPSET = 20
PRODUCTS = ("Conv", "Gemm", "MatMul")
FEW = 64  # numbers that a constant must have to be worth halving; means and deviations of channels have fewer
HALF = float(np.finfo(np.float16).max)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints progress, warns about its own internals, and logs: none of it helps a user."""
    logger, root = logging.getLogger("torch.onnx"), logging.getLogger()
    level, general, errors = logger.level, root.level, _Errors()
    logger.setLevel(logging.ERROR)
    root.addFilter(errors)  # the quantizer logs there; a level would silence all other loggers, also of other threads
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        root.setLevel(general)  # which the exporter's libraries may have changed
        root.removeFilter(errors)


@contextlib.contextmanager
def exporting(body: nn.Module) -> Iterator[None]:
    """As `quiet`; an exporter's exception is raised with the user's line, if there is one.

    Raises:
        BadModel: the network has an operation that ONNX, or torch's exporter, does not.
    """
    try:
        with quiet(), one_operator_table():
            yield
    except Exception as error:
        if isinstance(error, MemoryError | OSError):
            raise
        line = usercode.explanation(error)
        cause = error.__cause__ or error
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise BadModel(
            f"the network cannot be exported to ONNX: {line.wrong if line else words}",
            given=line.given if line else type(body).__name__,
            do="replace this operation by one that torch.onnx exports",
        ) from None


class _Errors(logging.Filter):
    """Of what is logged by a logger itself, errors alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


def of_body(body: nn.Module, example: Tensor) -> bytes:
    """A network in evaluation mode as an ONNX file that takes any batch of float32 inputs like `example`."""
    plain = copy.deepcopy(body).cpu().eval().to(memory_format=torch.contiguous_format)
    with exporting(body), torch.no_grad():
        program = torch.onnx.export(
            plain,
            (example[:2].cpu().contiguous(),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=[{0: torch.export.Dim("batch", min=1, max=65536)}],
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def in_halves(content: bytes) -> bytes:
    """The same graph with its constants stored in half precision, and computed with in single.

    Half the bytes, and answers on every back end: arithmetic in halves is no faster in WebAssembly, is refused by
    WebGPU adapters without `shader-f16`, and transformers in it crash ONNX Runtime 1.32 on the CPU. Runtimes widen the
    constants once, when they load the file. A constant with a number beyond 65,504 stays as it is.
    """
    model = onnx.load_from_string(content)
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < FEW or np.abs(values).max() > HALF:
            continue
        name, stored = tensor.name, f"{tensor.name}_half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], f"widen_{name}", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


class Graph(nn.Module):
    """An ONNX file of `of_body` as a network that answers and never learns: float32 in, float32 out, on the CPU."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [N, classes] of inputs float32 [N, channels, height, width]."""
        given = np.ascontiguousarray(x.cpu().numpy())
        step = by_pixels(x.shape[2:], len(x))
        parts = [self._session.run(None, {"input": given[at : at + step]})[0] for at in range(0, len(x), step)]
        return torch.from_numpy(np.concatenate(parts)).to(x.device)
