"""An arm against the reference: paired differences over seeds and images, corrected, with a verdict."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.runs import logits
from smallalign_core.runs.store import Run
from smallalign_core.studies import statistics
from smallalign_core.studies.ablation import METRICS
from smallalign_core.studies.optimizers._parts import Difference, Verdict

COMPARED = ("accuracy", "nll")
LEVEL = 0.05


@dataclass(frozen=True)
class Scored:
    """A finished final run: its seed, its test scores, and the path of its logits."""

    seed: int
    accuracy: float
    nll: float
    folder: Path


@functools.lru_cache(maxsize=512)
def _answers(folder: Path, _: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """(correct, NLL) of each test image, cached; None if logits are not stored."""
    found = logits.kept(Run(folder))
    return None if found is None else (found.right.astype(np.float32), found.nll.astype(np.float32))


def _by_image(seen: Scored, metric: str) -> NDArray[np.float32] | None:
    try:
        stamp = (seen.folder / logits.FILE).stat().st_mtime_ns
    except OSError:
        return None
    found = _answers(seen.folder, stamp)
    return None if found is None else found[COMPARED.index(metric)]


def compare_with(
    reference: Sequence[Scored], others: Sequence[Sequence[Scored]], margin: float
) -> list[dict[str, Difference]]:
    """The differences of all other arms of one budget to its reference, by metric."""
    return [
        dict(zip(COMPARED, each, strict=True))
        for each in zip(*(_one_metric(reference, others, metric, margin) for metric in COMPARED), strict=True)
    ]


def reference_differences(seeds: int) -> dict[str, Difference]:
    """The entry of the reference itself."""
    return {metric: Difference(metric, seeds, (), "reference") for metric in COMPARED}


def _one_metric(
    reference: Sequence[Scored], others: Sequence[Sequence[Scored]], metric: str, margin: float
) -> list[Difference]:
    found = _means(tuple(reference), tuple(map(tuple, others)), metric)
    compared = []
    p_values = [one[0].p for one in found if one is not None and one[0].se > 0]
    corrected, tests = iter(statistics.holm(p_values)), len(p_values)
    for other, one in zip(others, found, strict=True):
        ours, theirs = _paired(reference, other, metric)
        by_seed = tuple(a - b for a, b in zip(ours, theirs, strict=True))
        plain = Difference(metric, len(by_seed), by_seed, "nothing" if not by_seed else "not evidence")
        if by_seed:
            plain = replace(
                plain,
                mean=sum(by_seed) / len(by_seed),
                beats=statistics.beats(ours, theirs, less_is_better=METRICS[metric].less_is_better),
            )
        if one is None:
            compared.append(plain)
            continue
        mean, crossed = one
        more: dict[str, Any] = {
            "rho": statistics.correlation(ours, theirs),
            "gain": statistics.pairing_gain(ours, theirs),
            "margin": margin if metric == "accuracy" else None,
        }
        if not mean.se:
            compared.append(replace(plain, verdict="no spread", **more))
            continue
        p = next(corrected)
        verdict = _verdict(mean, p, METRICS[metric].less_is_better, more["margin"])
        low, high = METRICS[metric].differences(mean.low, mean.high)
        compared.append(
            replace(
                plain,
                verdict=verdict,
                low=low,
                high=high,
                method="crossed" if crossed else "seeds",
                p=mean.p,
                holm=p,
                more_seeds=_more(mean, len(by_seed), tests) if verdict == "undecided" else None,
                **more,
            )
        )
    return compared


def _verdict(found: statistics.Mean, holm: float, less_is_better: bool, margin: float | None) -> Verdict:
    if not found.low <= 0 <= found.high and holm < LEVEL:
        return "better" if (found.mean < 0) == less_is_better else "worse"
    if margin is not None and -margin < found.low and found.high < margin:
        return "no difference larger"
    return "undecided"


def _more(found: statistics.Mean, seeds: int, tests: int) -> int | None:
    needed = statistics.pairs_needed(found.mean, found.seeds_sd, found.floor, tests)
    return None if needed is None else max(1, needed - seeds)


def _paired(reference: Sequence[Scored], other: Sequence[Scored], metric: str) -> tuple[list[float], list[float]]:
    """Scores of the common seeds."""
    theirs = {one.seed: getattr(one, metric) for one in reference}
    both = [one for one in other if one.seed in theirs]
    return [getattr(one, metric) for one in both], [theirs[one.seed] for one in both]


@functools.lru_cache(maxsize=256)
def _means(
    reference: tuple[Scored, ...], others: tuple[tuple[Scored, ...], ...], metric: str
) -> list[tuple[statistics.Mean, bool] | None]:
    """(mean difference, whether it is over images too) of each arm; None below two pairs.

    Arms with equally many pairs are bootstrapped together: they share the draws.
    """
    found: list[tuple[statistics.Mean, bool] | None] = [None] * len(others)
    by_shape: dict[tuple[int, ...], list[tuple[int, NDArray[np.float32]]]] = {}
    theirs = {one.seed: one for one in reference}
    for index, other in enumerate(others):
        both = [one for one in other if one.seed in theirs]
        if len(both) < 2:
            continue
        pairs = [(_by_image(one, metric), _by_image(theirs[one.seed], metric)) for one in both]
        rows = [a - b for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
        if len(rows) == len(both):
            whole = np.stack(rows)
            by_shape.setdefault(whole.shape, []).append((index, whole))
        else:
            ours, others_ = _paired(reference, other, metric)
            found[index] = statistics.paired(np.subtract(ours, others_)), False
    for some in by_shape.values():
        for (index, _), mean in zip(some, statistics.crossed(np.stack([rows for _, rows in some])), strict=True):
            found[index] = mean, True
    return found
