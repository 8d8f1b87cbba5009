"""Request handlers: one function a verb, called in a backend process with a store and the values of the request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api, comparison_api
from smallalign_core.spec import digest, parse, parse_data
from smallalign_core.studies import ablation as measuring, lifecycle
from smallalign_core.studies.ablation import What
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.machine import fastest, set_threads
from smallalign_core.training import teacher_loading
from smallalign_core.training.resolve import resolve

DOUBLE_SECONDS = 60.0
MOST_REMEMBERED = 256
CALIBRATION = 2e11
"""Multiply-accumulates that an estimate spends on int8 at most: a few seconds of one processor core."""

_SUBMITTED: dict[tuple[str, str], tuple[str, float]] = {}
"""Recent submissions as they came, and the runs that they became: a repeated one reads no image."""


def inspect(store: Store, source: str | dict[str, Any]) -> dict[str, Any]:
    """Decode a dataset if that was not done yet, and say what is in it."""
    spec = parse_data(source)
    splits = data.load(spec, store.data_cache)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        "source": spec.source,
        "data": spec.model_dump(mode="json", exclude_defaults=True, include={"source", "columns", "levels"}),
        "reader": splits.reader,
        "columns": splits.columns,
        "images": sum(len(part) for part in parts.values()),
        "classes": list(splits.classes),
        "labels": {name: label for label, name in enumerate(splits.classes)},
        "shape": list(splits.shape),
        "fingerprint": splits.fingerprint,
        "validation": splits.val.fingerprint,
        "counts": {name: part.counts() for name, part in parts.items()},
        "notes": list(splits.notes),
        "unreadable": list(splits.unreadable),
        "reasons": dict(zip(splits.unreadable, splits.reasons, strict=True)),
        "test_looks": store.test_looks(splits.fingerprint),
    }


def study(store: Store, kind: str, spec: dict[str, Any], start: bool = False, probe: bool = False) -> dict[str, Any]:
    """What a study knows so far; with `start`, workers train what is missing by themselves from now on.

    With `probe`, a few steps are taken to say in how many `seconds` it would be done.

    Returns:
        Its `id`, the resolved `spec`, and the report as plain values and in `words`.
    """
    if kind not in lifecycle.KINDS:
        raise BadInput("there is no such kind of study", given=kind, do=f"choose {' or '.join(lifecycle.KINDS)}")
    if start:
        store.visitor.check_room(store.root)  # a study is one start: workers queue its runs by themselves
    module = lifecycle.KINDS[kind]
    resolved = resolve_study(store, kind, module.parse_study(spec))
    asked = lifecycle.Study(store.root / "studies" / module.study_id(resolved))
    if start:
        asked = lifecycle.create(store, kind, resolved)
        lifecycle.start(store, asked)
    found = module.report(resolved, store, asked.folder, active=asked.active, trouble=asked.trouble)
    told = {"id": asked.id, "spec": resolved.model_dump(mode="json"), "report": found.as_dict(), "words": found.words()}
    return told | ({"seconds": module.expected(resolved, store, asked.folder)} if probe else {})


def submit(store: Store, spec: dict[str, Any]) -> dict[str, Any]:
    """Queue the run that `spec` describes; `known` tells that it existed before."""
    asked = parse(spec)
    key = (str(store.root), asked.model_dump_json())
    before, when = _SUBMITTED.get(key, ("", 0.0))
    if time.monotonic() - when < DOUBLE_SECONDS and (run := store.by_id(before)).state.active:
        store.visitor.require("start runs")
        return {"id": run.id, "state": str(run.state), "known": True}  # a double click, or two tabs
    store.visitor.check_room(store.root)  # before the work of preparing it
    resolved = resolve(store, asked)
    known = store.find(resolved) is not None
    run = store.submit(resolved)
    _SUBMITTED[key] = (run.id, time.monotonic())
    while len(_SUBMITTED) > MOST_REMEMBERED:
        _SUBMITTED.pop(next(iter(_SUBMITTED)))
    return {"id": run.id, "state": str(run.state), "known": known}


def estimate(store: Store, spec: dict[str, Any]) -> dict[str, Any]:
    """What a run would cost: parameters, MACs, the exact bytes of its ONNX file in each precision (`sizes`, of a large
    network without int8), and seconds from a short probe of the real loop.

    `cache_bytes` is what the teacher's answers would take on the disk (0: they are not kept), and `cache_ready` what
    share of them is there.
    """
    from smallalign_core import export, networks
    from smallalign_core.training import loop
    from smallalign_core.training.teacher import CacheIndex

    resolved = resolve(store, parse(spec))
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
            asked = plan.steps * (1 - ready)  # the other steps will find their answers kept
            spared = fastest(lambda: teacher.batch_with_targets(training.views, 0)) - fastest(lambda: training.views(0))
            seconds -= (training.steps - asked) * spared
    known = store.find(resolved)
    told = teacher_loading.facts(resolved, store, splits, device)
    return {
        "id": digest(resolved),
        "preflight": told["preflight"],
        "loss": resolved.loss.model_dump(mode="json"),
        "state": str(known.state) if known else None,
        "params": size.params,
        "macs": size.macs,
        "onnx_bytes": sizes["fp32"],
        "sizes": sizes,
        "steps": training.steps,
        "seconds": max(0.0, seconds),
        "device": str(device),
        "cache_bytes": room,
        "cache_ready": ready,
    }


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


HANDLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "inspect": inspect,
    "submit": submit,
    "estimate": estimate,
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
    "study": study,
    "landscape": landscape,
    "quality": data_quality.quality,
}
