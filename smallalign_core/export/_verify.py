"""Verification of an ONNX classifier, exported by SmallAlign or not: integrity and predictions, in the sandbox only."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadData, BadInput, BadModel
from smallalign_core.export import targets
from smallalign_core.export._acceptance import OUTPUTS, repeated
from smallalign_core.export._checksum import KEY, checksum_matches
from smallalign_core.export._parity import GATES, Gate, parity
from smallalign_core.export._runtime import METADATA, acceptance_in, at_once, check_doors, nhwc, read_metadata
from smallalign_core.metrics import logits_of, score
from smallalign_core.runs import class_names, imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec, parse_data
from smallalign_core.spec.data import GROUP
from smallalign_core.spec.target import Target, target_of
from smallalign_core.system import extras, sandbox

Answered = tuple[dict[str, NDArray[np.float32]], tuple[float, float]]
"""Outputs for images, such as logits [N, classes], by name; and (p50, p95) milliseconds for one."""
COMPARED = ("max_abs_diff", "relative_diff", "top1_agreement", "reference_accuracy")


def verify(
    file: Path,
    store: Store,
    *,
    run: str | None = None,
    data_source: str | None = None,
    proof: Path | None = None,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Look at an ONNX file, or an export for another runtime, and try it on the whole held-out test set.

    An export of SmallAlign must have a matching checksum. It is compared with PyTorch where the run that it names (or
    `run`) is in the store, and always with the accuracy in its metadata. A file of others is compared with `run`,
    scored on `data_source`, or only described if neither is given.

    Args:
        proof: the parity.json that came with the file. Its digest must be the file's, and its figures are computed
            again: the Python half by running the file, the browser's from the logits beside it (browser-logits.bin).
        told: facts about a file of others, as for `imported.describe`.

    Raises:
        BadInput: the file is missing, or there are no images to try it on.
        BadModel: it is refused by the sandbox, or it was changed since it was exported.
    """
    try:
        # The size of a pipe or device says nothing, and its content may never end: the sandbox refuses it as no file.
        content = file.read_bytes() if file.is_file() and file.stat().st_size <= sandbox.LIMITS.file else b""
    except OSError:
        raise BadInput("the file cannot be read", given=file, do="name an exported .onnx file") from None
    told = dict(told or {})
    digest = hashlib.sha256(content).hexdigest()
    held = None if proof is None else _read_proof(proof, digest)
    target = target_of(file)
    if target is not None:
        return _of_target(file, content, target, store, run, data_source, held) | {"sha256": digest}
    facts = sandbox.inspect(file, told.get("size") or (224, 224))
    if facts["kind"] != "onnx":
        raise BadModel("the file is not an ONNX model", given=f"{file}, {facts['kind']}", do="name an .onnx file")
    if facts["sha256"] != digest:
        raise BadInput("the file changed during verification", given=file, do="verify it again")
    ours = METADATA in facts["metadata"] or KEY in facts["metadata"]
    if ours and not checksum_matches(content):
        raise BadModel(
            "the file was changed after export: its checksum is wrong or missing",
            given=file,
            do="export the run again, or get the original file",
        )
    if ours:
        doors = [(facts["input"]["name"], facts["input"]["type"])]
        check_doors(doors, {door["name"] for door in facts["outputs"]}, str(file))
        about = read_metadata(facts["metadata"].get(METADATA), str(file))
        names = ("logits", "probabilities", *OUTPUTS) if acceptance_in(about) else ("logits",)
        if missing := set(names) - {door["name"] for door in facts["outputs"]}:
            raise BadModel(
                "the model does not have the outputs that its metadata describes",
                given=f"{file}: without {', '.join(sorted(missing))}",
                do="export it again",
            )
        gate = GATES.get(about.get("precision", "fp32"), GATES["fp32"])
        found = _ours(file, about, gate, partial(_answered, content, about, names), store, run, data_source, held)
    else:
        found = _theirs(file, content, facts, store, run, data_source, told)
    described = ("bytes", "sha256", "opset", "ir", "nodes", "params", "input", "outputs", "producer")
    return found | {"sealed": ours} | {name: facts[name] for name in described}


