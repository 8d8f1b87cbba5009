"""The export bundle of a run in one precision: the file, its parity report, images for the browser, the download."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from smallalign_core import data
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.export._download import pack
from smallalign_core.export._file import make, references
from smallalign_core.export._parity import GATES, IN_A_BROWSER, parity
from smallalign_core.export._runtime import OnnxClassifier, nhwc
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec
from smallalign_core.spec.precision import AUTOMATIC, FileOptions, Precision, file_name, parse_variant, variant_of
from smallalign_core.spec.target import TARGETS
from smallalign_core.system.files import read_json, write, write_json

BUNDLE = 7  # raised when a bundle's files change, so that kept ones are made again
KEPT = ("model.onnx", "logits.bin", "model.zip")
MOST = 1e12  # for any number from a browser
COUNT = 1000  # images that a browser answers
CLAIM = (
    "reported by a user's browser; top-1 agreement, accuracy and the largest difference were computed from its logits "
    "in Python, times and the name of the browser are as reported by the browser"
)


def bundle_folder(run: Run, store: Store) -> Path:
    """The folder of a run's bundle. Zoo models are committed, so theirs lies with the store too."""
    return store.root / "exports" / run.id


def kept_bundle(
    run: Run, store: Store, precision: Precision = "fp32", options: FileOptions = AUTOMATIC
) -> dict[str, Any] | None:
    """The report of an existing bundle with an unchanged file; None otherwise."""
    return kept_report(run, store, file_name("parity.json", variant_of(precision, options)), BUNDLE)


def kept_report(run: Run, store: Store, name: str, number: int) -> dict[str, Any] | None:
    """The report `name` in a run's bundle, if its `bundle` is `number`, the run's weights are those that it was made
    of, and no file that it lists was changed; None otherwise."""
    folder = bundle_folder(run, store)
    try:
        report: dict[str, Any] = read_json(folder / name)
        whole = all(
            hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
            for file, digest in report["files"].items()
        )
    except (OSError, SmallAlignError, LookupError, AttributeError):
        return None
    same = report.get("weights_sha256") == (run.result or {}).get("weights_sha256")
    return report if whole and same and report.get("bundle") == number else None


def bundle(
    run: Run,
    store: Store,
    *,
    precision: Precision = "fp32",
    options: FileOptions = AUTOMATIC,
    elsewhere: DataSpec | None = None,
    count: int = COUNT,
) -> dict[str, Any]:
    """Export a run, compare every test image with PyTorch, and keep what a page and a download need.

    In the folder, here for fp32: `model.onnx` is the export; `images.bin` holds the first `count` test images as raw
    uint8 NHWC; `reference.bin` and `logits.bin` what PyTorch and ONNX Runtime answer to them (float32); `model.zip` the
    download; `parity.json` the proof, written last.
    """
    made = make(run, store, precision, options, measured=True, elsewhere=elsewhere)
    folder, variant = bundle_folder(run, store), made.facts["variant"]
    folder.mkdir(parents=True, exist_ok=True)
    splits = data.load(run.data, store.data_cache)
    images = splits.test
    model = OnnxClassifier(made.content)
    pixels, reference = nhwc(images, count), references(run, splits, store)["test"]
    answers = made.answers["test"]
    proof = parity(reference, answers, images, model.latency(pixels[0]), GATES[precision])
    write(folder / file_name("model.onnx", variant), made.content)
    write(folder / "images.bin", pixels.tobytes())
    write(folder / "reference.bin", reference[:count].astype("<f4").tobytes())
    write(folder / file_name("logits.bin", variant), answers[:count].astype("<f4").tobytes())
    result = run.result or {}
    report = {
        "bundle": BUNDLE,
        "file": file_name("model.onnx", variant),
        **made.facts,
        "weights_sha256": result.get("weights_sha256"),
        "data": {"fingerprint": splits.fingerprint, "images_sha256": hashlib.sha256(pixels.tobytes()).hexdigest()},
        "temperature": result.get("temperature"),
        "parity": proof.as_dict(),
        "browser": None,
        "targets": _targets(run, store),
        "classes": list(images.classes),
        "shape": list(pixels.shape),
        "labels": [int(label) for label in images.labels[:count]],
    }
    _keep(run, store, report, None)
    return report


