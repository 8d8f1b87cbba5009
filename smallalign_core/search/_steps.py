"""Taking the decisions of a search in a worker: which is next, and the ones that need torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from smallalign_core.errors import BadInput
from smallalign_core.search import _plan
from smallalign_core.search._journal import SEEN, read
from smallalign_core.search._space import installed
from smallalign_core.search._spec import SearchSpec, base_of
from smallalign_core.spec import digest, parse
from smallalign_core.studies.run_status import RunStatus

if TYPE_CHECKING:
    from smallalign_core.runs.store import Store
    from smallalign_core.search._decide import Decision
    from smallalign_core.search._laboratory import Laboratory

LOCK = "search.lock"


def take(spec: SearchSpec, store: Store, folder: Path, device: str, lab: Laboratory | None = None) -> bool:
    """Take the next decision of a search; returns whether there was one, that is, no run to wait for and no end.

    Args:
        lab: what measures; default: this machine.

    Raises:
        SmallAlignError: something that it needs could not be measured.
    """
    record = read(folder, spec.budget)
    if record.complete or _plan.pending(spec, store, record):
        return False
    since = time.monotonic()
    from smallalign_core.search._decide import Decision
    from smallalign_core.search._lab import Lab

    with FileLock(folder / LOCK):  # a worker and a command may serve one search
        record = read(folder, spec.budget)
        if record.complete or _plan.pending(spec, store, record):
            return False
        if record.teacher is None:  # or since the checks, where this process made them
            since = SEEN.get(folder, since)
        loading = 0.0 if lab else time.monotonic() - since  # libraries, in the first decision of a process
        _next(Decision(spec, store, folder, record, lab or Lab(store, base_of(spec), device), loading))
    return True


def _next(decision: Decision) -> None:
    record = decision.record
    if record.teacher is None:
        _choose_teacher(decision)
    elif record.ready is None:
        _meet_teacher(decision)
    elif (number := record.open_round) is not None:
        decision.advance(number)
    elif record.stopped is None:
        decision.propose()
    elif record.winner is None:
        decision.choose()
    else:
        _deliver(decision)


def _choose_teacher(decision: Decision) -> None:
    from smallalign_core.search import _pretrained, _teacher

    if decision.record.choices is None:
        spec = decision.spec
        networks = _pretrained.available(spec, base_of(spec), decision.store)
        backbones = [one.model_dump(mode="json") for one in networks]
        decision.note("choices", optimizers=spec.optimizers or installed(), backbones=backbones)
    decision.note("teacher", **_teacher.choose(decision.spec, decision.store, decision.lab))


def _meet_teacher(decision: Decision) -> None:
    """Record what candidates learn from the teacher, which is finished; or that there is none."""
    from smallalign_core.search import _check, _teacher

    entry, spec = decision.record.teacher or {}, decision.spec
    name, problem = entry["run"], None
    if entry["spec"]:
        run = parse(entry["spec"])
        found: RunStatus = _plan.status(decision.store, run)
        decision.waited_for([run])
        name, problem = (digest(run), None) if found.result else (None, found.reason or found.state)
    if name is None:
        if spec.min_share is not None:
            raise BadInput(
                "the accuracy limit is a share of the teacher's, and there is no teacher",
                given=problem or entry["why"],
                do="name one with --teacher, or give an accuracy from 0 to 1",
            )
        decision.note("ready", taught={}, teacher=None, accuracy=None, lesson=0.0, problem=problem)
        return
    accuracy, images = decision.keep_teacher(decision.store.finished(name))
    if spec.min_share is not None:
        _check.check_images(spec, images, accuracy)
    learned = _teacher.lessons(spec, decision.store, decision.lab, name)
    decision.note("ready", **learned, accuracy=accuracy, problem=None)


def _deliver(decision: Decision) -> None:
    """Export the winner, verify it on all test images, and write the search into its card. The only look at test."""
    from smallalign_core.metrics import wilson
    from smallalign_core.runs import model_card
    from smallalign_core.search._build import build

    winner, spec, store = decision.record.winner or {}, decision.spec, decision.store
    if not winner["trial"]:
        decision.note("delivered", file=None)
        return
    repeated = decision.repeated()
    run = store.by_id(winner["run"])
    decision.record.winner = winner | {"repeated": repeated}
    model_card.write_notes(run, build(spec, store, decision.folder, decision.record).card())
    made = decision.lab.deliver(run, winner["precision"])
    proof = made["parity"]
    low, high = wilson(round(proof["accuracy"] * proof["images"]), proof["images"])
    test = {"images": proof["images"], "accuracy": proof["accuracy"], "accuracy_low": low, "accuracy_high": high}
    decision.note(
        "delivered",
        file=str(made["file"]),
        bytes=made["bytes"],
        sha256=made["sha256"],
        test=test,
        verified=bool(proof["ok"]),
        agreement=proof["top1_agreement"],
        p50_ms=proof["p50_ms"],
        p95_ms=proof["p95_ms"],
        repeated=repeated,
    )
