"""Imported classifiers: ONNX files in the store, run by ONNX Runtime, with classes matched by name.

`classifier` opens any finished run or import for given classes, for example as a teacher. Files are inspected and run
in the sandbox, from bytes (so that no other file can be read) with a verified SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from smallalign_core import data, networks
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.metrics import class_scores, fit_temperature, logits_of, score
from smallalign_core.networks import BaseClassifier
from smallalign_core.runs import class_names, onnx_outputs
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec, Import, id_of
from smallalign_core.system import sandbox
from smallalign_core.system.batching import by_pixels
from smallalign_core.system.files import write_folder, write_json
from smallalign_core.system.machine import memory

ANSWER_SECONDS = 900  # of processor time that one batch may take
STORED = {"float": "float", "float16": "float", "double": "float", "uint8": "uint8", "int8": "int8"}
"""How answers of each type are kept in `Import.stored`."""

CHUNK = 128  # images that a file of any batch gets at once


def open_sandboxed(content: bytes, threads: int, engine: Path | None = None) -> sandbox.SandboxedSession:
    """An accepted file, run in a sandbox by ONNX Runtime or another engine. A batch of a large network may need
    gigabytes; half of the machine's leaves whoever trains alive."""
    limits = sandbox.Limits(memory=max(sandbox.LIMITS.memory, memory() // 2), seconds=ANSWER_SECONDS)
    return sandbox.SandboxedSession(content, threads=threads, limits=limits, engine=engine)


class OnnxClassifier(BaseClassifier):
    """An accepted ONNX file as a classifier: uint8 images in, logits out; preprocessing is inside, and it never learns.

    Args:
        content: the file's bytes.
        how: what is known of it.

    Raises:
        BadModel: the bytes are not those that were imported, or ONNX Runtime cannot open them.
    """

    def __init__(self, content: bytes, how: Import) -> None:
        super().__init__()
        if hashlib.sha256(content).hexdigest() != how.sha256:
            raise BadModel("the imported file is damaged", given=how.file, do="delete the import, and import it again")
        self.session = open_sandboxed(content, torch.get_num_threads())
        self.classes, self.body = how.classes, nn.Identity()
        self.use(how)

    def use(self, how: Import) -> Self:
        """Prepare images and read answers in this way from now on."""
        self.how = how
        mean, std = (values if len(values) == how.channels else (sum(values) / len(values),) for values in _normal(how))
        self.mean, self.std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
        return self

    @property
    def learned_side(self) -> int | None:
        """The longer side that the file takes; None where it takes any."""
        return max(self.how.size) if self.how.size else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, classes] of uint8 images [N, channels, H, W], any H and W."""
        return torch.from_numpy(onnx_outputs.logits(self.raw(images), self.how)).to(images.device)

    def raw(self, images: Tensor) -> NDArray[np.float32]:
        """The file's own numbers [N, outputs] of uint8 images [N, channels, H, W]."""
        prepared = self.prepare(images.cpu())
        sides = prepared.shape[2:] if self.how.layout == "nchw" else prepared.shape[1:3]
        step = self.how.batch or by_pixels(sides, CHUNK)
        parts = [self._run(prepared[at : at + step]) for at in range(0, len(prepared), step)]
        return np.concatenate(parts).astype(np.float32)

    def prepare(self, images: Tensor) -> NDArray[Any]:
        """What the file takes: its channels, size, scale, layout and type."""
        x = images.to(torch.float32)
        if self.how.size is not None and tuple(x.shape[-2:]) != self.how.size:
            x = F.interpolate(x, size=self.how.size, mode="bilinear", align_corners=False, antialias=True)
        if x.shape[1] != self.how.channels:
            x = x.expand(-1, 3, -1, -1) if self.how.channels == 3 else x.mean(1, keepdim=True)
        if self.how.order == "bgr":
            x = x.flip(1)
        whole = self.how.dtype == "uint8"
        x = x.round().clamp(0, 255) if whole else (x / 255 * self.how.white - self.mean) / self.std
        if self.how.layout == "nhwc":
            x = x.permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.numpy().astype(self.how.dtype))

    def _run(self, part: NDArray[Any]) -> NDArray[Any]:
        """Answers to at most one batch; a file of fixed batch gets the last one filled up."""
        missing = (self.how.batch or len(part)) - len(part)
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        found = self.session.run(self.how.output, self.how.input, filled)
        return found.reshape(len(filled), -1)[: len(part)]

    def latency(self, image: Tensor) -> tuple[float, float]:
        """(p50, p95) milliseconds of one batch as small as the file takes, of uint8 images [1, channels, H, W]."""
        one = self.prepare(image).repeat(self.how.batch or 1, axis=0)
        return self.session.latency(self.how.output, self.how.input, one)


