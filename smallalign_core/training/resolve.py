"""Spec resolution: what the digest of a run depends on is filled in, and what would fail later is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smallalign_core import data
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Store
from smallalign_core.spec import Mixing, OfLayers, RunSpec
from smallalign_core.training import precision_tuning, teacher_loading

if TYPE_CHECKING:
    import torch

    from smallalign_core.networks import Classifier


def resolve(store: Store, spec: RunSpec, device: str = "auto", *, beside: Sequence[RunSpec] = ()) -> RunSpec:
    """The spec with everything filled in that its digest depends on.

    Data, device, augmentation policy, teacher, network and loss are each tried, so that a run that cannot work is
    refused here and not after minutes in the queue.

    Args:
        beside: other runs of a study, whose optimizers must fit into memory too before this one takes its first steps.

    Raises:
        SmallAlignError: the run cannot work.
    """
    from smallalign_core import augment as viewing, networks
    from smallalign_core.training import loop, losses, teacher_evidence

    where = loop.pick_device(device)
    spec = python_files.filled(spec, store.user)  # a reader is needed for the images
    splits = data.load(spec.data, store.data_cache)
    resolved = store.resolve(spec, splits, spec.precision)  # first: weights to start from are read in the sandbox
    student = _fitting(resolved, splits, where)
    for other in beside:
        _fitting(other, splits, where, student if other.network == spec.network else None)
    for file in teacher_loading.starts([resolved], store).values():
        networks.begin_from(student, file)
    viewing.check(resolved.augment, splits.shape)
    mixed = viewing.lacks_labels(spec, splits) or any(isinstance(part, Mixing) for part in spec.augment)
    taught = spec.teacher is not None
    losses.check(resolved.loss, classes=len(splits.classes), batch=spec.batch, mixed=mixed, taught=taught)
    if isinstance(spec.loss, OfLayers):
        from smallalign_core.runs import imported

        teacher = imported.classifier(store.finished(spec.teachers[0]))  # with all of its classes
        resolved = resolved.model_copy(update={"loss": losses.place(spec.loss, student, teacher)})
    if seen := teacher_loading.preflight(resolved, store, splits, where):
        resolved = resolved.model_copy(update={"loss": teacher_evidence.chosen(resolved.loss, seen)})
    resolved = resolved.model_copy(update={"precision": precision_tuning.precision(resolved, store, splits, where)})
    teacher_loading.load_teacher([resolved], store, splits, "cpu")
    return resolved


def _fitting(spec: RunSpec, splits: data.Splits, where: torch.device, student: Classifier | None = None) -> Classifier:
    """The untrained student of a spec, after checking that its optimizer state fits into memory.

    Args:
        student: if it is built already.
    """
    from smallalign_core import networks
    from smallalign_core.training import optim

    optim.require(spec.optimizer)
    plain = [0.5] * splits.shape[0]
    if student is None:
        classes = () if spec.headless else splits.classes
        student = networks.build(spec.network, classes, splits.shape, mean=plain, std=plain)
        if spec.headless:
            networks.feature_width(student, spec.network.kind)
    optim.check(
        optim.state_bytes(spec.optimizer, student, head=networks.head(student)),
        where,
        optim.described(spec.optimizer)[0],
    )
    return student
