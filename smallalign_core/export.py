"""Export: one ONNX file that takes raw pixels, and the proof that it gives the same answers.

Input `images` is uint8 [N, height, width, channels], any batch, height and width, as a canvas or PIL gives it; resizing
and normalising are inside. Outputs are `logits` and `probabilities`, float32 [N, classes]; the temperature fitted on
validation is folded into the probabilities.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core import data, networks
from smallalign_core.data import ImageSet
from smallalign_core.errors import BadInput, BadModel, SmallAlignError
from smallalign_core.evaluate import logits_of, score
from smallalign_core.files import read_json, write, write_json
from smallalign_core.graphs import OPSET, quiet
from smallalign_core.networks import Classifier
from smallalign_core.spec import Borrowed, DataSpec, parse_data, to_yaml
from smallalign_core.store import Run, Store

METADATA = "smallalign"
MAX_DIFFERENCE = 1e-4  # of logits, absolute; or
MAX_RELATIVE = 1e-5  # relative to the spread of the logits, for networks whose logits span hundreds


class _Deployed(nn.Module):
    """A classifier as it leaves the house: raw NHWC pixels in, logits and calibrated probabilities out."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prepared = self.classifier.prepare(images.permute(0, 3, 1, 2), always_resize=True)
        logits = self.classifier.body(prepared)
        return logits, torch.softmax(logits / self.temperature, dim=1)


@dataclass(frozen=True)
class Parity:
    """Do two ways of running a model give the same answers?

    Attributes:
        images: how many held-out images were compared.
        max_abs_diff: largest absolute difference of any logit.
        relative_diff: the same, divided by the standard deviation of the reference's logits.
        top1_agreement: share of images with the same top-1.
        accuracy: of the file's answers.
        reference_accuracy: of the reference's answers.
        p50_ms, p95_ms: time for one image, batch 1, after warm-up.
        ok: same top-1 everywhere, and logits within 1e-4 absolute or 1e-5 relative.
    """

    images: int
    max_abs_diff: float
    relative_diff: float
    top1_agreement: float
    accuracy: float
    reference_accuracy: float
    p50_ms: float
    p95_ms: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def to_onnx(classifier: Classifier, *, temperature: float = 1.0, metadata: dict[str, Any] | None = None) -> bytes:
    """`classifier` as one ONNX file without external data and without source paths.

    Args:
        metadata: JSON-able facts, kept under the key `smallalign`.
    """
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
    deployed = _Deployed(plain, temperature).eval()
    with quiet(), torch.no_grad():
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
    model = program.model_proto
    graph = model.graph
    for holder in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        del holder.metadata_props[:]  # the exporter writes source paths and lines of code there
    for node in graph.node:
        node.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "SmallAlign", "1", ""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata or {"classes": list(classifier.classes)}, sort_keys=True)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def export(run: Run, to: Path) -> dict[str, Any]:
    """Write a finished run as ONNX to `to`. Returns its path, size and digest.

    Raises:
        BadInput: the target is not an .onnx file, or its folder is missing.
        BadModel: the weights cannot be read.
    """
    if to.suffix != ".onnx" or not to.parent.is_dir():
        raise BadInput(
            "an export goes into an existing folder, as a file ending in .onnx",
            given=to,
            do="write for example --to student.onnx",
        )
    result = run.result or {}
    spec = run.spec
    bare: dict[str, Any] = {"data": spec.data.model_copy(update={"source": Path(spec.data.source).name})}
    if isinstance(spec.network, Borrowed) and spec.network.weights is not None:  # no paths leave the house
        bare["network"] = spec.network.model_copy(update={"weights": Path(spec.network.weights).name})
    metadata = {
        "run": run.id,
        "classes": result["classes"],
        "input_shape": result["input_shape"],
        "data": {
            "source": Path(spec.data.source).name,
            "fingerprint": spec.data.fingerprint,
        },
        "data_spec": spec.data.model_dump(mode="json", exclude_defaults=True) | {"source": Path(spec.data.source).name},
        "spec": to_yaml(spec.model_copy(update=bare)),
        "scores": {
            split: {key: result[split][key] for key in ("images", "accuracy", "nll", "ece")}
            for split in ("val", "test")
        },
        "temperature": result["temperature"],
        "weights_sha256": result["weights_sha256"],
    }
    classifier = networks.from_file(run.weights, result["weights_sha256"])
    content = to_onnx(classifier, temperature=result["temperature"], metadata=metadata)
    write(to, content)
    return {
        "file": str(to),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": OPSET,
        "run": run.id,
    }