def _normal(how: Import) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return how.mean, how.std


class ClassSubset(BaseClassifier):
    """A classifier restricted to some of its classes, in another order.

    Softmax over the chosen logits is the model's own probability given that it is one of them.
    """

    def __init__(self, whole: BaseClassifier, columns: Sequence[int], classes: tuple[str, ...]) -> None:
        super().__init__()
        self.whole, self.classes, self.body = whole, classes, whole.body
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    columns: Tensor

    @property
    def learned_side(self) -> int | None:
        """That of the whole classifier."""
        return self.whole.learned_side

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, chosen classes] of uint8 images [N, channels, H, W]."""
        found: Tensor = self.whole(images).index_select(1, self.columns)
        return found


def class_columns(known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Place of each requested class among the known ones; by name, upper and lower case alike if that is unambiguous.

    Raises:
        BadInput: some are not there; names them.
    """
    places = {name: place for place, name in enumerate(known)}
    folded = {name.strip().casefold(): place for place, name in enumerate(known)}
    if len(folded) == len(known) and len({name.strip().casefold() for name in wanted}) == len(wanted):
        places = folded | places
    found = [places.get(name, places.get(name.strip().casefold(), -1)) for name in wanted]
    twice = [name for name, place in zip(wanted, found, strict=True) if list(known).count(known[place]) > 1]
    if twice:
        raise BadInput(
            "the teacher has duplicate class names", given=_listed(twice), do="import it with class names (--classes)"
        )
    missing = [name for name, place in zip(wanted, found, strict=True) if place < 0]
    if missing:
        raise BadInput(
            f"the teacher's classes do not match the data: it lacks {len(missing)} of {len(wanted)} classes",
            given=f"missing: {_listed(missing)}; its {len(known)} classes: {_listed(known)}",
            do="choose a model of these classes, or import it again with the names of the dataset (import --classes)",
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def classifier(run: Run, classes: tuple[str, ...] | None = None) -> BaseClassifier:
    """The classifier of a finished run or import, in evaluation mode: uint8 [N, channels, H, W] -> logits [N, classes].

    Args:
        classes: the classes to ask about, matched by name; all of its own without.

    Raises:
        BadModel: its file cannot be read.
        BadInput: it has other classes.
    """
    if run.imported is not None:
        try:
            whole: BaseClassifier = OnnxClassifier(run.weights.read_bytes(), run.imported)
        except OSError:
            raise BadModel("the imported file is missing", given=run.weights, do="import it again") from None
    else:
        whole = networks.from_file(run.weights, (run.result or {}).get("weights_sha256"))
    if not whole.classes:
        run.require_finished(headless=False)  # refuses: for what reads runs without `Store.finished`
    if classes is None or classes == whole.classes:
        return whole.eval()
    return ClassSubset(whole, class_columns(whole.classes, classes), classes).eval()


def digest_of(run: Run) -> str:
    """The digest of everything that determines a teacher's outputs: its weights, or an import's file and
    preprocessing.
    """
    if run.imported is not None:
        return id_of(run.imported)
    return str((run.result or {})["weights_sha256"])


# --- bringing a file in -----------------------------------------------------------------------------------------------


def import_onnx(file: Path, spec: DataSpec, store: Store, **told: Any) -> Run:
    """Import an ONNX classifier into the store, evaluated on the validation and test images of `spec`.

    Args:
        told: facts given by the user, as for `describe`.

    Raises:
        BadModel: the sandbox refused the file, or it does not run.
        BadInput: its classes are unknown, or are not those of the data; an option does not fit the file.
    """
    splits = data.load(spec, store.data_cache)
    try:
        content = file.read_bytes() if file.is_file() and file.stat().st_size <= sandbox.LIMITS.file else b""
    except OSError as error:
        raise BadInput(f"the file cannot be read: {error.strerror}", given=file, do="name an .onnx file") from None
    facts = sandbox.inspect(file, told.get("size") or splits.shape[1:])
    if facts["kind"] != "onnx":
        raise BadInput(
            "a file with weights only is not a classifier",
            given=f"{file}, {facts['kind']}",
            do="train a run with network: {kind: timm, name: …, weights: FILE}",
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != facts["sha256"]:
        raise BadInput("the file changed during the import", given=file, do="import it again")
    whole = OnnxClassifier(content, describe(file.name, facts, spec, splits, **told))
    assumed = infer_semantics(whole, splits, told)
    mapped = ClassSubset(whole, class_columns(whole.how.classes, splits.classes), splits.classes)
    result = _scored(mapped, whole.how, splits, facts, store) | {"assumed": assumed.as_dict()}
    return _kept(store, whole.how, content, result)


def infer_semantics(whole: OnnxClassifier, splits: data.Splits, told: Mapping[str, Any]) -> onnx_outputs.Assumed:
    """Infer the kind of a file's outputs and the scale of its pixels, unless `told` has them; `whole` is updated.

    Args:
        told: as for `describe`.

    Raises:
        BadInput: the answers are not one number a class.
        BadModel: they are not finite.
    """
    few = torch.from_numpy(np.ascontiguousarray(splits.val.images[:64]))
    how, words = onnx_outputs.answers_of(whole.raw(few), whole.how, told=told.get("answers"))
    whole.use(how)
    given = [name for name in ("white", "mean", "std", "order") if told.get(name) is not None]
    if how.dtype == "uint8" or given:
        return onnx_outputs.Assumed(words)
    columns = class_columns(how.classes, splits.classes)
    images, labels = _sample(splits)

    def ask(one: Import) -> NDArray[np.float32]:
        with torch.no_grad():
            return whole.use(one)(images).numpy()[:, columns]

    how, scale = onnx_outputs.scale_of(how, ask, labels)
    whole.use(how)
    return onnx_outputs.Assumed([*words, *scale.words], scale.scales, scale.images)


def _sample(splits: data.Splits) -> tuple[Tensor, NDArray[np.int64]]:
    """Some labelled images to decide on, half of them for validation, spread evenly: never those of test."""
    parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    for images, most in ((splits.val, onnx_outputs.LOOKED_AT // 2), (splits.train, onnx_outputs.LOOKED_AT)):
        rows = np.flatnonzero(images.labels >= 0)
        room = most - sum(len(labels) for _, labels in parts)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), room)).astype(int)]
        parts.append((np.ascontiguousarray(images.images[rows]), images.labels[rows]))
    return torch.from_numpy(np.concatenate([one for one, _ in parts])), np.concatenate([one for _, one in parts])