def submit_browser_parity(
    run: Run, store: Store, precision: Precision, said: dict[str, Any], options: FileOptions = AUTOMATIC
) -> dict[str, Any]:
    """Add the results of a user's browser to the parity report and the download. Returns the new report.

    Nothing that can be computed is believed: the top-1, the accuracy and the gap come from the logits.

    Args:
        said: `logits` (base64 of float32 [count, classes]), `sha256` and `images_sha256` of what it got (None where the
            browser could not say), `runtime`, `timing`.

    Raises:
        BadInput: the bundle was replaced meanwhile, or the results do not fit its images.
        Refused: read-only user.
    """
    store.user.require("submit a browser parity check")
    report = kept_bundle(run, store, precision, options)
    if report is None:
        raise BadInput("the export that the browser checked no longer exists", given=run.name, do="check again")
    for what, got, had in (
        ("file", said.get("sha256"), report["sha256"]),
        ("images", said.get("images_sha256"), report["data"]["images_sha256"]),
    ):
        if got is not None and got != had:
            raise BadInput(
                f"the browser checked another {what}", given=f"{str(got)[:16]}…, not {had[:16]}…", do="check again"
            )
    count, classes = len(report["labels"]), len(report["classes"])
    try:
        raw = base64.b64decode(said["logits"], validate=True)
        logits = np.frombuffer(raw, "<f4").reshape(count, classes).astype(np.float32)
    except (binascii.Error, KeyError, TypeError, ValueError):
        raise BadInput("the browser's results are for other images", given=run.name, do="check again") from None
    if not np.isfinite(logits).all():
        raise BadInput("the browser's logits are not finite", given=run.name, do="check again, or with another browser")
    runtime, timing = _of_itself(run, said)
    folder = bundle_folder(run, store)
    reference = np.fromfile(folder / "reference.bin", "<f4").reshape(count, classes)
    images = data.load(run.data, store.data_cache).test.take(np.arange(count))
    found = parity(reference, logits, images, (timing["p50_ms"], timing["p95_ms"]), IN_A_BROWSER[precision])
    report["browser"] = {
        "what": CLAIM,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "got_the_file": said.get("sha256") is not None,
        "logits_sha256": hashlib.sha256(raw).hexdigest(),
        "runtime": runtime,
        "timing": timing,
        **found.as_dict(),
    }
    write(folder / file_name("browser.bin", report["variant"]), raw)
    _keep(run, store, report, raw)
    return report


def mention_targets(run: Run, store: Store) -> None:
    """Write what other runtimes answer into the parity reports and downloads of a run that are there already."""
    folder = bundle_folder(run, store)
    for file in folder.glob("parity*.json"):
        variant = file.stem.removeprefix("parity").removeprefix("-") or "fp32"
        report = kept_bundle(run, store, *parse_variant(variant)) if variant not in TARGETS else None
        if report is not None:
            report["targets"] = _targets(run, store)
            browser = folder / file_name("browser.bin", report["variant"])
            _keep(run, store, report, browser.read_bytes() if report["browser"] is not None else None)


def _targets(run: Run, store: Store) -> list[dict[str, Any]]:
    """The proofs of this run's files for other runtimes."""
    found = []
    for name in TARGETS:
        with contextlib.suppress(OSError, SmallAlignError, LookupError, AttributeError):
            report = read_json(bundle_folder(run, store) / f"parity-{name}.json")
            if report["weights_sha256"] == (run.result or {}).get("weights_sha256"):
                found.append({key: report[key] for key in ("target", "runtime", "sha256", "bytes", "parity")})
    return found


def _of_itself(run: Run, said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The runtime and times that a browser reports: names for the model card, and valid numbers."""
    try:
        runtime, timing = ({name: _plain(told) for name, told in said[part].items()} for part in ("runtime", "timing"))
        numbers = [runtime["threads"], *(timing[name] for name in ("p50_ms", "p95_ms", "load_ms"))]
        numbers += [told for told in (*runtime.values(), *timing.values()) if isinstance(told, float)]
        texts = [runtime[name] for name in ("backend", "version", "user_agent", "why")]
        if all(0 <= number < MOST for number in numbers) and all(isinstance(text, str) for text in texts):
            return runtime, timing
    except (AttributeError, KeyError, TypeError):
        pass
    raise BadInput("the browser's report lacks runtime or timing", given=run.name, do="check again")


def _plain(told: Any) -> Any:
    """Texts of a browser go into Markdown, here and on the page: what could be markup there is taken out."""
    return re.sub(r"[^\w .,;:/()+-]|_{2,}", "", told)[:200] if isinstance(told, str) else told


def _keep(run: Run, store: Store, report: dict[str, Any], logits: bytes | None) -> None:
    folder, variant = bundle_folder(run, store), report["variant"]
    content = (folder / file_name("model.onnx", variant)).read_bytes()
    write(folder / file_name("model.zip", variant), pack(run, store, report, content, logits))
    names = ["images.bin", "reference.bin", *(file_name(name, variant) for name in KEPT)]
    report["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_json(folder / file_name("parity.json", variant), report)


def download(
    run: Run,
    store: Store,
    to: Path,
    precision: Precision,
    options: FileOptions = AUTOMATIC,
    elsewhere: DataSpec | None = None,
) -> dict[str, Any]:
    """Write the download of a run to `to`, a .zip: the file, its card, proof, labels and snippets."""
    kept = None if elsewhere else kept_bundle(run, store, precision, options)
    report = kept or bundle(run, store, precision=precision, options=options, elsewhere=elsewhere)
    write(to, (bundle_folder(run, store) / file_name("model.zip", report["variant"])).read_bytes())
    facts = [
        "bytes",
        "sha256",
        "opset",
        "run",
        "precision",
        "variant",
        "footprint",
        "loss",
        "flagged",
        "limit",
        "quantized",
        "acceptance",
    ]
    return {"file": str(to), **{key: report[key] for key in facts}}
