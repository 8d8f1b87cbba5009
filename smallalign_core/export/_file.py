"""A run as one ONNX file: the graph, its precision, its metadata, and its checksum."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, assert_never

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core import data, networks
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput, SmallAlignError, WorkFailed
from smallalign_core.export._acceptance import accepted_by
from smallalign_core.export._activations import footprint
from smallalign_core.export._checksum import checksum_matches, with_checksum
from smallalign_core.export._parity import LIMIT, Loss, loss_of
from smallalign_core.export._quantized import Made as Made8, fixed_width, quantized
from smallalign_core.export._runtime import METADATA, OnnxClassifier, at_once, nhwc
from smallalign_core.export._simplify import simplify
from smallalign_core.metrics import logits_of, score
from smallalign_core.networks import Classifier, onnx_graph, quantize
from smallalign_core.networks.onnx_graph import OPSET
from smallalign_core.runs.export_report import Acceptance, Quantized
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Code, DataSpec, GivenNetwork, RunSpec, to_yaml, with_code
from smallalign_core.spec.precision import AUTOMATIC, CALIBRATIONS, PRECISIONS, FileOptions, Precision, variant_of
from smallalign_core.system.files import read_sealed, write, write_sealed

CALIBRATED_ON = 512  # training images that give the ranges of the activations
CHUNK = 64
DIGITS = 24
"""Characters of the longest float: a sign, 17 digits, a point and an exponent."""


def precision_of(name: str) -> Precision:
    """The precision of that name.

    Raises:
        BadInput: there is none.
    """
    for known in PRECISIONS:
        if name == known:
            return known
    raise BadInput("unknown precision", given=name, do=f"choose {', '.join(PRECISIONS)}")


class Deployed(nn.Module):
    """A classifier as it leaves the house: raw NHWC pixels in, logits and calibrated probabilities out."""

    def __init__(self, classifier: Classifier, temperature: float, *, always_resize: bool = True) -> None:
        super().__init__()
        self.classifier, self.temperature, self.always_resize = classifier, temperature, always_resize

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prepared = self.classifier.prepare(images.permute(0, 3, 1, 2), always_resize=self.always_resize)
        logits = self.classifier.body(prepared)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def to_onnx(
    classifier: Classifier,
    *,
    temperature: float = 1.0,
    metadata: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    training: ImageSet | None = None,
) -> bytes:
    """`classifier` as one ONNX file without external data and without source paths.

    Args:
        metadata: JSON-able facts, kept under the key `smallalign`.
        training: the images that int8 is calibrated on.
    """
    graph = in_precision(graph_of(classifier, temperature), precision, training, metadata or {})
    return finished(graph, metadata or {"classes": list(classifier.classes)})


def graph_of(classifier: Classifier, temperature: float) -> bytes:
    """The graph of a classifier in single precision, with a free batch, height and width."""
    channels, height, width = classifier.input_shape
    # Two sizes unlike any real one: an example of batch 1 or of equal height and width would be taken as fixed.
    example = torch.zeros((2, height + 1, width + 2, channels), dtype=torch.uint8)
    free = {
        "images": {
            0: torch.export.Dim("batch", min=1, max=65536),
            1: torch.export.Dim("height", min=1, max=16384),
            2: torch.export.Dim("width", min=1, max=16384),
        }
    }
    # A copy in plain memory order: channels_last is for training speed, and would be exported as gathers.
    plain = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format)
    plain.channels_last = False
    deployed = Deployed(plain, temperature).eval()
    with onnx_graph.exporting(classifier.body), torch.no_grad():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def in_precision(
    graph: bytes,
    precision: Precision,
    training: ImageSet | None,
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """A graph of `graph_of` in another precision; int8 takes the ranges of its activations from training images, from
    the smallest to the largest value of each. Other calibrations give a graph of the same size.

    Args:
        metadata: what the file will say of itself; the size that the network resizes to bounds the batches.
    """
    match precision:
        case "fp32":
            return simplify(graph)
        case "fp16":
            return onnx_graph.in_halves(simplify(graph))
        case "int8":
            assert training is not None, "int8 is calibrated on training images"
            with _quantizing():
                return fixed_width(quantizer_of(graph, training, metadata)[0].write())
        case _:
            assert_never(precision)


def quantizer_of(
    graph: bytes, training: ImageSet, metadata: Mapping[str, Any]
) -> tuple[quantize.Quantizer, NDArray[np.uint8]]:
    """A quantizer of a graph of `graph_of`, and the images [N, H, W, C] that give it the ranges of activations."""
    # Spread over the whole set: folders list one class after the other.
    rows = np.unique(np.linspace(0, len(training) - 1, CALIBRATED_ON).astype(np.int64))
    pixels = nhwc(training.take(rows))
    step = min(CHUNK, at_once(metadata, *pixels.shape[1:3]))
    batches = [pixels[at : at + step] for at in range(0, len(pixels), step)]
    return quantize.Quantizer(graph, batches, input="images"), pixels


@contextlib.contextmanager
def _quantizing() -> Iterator[None]:
    try:
        yield
    except SmallAlignError:
        raise
    except Exception as error:  # the quantizer's errors share no base class
        raise WorkFailed(
            "this network cannot be quantized to int8", given=f"{error!r:.160}", do="export it as fp16"
        ) from error


def in_integers(
    graph: bytes, how: FileOptions, run: Run, splits: Splits, store: Store, metadata: Mapping[str, Any]
) -> Made8:
    """The graph of a run in int8, its calibration chosen and its limit tested on validation images.

    Raises:
        BadInput, WorkFailed: as `quantized`; or the network cannot be written so.
    """
    reference = reference_on("val", run, splits, store)
    with _quantizing():
        quantizer, pixels = quantizer_of(graph, splits.train, metadata)
        return quantized(quantizer, how, lambda one: finished(one, metadata), pixels, splits.val, reference)


def finished(graph: bytes, metadata: Mapping[str, Any]) -> bytes:
    """A graph without what tools wrote into it, with our metadata and the checksum."""
    model = onnx.load_model_from_string(graph)
    inner = model.graph
    holders = (inner, *inner.node, *inner.input, *inner.output, *inner.value_info, *inner.initializer, *model.functions)
    for holder in holders:
        del holder.metadata_props[:]  # the exporter writes source paths and lines of code there
    for node in inner.node:
        node.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "SmallAlign", "1", ""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, padded(metadata)
    onnx.checker.check_model(model)
    return with_checksum(bytes(model.SerializeToString()))


def padded(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON with spaces at its end, as long as it would be with the longest numbers: a file's size is then
    known before its scores are."""
    return json.dumps(metadata, sort_keys=True).ljust(len(json.dumps(_longest(metadata), sort_keys=True)))


