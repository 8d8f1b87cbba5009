"""The end of a run: its best weights are evaluated, and everything is written into its result."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smallalign_core import data
from smallalign_core.runs import logits
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.system import machine
from smallalign_core.system.machine import peak_memory

if TYPE_CHECKING:
    from smallalign_core.networks import Classifier
    from smallalign_core.training.loop import Training
    from smallalign_core.training.runner import ActiveRun

log = logging.getLogger("smallalign")

MADE_OF = ("processes", "params", "macs", "steps", "together")
ANNOUNCED = (*machine.DECIDES, *MADE_OF, "answers", "features", "preflight", "moved")
"""Facts known before the first step that are part of the result."""
TRAIN_SCORED_ON = 2_000
"""Approximate number of training images to evaluate the best weights on, for the gap to test."""


def finish(member: ActiveRun, store: Store, splits: data.Splits, training: Training, index: int) -> dict[str, Any]:
    """Write weights, logits and result of a run that has trained to its end; returns the result."""
    import torch

    from smallalign_core import networks

    run, student = member.run, training.students[index]
    classifier = student.best()
    weights, seconds = networks.to_bytes(classifier, run.spec), member.seconds
    if run.spec.headless:
        answers, scores = None, _features(classifier, training, index)
    else:
        answers, scores = _scored(classifier, run, store, splits, training, index)
    result = {
        "id": run.id,
        "state": str(State.FINISHED),
        **scores,
        "best_epoch": student.best_epoch,
        "classes": list(classifier.classes),
        "input_shape": list(splits.shape),
        "unlabeled": 0 if splits.unlabeled is None else len(splits.unlabeled),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "images_per_second": training.steps * training.views.batch / max(1e-9, seconds),
        **student.cost(),
        "peak_bytes": peak_memory(training.device.type),
        "attempts": member.recording.attempt,
        "torch": torch.__version__,
        **{name: run.status[name] for name in ANNOUNCED},
        "seconds": seconds,
    }
    if answers is not None:
        result["logits_sha256"] = hashlib.sha256(answers).hexdigest()
    if run.spec.teacher and training.teacher:
        result |= {"teacher": "live" if training.teacher.live else "cache", "teacher_images": member.teacher_images}
    accuracy = scores["test"]["accuracy"] if "test" in scores else None
    member.recording.event("finished", training.step, accuracy=accuracy)
    member.recording.finish(weights, answers, result)
    log.info("run %s: %s", run.name, "finished" if accuracy is None else f"test accuracy {accuracy:.4f}")
    return run.result or result


def _scored(
    classifier: Classifier, run: Run, store: Store, splits: data.Splits, training: Training, index: int
) -> tuple[bytes, dict[str, Any]]:
    """(logits file, scores) of the best weights: temperature fitted on validation, one evaluation on test. Also of the
    last ones."""
    import numpy as np

    from smallalign_core.metrics import class_scores, fidelity, fit_temperature, logits_of, score

    val_logits, test_logits, last_val, last_test = (
        logits_of(model, images, device=training.device)
        for model in (classifier, training.scored(index))
        for images in (splits.val, splits.test)
    )
    store.count_test_look(splits.fingerprint, run.id, "training finished")
    temperature = fit_temperature(val_logits, splits.val.labels)
    some = splits.train.take(np.arange(0, len(splits.train), max(1, len(splits.train) // TRAIN_SCORED_ON)))
    on_train = score(logits_of(classifier, some, device=training.device), some.labels, splits.classes)
    test = (test_logits, splits.test.labels, splits.classes)
    scores = {
        "test": score(*test).as_dict(),
        "val": score(val_logits, splits.val.labels, splits.classes).as_dict(),
        "train": on_train.as_dict(),
        "temperature": temperature,
        "test_calibrated": score(*test, temperature).as_dict(),
        "per_class": {name: one.as_dict() for name, one in class_scores(*test, temperature).items()},
        "last": {
            "test": score(last_test, splits.test.labels, splits.classes).as_dict(),
            "val": score(last_val, splits.val.labels, splits.classes).as_dict(),
        },
    }
    if run.spec.teacher and training.teacher:
        close = fidelity(training.teacher.on(splits.val), val_logits)
        scores["fidelity"] = {"agreement": close.agreement, "kl": close.kl}
    return logits.packed(val_logits, test_logits, splits), scores


def _features(classifier: Classifier, training: Training, index: int) -> dict[str, Any]:
    """Of a network without a head: its number of features, and the best epoch's loss and mean cosine on validation
    images, where a teacher has features for these. Test images are not looked at."""
    from smallalign_core import networks

    student = training.students[index]
    found: dict[str, Any] = {"features": networks.feature_width(classifier, student.spec.network.kind)}
    if student.best_embedding is not None:
        found |= asdict(student.best_embedding)
    return {"embedding": found}
