"""Who teaches a run: its teachers' weights from the store, or the answers of theirs that were kept."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from smallalign_core import data
from smallalign_core.errors import BadModel
from smallalign_core.spec import RunSpec
from smallalign_core.store import Store

if TYPE_CHECKING:
    from smallalign_core.teacher import Plan, Teacher, Teaching

log = logging.getLogger("smallalign")


def live(specs: Sequence[RunSpec], store: Store, splits: data.Splits, device: Any) -> Teacher | None:
    """The live teacher of runs that share their views; None if nobody teaches.

    Raises:
        UnknownRun, Refused: a teacher is not there, or not finished.
        BadInput, BadModel: it does not know these classes, or its weights cannot be read.
    """
    from smallalign_core import foreign, losses
    from smallalign_core.teacher import Teacher

    spec = next((spec for spec in specs if spec.teacher), None)
    if spec is None:
        return None
    classifiers = []
    for name in spec.teachers:
        run = store.finished(name)
        if hashlib.sha256(run.weights.read_bytes()).hexdigest() != (run.result or {}).get("weights_sha256"):
            raise BadModel("the teacher's weights are not those that its result describes", given=run.name)
        classifiers.append(foreign.classifier(run, splits.classes))
    layers = sorted({layer for each in specs for layer in losses.layers(each.loss)[1]})
    return Teacher(classifiers, splits.classes, device, layers=layers, precision=spec.precision)


def plan(specs: Sequence[RunSpec], store: Store, splits: data.Splits, device: Any) -> Plan | None:
    """The teacher's answers that a bank would keep for these runs; None if there are none, or none can be."""
    from smallalign_core import foreign, teacher as teachers

    found = None
    for spec in specs:
        if spec.teacher:
            digests = [foreign.digest_of(store.finished(name)) for name in spec.teachers]
            found = teachers.plan(spec, splits, digests, device)
            if found is None:  # layers are compared: the teacher has to be there
                return None
    return found


@contextlib.contextmanager
def of_runs(
    specs: Sequence[RunSpec],
    store: Store,
    splits: data.Splits,
    device: Any,
    *,
    bank: bool = True,
    warn: Callable[[str], None] = log.warning,
) -> Iterator[Teaching | None]:
    """Who teaches runs that share their views: a bank of answers, or a live teacher; None if nobody does.

    Args:
        bank: whether answers may be kept.
        warn: is told of what is wrong with those that were kept.

    Raises:
        UnknownRun, Refused: a teacher is not there, or not finished.
        BadInput, BadModel: it does not know these classes, or its weights cannot be read.
    """
    from smallalign_core.teacher import Bank, Shelf

    wanted, shelf = plan(specs, store, splits, device), Shelf(store.teacher_cache)
    if wanted is None or not bank or not shelf.fitting(wanted)[0]:
        yield live(specs, store, splits, device)
        return

    def load() -> Teacher:
        found = live(specs, store, splits, device)
        assert found is not None
        return found

    with Bank(wanted, shelf, load, warn=warn) as kept:
        yield kept
