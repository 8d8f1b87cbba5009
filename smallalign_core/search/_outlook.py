"""What more of the budget would probably buy, from the rounds of the search itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smallalign_core.search import _plan
from smallalign_core.search._journal import Record
from smallalign_core.search._spec import ETA, SearchSpec

LEAST = 3
"""Rounds after the first result, below which nothing can be shown."""
LEVEL = 0.9
"""Of the one-sided interval of the rate: what lies above 0 is *probable*."""


@dataclass(frozen=True)
class Outlook:
    """What more budget would buy.

    Attributes:
        more: the further budget, as text.
        of: `bytes` of the smallest file within the limits, or `accuracy` of the most accurate one.
        gain: bytes less, or accuracy more (a share); None where no gain can be shown.
        rounds: rounds that it is computed from.
    """

    more: str
    of: Literal["bytes", "accuracy"]
    gain: float | None
    rounds: int


def outlook(spec: SearchSpec, record: Record) -> Outlook | None:
    """What a third of the budget, spent in addition, would probably buy; None before the search has stopped.

    The best result falls about as a power of what was spent: log(best) = a - b log(spent), where `best` is the bytes of
    the smallest file that meets the limits or, where none does or none limits the accuracy, the errors of the most
    accurate file. Spent are seconds of search, or trials where the budget counts these. Each round is one
    observation of b: how far log(best) fell during it, over how far log(spent) grew. What one round adds does not
    depend on what others added, while the running best itself would: so b is the mean of the rounds' rates, weighted by
    the growth of log(spent), and its uncertainty comes from how they scatter (Student's t). A gain is named only where
    the one-sided 90% interval of b lies above 0; otherwise nothing can be shown, as with fewer than three rounds after
    the first result. It assumes that the search goes on as it did, and ignores that the last file was chosen by chance
    too. For all points in time files are judged by the correction for the number that were compared in the end.
    """
    if record.stopped is None:
        return None
    of: Literal["bytes", "accuracy"] = "accuracy"
    if spec.limits_accuracy and _plan.best_look(spec, record.looks) is not None:
        of = "bytes"
    further, words = _further(record)
    spent, best = _curve(spec, record, of)
    if not spent:
        return Outlook(words, of, None, 0)
    rate = shown_rate(spent, best)
    gain = None
    if rate is not None:
        value = best[-1] * -math.expm1(-rate * math.log1p(further / spent[-1]))
        gain = value if of == "accuracy" or value >= 1 else None
    return Outlook(words, of, gain, len(spent) - 1)


def _further(record: Record) -> tuple[float, str]:
    """A third of the budget: seconds in whole minutes, or trials; and as text."""
    if record.budget.trials is not None:
        trials = max(1, round(record.budget.trials / ETA))
        return trials, f"{trials} more trial{'s' if trials > 1 else ''}"
    minutes = max(1, round((record.budget.seconds or 0.0) / ETA / 60))
    return 60 * minutes, f"{minutes} more minute{'s' if minutes > 1 else ''}"


def _curve(spec: SearchSpec, record: Record, of: Literal["bytes", "accuracy"]) -> tuple[list[float], list[float]]:
    """What was spent at the end of each round, from the first with a result on, and the best result until then."""
    compared, spent, best = _plan.compared(record.looks), list[float](), list[float]()
    for closing in record.closings:
        looks = record.looks[: closing.looks]
        if of == "bytes":
            found = _plan.best_look(spec, looks, compared)
            value = None if found is None else float(found.bytes)
        else:
            # one error at least: its logarithm is wanted
            errors = [max(1, look.counts.images - look.counts.right) / look.counts.images for look in looks]
            value = min(errors, default=None)
        if value is not None:
            spent.append(float(closing.trials) if record.budget.trials is not None else closing.seconds)
            best.append(value)
    return spent, best


def shown_rate(spent: Sequence[float], best: Sequence[float]) -> float | None:
    """The rate b of best ~ spent**-b, if its one-sided 90% interval lies above 0; else None.

    Args:
        spent: at the end of each round, ascending; `best`: the result until then, positive.
    """
    from scipy.stats import t

    pairs = zip(itertools.pairwise(spent), itertools.pairwise(best), strict=True)
    rounds = [(math.log(now / then), math.log(old / new)) for (then, now), (old, new) in pairs if now > then > 0]
    growth, falls = [one for one, _ in rounds], [one for _, one in rounds]
    if len(growth) < LEAST:
        return None
    rate = sum(falls) / sum(growth)
    scatter = sum(weight * (fall / weight - rate) ** 2 for weight, fall in zip(growth, falls, strict=True))
    error = math.sqrt(scatter / (len(growth) - 1) / sum(growth))
    return rate if rate - float(t.ppf(LEVEL, len(growth) - 1)) * error > 0 else None
