"""Networks as ONNX graphs: written by torch's exporter, made of 8-bit integers by ONNX Runtime's quantizer."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

OPSET = 20


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints progress, warns about its own internals, and logs: none of it helps a user."""
    logger = logging.getLogger("torch.onnx")
    level, root = logger.level, logging.getLogger().level
    logger.setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs there
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
        logging.getLogger().setLevel(root)


def of_body(body: nn.Module, example: Tensor) -> bytes:
    """A network in evaluation mode as an ONNX file that takes any batch of float32 inputs like `example`."""
    plain = copy.deepcopy(body).cpu().eval().to(memory_format=torch.contiguous_format)
    with quiet(), torch.no_grad():
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


def in_integers(content: bytes, batches: Sequence[NDArray[np.float32]]) -> bytes:
    """The same graph with weights (by channel) and activations in 8 bits; activations have the ranges of `batches`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        whole, prepared, made = (Path(folder) / name for name in ("whole.onnx", "prepared.onnx", "made.onnx"))
        whole.write_bytes(content)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(made),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # unsigned by signed is what processors multiply fastest
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


class Graph(nn.Module):
    """An ONNX file of `of_body` as a network that answers and never learns: float32 in, float32 out, on the CPU."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [N, classes] of inputs float32 [N, ...]."""
        (found,) = self._session.run(None, {"input": np.ascontiguousarray(x.cpu().numpy())})
        return torch.from_numpy(found).to(x.device)
