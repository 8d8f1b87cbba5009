"""Statistics of paired comparisons: intervals over seeds, or over seeds and test images, tests and sample sizes.

Only numpy and scipy.special: importing scipy.stats would cost every page half a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UPPER, POWER = 1.959963984540054, 0.8416212335729143
"""Quantiles of the normal distribution at 97.5% (two-sided 5%) and at 80%."""
DRAWS = 2_000
CHUNK = 4_000_000
"""Image weights sampled at once: 32 MB."""
EQUAL = 1e-12
"""Differences below this are rounding: scores of few images are often equal."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error and interval.

    Attributes:
        se: standard error; 0 where there is no spread.
        df: degrees of freedom of t.
        low, high: 95% interval; equal to the mean without a spread.
        p: two-sided, that the true mean is zero.
        seeds_sd: standard deviation over seeds (n - 1).
        floor: part of the variance that more seeds would not lower.
    """

    mean: float
    se: float
    df: float
    low: float
    high: float
    p: float
    seeds_sd: float
    floor: float = 0.0


def t_quantile(df: float, p: float = 0.975) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def t_p(t: float, df: float) -> float:
    """Two-sided p of a t statistic."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(t)))


def paired(differences: ArrayLike) -> Mean:
    """The mean of at least two paired differences, one per seed, with its t interval (Student, 1908)."""
    values = np.asarray(differences, np.float64)
    n, mean = len(values), float(np.mean(values))
    if values.max() - values.min() < EQUAL:
        return Mean(mean, 0.0, n - 1, mean, mean, 0.0 if abs(mean) > EQUAL else 1.0, 0.0)
    sd = float(values.std(ddof=1))
    return _mean(mean, sd / math.sqrt(n), n - 1, sd)


def _mean(mean: float, se: float, df: float, sd: float, floor: float = 0.0) -> Mean:
    half = t_quantile(df) * se
    return Mean(mean, se, df, mean - half, mean + half, t_p(mean / se, df), sd, floor)


def crossed(differences: NDArray[np.floating[Any]], draws: int = DRAWS) -> list[Mean]:
    """Means of differences [K, S, N] of K comparisons over S seeds and N test images, both drawn at random.

    The interval is the percentiles of a bootstrap that resamples seeds and images together (Owen, 2007), stretched
    about the mean. Unstretched it is wrong in both directions: with few seeds too narrow (it lacks t and a factor of
    S / (S - 1)), and where seeds disagree image by image too wide (it counts their interaction three times). So
    its width is made that of the analysis of variance, var(seeds) / S + var(images) / N - var(interaction) / (S N),
    with the degrees of freedom of Satterthwaite (1946); its shape stays. S must be 2 or more. p is of the same t.
    """
    values = np.asarray(differences, np.float64)
    _, seeds, images = values.shape
    means, by_seed, by_image = values.mean((1, 2)), values.mean(2), values.mean(1)
    rest = values - by_seed[:, :, None] - by_image[:, None, :] + means[:, None, None]
    of_seeds = by_seed.var(1, ddof=1) / seeds
    of_images = by_image.var(1, ddof=1) / images if images > 1 else np.zeros_like(means)
    of_rest = (rest**2).sum((1, 2)) / ((seeds - 1) * max(1, images - 1)) / (seeds * images)
    low, high, spread = _percentiles(values, draws)
    found = []
    for index, mean in enumerate(map(float, means)):
        a, b, c = float(of_seeds[index]), float(of_images[index]), float(of_rest[index])
        variance = max(a + b - c, a, b)  # an estimate by subtraction may fall below its own parts
        sd = float(by_seed[index].std(ddof=1))
        if variance < EQUAL**2:
            found.append(Mean(mean, 0.0, seeds - 1, mean, mean, 0.0 if abs(mean) > EQUAL else 1.0, 0.0))
            continue
        parts = a**2 / (seeds - 1) + b**2 / max(1, images - 1) + c**2 / ((seeds - 1) * max(1, images - 1))
        df = max(1.0, variance**2 / parts)
        plain = _mean(mean, math.sqrt(variance), df, sd, max(0.0, variance - a))
        if spread[index] > 0:
            stretch = plain.se / spread[index] * t_quantile(df) / UPPER
            ends = [mean + (float(end[index]) - mean) * stretch for end in (low, high)]
            plain = Mean(mean, plain.se, df, ends[0], ends[1], plain.p, sd, plain.floor)
        found.append(plain)
    return found


def _percentiles(
    values: NDArray[np.float64], draws: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """2.5% and 97.5% of bootstrapped means, and their standard deviation: [K] each. The draws are always the same."""
    count, seeds, images = values.shape
    rng = np.random.default_rng(0)
    flat = values.reshape(count * seeds, images).T.astype(np.float32)
    means = []
    for start in range(0, draws, max(1, CHUNK // images)):
        some = min(max(1, CHUNK // images), draws - start)
        chosen = rng.integers(images, size=(some, images)) + np.arange(some)[:, None] * images
        of_images = np.bincount(chosen.ravel(), minlength=some * images).reshape(some, images).astype(np.float32)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=some)
        both = (of_images @ flat).reshape(some, count, seeds).astype(np.float64)
        means.append(np.einsum("bks,bs->bk", both, of_seeds) / (seeds * images))
    whole = np.concatenate(means)
    low, high = np.percentile(whole, [2.5, 97.5], axis=0)
    return low, high, whole.std(0)


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for multiple comparisons (Holm, 1979), in the given order."""
    found, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        least = max(least, min(1.0, p[index] * (len(p) - rank)))
        found[index] = least
    return found


def pairs_needed(mean: float, sd: float, floor: float = 0.0, tests: int = 1) -> int | None:
    """Pairs for 80% power at 5%, two-sided, of a paired t test (Guenther, 1981); None if no number suffices.

    Args:
        sd: of the differences over seeds.
        floor: variance of the mean that more seeds do not reduce, such as that of the test images.
        tests: how many share the 5% (Bonferroni).
    """
    from scipy.special import ndtri

    if abs(mean) <= EQUAL:
        return None
    upper = -float(ndtri(0.025 / tests))
    left = (mean / (upper + POWER)) ** 2 - floor
    needed = sd**2 / left + upper**2 / 2 if left > 0 else math.inf
    return math.ceil(needed) if needed < 1e6 else None


def beats(ours: Sequence[float], theirs: Sequence[float], *, less_is_better: bool) -> float:
    """Share of pairs in which the first is better; ties count half."""
    sign = -1 if less_is_better else 1
    differences = [sign * (one - other) for one, other in zip(ours, theirs, strict=True)]
    wins = sum(1.0 if one > EQUAL else 0.5 if abs(one) <= EQUAL else 0.0 for one in differences)
    return wins / len(differences)


def correlation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Pearson's correlation; None below 3 pairs, or where one of them has no spread."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if len(a) < 3 or np.ptp(a) < EQUAL or np.ptp(b) < EQUAL:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def pairing_gain(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Standard error of the paired difference over that of an unpaired one; None without a spread."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if len(a) < 2:
        return None
    apart = a.var(ddof=1) + b.var(ddof=1)
    return float(math.sqrt((a - b).var(ddof=1) / apart)) if apart > EQUAL**2 else None
