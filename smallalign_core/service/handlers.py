"""Request handlers: one function a verb, called in a backend process with a store and the values of the request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.runs.store import Store
from smallalign_core.search import SearchSpec, extend
from smallalign_core.service import augmentation_api, comparison_api, requests
from smallalign_core.service.requests import Cost, DatasetFacts, StartedStudy, StudyCost, Submitted
from smallalign_core.service.wire import Request
from smallalign_core.spec import digest, parse, parse_data
from smallalign_core.studies import ablation as measuring, lifecycle
from smallalign_core.studies.ablation import What
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.machine import fastest, set_threads
from smallalign_core.training import teacher_loading
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher_evidence import CheckedTeacher

DOUBLE_SECONDS = 60.0
MOST_REMEMBERED = 256
CALIBRATION = 2e11
"""Multiply-accumulates that an estimate spends on int8 at most: a few seconds of one processor core."""

_SUBMITTED: dict[tuple[str, str], tuple[str, float]] = {}
"""Recent submissions as they came, and the runs that they became: a repeated one reads no image."""


def inspect(store: Store, asked: requests.Inspect) -> DatasetFacts:
    """Decode a dataset if that was not done yet, and say what is in it."""
    splits = data.load(asked.data, store.data_cache)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return DatasetFacts(
        source=asked.data.source,
        images=sum(len(part) for part in parts.values()),
        classes=splits.classes,
        labels={name: label for label, name in enumerate(splits.classes)},
        shape=splits.shape,
        fingerprint=splits.fingerprint,
        validation=splits.val.fingerprint,
        counts={name: data.in_order(part.counts()) for name, part in parts.items()},
        notes=splits.notes,
        unreadable=splits.unreadable,
        reasons=dict(zip(splits.unreadable, splits.reasons, strict=True)),
        test_looks=store.test_looks(splits.fingerprint),
    )


def start_study(store: Store, asked: requests.StartStudy) -> StartedStudy:
    """Create a study, or continue the existing one."""
    store.visitor.check_room(store.root)  # a study is one start: workers queue its runs by themselves
    study = lifecycle.create(store, asked.spec.KIND, resolve_study(store, asked.spec.KIND, asked.spec))
    if isinstance(asked.spec, SearchSpec):
        extend(study.folder, study.spec.budget, asked.spec.budget)
    lifecycle.start(store, study)
    return StartedStudy(study.id)


def estimate_study(store: Store, asked: requests.EstimateStudy) -> StudyCost:
    """Count the runs of a study and estimate their cost."""
    module = lifecycle.KINDS[asked.spec.KIND]
    resolved = resolve_study(store, asked.spec.KIND, asked.spec)
    study = lifecycle.Study(store.root / "studies" / module.study_id(resolved))
    found = module.report(resolved, store, study.folder, active=study.active, trouble=None)
    return StudyCost(study.id, found.runs, found.done, found.missing, module.expected(resolved, store, study.folder))


def submit(store: Store, asked: requests.Submit) -> Submitted:
    """Queue the run of a spec."""
    key = (str(store.root), asked.spec.model_dump_json())
    before, when = _SUBMITTED.get(key, ("", 0.0))
    if time.monotonic() - when < DOUBLE_SECONDS and (run := store.by_id(before)).state.active:
        store.visitor.require("start runs")
        return Submitted(run.id, str(run.state), known=True)  # a double click, or two tabs
    store.visitor.check_room(store.root)  # before the work of preparing it
    resolved = resolve(store, asked.spec)
    known = store.find(resolved) is not None
    run = store.submit(resolved)
    _SUBMITTED[key] = (run.id, time.monotonic())
    while len(_SUBMITTED) > MOST_REMEMBERED:
        _SUBMITTED.pop(next(iter(_SUBMITTED)))
    return Submitted(run.id, str(run.state), known)


def estimate(store: Store, asked: requests.Estimate) -> Cost:
    """Estimate the cost of a run."""
    from smallalign_core import export, networks
    from smallalign_core.training import loop
    from smallalign_core.training.teacher import CacheIndex

    resolved = resolve(store, asked.spec)
    splits = data.load(resolved.data, store.data_cache)
    set_threads()
    device = loop.pick_device()
    plan, shelf = teacher_loading.cache_plan([resolved], store, splits, device), CacheIndex(store.teacher_cache)
    room = shelf.fitting(plan)[0] if plan else 0
    ready = shelf.has(plan) / plan.steps if plan and room else 0.0
    with contextlib.ExitStack() as held:
        # The probe must not fill a bank: that would take long, and be kept for a run that nobody started.
        teacher = (
            held.enter_context(teacher_loading.of_runs([resolved], store, splits, device))
            if ready == 1
            else teacher_loading.load_teacher([resolved], store, splits, device)
        )
        starts = teacher_loading.starts([resolved], store)
        training = loop.Training([resolved], splits, teacher, device=device, starts=starts)
        classifier = training.students[0].classifier
        size = networks.measure(classifier)
        # Calibration runs the network: where that takes long, only the export itself does it.
        small = size.macs * export.CALIBRATED_ON <= CALIBRATION
        precisions = tuple(one for one in export.PRECISIONS if small or one not in export.CALIBRATED)
        sizes = export.sizes_before(resolved, classifier, splits, precisions)
        seconds = training.steps * fastest(training.advance)
        if teacher is not None and plan is not None and room and ready < 1:
            missing = plan.steps * (1 - ready)  # the other steps will find their answers kept
            spared = fastest(lambda: teacher.batch_with_targets(training.views, 0)) - fastest(lambda: training.views(0))
            seconds -= (training.steps - missing) * spared
    known = store.find(resolved)
    seen = teacher_loading.facts(resolved, store, splits, device)["preflight"]
    return Cost(
        id=digest(resolved),
        preflight=seen and CheckedTeacher(**seen),
        loss=resolved.loss,
        state=str(known.state) if known else None,
        params=size.params,
        macs=size.macs,
        onnx_bytes=sizes["fp32"],
        sizes=sizes,
        steps=training.steps,
        seconds=max(0.0, seconds),
        device=str(device),
        cache_bytes=room,
        cache_ready=ready,
    )


def worth(store: Store, spec: dict[str, Any], what: What, seeds: int = 3, start: bool = False) -> dict[str, Any]:
    """What a choice of a spec is worth as far as its runs are finished; with `start`, those that are not are queued.

    Returns:
        A report as `Worth.as_dict`, and the resolved `spec`, with which `worth.report` says the same without a desk.
    """
    asked = parse(spec)
    measuring.pairs(asked, what, seeds)  # refused at once, before anything is decoded
    if start:
        store.visitor.require("start runs")
    resolved = resolve(store, asked)
    if start:
        missing = measuring.report(store, resolved, what, seeds).missing
        store.visitor.check_room(store.root, missing)  # all of them or none
        measuring.start(store, resolved, what, seeds)
    found = measuring.report(store, resolved, what, seeds)
    return {**found.as_dict(), "words": found.words(), "spec": resolved.model_dump(mode="json")}


def preflight(store: Store, teacher: str, data_source: str | dict[str, Any] | None = None) -> dict[str, Any]:
    """Is a finished run or an import worth learning from, on the validation images of this data? Also in `words`."""
    from smallalign_core.analysis import teacher_check as looking

    spec = None if data_source is None else parse_data(data_source)
    found = looking.preflight(store.finished(teacher), store, spec)
    return found.as_dict() | {"words": found.words()}


def bundle(store: Store, run: str, precision: str = "fp32") -> dict[str, Any]:
    """Export a run in one precision and prove it, unless that was done already."""
    from smallalign_core import export

    found, asked = store.finished(run), export.precision_of(precision)
    report = export.kept_bundle(found, store, asked)
    return report if report is not None else export.bundle(found, store, precision=asked)


def claim(store: Store, run: str, precision: str, said: dict[str, Any]) -> dict[str, Any]:
    """Keep what a visitor's browser answered with a run's proof, scored here."""
    from smallalign_core import export

    return export.submit_browser_parity(store.finished(run), store, export.precision_of(precision), said)


def landscape(store: Store, runs: list[str], measures: list[str], **how: Any) -> dict[str, Any]:
    """What lies around finished runs, in steps, or what looking would cost: see `landscape.landscape`."""
    from smallalign_core.analysis import landscape as looking

    set_threads()
    return looking.landscape(store, runs, measures, **how)


HANDLERS: dict[type[Request[Any]], Callable[[Store, Any], Any]] = {
    requests.Inspect: inspect,
    requests.Submit: submit,
    requests.Estimate: estimate,
    requests.StartStudy: start_study,
    requests.EstimateStudy: estimate_study,
}

UNTYPED: dict[str, Callable[..., dict[str, Any]]] = {
    "compare": comparison_api.compare,
    "robustness": comparison_api.robustness,
    "frontier": comparison_api.pareto_front,
    "report": comparison_api.report,
    "look": comparison_api.look,
    "bundle": bundle,
    "claim": claim,
    "views": augmentation_api.views,
    "epoch": augmentation_api.epoch,
    "risk": augmentation_api.risk,
    "code": augmentation_api.code,
    "worth": worth,
    "preflight": preflight,
    "landscape": landscape,
    "quality": data_quality.quality,
}