def _read_proof(proof: Path, digest: str) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(proof.read_text() if proof.is_file() else "")
        promised = held["sha256"]
        count, classes = len(held["labels"]), len(held["classes"])
        said, beside = held["browser"], proof.with_name("browser-logits.bin")
        raw = beside.read_bytes() if said is not None and beside.is_file() else None
        logits = None if raw is None else np.frombuffer(raw, "<f4").reshape(count, classes)
        figures = ("accuracy", "top1_agreement")
        known = {"fingerprint": str(held["data"]["fingerprint"]), "accuracy": float(held["parity"]["accuracy"])}
        if said is not None and raw is not None and hashlib.sha256(raw).hexdigest() == said["logits_sha256"]:
            known |= {"browser": {name: float(said[name]) for name in figures}, "logits": logits}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(
            "the parity report cannot be read", given=proof, do="give the parity.json of the download"
        ) from None
    if promised != digest:
        raise BadModel(
            "the parity report is about another file",
            given=f"SHA-256 {digest[:16]}…, parity report {str(promised)[:16]}…",
            do="use file and parity report of the same download",
        )
    return known


def _repeated(
    held: dict[str, Any] | None,
    found: dict[str, Any],
    near: float,
    reference: NDArray[np.float32] | None,
    splits: Splits,
) -> dict[str, bool] | None:
    """Which figures of a proof come out again: `python` by running the file, `browser` from the logits it sent."""
    if held is None or held["fingerprint"] != splits.fingerprint:
        return None
    again = {"python": abs(held["accuracy"] - found["accuracy"]) < near}
    if "logits" in held:
        top = held["logits"].argmax(1)
        if len(top) > len(splits.test):
            return again | {"browser": False}
        right = float((top == splits.test.labels[: len(top)]).mean())
        again["browser"] = abs(right - held["browser"]["accuracy"]) < 1e-9
        if reference is not None:
            same = float((top == reference[: len(top)].argmax(1)).mean())
            again["browser"] = again["browser"] and abs(same - held["browser"]["top1_agreement"]) < 1e-9
    return again


def _of_target(
    file: Path,
    content: bytes,
    target: Target,
    store: Store,
    run: str | None,
    data_source: str | None,
    held: dict[str, Any] | None,
) -> dict[str, Any]:
    """A file for another runtime: only one of ours, whose checksum matches, is opened."""
    files = targets.read_files(file, target, content)
    kept = targets.read_trailer(content)
    if kept is None:
        raise BadModel(
            "the file was changed after export, or is not an export of SmallAlign",
            given=file,
            do="export the run again; of files of others, only ONNX is verified",
        )
    about = read_metadata(kept, str(file))
    targets.check_beside(files, about, file)
    extras.require(target.package, f"verifying {target.title} files")

    def answered(images: ImageSet) -> Answered:
        model = targets.TargetClassifier(target, files, about)
        return {"logits": model.logits_of(images)}, model.latency(images)

    found = _ours(file, about, targets.GATE, answered, store, run, data_source, held)
    runtime = f"{target.title} {extras.version(target.package)}"
    more = {"target": target.name, "runtime": runtime, "written_by": about.get("runtime")}
    return found | more | {"sealed": True, "bytes": sum(map(len, files.values()))}


