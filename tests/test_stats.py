"""Statistics of comparisons, against scipy, closed forms, and simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from smallalign_core.studies import statistics


def simulated(
    seeds: int, images: int, spread: tuple[float, float, float], repeats: int, mean: float = 0.0
) -> NDArray[np.float64]:
    """Differences [repeats, seeds, images] with these deviations over seeds, over images, and of their interaction."""
    rng = np.random.default_rng(seeds)
    of_seeds, of_images, of_rest = spread
    return (
        mean
        + rng.normal(0, of_seeds, (repeats, seeds, 1))
        + rng.normal(0, of_images, (repeats, 1, images))
        + rng.normal(0, of_rest, (repeats, seeds, images))
    )


# --- seeds alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 12])
def test_paired_is_the_paired_t_test(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.9, 0.02, n), rng.normal(0.88, 0.02, n)

    found = statistics.paired(ours - theirs)

    expected = scipy_stats.ttest_rel(ours, theirs)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)


def test_no_spread_has_no_interval() -> None:
    assert statistics.paired([0.01, 0.01, 0.01]).se == 0
    assert statistics.paired([0.0, 0.0]).p == 1
    assert statistics.crossed(np.full((1, 3, 4), 0.25))[0].se == 0


# --- seeds and images -------------------------------------------------------------------------------------------------


def test_without_images_of_their_own_it_is_the_paired_t_test() -> None:
    """Each seed's difference is the same on all images: then images say nothing, and only seeds are drawn."""
    by_seed = np.array([0.4, -0.1, 0.3, 0.5, 0.2])

    (found,) = statistics.crossed(np.repeat(by_seed[:, None], 50, axis=1)[None])

    expected = scipy_stats.ttest_1samp(by_seed, 0)
    assert (found.mean, found.p) == (pytest.approx(by_seed.mean()), pytest.approx(expected.pvalue))
    assert found.df == pytest.approx(4)
    assert found.high - found.low == pytest.approx(np.diff(expected.confidence_interval(0.95))[0], rel=0.15)
    assert found.floor == pytest.approx(0, abs=1e-12)


