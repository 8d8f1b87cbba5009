"""Teachers of runs: weights from the store, or cached logits."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallalign_core import data
from smallalign_core.errors import BadModel, BadSpec, Refused, SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import CrossEntropy, RunSpec, canonical
from smallalign_core.spec.precision import QUANTIZER
from smallalign_core.system.files import read_json, write, write_json
from smallalign_core.training import teacher_evidence
from smallalign_core.training.teacher_evidence import Evidence

if TYPE_CHECKING:
    from smallalign_core.networks import BaseClassifier, Classifier, Embedder
    from smallalign_core.training.teacher import CachePlan, Teacher, TeacherSource

log = logging.getLogger("smallalign")

CALIBRATED_ON = 4
"""Number of batches of views to calibrate int8 activations on."""
EVIDENCE = 1
"""Part of the key of cached teacher checks; increased when their meaning changes."""
LEAST_AGREEMENT = 0.95
"""Required top-1 agreement of the int8 teacher with the original on validation images."""


def load_teacher(specs: Sequence[RunSpec], store: Store, splits: data.Splits, device: Any) -> Teacher | None:
    """The live teacher of runs with identical views; None without a teacher.

    Raises:
        UnknownRun, Refused: a teacher does not exist, or is not finished.
        BadInput, BadModel: it has other classes, or its weights cannot be read.
    """
    from smallalign_core.runs import imported
    from smallalign_core.training import losses
    from smallalign_core.training.teacher import Teacher

    spec = next((spec for spec in specs if spec.teacher), None)
    if spec is None:
        return None
    if spec.of_features:
        return Teacher(embedder(store, spec.teachers[0]), (), device, precision=spec.precision)
    classifiers = []
    for name in spec.teachers:
        run = store.finished(name)
        _refuse_changed(run, "teacher's")
        classifiers.append(_answering(imported.classifier(run, splits.classes), run, spec, store, splits))
    layers = sorted({layer for each in specs for layer in losses.layers(each.loss)[1]})
    precision = spec.precision if spec.answers == "torch" else "fp32"
    return Teacher(classifiers, splits.classes, device, layers=layers, precision=precision, top=spec.top)


def embedder(store: Store, name: str) -> Embedder:
    """The features before the head of a finished run, or the output of one without a head.

    Raises:
        UnknownRun, Refused: it does not exist, is not finished, or is an import.
        BadModel: its weights cannot be read, or are not those of its result.
    """
    from smallalign_core import networks

    run = store.finished(name, headless=True)
    if run.imported is not None:
        raise Refused(
            "an imported file has no features that can be read, only its output",
            given=run.name,
            do="choose a SmallAlign run, for example of a timm network with `weights`, `num_classes: 0`, `epochs: 0`",
        )
    return networks.Embedder(networks.from_file(run.weights, str((run.result or {}).get("weights_sha256"))))


def _feature_facts(spec: RunSpec, store: Store) -> dict[str, Any]:
    """Of the teacher of an embedding loss: `width`, its number of features, and `learned`, the side of its images.

    Computed once per teacher and cached in the store, so that a run with a full cache loads no teacher.
    """
    from smallalign_core import networks
    from smallalign_core.runs import imported

    run = store.finished(spec.teachers[0], headless=True)
    file = store.preflights / f"features-{imported.digest_of(run)[:16]}.json"
    with contextlib.suppress(SmallAlignError, TypeError, KeyError, ValueError):
        known = read_json(file, missing={})
        return {"width": int(known["width"]), "learned": known["learned"]}
    found = embedder(store, run.id)
    facts = {"width": networks.feature_width(found.classifier, run.name), "learned": found.learned_side}
    with contextlib.suppress(Refused):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, facts)
    return facts


def preflight(spec: RunSpec, store: Store, splits: data.Splits, device: Any = "cpu") -> Evidence | None:
    """Scores of the teachers of a resolved `spec` on its validation images; None without a teacher, or where only its
    features are used.

    Computed on up to 1,000 images, once per teacher and dataset; cached in the store.

    Raises:
        BadSpec: a teacher is not better than chance on them, or was trained on larger images.
        UnknownRun, Refused, BadInput, BadModel: as `live`.
    """
    if spec.of_features:
        teacher_evidence.check_side(_feature_facts(spec, store)["learned"], spec, splits.shape, spec.teachers[0])
        return None
    runs = [store.finished(name) for name in spec.teachers]
    found = None
    for some in [[run] for run in runs] + ([runs] if len(runs) > 1 else []):  # each alone, then all together
        found, name = _evidence(some, spec, store, splits, device), ", ".join(run.name for run in some)
        teacher_evidence.check_side(found.learned, spec, splits.shape, name)
        teacher_evidence.check(found, spec, name)
    return found


def _evidence(runs: Sequence[Run], spec: RunSpec, store: Store, splits: data.Splits, device: Any) -> Evidence:
    import numpy as np

    from smallalign_core.metrics import logits_of
    from smallalign_core.runs import imported
    from smallalign_core.training.teacher import averaged_logits

    digests, side = [imported.digest_of(run) for run in runs], max(splits.shape[1:])
    facts = json.dumps([EVIDENCE, digests, splits.val.fingerprint, teacher_evidence.MOST_IMAGES])
    file = store.preflights / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(SmallAlignError, TypeError, KeyError):  # damaged, or of another version: computed again
        known = read_json(file, missing={})
        return Evidence(**{**known, "data": splits.fingerprint, "suggested": tuple(known["suggested"])})
    val = splits.val
    rows = np.unique(np.linspace(0, len(val) - 1, min(len(val), teacher_evidence.MOST_IMAGES)).astype(int))
    some, answers, sides = val.take(rows), [], []
    for run in runs:
        _refuse_changed(run, "teacher's")
        teacher = imported.classifier(run, splits.classes).to(device)
        teacher_evidence.check_side(teacher.learned_side, spec, splits.shape, run.name)
        sides.append(teacher.learned_side)
        answers.append(logits_of(teacher, some, device=device))
    found = teacher_evidence.of_logits(
        averaged_logits(answers),
        some.labels,
        splits.classes,
        teacher=",".join(run.id for run in runs),
        digest=",".join(digests),
        data=splits.fingerprint,
        validation=val.fingerprint,
        side=side,
        learned=max((one for one in sides if one is not None), default=None),
    )
    with contextlib.suppress(Refused):  # no disk space: the next run computes it again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found.as_dict())
    return found


def facts(spec: RunSpec, store: Store, splits: data.Splits, device: Any) -> dict[str, Any]:
    """The facts about teachers in a run's result: `preflight` with `warnings`, and `answers`, see `closeness`."""
    seen = preflight(spec, store, splits, device)
    check = None if seen is None else {**seen.as_dict(), "warnings": warnings(spec, store, seen)}
    for doubt in check["warnings"] if check else ():
        log.warning(doubt)
    return {"answers": inference_gap(spec, store), "preflight": check}


