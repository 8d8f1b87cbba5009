"""Study resolution: everything that the digest of a study depends on is filled in."""

from __future__ import annotations

from typing import Any

from smallalign_core.runs.store import Store
from smallalign_core.studies import kinds
from smallalign_core.training.resolve import resolve


def resolve_study(store: Store, kind: str, spec: Any, device: str = "auto") -> Any:
    """The study with everything filled in that its digest, and those of its runs, depend on.

    Raises:
        SmallAlignError: one of its runs cannot work.
    """
    module = kinds.KINDS[kind]
    first, *others = module.probes(spec)
    known = resolve(store, first, device, beside=others)
    for other in others:
        if (other.augment, other.loss, other.teacher) != (first.augment, first.loss, first.teacher):
            settled = resolve(store, other.model_copy(update={"precision": known.precision}), device)
            if other.teacher and not first.teacher:  # of a scaling study, whose baseline has none
                spec = spec.model_copy(update={"loss": settled.loss})
    return module.resolved(spec, known, store)