def _ours(
    file: Path,
    told: dict[str, Any],
    gate: Gate,
    answered: Callable[[ImageSet], Answered],
    store: Store,
    run: str | None,
    data_source: str | None,
    held: dict[str, Any] | None,
) -> dict[str, Any]:
    run_id = run or told.get("run")
    known = None
    with contextlib.suppress(BadInput) if run is None else contextlib.nullcontext():
        known = store.finished(run_id) if run_id else None
    try:
        splits = _images_for(told, known, store, data_source)
    except BadData as error:
        if data_source is not None or run is not None:
            raise
        return _unscored(told, run_id, f"nothing: accuracy was not checked, since {error.wrong}; add --data")
    images = splits.test
    outputs, latency = answered(images)
    answers = outputs["logits"]
    if answers.shape[1] != len(images.classes):
        raise _other_classes(answers.shape[1], images)
    store.count_test_look(splits.fingerprint, run_id or file.name, "verify")
    reference = logits_of(imported.classifier(known, images.classes), images) if known else answers
    found = parity(reference, answers, images, latency, gate).as_dict()
    promised = told.get("scores", {}).get("test", {}).get("accuracy")
    same_images = promised is not None and told.get("data", {}).get("fingerprint") == splits.fingerprint
    near = max(gate.promise, 0.5 / len(images))
    kept_promise = abs(promised - found["accuracy"]) < near if same_images else None
    proved = _repeated(held, found, near, reference if known else None, splits)
    found["ok"] = kept_promise is not False and (found["ok"] if known else kept_promise is True)
    found["ok"] = found["ok"] and False not in (proved or {}).values()
    accepting = None
    if (written := acceptance_in(told)) is not None and "accepted" in outputs:
        temperature = float(told.get("temperature") or 1.0)
        accepting = repeated(outputs, images.labels, written, gate, temperature, same_images=same_images)
        found["ok"] = found["ok"] and accepting.ok
    if known is None:  # nothing was compared image by image, so nothing is claimed
        found |= dict.fromkeys(COMPARED)
    return {
        **found,
        "proof": proved,
        "compared_with": f"PyTorch, run {known.name}" if known else "the accuracy in the file's metadata",
        "promised_accuracy": promised,
        "same_images": same_images,
        "run": run_id,
        "precision": told.get("precision", "fp32"),
        "acceptance": None if accepting is None else asdict(accepting),
        "loss": told.get("loss"),
        "flagged": any(one.get("flagged") for one in told.get("loss", {}).values()),
    }


def _unscored(told: dict[str, Any], run_id: str | None, why: str) -> dict[str, Any]:
    """Facts of an export of SmallAlign without its images: checksum, inputs and outputs, metadata."""
    return {
        **dict.fromkeys((*COMPARED, "accuracy", "p50_ms", "p95_ms", "proof", "acceptance")),
        "images": 0,
        "ok": True,
        "compared_with": why,
        "promised_accuracy": told.get("scores", {}).get("test", {}).get("accuracy"),
        "same_images": None,
        "run": run_id,
        "precision": told.get("precision", "fp32"),
        "loss": told.get("loss"),
        "flagged": any(one.get("flagged") for one in told.get("loss", {}).values()),
    }


def _answered(content: bytes, told: dict[str, Any], names: Sequence[str], images: ImageSet) -> Answered:
    """These outputs of an ONNX export of ours for all images, each [N, ...]."""
    session, step = imported.open_sandboxed(content, threads=1), at_once(told, *images.shape[1:])
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for at in range(0, len(images), step):
        pixels = nhwc(images.take(np.arange(at, min(at + step, len(images)))))
        for name in names:
            found = session.run(name, "images", pixels)
            if found.ndim != (1 if name in OUTPUTS else 2) or len(found) != len(pixels):
                raise BadModel(
                    "the model does not output one row per image",
                    given=f"{name}: {found.shape} for {len(pixels)} images",
                    do="give a file that SmallAlign exported",
                )
            parts[name].append(found)
    latency = session.latency("logits", "images", nhwc(images, 1))
    return {name: np.concatenate(each) for name, each in parts.items()}, latency


def _other_classes(count: int, images: ImageSet) -> BadInput:
    return BadInput(
        "the model and the data do not have the same classes",
        given=f"{count} and {len(images.classes)}",
        do="give the dataset it was trained on with --data",
    )