def _longest(value: Any) -> Any:
    """The same with a number of `DIGITS` digits for each that is not whole, and for each yes or no."""
    if isinstance(value, Mapping):
        return {name: _longest(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_longest(one) for one in value]
    return 10 ** (DIGITS - 1) if isinstance(value, float | bool) else value


# --- a run's file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """An export in memory.

    Attributes:
        content: the file.
        facts: of it, JSON-able.
        answers: its logits by split, where it was measured.
    """

    content: bytes
    facts: dict[str, Any]
    answers: dict[str, NDArray[np.float32]]


def make(
    run: Run,
    store: Store | None,
    precision: Precision = "fp32",
    how: FileOptions = AUTOMATIC,
    *,
    measured: bool = False,
    elsewhere: DataSpec | None = None,
) -> Made:
    """The file of a finished run. What fp16 and int8 lose is measured on validation and test, and written into them.

    Args:
        how: of int8, and the coverage of the output `accepted`.
        elsewhere: images of another kind, to measure what that accepts of them.
        measured: fp32 too, to measure the error of the exporter alone.

    Raises:
        BadInput: `how` is given with another precision, or too few validation images can decide its limit.
        WorkFailed: int8 does not meet its limit, or the network cannot be written so.
        BadModel: the weights cannot be read.
        BadData: the images to measure on are gone.
    """
    variant = variant_of(precision, how)
    metadata = metadata_of(run) | {"precision": precision, "opset": OPSET}
    graph = graph_of_run(run, store, metadata)
    told: Quantized | None = None
    answers: dict[str, NDArray[np.float32]] = {}
    losses: dict[str, Loss] = {}
    accepting: Acceptance | None = None
    if precision != "fp32" or measured or how.coverage is not None:
        place = store or Store()
        splits = data.load(run.data, place.data_cache)
        if precision == "int8":
            made = in_integers(graph, how, run, splits, place, metadata)
            graph, told = made.graph, made.how
        else:
            graph = in_precision(graph, precision, None, metadata)
        if how.coverage is not None:
            other = None
            if elsewhere is not None:
                other = Path(elsewhere.source).name, data.load(elsewhere, place.data_cache)
            graph, accepting = accepted_by(graph, how.coverage, splits, lambda one: finished(one, metadata), other)
            metadata["acceptance"] = accepting.as_dict()
        if precision != "fp32" or measured:
            model, reference = OnnxClassifier(finished(graph, metadata)), references(run, splits, place)
            for name, part in (("val", splits.val), ("test", splits.test)):
                answers[name] = model.logits_of(part)
                losses[name] = loss_of(reference[name], answers[name], part)
                if precision != "fp32":  # its promise is its own accuracy
                    found = score(answers[name], part.labels, part.classes).as_dict()
                    metadata["scores"][name] = {key: found[key] for key in SCORES}
        place.count_test_look(splits.fingerprint, run.id, f"export {variant}")
    else:
        graph = in_precision(graph, precision, None)
    loss = {name: one.as_dict() for name, one in losses.items()}
    if precision != "fp32":
        metadata["loss"] = loss
    if told is not None:
        metadata |= about_calibration(splits.train, told)
    content = finished(graph, metadata)
    facts = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": OPSET,
        "footprint": footprint(content, metadata["input_shape"]).as_dict(),
        "run": run.id,
        "precision": precision,
        "variant": variant,
        "quantized": None if told is None else told.as_dict(),
        "acceptance": None if accepting is None else accepting.as_dict(),
        "loss": loss or None,
        "flagged": any(one.flagged for one in losses.values()),
        "limit": LIMIT,
    }
    return Made(content, facts, answers)


def validation_logits(run: Run, store: Store, precision: Precision) -> NDArray[np.float32]:
    """Logits [N, classes] of a finished run's file in a precision on the validation images.

    The test images are not used: to choose between files.

    Raises:
        BadModel, BadData: the weights or the images cannot be read.
        WorkFailed: the network cannot be written in this precision.
    """
    splits, metadata = data.load(run.data, store.data_cache), metadata_of(run) | {"precision": precision}
    graph = graph_of_run(run, store, metadata)
    if precision == "int8":
        graph = in_integers(graph, AUTOMATIC, run, splits, store, metadata).graph
    else:
        graph = in_precision(graph, precision, None, metadata)
    return OnnxClassifier(finished(graph, metadata)).logits_of(splits.val)


SCORES = ("images", "accuracy", "nll", "ece")


def about_calibration(training: ImageSet, told: Quantized | None = None) -> dict[str, Any]:
    """What a file in int8 says of its making; by default as long as that of any without a limit."""
    if told is None:
        told = Quantized(max(CALIBRATIONS, key=len), {})
    more = {} if told.max_drop is None else {"max_drop": told.max_drop, "layers_in_float": list(told.in_float)}
    return {
        "calibrated_on": f"{min(CALIBRATED_ON, len(training))} training images",
        "calibration": told.calibration.ljust(max(map(len, CALIBRATIONS))),
        **more,
    }


def metadata_of(run: Run) -> dict[str, Any]:
    """Metadata of the file of a finished run, the same in any precision."""
    return described(run.spec, run.id, run.result or {})


def described(spec: RunSpec, id: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what a run is: its spec, id and result."""
    kept = spec.data.labeled().without_folders()
    bare: dict[str, Any] = {"data": spec.data.without_folders()}
    if isinstance(spec.network, GivenNetwork) and spec.network.weights is not None:  # no paths leave the house
        bare["network"] = spec.network.model_copy(update={"weights": Path(spec.network.weights).name})
    return {
        "run": id,
        "classes": result["classes"],
        "input_shape": result["input_shape"],
        "data": {"source": kept.source, "fingerprint": spec.data.fingerprint},
        "data_spec": kept.model_dump(mode="json", exclude_defaults=True),
        "spec": to_yaml(with_code(spec.model_copy(update=bare), _without_folder)),
        "scores": {split: {key: result[split][key] for key in SCORES} for split in ("val", "test")},
        "temperature": result["temperature"],
        "weights_sha256": result["weights_sha256"],
    }


def _without_folder(one: Code) -> Code:
    return one.model_copy(update={"file": Path(one.file).name}) if one.file else one


def graph_of_run(run: Run, store: Store | None, metadata: dict[str, Any]) -> bytes:
    """The graph of a run in single precision, kept for the other precisions: the exporter takes seconds."""
    if store is None:
        return graph_of(networks.from_file(run.weights, metadata["weights_sha256"]), metadata["temperature"])
    facts = [metadata["weights_sha256"], metadata["temperature"], metadata["classes"], OPSET, torch.__version__]
    file = _kept(store, facts, ".onnx")
    with contextlib.suppress(OSError):
        held = file.read_bytes()
        if checksum_matches(held):
            return held
    graph = with_checksum(
        graph_of(networks.from_file(run.weights, metadata["weights_sha256"]), metadata["temperature"])
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, graph)
    return graph


def _kept(store: Store, facts: list[Any], ending: str) -> Path:
    """Where something that these facts decide is kept."""
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return store.root / "cache" / "exports" / f"{key}{ending}"


def references(run: Run, splits: Splits, store: Store) -> dict[str, NDArray[np.float32]]:
    """PyTorch's logits of a run on `val` and `test`."""
    return {name: reference_on(name, run, splits, store) for name in ("val", "test")}


def reference_on(split: str, run: Run, splits: Splits, store: Store) -> NDArray[np.float32]:
    """PyTorch's logits of a run on `val` or `test`, kept for the other precisions."""
    digest = (run.result or {})["weights_sha256"]
    file = _kept(store, [digest, splits.fingerprint, torch.__version__, split], ".npz")
    if (content := read_sealed(file)) is not None:
        with np.load(io.BytesIO(content)) as kept:
            return np.asarray(kept["logits"])
    found = logits_of(networks.from_file(run.weights, digest), getattr(splits, split))
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, logits=found)
    write_sealed(file, stream.getvalue())
    return found