def test_without_seeds_of_their_own_it_is_the_t_test_over_images() -> None:
    by_image = np.random.default_rng(0).normal(0.1, 1, 200)

    (found,) = statistics.crossed(np.repeat(by_image[None], 4, axis=0)[None])

    expected = scipy_stats.ttest_1samp(by_image, 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.seeds_sd == pytest.approx(0, abs=1e-9)


def test_its_variance_is_that_of_the_analysis_of_variance() -> None:
    """Against the mean squares of a two-way layout, summed by hand."""
    values = simulated(6, 40, (0.5, 0.3, 1.0), 1)[0]
    grand, rows, columns = values.mean(), values.mean(1), values.mean(0)
    ms_rows = 40 * ((rows - grand) ** 2).sum() / 5
    ms_columns = 6 * ((columns - grand) ** 2).sum() / 39
    ms_rest = ((values - rows[:, None] - columns + grand) ** 2).sum() / (5 * 39)

    (found,) = statistics.crossed(values[None])

    assert found.se**2 == pytest.approx((ms_rows + ms_columns - ms_rest) / 240)
    weights = np.array([ms_rows, ms_columns, -ms_rest])
    assert found.df == pytest.approx(weights.sum() ** 2 / (weights**2 / [5, 39, 195]).sum())


@pytest.mark.parametrize(
    ("seeds", "spread"), [(2, (1, 0, 0)), (5, (1, 0, 0)), (5, (0, 1, 0)), (5, (0.3, 0.5, 1)), (5, (0, 0, 1))]
)
def test_the_interval_covers_the_truth(seeds: int, spread: tuple[float, float, float]) -> None:
    """95% of intervals, in 400 repetitions of a known truth; more where only the interaction varies."""
    found = statistics.crossed(simulated(seeds, 40, spread, 400, mean=0.7), draws=1000)

    covered = np.mean([one.low <= 0.7 <= one.high for one in found])
    assert 0.92 <= covered <= (0.975 if spread[:2] != (0, 0) else 1)


def test_plain_percentiles_would_not_cover() -> None:
    """Why the bootstrap is stretched: with 3 seeds its own interval misses the truth once in four times."""
    low, high, _ = statistics._percentiles(simulated(3, 40, (1, 0, 0), 400), 1000)

    assert np.mean((low <= 0) & (high >= 0)) < 0.85


def test_the_bootstrap_draws_seeds_and_images() -> None:
    """Its spread is the one that can be computed for resampling both (Owen, 2007, in closed form)."""
    values = simulated(5, 60, (0.4, 0.6, 0.0), 1)
    rows, columns = values[0].mean(1), values[0].mean(0)

    _, _, spread = statistics._percentiles(values, 4000)

    assert spread[0] ** 2 == pytest.approx(rows.var() / 5 + columns.var() / 60, rel=0.1)


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = simulated(4, 30, (0.5, 0.5, 1.0), 2)
    monkeypatch.setattr(statistics, "CHUNK", 30 * 64)

    low, high, _ = statistics._percentiles(values, 1000)

    assert np.all(low < values.mean((1, 2)))
    assert np.all(high > values.mean((1, 2)))
    (first, second) = statistics.crossed(values, draws=1000)
    assert (first.low < first.mean < first.high, second.low < second.mean < second.high) == (True, True)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """The example of Holm's paper in shape: sorted p times what is left, never falling, at most 1."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0, 2.0])
def test_the_seeds_needed_give_the_power_they_promise(ratio: float) -> None:
    """Against the exact power of the t test, from the noncentral t distribution."""
    n = statistics.pairs_needed(ratio, 1.0)
    assert n is not None

    def power(pairs: int) -> float:
        critical = scipy_stats.t.ppf(0.975, pairs - 1)
        return float(scipy_stats.nct.sf(critical, pairs - 1, ratio * np.sqrt(pairs)))

    assert power(n) > 0.75, "promised 0.8, roughly"
    assert power(max(2, n - 2)) < 0.81


def test_what_seeds_do_not_lower_is_not_asked_of_them() -> None:
    assert statistics.pairs_needed(0.01, 0.02, floor=(0.01 / 2.8) ** 2 * 1.01) is None
    few, more = statistics.pairs_needed(0.01, 0.01), statistics.pairs_needed(0.01, 0.01, floor=4e-6)
    assert few is not None
    assert more is not None
    assert few < more


def test_more_seeds_as_advised_do_tell() -> None:
    """With the seeds that it asks for, about four of five repetitions leave out zero."""
    n = statistics.pairs_needed(0.5, 1.0, floor=0.01)
    assert n is not None

    found = [one.p < 0.05 for one in statistics.crossed(simulated(n, 100, (1.0, 1.0, 0.0), 300, mean=0.5), draws=200)]

    assert 0.7 <= np.mean(found) <= 0.9


def test_who_beats_whom() -> None:
    assert statistics.beats([3, 2, 1], [1, 2, 3], less_is_better=False) == 0.5
    assert statistics.beats([1, 1, 5], [2, 2, 3], less_is_better=True) == pytest.approx(2 / 3)


def test_correlation_and_what_pairing_gains() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 50)
    ours, theirs = shared + rng.normal(0, 0.3, 50), shared + rng.normal(0, 0.3, 50)

    rho, gain = statistics.correlation(ours, theirs), statistics.pairing_gain(ours, theirs)

    assert rho == pytest.approx(scipy_stats.pearsonr(ours, theirs).statistic)
    assert rho is not None
    assert gain == pytest.approx(np.sqrt(1 - rho), rel=0.05), "equal variances: var(d) = 2 var (1 - rho)"
    assert statistics.correlation([1, 2], [1, 2]) is None
    assert statistics.correlation([1, 1, 1], [1, 2, 3]) is None
