"""Request handlers: one function a verb, called in a backend process with a store and the values of the request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.analysis.data_quality import QualityReport
from smallalign_core.analysis.teacher_report import Preflight
from smallalign_core.errors import BadInput, BadModel, WorkFailed
from smallalign_core.runs import python_files
from smallalign_core.runs.export_report import ExportReport, TargetReport
from smallalign_core.runs.store import Store
from smallalign_core.search import SearchSpec, begin, extend
from smallalign_core.service import augmentation_api, comparison_api, requests
from smallalign_core.service.requests import (
    Ablation,
    Cost,
    DatasetFacts,
    LandscapeProgress,
    StartedStudy,
    StudyCost,
    Submitted,
)
from smallalign_core.service.wire import Progress, Request
from smallalign_core.spec import DataSpec, digest
from smallalign_core.spec.target import TARGETS
from smallalign_core.studies import ablation as measuring, kinds, lifecycle
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system import typed
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


def inspect(store: Store, request: requests.Inspect) -> DatasetFacts:
    """Decode a dataset if that was not done yet, and say what is in it."""
    request = python_files.filled_request(request, store.user)
    splits = data.load(request.data, store.data_cache)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return DatasetFacts(
        data=DataSpec.model_validate(request.data.model_dump(include={"source", "reader", "columns", "levels"})),
        reader=splits.reader,
        columns=splits.columns,
        images=sum(len(part) for part in parts.values()),
        classes=splits.classes,
        labels={name: label for label, name in enumerate(splits.classes)},
        shape=splits.shape,
        fingerprint=splits.fingerprint,
        validation=splits.val.fingerprint,
        counts={name: part.counts() for name, part in parts.items()},
        unlabeled=0 if splits.unlabeled is None else len(splits.unlabeled),
        notes=splits.notes,
        unreadable=splits.unreadable,
        reasons=dict(zip(splits.unreadable, splits.reasons, strict=True)),
        test_looks=store.test_looks(splits.fingerprint),
    )


def start_study(store: Store, request: requests.StartStudy) -> StartedStudy:
    """Create a study, or continue the existing one."""
    store.user.check_room(store.root)  # a study is one start: workers queue its runs by themselves
    since = time.monotonic()
    study = lifecycle.create(store, request.spec.KIND, resolve_study(store, request.spec.KIND, request.spec))
    if isinstance(request.spec, SearchSpec):
        begin(study.folder, study.spec.budget, time.monotonic() - since)
        extend(study.folder, study.spec.budget, request.spec.budget)
    lifecycle.start(store, study)
    return StartedStudy(study.id)


def estimate_study(store: Store, request: requests.EstimateStudy) -> StudyCost:
    """Count the runs of a study and estimate their cost."""
    module = kinds.KINDS[request.spec.KIND]
    resolved = resolve_study(store, request.spec.KIND, request.spec)
    study = lifecycle.Study(store.root / "studies" / module.study_id(resolved))
    found = module.report(resolved, store, study.folder, active=study.active, trouble=None)
    return StudyCost(study.id, found.runs, found.done, found.missing, module.expected(resolved, store, study.folder))


def submit(store: Store, request: requests.Submit) -> Submitted:
    """Queue the run of a spec."""
    spec = python_files.filled(request.spec, store.user)  # an edited file is another run
    key = (str(store.root), spec.model_dump_json())
    before, when = _SUBMITTED.get(key, ("", 0.0))
    if time.monotonic() - when < DOUBLE_SECONDS and (run := store.by_id(before)).state.active:
        store.user.require("start runs")
        return Submitted(run.id, str(run.state), known=True)  # a double click, or two tabs
    store.user.check_room(store.root)  # before the work of preparing it
    resolved = resolve(store, spec)
    known = store.find(resolved) is not None
    run = store.submit(resolved)
    _SUBMITTED[key] = (run.id, time.monotonic())
    while len(_SUBMITTED) > MOST_REMEMBERED:
        _SUBMITTED.pop(next(iter(_SUBMITTED)))
    return Submitted(run.id, str(run.state), known)


def prune(store: Store, request: requests.Prune) -> Submitted:
    """Queue a run that starts from the strongest channels of a finished one."""
    from smallalign_core.training.pruned import spec_of

    store.user.require("start runs")
    store.user.check_room(store.root)
    return submit(store, requests.Submit(spec_of(store.finished(request.run), store, request.share, of=request.of)))


def estimate(store: Store, request: requests.Estimate) -> Cost:
    """Estimate the cost of a run: of a network that cannot be exported, without sizes."""
    from smallalign_core import export, networks
    from smallalign_core.training import loop
    from smallalign_core.training.teacher import CacheIndex

    resolved = resolve(store, request.spec)
    splits = data.load(resolved.data, store.data_cache)
    set_threads()
    device = loop.pick_device()
    plan, index = teacher_loading.cache_plan([resolved], store, splits, device), CacheIndex(store.teacher_cache)
    room = index.fitting(plan)[0] if plan else 0
    ready = index.has(plan) / plan.steps if plan and room else 0.0
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
        sizes, unexportable = dict[str, int | None](), None
        try:
            if resolved.headless:
                raise BadModel("a network without a head is not exported", do="train a head first, with `start`")
            sizes = export.sizes_before(resolved, classifier, splits, precisions)
        except BadModel as error:  # no head, or a user's network
            unexportable = str(error)
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
        onnx_bytes=sizes.get("fp32"),
        unexportable=unexportable,
        sizes=sizes,
        steps=training.steps,
        unlabeled=0 if splits.unlabeled is None else len(splits.unlabeled),
        seconds=max(0.0, seconds),
        device=str(device),
        cache_bytes=room,
        cache_ready=ready,
    )


def ablate(store: Store, request: requests.Ablate) -> Ablation:
    """The effect of a component of a spec as far as its runs are finished."""
    spec, what, seeds = request.spec, request.what, request.seeds
    measuring.pairs(spec, what, seeds)  # refused at once, before anything is decoded
    if request.start:
        store.user.require("start runs")
    resolved = resolve(store, spec)
    if request.start:
        missing = measuring.report(store, resolved, what, seeds).missing
        store.user.check_room(store.root, missing)  # all of them or none
        measuring.start(store, resolved, what, seeds)
    return Ablation(measuring.report(store, resolved, what, seeds), resolved)


def preflight(store: Store, request: requests.CheckTeacher) -> Preflight:
    """Is a finished run or an import worth learning from, on the validation images of this data?"""
    from smallalign_core.analysis import teacher_check as looking

    return looking.preflight(store.finished(request.teacher), store, request.data)


def quality(store: Store, request: requests.CheckQuality) -> Progress[QualityReport]:
    """Check the quality of a dataset."""
    found, done = data_quality.quality(
        store, request.data, request.method, request.teacher, start=request.start, patience=request.patience
    )
    return Progress(done, found)


def bundle(store: Store, request: requests.Export) -> ExportReport:
    """Export a run in one precision and prove it, unless that was done already."""
    from smallalign_core import export

    run, (precision, how) = store.finished(request.run), export.parse_variant(request.precision)
    kept = export.kept_bundle(run, store, precision, how)
    with contextlib.suppress(WorkFailed):  # a damaged one is made again
        if kept is not None:
            return _report(kept)
    return _report(export.bundle(run, store, precision=precision, options=how))


def target(store: Store, request: requests.ExportTarget) -> TargetReport:
    """Export a run for another runtime and prove it, unless that was done already."""
    from smallalign_core import export

    if request.target not in TARGETS:
        raise BadInput("unknown export target", given=request.target, do=f"choose {', '.join(TARGETS)}")
    run, chosen = store.finished(request.run), TARGETS[request.target]
    kept = export.kept_target(run, store, chosen)
    wrong, do = "the parity report is damaged", "export the run again"
    with contextlib.suppress(WorkFailed):  # a damaged one is made again
        if kept is not None:
            return typed.decode(TargetReport, kept, WorkFailed, wrong, do)
    return typed.decode(TargetReport, export.bundle_target(run, store, chosen), WorkFailed, wrong, do)


def claim(store: Store, request: requests.SubmitParity) -> ExportReport:
    """Keep what a visitor's browser answered with a run's proof, scored here."""
    from smallalign_core import export

    precision, how = export.parse_variant(request.precision)
    return _report(export.submit_browser_parity(store.finished(request.run), store, precision, request.said, how))


def _report(found: dict[str, Any]) -> ExportReport:
    return typed.decode(ExportReport, found, WorkFailed, "the parity report is damaged", "export the run again")


def landscape(store: Store, request: requests.MeasureLandscape) -> LandscapeProgress:
    """What lies around finished runs, in steps, or what looking would cost."""
    from smallalign_core.analysis import landscape as looking

    set_threads()
    look = {"norms": request.norms, "images": request.images, "seed": request.seed}
    found = looking.landscape(
        store, request.runs, request.measures, start=request.start, patience=request.patience, **look
    )
    wrong, do = "the cached landscape is damaged", "empty the cache of the store, and compute it again"
    return typed.decode(LandscapeProgress, found, WorkFailed, wrong, do)


HANDLERS: dict[type[Request[Any]], Callable[[Store, Any], Any]] = {
    requests.Inspect: inspect,
    requests.Submit: submit,
    requests.Prune: prune,
    requests.Estimate: estimate,
    requests.StartStudy: start_study,
    requests.EstimateStudy: estimate_study,
    requests.Compare: comparison_api.compare,
    requests.AssessRobustness: comparison_api.robustness,
    requests.FindParetoFront: comparison_api.pareto_front,
    requests.WriteReport: comparison_api.report,
    requests.Explain: comparison_api.look,
    requests.CheckTeacher: preflight,
    requests.AugmentImages: augmentation_api.views,
    requests.AugmentBatch: augmentation_api.epoch,
    requests.CheckLabels: augmentation_api.risk,
    requests.WritePolicy: augmentation_api.code,
    requests.CheckQuality: quality,
    requests.Ablate: ablate,
    requests.Export: bundle,
    requests.ExportTarget: target,
    requests.SubmitParity: claim,
    requests.MeasureLandscape: landscape,
}