def _images_for(facts: dict[str, Any], run: Run | None, store: Store, data_source: str | None) -> Splits:
    """The images for testing a file: those given, the run's, or those of its metadata."""
    kept = {key: value for key, value in facts.get("data_spec", {}).items() if key != "fingerprint"}
    if data_source is not None:  # divided as the file's own data was, so that its test images are found again
        spec = _with_files(parse_data({**kept, "source": data_source}), run)
        return data.load(spec, store.data_cache)
    if run is not None:
        return data.load(run.data, store.data_cache)
    if kept:
        return data.load(_with_files(DataSpec.model_validate(kept), None), store.data_cache)
    raise BadInput("the file's metadata has no dataset", do="add --data or --run")


def _with_files(spec: DataSpec, run: Run | None) -> DataSpec:
    """The files that a spec from a model file names, where they are here: those of the run, or in the current folder,
    the dataset's, or the one above it. Names only: a model file does not choose which file of this machine is run.
    """
    own, source = DataSpec(source="-") if run is None else run.data, Path(spec.source).expanduser()

    def place(given: str, known: str | None) -> str:
        name = Path(given).name
        places = [Path(name), source / name, source.parent / name]
        places[:0] = [Path(known)] if known and Path(known).name == name else []
        return next((str(file.resolve()) for file in places if file.is_file()), name)

    found: dict[str, Any] = {}
    if spec.decisions is not None:
        found["decisions"] = place(spec.decisions, own.decisions)
    if spec.groups is not None and GROUP not in spec.groups:
        found["groups"] = place(spec.groups, own.groups)
    if spec.reader is not None and spec.reader.file is not None:
        file = place(spec.reader.file, own.reader.file if own.reader else None)
        found["reader"] = spec.reader.model_copy(update={"file": file})
    return spec.model_copy(update=found)


# --- files of others --------------------------------------------------------------------------------------------------


def _theirs(
    file: Path,
    content: bytes,
    facts: dict[str, Any],
    store: Store,
    run: str | None,
    data_source: str | None,
    told: dict[str, Any],
) -> dict[str, Any]:
    """A file without our metadata: described; scored if there is data; compared image by image if there is a run."""
    nothing = {"images": 0, "accuracy": None, "p50_ms": None, "p95_ms": None, "ok": True}
    known = store.finished(run) if run else None
    if known is None and data_source is None:
        return nothing | dict.fromkeys(COMPARED) | {"compared_with": "nothing: give --run or --data", "run": None}
    spec = parse_data(data_source) if data_source is not None else known.data  # type: ignore[union-attr]
    splits = data.load(spec, store.data_cache)
    images = splits.test
    named = True
    if not told.get("classes"):
        try:
            class_names.in_metadata(facts["metadata"])
        except BadInput:  # as many outputs as classes: assumed to be in their order, which the report states
            named, told["classes"] = False, splits.classes
    how = imported.describe(file.name, facts, spec, splits, **told)
    whole = imported.OnnxClassifier(content, how)
    assumed = imported.infer_semantics(whole, splits, told)
    answers = logits_of(
        imported.ClassSubset(whole, imported.class_columns(how.classes, splits.classes), splits.classes), images
    )
    latency = whole.latency(torch.from_numpy(np.array(images.images[:1])))
    store.count_test_look(splits.fingerprint, known.id if known else file.name, "verify")
    found: dict[str, Any] = nothing | dict.fromkeys(COMPARED)
    found |= {"images": len(images), "accuracy": score(answers, images.labels, images.classes).accuracy}
    found |= {"p50_ms": latency[0], "p95_ms": latency[1]}
    if known is not None:
        reference = logits_of(imported.classifier(known, images.classes), images)
        found = parity(reference, answers, images, latency).as_dict()
    with_whom = "the labels" if known is None else f"{'import' if known.imported else 'PyTorch, run'} {known.name}"
    return found | {
        "compared_with": with_whom,
        "classes_named": named,
        "assumed": assumed.as_dict(),
        "run": known.id if known else None,
    }
