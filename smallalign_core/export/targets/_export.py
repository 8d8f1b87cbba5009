"""A run as the file of another runtime: converted, compared with PyTorch on all held-out images, and only then kept."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from smallalign_core import data, networks
from smallalign_core.errors import BadInput, BadModel, WorkFailed
from smallalign_core.export._activations import footprint
from smallalign_core.export._bundle import bundle_folder, kept_report, mention_targets
from smallalign_core.export._download import SNIPPETS, card_of_target, zipped
from smallalign_core.export._file import Deployed, graph_of_run, metadata_of, references
from smallalign_core.export._parity import Gate, Parity, loss_of, parity
from smallalign_core.export.targets._process import TargetClassifier, convert
from smallalign_core.export.targets._trailer import with_trailer
from smallalign_core.networks import onnx_graph
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.target import Target
from smallalign_core.system import extras
from smallalign_core.system.files import write, write_json

BUNDLE = 1
"""Raised when a target's files change, so that kept ones are made again."""
TOLERANCE = 1e-3
"""Standard deviations of the logits that the largest difference must stay below."""
GATE = Gate(agreement=1.0, tolerance=TOLERANCE)


def passed(found: Parity) -> Parity:
    """The same, `ok` only if the gap is small against the logits' spread even where that is less than 1."""
    return dataclasses.replace(found, ok=found.ok and found.relative_diff < TOLERANCE)


def program_of(run: Run, metadata: dict[str, Any]) -> bytes:
    """The program of `torch.export` of a finished run, for one image uint8 [1, H, W, C] of its training size."""
    classifier = networks.from_file(run.weights, metadata["weights_sha256"])
    channels, height, width = classifier.input_shape
    plain = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format)
    plain.channels_last = False
    deployed = Deployed(plain, metadata["temperature"], always_resize=False).eval()
    stream = io.BytesIO()
    with onnx_graph.exporting(classifier.body), torch.no_grad():
        program = torch.export.export(deployed, (torch.zeros((1, height, width, channels), dtype=torch.uint8),))
        torch.export.save(program, stream)
    return stream.getvalue()


def kept_target(run: Run, store: Store, target: Target) -> dict[str, Any] | None:
    """The report of an existing export with unchanged files; None otherwise."""
    return kept_report(run, store, f"parity-{target.name}.json", BUNDLE)


def bundle_target(run: Run, store: Store, target: Target) -> dict[str, Any]:
    """Convert a run, compare every validation and test image with PyTorch, and keep files, proof and download.

    Raises:
        MissingExtra: the runtime is not installed.
        BadModel: the converter refuses the network.
        WorkFailed: the file does not make PyTorch's predictions; nothing is kept.
    """
    extras.require(target.package, f"export to {target.title}")
    metadata = metadata_of(run) | {
        "precision": "fp32",
        "target": target.name,
        "runtime": f"{target.title} {extras.version(target.package)}",
    }
    graph = graph_of_run(run, store, metadata)
    source = graph if target.source == "graph" else program_of(run, metadata)
    made = convert(target, source)
    first, *others = target.endings
    beside = {ending: hashlib.sha256(made[ending]).hexdigest() for ending in others}
    files = made | {first: with_trailer(made[first], metadata | {"beside": beside})}

    splits = data.load(run.data, store.data_cache)
    model, expected = TargetClassifier(target, files, metadata), references(run, splits, store)
    answers = {name: model.logits_of(part) for name, part in (("val", splits.val), ("test", splits.test))}
    found = passed(parity(expected["test"], answers["test"], splits.test, model.latency(splits.test), GATE))
    store.count_test_look(splits.fingerprint, run.id, f"export {target.name}")
    if not found.ok:
        raise WorkFailed(
            f"the {target.title} file does not make PyTorch's predictions, so it was not written",
            given=f"top-1 agreement {found.top1_agreement:.2%} on {found.images:,} test images, largest logit "
            f"difference {found.relative_diff:.1e} of the logits' standard deviation",
            do="export ONNX",
        )
    result, content = run.result or {}, files[first]
    report = {
        "bundle": BUNDLE,
        "target": target.name,
        "runtime": metadata["runtime"],
        "bytes": sum(map(len, files.values())),
        "sha256": hashlib.sha256(content).hexdigest(),
        "footprint": footprint(graph, metadata["input_shape"]).as_dict(),
        "run": run.id,
        "precision": "fp32",
        "weights_sha256": result.get("weights_sha256"),
        "data": {"fingerprint": splits.fingerprint},
        "temperature": result.get("temperature"),
        "loss": {
            name: loss_of(expected[name], answers[name], part).as_dict()
            for name, part in (("val", splits.val), ("test", splits.test))
        },
        "parity": found.as_dict(),
        "browser": None,
        "limits": list(target.limits),
        "classes": list(result["classes"]),
        "input_shape": list(result["input_shape"]),
        "labels": [int(label) for label in splits.test.labels],
    }
    _keep(run, store, target, report, files, metadata["spec"])
    mention_targets(run, store)
    return report


