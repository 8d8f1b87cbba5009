"""The model card of a published model: facts, scores, data, and how to reproduce it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from smallalign_core.metrics import in_words, zero_recall_classes
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Code, Import, RunSpec, Unbalanced, canonical, to_yaml, with_code
from smallalign_core.spec.python import copy_name, each_code
from smallalign_core.system import usercode
from smallalign_core.system.files import write, write_folder, write_json


def plain(text: str) -> str:
    """A user's word as Markdown that shows it: one line, no markup, no end of a table's cell."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", " ".join(text.split()))


def card(run: Run, store: Store, name: str) -> str:
    """Markdown of a finished run's card; every number is from its result."""
    result = run.result or {}
    test, val, calibrated = result["test"], result["val"], result["test_calibrated"]
    channels, height, width = result["input_shape"]
    teacher = ", ".join(f"`{store.name_of(name)}`" for name in run.spec.teachers) or "none: labels only"
    return f"""# {name}

{plain(run.title)}

| | |
|---|---|
| input | {channels} x {height} x {width} (channels, height, width), 0 to 255; other heights and widths are resized inside |
| classes | {len(result["classes"])}: {", ".join(map(plain, result["classes"]))} |
| parameters | {result["params"]:,} ({result["macs"]:,} multiply-accumulates per image) |
| teacher | {teacher}{_evidence(result)} |
| test accuracy | **{test["accuracy"]:.2%}** on {test["images"]:,} images (95% interval {test["accuracy_low"]:.2%} to {test["accuracy_high"]:.2%}), seed {run.spec.seed} (single seed) |
| validation accuracy | {val["accuracy"]:.2%} on {val["images"]:,} images; best epoch {result["best_epoch"]} of {run.spec.epochs} |
{_of_training(run)}{_of_classes(test, run.spec)}| test NLL, ECE | {test["nll"]:.4f}, {test["ece"]:.2%}; temperature-scaled ({result["temperature"]:.3f}): {calibrated["nll"]:.4f}, {calibrated["ece"]:.2%} |
| trained on | {result["processor"]}{f" ({result['capability']})" if "capability" in result else ""}, device {result["device"]}, {result["threads"]} thread(s), torch {result["torch"]}, {result["seconds"]:.0f} s |
{f"| note | {plain(result['moved'])} |" + chr(10) if result.get("moved") else ""}| data fingerprint | `{run.spec.data.fingerprint}` |
| weights (SHA-256) | `{result["weights_sha256"]}` |

To reproduce it (bit-identical weights on an equal processor{", its instruction sets too," if "capability" in result else ""} with the same number of threads):

    python -m smallalign_core train spec.yaml
{_notes(run)}"""


NOTES = "notes.md"


def write_notes(run: Run, text: str) -> None:
    """Keep Markdown that belongs on a run's card, such as the search that found it."""
    write(run.folder / NOTES, text)


def _notes(run: Run) -> str:
    file = run.folder / NOTES
    return f"\n{file.read_text(encoding='utf-8').rstrip()}\n" if file.is_file() else ""


def _of_classes(test: dict[str, Any], spec: RunSpec | None = None) -> str:
    """Rows about classes of unequal size; without scores of classes in results from before they were computed."""
    rows = [f"| test classes | {plain(words)} |"] if (words := in_words(test)) else []
    if missed := zero_recall_classes(test["recall"]):
        rows.append(f"| warning | {plain(missed)} |")
    if spec is not None and spec.balance != Unbalanced():
        how = ", ".join(f"{name} {value}" for name, value in canonical(spec.balance).items() if name != "kind")
        rows.append(
            f"| class balance | {spec.balance.kind}{f' ({how})' if how else ''}; probabilities are those for classes of more equal size |"
        )
    return "".join(f"{row}\n" for row in rows)


def _of_training(run: Run) -> str:
    """Rows about what the spec beside the card only names: unlabeled images, and Python files of a user."""
    rows = []
    if more := (run.result or {}).get("unlabeled"):
        rows.append(f"| unlabeled images | {more:,}, with the teacher's targets |")
    rows += [
        f"| own Python | {plain(one.file_name)} (SHA-256 `{one.sha256}`) |" for one in each_code(run.spec) if one.file
    ]
    return "".join(f"{row}\n" for row in rows)


def _evidence(result: dict[str, Any]) -> str:
    """What the teacher knew of the images before the run; empty without one, and for runs from before it was kept."""
    seen = result.get("preflight")
    if not seen:
        return ""
    interval = f"95% interval {seen['accuracy_low']:.2%} to {seen['accuracy_high']:.2%}"
    return f"; accuracy {seen['accuracy']:.2%} on {seen['images']:,} validation images of this data ({interval})"


def card_of_import(run: Run, how: Import, name: str) -> str:
    """Markdown of an imported classifier's card; every number was computed when it was imported."""
    result = run.result or {}
    test = result["test"]
    return f"""# {name}

{plain(how.file)}, an imported ONNX classifier.

| | |
|---|---|
| input | {how.dtype}, {how.layout}, {how.channels} channels, size {how.size or "any"}, batch {how.batch or "any"} |
| preprocessing | {"its own" if how.dtype == "uint8" else f"(pixel / 255 * {how.white:g} - {how.mean}) / {how.std}"}, channels in the order {how.order.upper()} |
| outputs | {how.answers.replace("_", " ")}{"".join(f"; {plain(words)}" for words in (result.get("assumed") or {}).get("words", []))} |
| classes | {len(how.classes)}: {", ".join(map(plain, how.classes[:20]))}{", …" if len(how.classes) > 20 else ""} |
| parameters | {result["params"]:,} ({result["bytes"]:,} bytes) |
| test accuracy | **{test["accuracy"]:.2%}** on {test["images"]:,} images (95% interval {test["accuracy_low"]:.2%} to {test["accuracy_high"]:.2%}) of {plain(how.data.source)} |
{_of_classes(test)}| data fingerprint | `{how.data.fingerprint}` |
| file (SHA-256) | `{how.sha256}` |
"""


def _beside(one: Code) -> Code:
    """A user's Python file as its copy beside the published spec."""
    if one.file is None or one.sha256 is None:
        return one
    return one.model_copy(update={"file": f"{usercode.FOLDER}/{copy_name(one.file, one.sha256)}"})


def publish(run: Run, store: Store, name: str) -> Run:
    """Keep a finished run, or an import, in the zoo under a name: what it is, weights, result and card.

    Raises:
        Refused: the name is taken or not a name.
    """
    folder = store.claim_zoo_name(name)
    part = folder.with_name(f".keeping-{name}-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if run.imported is not None:
        for file in (run.record, run.weights, run.folder / "result.json"):
            write(part / file.name, file.read_bytes())
        write(part / "card.md", card_of_import(run, run.imported, name))
        part.rename(folder)
        return Run(folder)
    spec, copies = store.named(run.spec), python_files.copies(run.folder)
    write_folder(part / usercode.FOLDER, {Path(name).name: one for name, one in copies.items()}) if copies else None
    write(part / "spec.yaml", to_yaml(with_code(spec, _beside)))
    write(part / "weights.safetensors", run.weights.read_bytes())
    write(part / "card.md", card(run, store, name))
    files = {one: hashlib.sha256((part / one).read_bytes()).hexdigest() for one in ("spec.yaml", "card.md")}
    kept = {**(run.result or {}), "fingerprint": run.spec.data.fingerprint, "files": files}
    write_json(part / "result.json", kept)
    part.rename(folder)
    return Run(folder)