def describe(
    name: str,
    facts: dict[str, Any],
    spec: DataSpec,
    splits: data.Splits,
    *,
    classes: Sequence[str] | None = None,
    output: str | None = None,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    white: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    order: str | None = None,
    answers: str | None = None,  # noqa: ARG001  # `understand` reads it
) -> Import:
    """The description of a file called `name`, for images of `spec`, from the sandbox's facts and the user's.

    Args:
        facts: the sandbox's.
        classes: its classes in the order of its answers; without, those that the file names.
        output: which output holds the answers; without, `logits`, or the only one of two dimensions.
        layout: `nchw` or `nhwc`, where the file leaves it open.
        size: (height, width) to resize to, where the file leaves it open; without, images stay as they are.
        white, mean, std: float inputs only: (pixel / 255 * white - mean) / std; ImageNet's without.
        order: of the channels, `rgb` or `bgr`.
        answers: what its numbers are, as in `Import`; without, `understand` decides.

    Raises:
        BadInput: the classes are unknown, or an option does not fit the file.
    """
    source = data.absolute(spec.source)
    names = tuple(classes or class_names.in_metadata(facts["metadata"]))
    found: dict[str, Any] = {
        "file": name,
        "sha256": facts["sha256"],
        "data": spec.model_copy(update={"source": source, "fingerprint": splits.fingerprint}),
        "classes": names,
        **_input(facts["input"], splits.shape, layout, size),
        **_output(facts, output, len(names)),
        **{
            name: value
            for name, value in (("white", white), ("mean", mean), ("std", std), ("order", order))
            if value is not None
        },
    }
    if found["dtype"] == "uint8" and {"white", "mean", "std"} & set(found):
        raise BadInput("a file that takes uint8 pixels scales them itself", do="leave out --white, --mean and --std")
    return _checked(found)


