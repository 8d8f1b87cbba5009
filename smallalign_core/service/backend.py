"""The desk: what the dashboard asks, answered in other processes, so that its own never imports torch.

`serve` answers, in such a process. `asking.Desk` is the dashboard's end.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadInput, SmallAlignError, WorkFailed, of_system
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api, comparison_api
from smallalign_core.service.client import BackendClient as BackendClient
from smallalign_core.spec import Mixing, OfLayers, RunSpec, digest, parse, parse_data
from smallalign_core.studies import ablation as measuring, lifecycle
from smallalign_core.studies.ablation import What
from smallalign_core.system import limits, resumable, users
from smallalign_core.system.machine import fastest, set_threads
from smallalign_core.system.users import Role, User
from smallalign_core.training import precision_tuning, teacher_loading

DOUBLE_SECONDS = 60.0
MOST_REMEMBERED = 256
CALIBRATION = 2e11
"""Multiply-accumulates that an estimate spends on int8 at most: a few seconds of one processor core."""

_SUBMITTED: dict[tuple[str, str], tuple[str, float]] = {}
"""What was asked for lately, as it was asked, and the run that it became: asking again costs no look at the images."""


# --- questions, answered in the desk's process ------------------------------------------------------------------------


def inspect(store: Store, source: str | dict[str, Any]) -> dict[str, Any]:
    """Decode a dataset if that was not done yet, and say what is in it."""
    spec = parse_data(source)
    splits = data.load(spec, store.data_cache)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        "source": spec.source,
        "images": sum(len(part) for part in parts.values()),
        "classes": list(splits.classes),
        "labels": {name: label for label, name in enumerate(splits.classes)},
        "shape": list(splits.shape),
        "fingerprint": splits.fingerprint,
        "validation": splits.val.fingerprint,
        "counts": {name: data.in_order(part.counts()) for name, part in parts.items()},
        "notes": list(splits.notes),
        "unreadable": list(splits.unreadable),
        "reasons": dict(zip(splits.unreadable, splits.reasons, strict=True)),
        "test_looks": store.test_looks(splits.fingerprint),
    }


def resolve(store: Store, spec: RunSpec, device: str = "auto", *, beside: Sequence[RunSpec] = ()) -> RunSpec:
    """A spec with everything filled in that its digest depends on.

    What would fail after minutes in the queue is refused now: data, device, policy, teacher, network and loss are all
    tried.

    Args:
        beside: other runs of a study, whose optimizers must fit into memory too before this one takes its first steps.
    """
    from smallalign_core import augment as viewing, networks
    from smallalign_core.training import loop, losses, teacher_evidence

    where = loop.pick_device(device)
    splits = data.load(spec.data, store.data_cache)
    resolved = store.resolve(spec, splits, spec.precision)  # first: weights to start from pass the jail
    student = _fitting(resolved, splits, where)
    for other in beside:
        _fitting(other, splits, where, student if other.network == spec.network else None)
    for file in teacher_loading.starts([resolved], store).values():
        networks.begin_from(student, file)
    viewing.check(spec.augment, splits.shape)
    mixed = any(isinstance(part, Mixing) for part in spec.augment)
    losses.check(spec.loss, classes=len(splits.classes), batch=spec.batch, mixed=mixed)
    if isinstance(spec.loss, OfLayers):
        from smallalign_core.runs import imported

        teacher = imported.classifier(store.finished(spec.teachers[0]))  # with all its classes: layers do not know them
        resolved = resolved.model_copy(update={"loss": losses.place(spec.loss, student, teacher)})
    if seen := teacher_loading.preflight(resolved, store, splits, where):
        resolved = resolved.model_copy(update={"loss": teacher_evidence.chosen(resolved.loss, seen)})
    resolved = resolved.model_copy(update={"precision": precision_tuning.precision(resolved, store, splits, where)})
    teacher_loading.load_teacher([resolved], store, splits, "cpu")
    return resolved


def _fitting(spec: RunSpec, splits: data.Splits, where: Any, student: Any = None) -> Any:
    """The untrained student of a spec, once it is sure that what its optimizer keeps fits into memory.

    Args:
        student: if it is built already.
    """
    from smallalign_core import networks
    from smallalign_core.training import optim

    optim.require(spec.optimizer)
    plain = [0.5] * splits.shape[0]
    if student is None:
        student = networks.build(spec.network, splits.classes, splits.shape, mean=plain, std=plain)
    optim.check(
        optim.state_bytes(spec.optimizer, student, head=networks.head(student)),
        where,
        optim.described(spec.optimizer)[0],
    )
    return student


def resolve_study(store: Store, kind: str, spec: Any, device: str = "auto") -> Any:
    """A study with everything filled in that its digest, and those of its runs, depend on.

    What one of its runs would be refused for refuses it now.
    """
    module = lifecycle.KINDS[kind]
    first, *others = module.probes(spec)
    known = resolve(store, first, device, beside=others)
    for other in others:
        if (other.augment, other.loss, other.teacher) != (first.augment, first.loss, first.teacher):
            settled = resolve(store, other.model_copy(update={"precision": known.precision}), device)
            if other.teacher and not first.teacher:  # of a scaling study, whose baseline has none
                spec = spec.model_copy(update={"loss": settled.loss})
    return module.resolved(spec, known, store)


def study(store: Store, kind: str, spec: dict[str, Any], start: bool = False, probe: bool = False) -> dict[str, Any]:
    """What a study knows so far; with `start`, workers train what is missing by themselves from now on.

    With `probe`, a few steps are taken to say in how many `seconds` it would be done.

    Returns:
        Its `id`, the resolved `spec`, and the report as plain values and in `words`.
    """
    if kind not in lifecycle.KINDS:
        raise BadInput("there is no such kind of study", given=kind, do=f"choose {' or '.join(lifecycle.KINDS)}")
    if start:
        users.check_room(store.root, store.visitor)  # a study is one start: workers queue its runs by themselves
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
    users.check_room(store.root, store.visitor)  # before the work of preparing it
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
        # Calibration runs the network: where that takes long, the export itself will say.
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
        users.check_room(store.root, store.visitor, missing)  # all of them or none
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


def serve(store: Store, questions: TextIO, answers: TextIO) -> None:
    """Answer one JSON question a line until the pipe closes.

    With the answer to a question that came with `patience` goes whether it is `unfinished`: then this process holds
    what was done so far, and the question should come back here.
    """
    limits.require_allowed(store.root)
    for line in questions:
        asked = json.loads(line)
        acting = Store(store.root, User(asked["visitor"], Role(asked["role"])), showing=True)
        with resumable.on_behalf_of(acting.visitor.name) as asking:
            try:
                reply: dict[str, Any] = {"ok": HANDLERS[asked["verb"]](acting, **asked["values"])}
            except SmallAlignError as error:
                reply = {"error": str(error), "bad_input": isinstance(error, BadInput), "details": error.details}
            except Exception as error:  # noqa: BLE001  # whatever one question does, the desk answers the next
                failed = of_system(error) or WorkFailed(
                    "the question could not be answered", given=repr(error), do="try again, or see desk.log"
                )
                reply = {"error": str(failed), "bad_input": isinstance(failed, BadInput)}
        answers.write(json.dumps(reply | ({"unfinished": True} if asking.put_aside else {})) + "\n")
        answers.flush()


def libraries() -> list[Callable[[], object]]:
    """Imports that a question may need; the first must be there before any is answered."""

    def first() -> None:
        from smallalign_core.runs import imported  # noqa: F401

    # ONNX Runtime is not among them: it has threads of its own, which a fork would lose.
    later = ("sklearn.datasets", "sklearn.linear_model", "torchvision", "onnx", "torch.onnx", "torch._dynamo")
    return [first, *(functools.partial(importlib.import_module, name) for name in later)]
