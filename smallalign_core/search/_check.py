"""What a search refuses before anything is trained: limits that cannot be met, too small a budget, too few images."""

from __future__ import annotations

from smallalign_core import data
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.search._decide import DELIVERY, FIRST_LOOK, FIRST_RATIO
from smallalign_core.search._evidence import images_needed
from smallalign_core.search._journal import Measured
from smallalign_core.search._lab import Lab
from smallalign_core.search._space import Candidate, Space, chain, scales_for
from smallalign_core.search._spec import SearchSpec, base_of
from smallalign_core.system import extras

LOOKS = 10
"""Files that a search compares, about: so many looks the validation images must be able to decide."""
CLOSE = 1.5
"""A latency above its limit by at most this factor may be the load of the moment."""


def check_images(spec: SearchSpec, images: int, teacher: float | None = None) -> None:
    """Check that there are enough validation images to decide the accuracy limit.

    Args:
        teacher: its accuracy, where the limit is a share of that; default: 1, which needs most images.

    Raises:
        BadInput: even a model without an error could not be shown to meet it.
    """
    limit = spec.min_accuracy if spec.min_share is None else spec.min_share * (teacher or 1.0)
    if limit is None:
        return
    needed = images_needed(1.0, limit, LOOKS)
    if needed is None or images < needed:
        least = "more than ten million" if needed is None else f"{needed:,}"
        raise BadInput(
            f"too few validation images to decide an accuracy limit of {100 * limit:.4g}%: {images:,}, and at least "
            f"{least} are needed for a model without an error among {LOOKS}",
            given=spec.data.source,
            do="raise `data.validation` with --set, add images, or lower the limit",
        )


def check(spec: SearchSpec, store: Store, device: str) -> None:
    """Check the limits against the smallest networks of the space, and the budget against the cheapest trial.

    Raises:
        BadInput: the accuracy limit cannot be decided, no candidate can meet the others, or the budget is too short.
        MissingExtra: the sampler is not installed.
    """
    extras.require("optuna", "the budget search")
    splits = data.load(spec.data, store.data_cache)
    if spec.min_share is None:
        check_images(spec, len(splits.val))
    lab = Lab(store, base_of(spec), device)
    space = Space(spec.families, scales_for(splits.shape), taught=False)
    found: list[tuple[Candidate, Measured]] = []
    for one in space.smallest():
        run = chain(base_of(spec), one, spec.rungs, spec.side, None, spec.seed)[-1]
        found.append((one, lab.measure(run, spec.precisions, None)))
    _check_size(spec, found)
    _check_latency(spec, found)
    _check_budget(spec, found, len(splits.train))


def _check_size(spec: SearchSpec, found: list[tuple[Candidate, Measured]]) -> None:
    sizes = [(size, one, name) for one, seen in found for name, size in seen.bytes.items() if size is not None]
    size, one, name = min(sizes, key=lambda each: each[0])
    if spec.max_bytes is not None and size > spec.max_bytes:
        raise BadInput(
            f"no network of the space is that small: the smallest file is {size / 1000:.1f} kB ({one.network}, {name})",
            given=f"at most {spec.max_kb:g} kB",
            do=f"allow at least {size / 1000 + 0.05:.1f} kB, or more families or precisions",
        )


def _check_latency(spec: SearchSpec, found: list[tuple[Candidate, Measured]]) -> None:
    if spec.max_ms is None:
        return
    limit = spec.max_bytes
    fitting = [
        (ms, one, name)
        for one, seen in found
        for name, ms in seen.ms.items()
        if limit is None or (seen.bytes[name] or 0) <= limit
    ]
    ms, one, name = min(fitting, key=lambda each: each[0])
    if ms > CLOSE * spec.max_ms:
        raise BadInput(
            f"no network of the space is that fast here: the smallest ones take {ms:.3g} ms or more ({one.network}, "
            f"{name})",
            given=f"at most {spec.max_ms:g} ms",
            do=f"allow at least {1.1 * ms:.2g} ms",
        )


def _check_budget(spec: SearchSpec, found: list[tuple[Candidate, Measured]], images: int) -> None:
    seconds = spec.budget.seconds
    if seconds is None:
        return
    steps = sum(spec.rungs) * images / (spec.batch or 1)
    least = FIRST_RATIO * steps * min(seen.step for _, seen in found) + DELIVERY * FIRST_LOOK
    if least > seconds:
        raise BadInput(
            f"the budget is shorter than one trial: the smallest network takes about {least:.0f} s with its export",
            given=str(spec.budget),
            do=f"allow at least {least:.0f}s, fewer epochs (--set rungs=...), or fewer images (--set data.images=...)",
        )