def _kept(store: Store, how: Import, content: bytes, result: dict[str, Any]) -> Run:
    """The import's folder, beside those of runs; it arrives whole."""
    run = store.by_id(id_of(how))
    part = run.folder.with_name(f".importing-{run.name}-{os.getpid()}")
    try:
        write_folder(part, {"model.onnx": content})
        write_json(part / "import.json", {"import": how.model_dump(mode="json")})
        write_json(part / "result.json", {"id": run.name, **result})
        with contextlib.suppress(OSError):  # it is there already: an equal import is the same
            part.rename(run.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return run


def _checked(found: dict[str, Any]) -> Import:
    try:
        how = Import.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"`{where}` cannot be: {first['msg']}", given=first["input"], do="see --help") from None
    if min(how.std) <= 0 or {len(how.mean), len(how.std)} - {how.channels, 3}:
        raise BadInput(
            "mean and std must be one positive number per channel", given=f"{how.mean}, {how.std}", do="see --help"
        )
    return how


def _input(
    door: dict[str, Any], shape: tuple[int, int, int], layout: str | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Name, type, layout, channels, size and batch of the input; `shape` is that of the data."""
    dims = [dim if isinstance(dim, int) and dim > 0 else None for dim in door["shape"]]
    fits = {name for name, place in (("nchw", 1), ("nhwc", 3)) if dims[place] in (1, 3)}
    if layout is None and len(fits) != 1:
        raise BadInput(
            "the channel axis is ambiguous",
            given=f"{door['name']} {door['shape']}",
            do="add --layout nchw or --layout nhwc",
        )
    chosen = layout or fits.pop()
    place, sides = (1, dims[2:]) if chosen == "nchw" else (3, dims[1:3])
    channels = dims[place] or shape[0]
    known = None if None in sides else tuple(sides)
    if channels not in (1, 3) or (size is not None and known not in (None, tuple(size))):
        raise BadInput("the options do not fit the file's input", given=f"{door['shape']}", do="leave them out")
    return {
        "input": door["name"],
        "dtype": door["dtype"],
        "layout": chosen,
        "channels": channels,
        "size": known or size,
        "batch": dims[0],
    }


def _output(facts: dict[str, Any], wanted: str | None, classes: int) -> dict[str, Any]:
    """The output that holds one number a class, and how its numbers are stored."""
    doors = {
        door["name"]: (door["type"].removeprefix("tensor(").rstrip(")"), shape)
        for door, shape in zip(facts["outputs"], facts["trial"], strict=True)
    }
    flat = {
        name: shape
        for name, (kind, shape) in doors.items()
        if kind in STORED and all(side == 1 for side in shape[2:]) and (len(shape) >= 2 or (shape and classes == 2))
    }
    numbers = [f"{name}: {kind}" for name, (kind, _) in doors.items() if kind.startswith(("int", "uint", "string"))]
    fitting = [name for name, shape in flat.items() if shape[1:2] == [classes]]
    chosen = wanted or next(
        (found[0] for found in (["logits"] if "logits" in flat else [], list(flat), fitting) if len(found) == 1), None
    )
    if chosen not in flat:
        given = f"{wanted or ''} {list(doors)}".strip()
        if numbers and (wanted in doors or not flat):
            raise BadInput(
                "the output is a class index (argmax), not scores, which cannot be distilled",
                given=", ".join(numbers),
                do="export the scores before the argmax",
            )
        wrong = "the file has not exactly one output of [images, classes]"
        raise BadInput(wrong, given=given, do="choose one with --output")
    return {"output": chosen, "stored": STORED[doors[chosen][0]]}


def _scored(
    model: BaseClassifier, how: Import, splits: data.Splits, facts: dict[str, Any], store: Store
) -> dict[str, Any]:
    """What a finished run keeps too, as far as an import has it."""
    val, test = logits_of(model, splits.val), logits_of(model, splits.test)
    store.count_test_look(splits.fingerprint, id_of(how), "import")
    temperature = fit_temperature(val, splits.val.labels)
    return {
        "state": "finished",
        "imported": True,
        "test": score(test, splits.test.labels, splits.classes).as_dict(),
        "val": score(val, splits.val.labels, splits.classes).as_dict(),
        "temperature": temperature,
        "test_calibrated": score(test, splits.test.labels, splits.classes, temperature).as_dict(),
        "per_class": {
            name: one.as_dict()
            for name, one in class_scores(test, splits.test.labels, splits.classes, temperature).items()
        },
        "classes": list(splits.classes),
        "input_shape": list(splits.shape),
        "weights_sha256": how.sha256,
        "params": facts["params"],
        "bytes": facts["bytes"],
        "opset": facts["opset"],
        "nodes": facts["nodes"],
    }