def warnings(spec: RunSpec, store: Store, found: Evidence) -> list[str]:
    """Warnings about the teacher of a resolved `spec`: the same student, already trained on these images without a
    teacher, is more accurate."""
    alone: dict[str, Any] = {
        "data": spec.data.labeled(),
        "teacher": None,
        "loss": CrossEntropy(),
        "shuffled": False,
        "answers": "torch",
        "top": None,
    }
    for seed in dict.fromkeys((spec.seed, 0, 1, 2)):
        run = store.find(spec.model_copy(update=alone | {"seed": seed}))
        if run is not None and run.finished:
            own = (run.result or {})["val"]["accuracy"]
            if own > found.accuracy:
                return [
                    f"teacher accuracy is {found.accuracy:.1%} on {found.images:,} validation images, that of the same "
                    f"student without it (run {run.name}) {own:.1%}: distillation may lower accuracy"
                ]
            return []
    return []


def _refuse_changed(run: Run, whose: str) -> None:
    if hashlib.sha256(run.weights.read_bytes()).hexdigest() != (run.result or {}).get("weights_sha256"):
        raise BadModel(f"the {whose} weights do not match the digest in its result", given=run.name)


def starts(specs: Sequence[RunSpec], store: Store) -> dict[str, Path]:
    """The initial weights files of runs, by the names in their specs.

    Raises:
        UnknownRun, Refused: such a run does not exist, is not finished, or is an import.
        BadModel: its weights have changed.
    """
    found = {}
    for name in {spec.start for spec in specs if spec.start}:
        run = store.finished(name, headless=True)
        if run.imported is not None:
            raise Refused("an import cannot provide initial weights", given=run.name, do="choose a SmallAlign run")
        _refuse_changed(run, "run's")
        found[name] = run.weights
    return found


def _answering(whole: BaseClassifier, run: Run, spec: RunSpec, store: Store, splits: data.Splits) -> BaseClassifier:
    """`whole` with the inference backend of `spec`; the graph for ONNX Runtime is built once and cached."""
    from smallalign_core.networks import Classifier

    if spec.answers == "torch":
        return whole
    if not isinstance(whole, Classifier):
        raise BadSpec(
            "ONNX Runtime inference needs a run with exactly these classes; imports always use it",
            given=run.name,
            do="leave `answers` out",
        )
    file = _graph(run, spec, store)
    content, close = _kept(file) or _made(file, whole, spec, splits)
    if close["agreement"] < LEAST_AGREEMENT:
        raise BadModel(
            f"top-1 agreement of the int8 teacher with the original is {close['agreement']:.1%} on {close['images']:,} "
            f"validation images, less than {LEAST_AGREEMENT:.0%}",
            given=run.name,
            do="set `answers: onnx`, or leave `answers` out",
        )
    return by_graph(whole, content)


def by_graph(whole: Classifier, content: bytes) -> Classifier:
    """A copy of `whole` with the graph in `content` as its body; its preprocessing stays."""
    from smallalign_core.networks.onnx_graph import Graph

    made = copy.deepcopy(whole).cpu()
    made.channels_last, made.body = False, Graph(content)
    return made