def _keep(run: Run, store: Store, target: Target, report: dict[str, Any], files: dict[str, bytes], spec: str) -> None:
    folder = bundle_folder(run, store)
    folder.mkdir(parents=True, exist_ok=True)
    snippet = SNIPPETS.parent / "targets" / "snippets" / f"classify_{target.name}.py"
    public = {key: value for key, value in report.items() if key != "bundle"}
    archive = zipped(
        {
            **{f"model{ending}": content for ending, content in files.items()},
            "card.md": card_of_target(run, store, report, target),
            "labels.json": json.dumps(report["classes"], ensure_ascii=False),
            "parity.json": json.dumps(public, indent=1, allow_nan=False),
            "spec.yaml": spec,
            "classify.py": snippet.read_bytes(),
        }
    )
    contents = {f"model-{target.name}{ending}": content for ending, content in files.items()}
    contents[f"model-{target.name}.zip"] = archive
    for name, content in contents.items():
        write(folder / name, content)
    report["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_json(folder / f"parity-{target.name}.json", report)


def export_target(run: Run, to: Path, store: Store, target: Target) -> dict[str, Any]:
    """Write a finished run for another runtime to `to` and, where the target has two files, beside it.

    Raises:
        BadInput: the folder is missing, or a file beside `to` belongs to something else.
        MissingExtra, BadModel, WorkFailed: as `bundle_target`; nothing is written then.
    """
    if not to.parent.is_dir():
        raise BadInput("the export's folder does not exist", given=to, do="create it, or name another")
    others = [to.with_suffix(ending) for ending in target.endings[1:]]
    for other in others:
        if other.exists() and not to.exists():
            raise BadInput(f"{target.title} would overwrite a file", given=other, do="choose another name for --to")
    report = kept_target(run, store, target) or bundle_target(run, store, target)
    folder = bundle_folder(run, store)
    for ending in reversed(target.endings):  # the one that names the others comes last
        write(to.with_suffix(ending), (folder / f"model-{target.name}{ending}").read_bytes())
    facts = ("bytes", "sha256", "run", "precision", "target", "runtime", "footprint", "parity", "loss", "limits")
    return {
        "file": str(to),
        "beside": [str(other) for other in others],
        **{key: report[key] for key in facts},
        "quantized": None,
        "flagged": False,
    }


def read_files(file: Path, target: Target, content: bytes) -> dict[str, bytes]:
    """The files of an export by ending, of which `file` is the first.

    Raises:
        BadInput: one is missing.
    """
    files = {target.endings[0]: content}
    for ending in target.endings[1:]:
        try:
            files[ending] = file.with_suffix(ending).read_bytes()
        except OSError:
            raise BadInput(
                f"the file's other half is missing: {target.title} has two",
                given=file.with_suffix(ending),
                do=f"put the {ending} file of the same export beside it",
            ) from None
    return files


def check_beside(files: dict[str, bytes], metadata: dict[str, Any], file: Path) -> None:
    """Check that files beside an export are those that it was written with.

    Raises:
        BadModel: one is of another export, or was changed.
    """
    beside = metadata.get("beside")
    for ending, content in list(files.items())[1:]:
        kept = beside.get(ending) if isinstance(beside, dict) else None
        if kept != hashlib.sha256(content).hexdigest():
            raise BadModel(
                "the file beside it was changed after export, or is of another export",
                given=file.with_suffix(ending),
                do="use both files of the same export",
            )
