"""Check of a teacher before training: accuracy, calibration, determinism and speed, on validation images only."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.analysis.teacher_report import Preflight as Preflight
from smallalign_core.metrics import Scores, fit_temperature, score
from smallalign_core.networks import BaseClassifier
from smallalign_core.runs import imported as foreign
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec
from smallalign_core.system.batching import in_batches
from smallalign_core.training.teacher_evidence import (
    Softness as Softness,
    chance_of,
    refusal as refusal,
    softness as softness,
    suggested as suggested,
)

MOST_IMAGES = 2_000
SHOWN_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
UNSTEADY = 1e-3  # relative to the logits' spread: beyond it, outputs for one image differ by more than rounding
BATCH = 64
SPEED_SECONDS = 2.0


def preflight(run: Run, store: Store, spec: DataSpec | None = None, *, device: torch.device | str = "cpu") -> Preflight:
    """Check a finished run or an import on the validation images of `spec` (default: its own data).

    Raises:
        BadInput, BadModel, BadData: it has other classes, or model or images cannot be read.
    """
    spec = spec or run.data
    splits = data.load(spec, store.data_cache)
    own = foreign.classifier(run).classes
    teacher = foreign.classifier(run, splits.classes).to(device)
    val = splits.val
    rows = np.arange(len(val)) if len(val) <= MOST_IMAGES else np.linspace(0, len(val) - 1, MOST_IMAGES).astype(int)
    images, labels = np.ascontiguousarray(val.images[rows]), val.labels[rows]
    logits = _ask(teacher, images, device)
    scores, temperature = score(logits, labels, splits.classes), fit_temperature(logits, labels)
    calibrated = score(logits, labels, splits.classes, temperature)
    chance = chance_of(labels, len(splits.classes))
    batch = images[:BATCH]
    first = _ask(teacher, batch, device)
    singly = np.concatenate([_ask(teacher, batch[i : i + 1], device) for i in range(min(16, len(batch)))])
    spread = float((logits - logits.mean(1, keepdims=True)).std())
    steady = {
        "repeat_diff": float(np.abs(_ask(teacher, batch, device) - first).max()),
        "batch_diff": float(np.abs(singly - first[: len(singly)]).max()),
        "logit_std": spread,
    }
    ranked = sorted((recall, name) for name, recall in scores.recall.items() if recall is not None)
    pairs = [
        (own[at], name) for at, name in zip(foreign.class_columns(own, splits.classes), splits.classes, strict=True)
    ]
    top = np.sort(logits, axis=1)
    trained_on = run.imported is None and run.data.fingerprint == splits.fingerprint
    return Preflight(
        teacher=run.name,
        id=run.id,
        digest=foreign.digest_of(run),
        imported=run.imported is not None,
        data=spec.source,
        refused=refusal(scores, chance),
        warnings=_warnings(scores, calibrated, steady, trained_on),
        assumed=((run.result or {}).get("assumed") or {}).get("words", []),
        scores=scores,
        chance=chance,
        temperature=temperature,
        calibrated_ece=calibrated.ece,
        calibrated_nll=calibrated.nll,
        worst=[(name, recall) for recall, name in ranked[:3]],
        mapping=pairs if own != splits.classes else [],
        unused=len(own) - len(splits.classes),
        margin=float((top[:, -1] - top[:, -2]).mean()),
        softness=[softness(logits, t) for t in SHOWN_TEMPERATURES],
        suggested=suggested(logits),
        images_per_second=_speed(teacher, images, device),
        device=str(device),
        params=int((run.result or {}).get("params") or 0),
        bytes=run.weights.stat().st_size,
        **steady,
    )


def _warnings(scores: Scores, calibrated: Scores, steady: dict[str, float], trained_on: bool) -> list[str]:
    found = []
    bound = UNSTEADY * max(steady["logit_std"], 1e-12)
    if steady["repeat_diff"] > bound:
        found.append("outputs differ between repeated runs on the same images: they cannot be cached")
    if steady["batch_diff"] > bound:
        found.append(
            "the output for an image depends on the other images in the batch: was it exported in training mode?"
        )
    if scores.ece > 0.1 and calibrated.ece < scores.ece / 2:
        found.append(
            "its confidence is far from its accuracy (poor calibration); the suggested temperatures account for that"
        )
    if any(recall == 0 for recall in scores.recall.values()):
        missed = [name for name, recall in scores.recall.items() if recall == 0]
        found.append(f"zero recall on {', '.join(missed[:5])}")
    if trained_on:
        found.append("its best epoch was selected on these images, so the scores are slightly optimistic")
    return found


def _ask(teacher: BaseClassifier, images: NDArray[np.uint8], device: torch.device | str) -> NDArray[np.float32]:
    """Logits [N, C], in full precision."""
    parts = [
        in_batches(teacher, torch.from_numpy(images[at : at + 2 * BATCH]).to(device)).float().cpu().numpy()
        for at in range(0, len(images), 2 * BATCH)
    ]
    return np.concatenate(parts)


def _speed(teacher: BaseClassifier, images: NDArray[np.uint8], device: torch.device | str) -> float:
    """Images a second: the fastest of some batches, after one that warms up."""
    batch = images[:BATCH]
    _ask(teacher, batch, device)
    times: list[float] = []
    until = time.perf_counter() + SPEED_SECONDS
    while len(times) < 3 or (time.perf_counter() < until and len(times) < 20):
        start = time.perf_counter()
        _ask(teacher, batch, device)
        times.append(time.perf_counter() - start)
    return len(batch) / max(min(times), 1e-9)
