"""The size in bytes of a run's exported file in each precision, also before training.

A network of random weights makes a file as large as the trained one: what training finds are numbers of a fixed width
in the graph, and the text of the metadata is padded (`_file.padded`), so that its length does not depend on scores.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core import data, networks
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import WorkFailed
from smallalign_core.export._file import (
    SCORES,
    about_calibration,
    described,
    finished,
    graph_of,
    graph_of_run,
    in_integers,
    in_precision,
    metadata_of,
)
from smallalign_core.export._parity import Loss
from smallalign_core.export._runtime import OnnxClassifier
from smallalign_core.networks import Classifier
from smallalign_core.networks.onnx_graph import OPSET
from smallalign_core.runs.export_report import Quantized
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import RunSpec, digest
from smallalign_core.spec.precision import CALIBRATED, PRECISIONS, FileOptions, Precision

Sizes = dict[str, int | None]
STAND_IN = 1.5
"""A temperature; at exactly 1 the division by it would be left out of the graph."""
STIR = 0.01
"""How far weights are moved from their first values, at most."""
KEPT = 8
"""Number of networks with graphs kept in memory."""


def sizes_of(run: Run, store: Store) -> Sizes:
    """Bytes of a finished run's file by precision, as `export` would write it; None where it cannot be written so.

    Raises:
        BadModel, BadData: the weights, or the images that int8 is calibrated on, cannot be read.
    """
    about = metadata_of(run)
    graph, splits = graph_of_run(run, store, about), data.load(run.data, store.data_cache)
    files = {name: _file(_in(graph, name, splits.train), about, name, splits) for name in PRECISIONS}
    return {name: None if content is None else len(content) for name, content in files.items()}


@dataclass(frozen=True)
class Within:
    """An int8 file that keeps an accuracy limit, with stand-ins for scores that it says of itself.

    Attributes:
        content: as large and as fast as `export` writes it.
        logits: on the validation images, float32 [N, classes].
        files: how many were tested on these.
    """

    content: bytes
    logits: NDArray[np.float32]
    files: int


def within_drop(run: Run, store: Store, max_drop: float) -> Within:
    """The int8 file of a finished run that loses at most so many points on validation; the test images are not used.

    Raises:
        BadInput: too few validation images to show it.
        WorkFailed: no file does.
        BadModel, BadData: as of `sizes_of`.
    """
    about, splits = metadata_of(run), data.load(run.data, store.data_cache)
    made = in_integers(graph_of_run(run, store, about), FileOptions(max_drop=max_drop), run, splits, store, about)
    content = _file(made.graph, about, "int8", splits, made.how)
    assert content is not None, "a graph was made"
    return Within(content, OnnxClassifier(content).logits_of(splits.val), made.tested)


def sizes_before(
    spec: RunSpec, classifier: Classifier, splits: Splits, precisions: tuple[Precision, ...] = PRECISIONS
) -> Sizes:
    """The same of the run that a resolved `spec` describes, before it is trained; arguments as of `files_before`."""
    files = files_before(spec, classifier, splits, precisions)
    return {name: None if content is None else len(content) for name, content in files.items()}


def files_before(
    spec: RunSpec, classifier: Classifier, splits: Splits, precisions: tuple[Precision, ...] = PRECISIONS
) -> dict[Precision, bytes | None]:
    """Stand-ins for the files of the run that a resolved `spec` describes, before it is trained: as large and as fast,
    with other numbers in them. None where it cannot be written so.

    Args:
        classifier: its network, of whatever weights.
        precisions: which; int8 runs the network on up to 512 training images, the others do not run it.
    """
    blank = dict.fromkeys(SCORES, 0.5)
    result = {
        "classes": list(splits.classes),
        "input_shape": list(splits.shape),
        "temperature": STAND_IN,
        "weights_sha256": "0" * 64,
        "val": blank | {"images": len(splits.val)},
        "test": blank | {"images": len(splits.test)},
    }
    about = described(spec, digest(spec), result)
    key = (spec.network.model_dump_json(), spec.bits, splits.fingerprint, splits.classes, splits.shape, precisions)
    graphs = _graphs(_Made(key, classifier, splits.train, precisions))
    return {name: _file(graphs[name], about, name, splits) for name in precisions}


class _Made:
    """A network and the images to calibrate it on, equal to another one of the same key."""

    def __init__(
        self, key: tuple[Any, ...], classifier: Classifier, training: ImageSet, precisions: tuple[Precision, ...]
    ) -> None:
        self.key, self.classifier, self.training, self.precisions = key, classifier, training, precisions

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Made) and self.key == other.key


@functools.lru_cache(maxsize=KEPT)
def _graphs(made: _Made) -> dict[Precision, bytes | None]:
    graph = graph_of(networks.baked(_stirred(made.classifier)), STAND_IN)
    found = {name: _in(graph, name, made.training) for name in made.precisions}
    del made.classifier, made.training  # the key is all that a later question needs
    return found


def _stirred(classifier: Classifier) -> Classifier:
    """A copy in which no weight and no statistic of a batch norm is at its first value: the exporter leaves out zeros
    that are added, and stores equal tensors once."""
    copied, generator = copy.deepcopy(classifier).cpu(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*copied.body.parameters(), *copied.body.buffers()):
            if tensor.is_floating_point():
                tensor.add_(STIR * torch.rand(tensor.shape, generator=generator))
    return copied


def _in(graph: bytes, precision: Precision, training: ImageSet) -> bytes | None:
    try:
        return in_precision(graph, precision, training)
    except WorkFailed:
        return None


def _file(
    graph: bytes | None, about: dict[str, Any], precision: Precision, splits: Splits, told: Quantized | None = None
) -> bytes | None:
    if graph is None:
        return None
    more: dict[str, Any] = {"precision": precision, "opset": OPSET}
    if precision != "fp32":
        more["loss"] = {name: Loss.blank(len(getattr(splits, name))).as_dict() for name in ("val", "test")}
    if precision in CALIBRATED:
        more |= about_calibration(splits.train, told)
    return finished(graph, about | more)
