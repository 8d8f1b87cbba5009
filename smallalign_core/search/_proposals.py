"""What a round proposes, in order: functions of the record, of finished runs and of the seed, each with a reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run, Store
from smallalign_core.search import _plan
from smallalign_core.search._journal import Look, Record
from smallalign_core.search._laboratory import Laboratory
from smallalign_core.search._pretrained import given
from smallalign_core.search._sampler import Proposal, sampled, steps_from
from smallalign_core.search._space import SIZES, Candidate, Given, Space
from smallalign_core.search._spec import SearchSpec
from smallalign_core.spec import Network

LOCAL = 3
"""Candidates of a round that are one step from the best, at most."""
REPAIRED = 2
"""And smaller ones with another recipe."""
PRUNED = 2
"""And finished ones that are pruned."""
SHARES = (0.7, 0.5)
"""A network is pruned to so much of the size of the best file, so that it is smaller if it meets the limits too."""
NEAR = 0.15
"""A network pruned to about the same share is no other candidate."""
PRUNINGS = 3
"""Prunings of one network, until its file has the wanted size."""
FINE_TUNED = 0.3
"""Learning rate of pretrained networks at first, as a multiple."""


def proposals(spec: SearchSpec, store: Store, record: Record, lab: Laboratory) -> Iterator[Proposal]:
    """Proposals of the next round, without end in practice; some may be known already."""
    space = _plan.space_of(spec, record)
    fits = _fits(spec, record, lab)
    backbones = record.choices.backbones if record.choices else spec.backbones or ()
    if record.trials:
        yield from _fresh(_steps(spec, space, record), record, LOCAL)
        yield from _fresh(_repaired(spec, space, record), record, REPAIRED)
        yield from itertools.islice(_pruned(spec, store, record, lab), PRUNED)
        yield from _fresh(_starters(spec, space, fits, backbones), record, None)
    else:
        first = list(_starters(spec, space, fits, backbones))
        yield from first[: len(space.families)]
        yield from itertools.islice(_pruned(spec, store, record, lab), 1)
        yield from first[len(space.families) :]
    seed = spec.seed * 10_007 + len(record.rungs) + 1
    yield from sampled(space, _plan.outcomes(spec, store, record), seed)


def _fresh(found: Iterator[Proposal], record: Record, most: int | None) -> Iterator[Proposal]:
    known = {trial.candidate for trial in record.trials}
    yield from itertools.islice((one for one in found if one.candidate not in known), most)


def _fits(spec: SearchSpec, record: Record, lab: Laboratory) -> Callable[[Candidate], bool]:
    def fits(one: Candidate) -> bool:
        least = lab.least_bytes(_plan.last_run(spec, record, one), spec.precisions)
        return spec.max_bytes is None or least <= spec.max_bytes

    return fits


def _starters(
    spec: SearchSpec, space: Space, fits: Callable[[Candidate], bool], backbones: tuple[Network, ...]
) -> Iterator[Proposal]:
    """About the largest network of each family that can fit, or one of middle width; pretrained networks; and one of
    half of the width of each family."""
    smaller: list[Proposal] = []
    for family in space.families:
        widths, depths = SIZES[family]
        usual = Candidate(family, widths[0], depths[len(depths) // 2], 1, space.taught, "light")
        fitting = [width for width in widths if fits(replace(usual, width=width))]
        first = len(fitting) - 1 if spec.max_bytes is not None else len(widths) // 2
        reason = "the largest that may fit" if spec.max_bytes is not None else "of middle width"
        if 0 <= first < len(fitting):
            yield Proposal(replace(usual, width=fitting[first]), f"start: {family}, {reason}")
            second = replace(usual, width=fitting[first // 2])
            smaller += [Proposal(second, f"start: {family}, a smaller one")] if first else []
    for network in backbones:
        one = Candidate("given", 0, 0, 1, space.taught, "light", rate=FINE_TUNED, given=given(network))
        yield Proposal(one, f"start: {one.network} on other images, which few images of one's own cannot replace")
    yield from smaller


def _steps(spec: SearchSpec, space: Space, record: Record) -> Iterator[Proposal]:
    best = _plan.best_look(spec, record.looks)
    smaller = best is not None and spec.limits_accuracy
    best = best or _plan.nearest_look(spec, record.looks)
    if best is not None:
        yield from steps_from(space, record.trial(best.trial).candidate, best.trial, smaller=smaller)


def _repaired(spec: SearchSpec, space: Space, record: Record) -> Iterator[Proposal]:
    """Files smaller than the best that do not meet the accuracy limit, the nearest first, with another recipe."""
    best, limit = _plan.best_look(spec, record.looks), _plan.target(spec, record)
    if best is None or limit is None:
        return
    short = [look for look in record.looks if look.bytes < best.bytes]
    for look in sorted(short, key=lambda one: (-one.counts.accuracy, one.bytes)):
        was = record.trial(look.trial).candidate
        found = _plan.interval(spec, look, _plan.compared(record.looks))
        assert found is not None, "there is an accuracy limit"
        lacks = f"{100 * max(0.0, -found.low):.1f} points short"
        for one in space.recipes(was):
            yield Proposal(one, f"another recipe for trial {look.trial}, smaller and {lacks}: {one.differs(was)}")


# --- pruning ----------------------------------------------------------------------------------------------------------


def _pruned(spec: SearchSpec, store: Store, record: Record, lab: Laboratory) -> Iterator[Proposal]:
    """Good finished networks with fewer channels, as `smallalign prune` takes them away: the most accurate trials and
    the teacher, each to a size that is of use."""
    best = _plan.best_look(spec, record.looks)
    goals = [spec.max_bytes] if spec.max_bytes is not None else []
    if best is not None:
        goals = [round(share * best.bytes) for share in SHARES] if spec.limits_accuracy else goals
    for goal in goals:
        for run, size, candidate, name in _origins(spec, store, record, lab, best):
            if size <= goal or _tried(record, run, goal / size):
                continue
            found = _to_size(spec, record, lab, run, size, candidate, goal)
            if found is not None and found.given is not None and not _tried(record, run, found.given.share):
                share = f"{found.given.share:.0%} of its weights"
                yield Proposal(found, f"pruned: {name}, to {share}, for {goal:,} bytes")


def _origins(
    spec: SearchSpec, store: Store, record: Record, lab: Laboratory, best: Look | None
) -> Iterator[tuple[Run, int, Candidate, str]]:
    """Finished runs to prune, with the bytes of their smallest file, their recipe and what to call them."""
    limit = _plan.target(spec, record)
    looks = sorted(record.looks, key=lambda one: -one.counts.accuracy)
    if limit is not None:
        looks = [look for look in looks if look.counts.accuracy >= limit]
    for look in dict.fromkeys([*([best] if best else []), *looks[:1]]):
        trial = record.trial(look.trial)
        name = f"trial {trial.number}, {'the best so far' if look is best else 'the most accurate so far'}"
        yield store.by_id(look.run), look.bytes, trial.candidate, name
    if record.taught is None:
        return
    teacher = store.by_id(record.taught.teacher)
    result = teacher.result or {}
    alike = tuple(result.get("input_shape", ())) == spec.shape and set(result.get("classes", ())) == set(lab.classes)
    if alike and teacher.imported is None:
        run = teacher.spec.model_copy(update={"teacher": None, "start": None})
        recipe = Candidate("given", 0, 0, 1, taught=True, augment="light", given=Given("the teacher", run.network))
        yield teacher, _smallest(lab.sizes(run, spec.precisions), 0), recipe, "the teacher"


def _tried(record: Record, run: Run, share: float) -> bool:
    """Whether a network was pruned to about this share before, or could not be."""
    known = [trial.candidate.given for trial in record.trials]
    return any(one is not None and one.start == run.id and abs(one.share / share - 1) < NEAR for one in known)


def _to_size(
    spec: SearchSpec, record: Record, lab: Laboratory, run: Run, size: int, origin: Candidate, goal: int
) -> Candidate | None:
    """The network of a run whose smallest file has `size` bytes, pruned until it takes `goal` at most, or nearly; None
    where it cannot be pruned."""
    whole, share, found = lab.least_bytes(run.spec, ("int8",)), goal / size, None
    for _ in range(PRUNINGS):
        try:
            network = lab.pruned(run, share)
        except SmallAlignError:
            break
        smaller = run.spec.model_copy(update={"network": network})
        kept = lab.least_bytes(smaller, ("int8",)) / max(1, whole)
        named = Given(f"{origin.network} pruned to {kept:.0%}", network, run.id, round(kept, 4))
        found = replace(origin, family="given", width=0, depth=0, scale=1, given=named)
        smallest = _smallest(lab.sizes(_plan.last_run(spec, record, found), spec.precisions), goal)
        if smallest <= goal:
            break
        share *= 0.95 * goal / smallest
    return found


def _smallest(sizes: dict[str, int | None], default: int) -> int:
    return min((size for size in sizes.values() if size is not None), default=default)