# --- running and verifying --------------------------------------------------------------------------------------------


class OnnxClassifier:
    """An ONNX classifier of ours, run by ONNX Runtime on one CPU thread, from bytes (no external data can be read).

    Raises:
        BadModel: it is not an ONNX file, or not one with our input and outputs.
    """

    def __init__(self, content: bytes, name: str = "the file") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions share no base class
            raise BadModel(
                "the file is not an ONNX model that ONNX Runtime can open",
                given=f"{name}: {str(error)[:120]}",
                do="export it again",
            ) from None
        inputs = [(i.name, i.type) for i in self.session.get_inputs()]
        outputs = {o.name for o in self.session.get_outputs()}
        if inputs != [("images", "tensor(uint8)")] or not {"logits", "probabilities"} <= outputs:
            raise BadModel(
                "the model does not have the input `images` (uint8) and the outputs `logits` and `probabilities`",
                given=f"{name}: {inputs} -> {sorted(outputs)}",
                do="give a file that SmallAlign exported",
            )
        kept = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        try:
            metadata = json.loads(kept) if kept else {}
            known = {"data": dict, "data_spec": dict, "scores": dict}
            if not isinstance(metadata, dict) or any(not isinstance(metadata.get(k, {}), t) for k, t in known.items()):
                raise ValueError
            DataSpec.model_validate({"source": "-", **metadata.get("data_spec", {})})
        except ValueError:
            raise BadModel("the model's metadata is damaged", given=name, do="export it again") from None
        self.metadata: dict[str, Any] = metadata

    def logits(self, images: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
        """Logits [N, C] of uint8 images [N, H, W, C]."""
        parts = [
            self.session.run(["logits"], {"images": images[i : i + batch]})[0] for i in range(0, len(images), batch)
        ]
        return np.concatenate(parts)

    def latency(self, image: NDArray[np.uint8], seconds: float = 0.5) -> tuple[float, float]:
        """(p50, p95) milliseconds for one image, after as long a warm-up."""
        times: list[float] = []
        for phase in ("warm-up", "measured"):
            times, until = [], time.perf_counter() + seconds
            while time.perf_counter() < until or len(times) < 20:
                start = time.perf_counter()
                self.session.run(["logits"], {"images": image[None]})
                times.append((time.perf_counter() - start) * 1000)
                if phase == "measured" and len(times) >= 5000:
                    break
        return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def nhwc(images: ImageSet, count: int | None = None) -> NDArray[np.uint8]:
    """The first `count` images as an exported file takes them: uint8 [N, H, W, C]."""
    return np.ascontiguousarray(images.images[:count].transpose(0, 2, 3, 1))


def parity(
    reference: NDArray[np.float32],
    answers: NDArray[np.float32],
    images: ImageSet,
    latency: tuple[float, float] = (0.0, 0.0),
) -> Parity:
    """How `answers` differ from `reference`: logits [N, C] of the same images."""
    labels = images.labels[: len(answers)]
    gap = float(np.abs(answers - reference).max())
    relative = gap / max(float(reference.std()), 1e-12)
    agreement = float((answers.argmax(1) == reference.argmax(1)).mean())
    return Parity(
        images=len(answers),
        max_abs_diff=gap,
        relative_diff=relative,
        top1_agreement=agreement,
        accuracy=score(answers, labels, images.classes).accuracy,
        reference_accuracy=score(reference, labels, images.classes).accuracy,
        p50_ms=latency[0],
        p95_ms=latency[1],
        ok=agreement == 1.0 and (gap < MAX_DIFFERENCE or relative < MAX_RELATIVE),
    )


def verify(file: Path, store: Store, *, run: str | None = None, data_source: str | None = None) -> dict[str, Any]:
    """Does an exported file give the answers that it promises, on the whole held-out test set?

    Compares with PyTorch where the run that the file names (or `run`) is in the store; and always with the accuracy
    that was written into the file when it was exported.

    Raises:
        BadInput: the file is missing, or there are no images to try it on.
        BadModel: it is not one of our exports.
    """
    try:
        content = file.read_bytes()
    except OSError:
        raise BadInput("the file cannot be read", given=file, do="name an exported .onnx file") from None
    model = OnnxClassifier(content, str(file))
    facts = model.metadata
    asked = run or facts.get("run")
    known = None
    with contextlib.suppress(BadInput) if run is None else contextlib.nullcontext():
        known = store.finished(asked) if asked else None
    splits = _images_for(facts, known, store, data_source)
    images = splits.test
    answers = model.logits(nhwc(images))
    if answers.shape[1] != len(images.classes):
        raise BadInput(
            "the model and the data do not have the same classes",
            given=f"{answers.shape[1]} and {len(images.classes)}",
            do="name the data that it was trained on",
        )
    fingerprint = facts.get("data", {}).get("fingerprint")
    store.count_test_look(splits.fingerprint, asked or file.name, "verify")
    reference = logits_of(networks.from_file(known.weights), images) if known else answers
    found = parity(reference, answers, images, model.latency(nhwc(images, 1)[0])).as_dict()
    promised = facts.get("scores", {}).get("test", {}).get("accuracy")
    same_images = promised is not None and fingerprint == splits.fingerprint
    kept_promise = abs(promised - found["accuracy"]) < 0.5 / len(images) if same_images else None
    found["ok"] = kept_promise is not False and (found["ok"] if known else kept_promise is True)
    if known is None:  # nothing was compared image by image, so nothing is claimed
        found |= dict.fromkeys(("max_abs_diff", "relative_diff", "top1_agreement", "reference_accuracy"))
    return {
        **found,
        "compared_with": f"PyTorch, run {known.name}" if known else "the accuracy written into the file",
        "promised_accuracy": promised,
        "same_images": same_images,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "run": asked,
    }


def _images_for(facts: dict[str, Any], run: Run | None, store: Store, data_source: str | None) -> data.Splits:
    """The images to try a file on: those named, the run's, or those that the file says it was made for."""
    kept = {key: value for key, value in facts.get("data_spec", {}).items() if key != "fingerprint"}
    if data_source is not None:  # divided as the file's own data was, so that its test images are found again
        return data.load(parse_data({**kept, "source": data_source}), store.data_cache)
    if run is not None:
        return data.load(run.spec.data, store.data_cache)
    if kept:
        return data.load(DataSpec.model_validate(kept), store.data_cache)
    raise BadInput("the file does not say which data it was made for", do="add --data or --run")


BUNDLE = 2  # raised when a bundle's files change, so that kept ones are made again


def bundle_folder(run: Run, store: Store) -> Path:
    """Where a run's bundle is kept. Zoo models are committed, so theirs lies with the store too."""
    return store.root / "exports" / run.id


def kept_bundle(run: Run, store: Store) -> dict[str, Any] | None:
    """The report of a bundle that was made before and whose file is still what it was; None otherwise."""
    folder = bundle_folder(run, store)
    try:
        report: dict[str, Any] = read_json(folder / "parity.json")
        whole = all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in report["files"].items()
        )
    except (OSError, SmallAlignError, LookupError, AttributeError):
        return None
    same = report.get("weights_sha256") == (run.result or {}).get("weights_sha256")
    return report if whole and same and report.get("bundle") == BUNDLE else None


def bundle(run: Run, store: Store, *, count: int = 1000) -> dict[str, Any]:
    """What the Export page needs: the file, its proof, and held-out images for the browser.

    `model.onnx` is the export; `images.bin` holds the first `count` test images as raw uint8 NHWC; `logits.bin` what
    ONNX Runtime answers to them (float32); `parity.json` the proof, written last.
    """
    folder = bundle_folder(run, store)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    facts = export(run, file)
    proof = verify(file, store, run=run.id)
    images = data.load(run.spec.data, store.data_cache).test
    pixels = nhwc(images, count)
    logits = OnnxClassifier(file.read_bytes()).logits(pixels)
    files = {"images.bin": pixels.tobytes(), "logits.bin": logits.astype("<f4").tobytes()}
    for name, content in files.items():
        write(folder / name, content)
    report = {
        "bundle": BUNDLE,
        "files": {"model.onnx": facts["sha256"]}
        | {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **facts,
        "weights_sha256": (run.result or {}).get("weights_sha256"),
        "parity": proof,
        "classes": list(images.classes),
        "shape": list(pixels.shape),
        "labels": [int(label) for label in images.labels[:count]],
    }
    write_json(folder / "parity.json", report)
    return report