def _kept(file: Path) -> tuple[bytes, dict[str, Any]] | None:
    """A graph and its facts; None if either is missing or damaged."""
    with contextlib.suppress(OSError, SmallAlignError, KeyError, TypeError):
        content, close = file.read_bytes(), read_json(file.with_suffix(".json"))
        if hashlib.sha256(content).hexdigest() == close["sha256"]:
            return content, close
    return None


def _made(file: Path, whole: Classifier, spec: RunSpec, splits: data.Splits) -> tuple[bytes, dict[str, Any]]:
    content, close = as_graph(whole, spec, splits)
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, content)
    write_json(file.with_suffix(".json"), close)
    return content, close


def _graph(run: Run, spec: RunSpec, store: Store) -> Path:
    """The cache path of a teacher's graph, which depends on its calibration data too."""
    import onnxruntime

    from smallalign_core.runs import imported

    integers = [QUANTIZER, *map(canonical, spec.augment)] if spec.answers == "int8" else []
    facts = [imported.digest_of(run), spec.answers, spec.data.fingerprint, integers, spec.batch, spec.seed]
    key = hashlib.sha256(json.dumps([*facts, onnxruntime.__version__]).encode()).hexdigest()[:16]
    return store.root / "cache" / "answers" / f"{key}.onnx"


def as_graph(whole: Classifier, spec: RunSpec, splits: data.Splits) -> tuple[bytes, dict[str, Any]]:
    """A classifier's body as a graph, and its agreement with the original on validation images."""
    import numpy as np
    import torch

    from smallalign_core import augment
    from smallalign_core.metrics import fidelity, logits_of
    from smallalign_core.networks import onnx_graph, quantize

    seen = augment.of_run(spec, splits.train)
    with torch.no_grad():
        batches = [whole.prepare(seen(step).images).contiguous().numpy() for step in range(CALIBRATED_ON)]
    content = onnx_graph.of_body(whole.body, torch.from_numpy(batches[0]))
    if spec.answers == "int8":
        content = quantize.Quantizer(content, batches).write()
    val = splits.val.take(np.arange(min(2_000, len(splits.val))))
    close = fidelity(logits_of(whole, val), logits_of(by_graph(whole, content), val))
    facts = {"agreement": close.agreement, "kl": close.kl, "images": len(val), "bytes": len(content)}
    return content, facts | {"sha256": hashlib.sha256(content).hexdigest()}


def inference_gap(spec: RunSpec, store: Store) -> list[dict[str, Any]] | None:
    """Agreement of each teacher of a resolved `spec` under ONNX Runtime with the original; None for PyTorch.

    Each has `agreement` (top-1), `kl` in nats and `images`, the number of validation images. A teacher whose graph file
    was deleted or damaged, while cached logits exist, is omitted.
    """
    if spec.answers == "torch" or not spec.teacher:
        return None
    files = [_graph(store.finished(name), spec, store).with_suffix(".json") for name in spec.teachers]
    found = []
    for file in files:
        with contextlib.suppress(SmallAlignError):
            found.append(read_json(file))
    return found


def cache_plan(specs: Sequence[RunSpec], store: Store, splits: data.Splits, device: Any) -> CachePlan | None:
    """The cache plan of these runs; None without a teacher, or if it cannot be cached."""
    from smallalign_core.runs import imported
    from smallalign_core.training import teacher as teachers

    found = None
    for spec in specs:
        if spec.teacher:
            digests = [imported.digest_of(store.finished(name, headless=True)) for name in spec.teachers]
            width = _feature_facts(spec, store)["width"] if spec.of_features else None
            found = teachers.plan(spec, splits, digests, device, width)
            if found is None:  # layers are compared, which needs a live teacher
                return None
    return found


@contextlib.contextmanager
def of_runs(
    specs: Sequence[RunSpec],
    store: Store,
    splits: data.Splits,
    device: Any,
    *,
    cached: bool = True,
    warn: Callable[[str], None] = log.warning,
) -> Iterator[TeacherSource | None]:
    """The teacher source of runs with identical views: a logits cache, or a live teacher; None without a teacher.

    Args:
        cached: whether logits may be cached.
        warn: called with warnings about the cache.

    Raises:
        UnknownRun, Refused: a teacher does not exist, or is not finished.
        BadInput, BadModel: it has other classes, or its weights cannot be read.
        BadSpec: it failed its `preflight`.
    """
    from smallalign_core.training.teacher import CacheIndex, TeacherCache

    for spec in specs:
        preflight(spec, store, splits, device)
    wanted, caches = cache_plan(specs, store, splits, device), CacheIndex(store.teacher_cache)
    if wanted is None or not cached or not caches.fitting(wanted)[0]:
        yield load_teacher(specs, store, splits, device)
        return

    def load() -> Teacher:
        found = load_teacher(specs, store, splits, device)
        assert found is not None
        return found

    with TeacherCache(wanted, caches, load, warn=warn) as kept:
        yield kept
