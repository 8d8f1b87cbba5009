"""The scaling law: against scipy, closed forms, published figures, and simulations whose truth is known."""

from __future__ import annotations

import csv
import importlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray
from scipy import optimize, stats as scipy_stats

from smallalign_core.errors import BadData
from smallalign_core.studies import scaling_law
from smallalign_core.studies.scaling_law import Observations
from smallalign_core.studies.scaling_law._allocate import _Design
from smallalign_core.studies.scaling_law._fit import refit
from smallalign_core.studies.scaling_law._form import Form
from smallalign_core.system.files import read_json, write_json

SIZES, IMAGES = np.geomspace(300, 5000, 4), np.geomspace(250, 4000, 4)
TOP = float(np.log(10))
Floats = NDArray[np.float64]
Arms = dict[str, tuple[float, float, float]]


def by_hand(
    arm: tuple[float, float, float],
    n: float | Floats,
    d: float | Floats,
    exponents: tuple[float, float, float] = (0.45, 0.5, 1.0),
) -> Floats:
    """The saturating law, written out."""
    (e, a, b), (alpha, beta, gamma) = arm, exponents
    u = (a * np.asarray(n) ** -alpha + b * np.asarray(d) ** -beta) ** gamma
    return e + (TOP - e) * u / (1 + u)


def worth(n: float = 1, d: float = 1) -> tuple[float, float, float]:
    """(E, A, B) of what is worth n times the parameters and d times the images of the baseline."""
    return 0.1, 6 * n**-0.45, 14 * d**-0.5


def observed(
    arms: Arms,
    replicates: int = 4,
    *,
    run: float = 0.02,
    shared: float = 0.02,
    drift: float = 0.0,
    exponents: tuple[float, float, float] = (0.45, 0.5, 1.0),
    sizes: Floats = SIZES,
    images: Floats = IMAGES,
    seed: int = 0,
) -> Observations:
    """Runs with noise of each, noise that the arms share, and a step between the first and the last replicates."""
    rng = np.random.default_rng(seed)
    together = rng.normal(0, shared, (len(sizes), len(images), replicates))
    together += np.where(np.arange(replicates) < replicates / 2, 0, drift)
    rows = []
    for name, arm in arms.items():
        logs = np.log(by_hand(arm, sizes[:, None], images[None], exponents))[..., None] + together
        logs = logs + rng.normal(0, run, together.shape)
        for i, size in enumerate(sizes):
            for j, some in enumerate(images):
                rows += [(name, size, some, s, float(np.exp(logs[i, j, s]))) for s in range(replicates)]
    return Observations.from_rows(rows, TOP)


# --- the formula ------------------------------------------------------------------------------------------------------


def test_a_law_without_noise_is_found() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, run=1e-9, shared=0)

    found = scaling_law.fit(runs, ridge=0)

    assert found.exponents == pytest.approx({"alpha": 0.45, "beta": 0.5, "gamma": 1}, rel=1e-3)
    assert found.constants("base") == pytest.approx({"E": 0.1, "A": 6, "B": 14}, rel=1e-2)
    assert scaling_law.multiplier(found, "better", "base", 1000, 1000, "n") == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("shape", ["saturating", "additive"])
def test_derivatives_are_those_of_differences(shape: scaling_law.Shape) -> None:
    form = Form(shape, TOP, 2, True, 1000, 1000)
    theta = np.array([0.4, 0.6, 0.8, -1.5, -0.3, -1.0, -2.0, 0.2, -0.7])
    arm, n, d = np.array([0, 1, 1]), np.array([300.0, 900, 4000]), np.array([4000.0, 250, 1000])

    values, found = form.jacobian(theta, arm, n, d)

    assert values == pytest.approx(form.log_loss(theta, arm, n, d))
    expected = optimize.approx_fprime(theta, lambda some: form.log_loss(some, arm, n, d), 1e-7)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", ["saturating", "additive"])
@pytest.mark.parametrize("axis", ["n", "d"])
def test_the_way_back_is_the_root_that_a_search_finds(shape: scaling_law.Shape, axis: scaling_law.Axis) -> None:
    form = Form(shape, TOP, 1, True, 1000, 1000)
    theta = np.array([0.4, 0.6, 0.8, -1.5, -0.3, -1.0])

    def loss(log_x: float) -> float:
        n, d = (np.exp(log_x), 700.0) if axis == "n" else (700.0, np.exp(log_x))
        return float(np.exp(form.log_loss(theta, 0, n, d)[0]))

    target = loss(8.0) * 1.1
    expected = optimize.brentq(lambda log_x: loss(log_x) - target, 0, 20, xtol=1e-12)
    assert form.reach(theta, 0, target, axis, 700.0) == pytest.approx(expected)
    assert form.reach(theta, 0, loss(60.0) * 0.999, axis, 700.0) == math.inf  # below what any number comes to
    if shape == "saturating":
        assert [form.reach(theta, 0, k * TOP, axis, 700.0) for k in (1, 1.1)] == [-math.inf] * 2  # chance needs nothing


def test_the_fit_is_that_of_curve_fit() -> None:
    """Of scipy, from another start, the formula written out, the cells' means weighted by their runs."""
    runs = observed({"base": worth()}, seed=3)
    runs = runs.where(~((runs.replicate == 3) & (runs.d == IMAGES[1])))  # cells of 3 and of 4 runs
    cells = runs.cells

    def formula(_: Floats, alpha: float, beta: float, gamma: float, e: float, a: float, b: float) -> Floats:
        u = (np.exp(a) * (cells.n / 1000) ** -alpha + np.exp(b) * (cells.d / 1000) ** -beta) ** gamma
        return np.asarray(np.log(np.exp(e) + (TOP - np.exp(e)) * u / (1 + u)))

    start, sigma = [0.3, 0.8, 1.0, -2.0, -1.0, -1.0], 1 / np.sqrt(cells.count)
    best, _ = optimize.curve_fit(formula, cells.n, cells.mean, start, sigma, maxfev=20_000)

    found = scaling_law.fit(runs, ridge=0)

    assert list(found.theta[:3]) == pytest.approx(list(best[:3]), rel=1e-3)
    assert np.log(found.loss("base", cells.n, cells.d)) == pytest.approx(formula(cells.n, *best), abs=1e-5)
    pure = [np.log(runs.y[(runs.n == n) & (runs.d == d)]) for n, d in zip(cells.n, cells.d, strict=True)]
    noise = sum(((one - one.mean()) ** 2).sum() for one in pure) / sum(len(one) - 1 for one in pure)
    off = np.array([one.mean() for one in pure]) - formula(cells.n, *best)
    expected = sum(len(one) * gap**2 for one, gap in zip(pure, off, strict=True)) / noise / (16 - 6)
    assert (found.lack, found.freedom) == (pytest.approx(expected, rel=1e-3), 10)
    assert found.rms == pytest.approx(np.sqrt((off**2).mean()), rel=1e-3)


def test_gamma_is_found_from_nine_cells() -> None:
    three = {"sizes": np.geomspace(300, 5000, 3), "images": np.geomspace(250, 4000, 3)}
    runs = observed({"base": worth()}, exponents=(0.45, 0.5, 0.7), run=1e-9, shared=0, **three)

    assert scaling_law.fit(runs, ridge=0).exponents == pytest.approx(
        {"alpha": 0.45, "beta": 0.5, "gamma": 0.7}, rel=1e-2
    )
    assert scaling_law.fit(runs, ridge=0, gamma=False).exponents["gamma"] == 1


def test_refits_at_once_are_those_of_scipy() -> None:
    runs = observed({"base": worth(), "better": worth(n=2, d=1.5)})
    draws = scaling_law.resample(runs, draws=6)
    cells = runs.cells
    means = cells.mean + 0.05 * np.random.default_rng(0).standard_normal((6, len(cells.mean)))
    form, free = draws.law.form, draws.law.form.free

    found = refit(draws.law, cells, means)

    for mean, theta in zip(means, found, strict=True):

        def off(q: Floats, mean: Floats = mean) -> Floats:
            full = draws.law.start.copy()
            full[free] = q
            gaps = (form.log_loss(full, cells.arm, cells.n, cells.d) - mean) * np.sqrt(cells.count)
            return np.concatenate([gaps, 0.02 * (q - draws.law.start[free])])

        low, high = (bound[free] for bound in form.bounds)
        expected = optimize.least_squares(off, draws.law.theta[free], bounds=(low, high), x_scale="jac", xtol=1e-12)
        assert (off(theta[free]) ** 2).sum() == pytest.approx(2 * expected.cost, rel=1e-5)
        assert theta[free] == pytest.approx(expected.x, abs=5e-3)


# --- published figures ------------------------------------------------------------------------------------------------

CHINCHILLA = {"E": 1.8172, "A": 477.84, "B": 2143.86}
"""Hoffmann et al. (2022) as fitted again by Besiroglu et al. (2024), with alpha .3473 and beta .3672."""


def test_chinchilla_is_found_again_from_its_own_law() -> None:
    """240 points of the published law, a tenth of them 5% off, as where curves were misread: Huber ignores them."""
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(17.5, 23.5, 240)), np.exp(rng.uniform(20, 26, 240))
    y = CHINCHILLA["E"] + CHINCHILLA["A"] * n**-0.3473 + CHINCHILLA["B"] * d**-0.3672
    y[:24] *= 1.05
    points = scaling_law.make(("chinchilla",), np.zeros(240), n, d, np.zeros(240), y, math.inf)

    found = scaling_law.fit(points, "additive", ridge=0, huber=1e-3)

    assert found.exponents == pytest.approx({"alpha": 0.3473, "beta": 0.3672, "gamma": 1}, rel=5e-3)
    assert found.constants("chinchilla") == pytest.approx(CHINCHILLA, rel=0.05)


def test_chinchilla_is_found_again_from_the_published_points() -> None:
    """On the points that Epoch AI read from Hoffmann's figure 4. They have no licence, so they are not here."""
    path = os.environ.get("SMALLALIGN_CHINCHILLA")
    if not path:
        pytest.skip("SMALLALIGN_CHINCHILLA names no svg_extracted_data.csv of epoch-research/analyzing-chinchilla")
    rows = [
        row for row in csv.DictReader(Path(path).read_text().splitlines()) if row["Model Size"] and row["Training FLOP"]
    ]
    n, y = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "loss"))
    d = np.array([float(row["Training FLOP"]) for row in rows]) / (6 * n)
    kept = y < np.sort(y)[-5]
    assert kept.sum() == 240
    points = scaling_law.make(("chinchilla",), np.zeros(240), n[kept], d[kept], np.zeros(240), y[kept], math.inf)

    found = scaling_law.fit(points, "additive", ridge=0, huber=1e-3)

    off = np.abs(np.log(found.loss("chinchilla", n[kept], d[kept]) / y[kept]))
    assert np.where(off <= 1e-3, off**2 / 2, 1e-3 * (off - 5e-4)).sum() == pytest.approx(0.00101827, abs=5e-9)
    assert found.exponents == pytest.approx({"alpha": 0.3473, "beta": 0.3672, "gamma": 1}, abs=5e-5)
    assert found.constants("chinchilla") == pytest.approx(CHINCHILLA, rel=1e-3)


def _law_that_reaches(loss: float, base: scaling_law.Law, n: float, d: float) -> scaling_law.Law:
    """`base` with an arm beside it that has that loss at (n, d)."""
    theta = np.concatenate([base.theta, base.theta[3:]])
    two = replace(base, form=replace(base.form, arms=2), arms=("base", "recipe"), theta=theta)
    low, high = -20.0, 20.0
    for _ in range(200):
        theta[8] = (low + high) / 2
        low, high = (theta[8], high) if two.loss("recipe", n, d) < loss else (low, theta[8])
    return two


def test_geiping_s_exchange_rate() -> None:
    """Geiping et al. (2022): augmentation as good as 100,000 images more, at 50,000, is worth three times the data."""
    base = scaling_law.fit(observed({"base": worth()}))
    as_good = float(base.loss("base", 1000, 50_000 + 100_000))

    found = _law_that_reaches(as_good, base, 1000, 50_000)

    assert scaling_law.multiplier(found, "recipe", "base", 1000, 50_000, "d") == pytest.approx(3.0)


def test_hernandez_s_effective_data_transferred() -> None:
    """Hernandez et al. (2021): D_T = 1.9e4 D_F^.18 N^.38, so ten times N is ×2.40, ten times D_F is ×1.51."""
    base = scaling_law.fit(observed({"base": worth()}))

    def transferred(n: float, d: float) -> float:
        effective = d + 1.9e4 * d**0.18 * n**0.38
        found = _law_that_reaches(float(base.loss("base", n, effective)), base, n, d)
        return (scaling_law.multiplier(found, "recipe", "base", n, d, "d") - 1) * d

    assert transferred(10_000, 3e5) / transferred(1_000, 3e5) == pytest.approx(2.40, abs=0.005)
    assert transferred(1_000, 3e6) / transferred(1_000, 3e5) == pytest.approx(1.51, abs=0.005)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_errors_of_means_have_the_covariance_of_the_replicates() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, 5)
    logs = np.log(runs.y.reshape(len(runs.cells.mean), 5))  # rows stand cell by cell

    found = runs.cells.errors.T @ runs.cells.errors

    assert found == pytest.approx(np.cov(logs) / 5)


def test_degrees_of_freedom() -> None:
    """Against S - 1 of a paired comparison, and Welch's of two unequal groups of equal variance."""
    together = observed({"base": worth(), "better": worth(n=2)}, 5).cells
    weights = np.random.default_rng(0).normal(size=len(together.mean))
    assert together.degrees(weights) == pytest.approx(4)

    groups = [[1.0, 2, 3, 4], [1.0, 2, 3, 4, 5, 6, 7]]
    rows = [(str(g), 1.0, 1.0, 10 * g + s, y) for g, group in enumerate(groups) for s, y in enumerate(group)]
    apart = Observations.from_rows(rows, TOP).cells
    equal = [np.array(group) / np.std(group, ddof=1) for group in groups]
    assert apart.degrees(np.array([1.0, -1.0])) == pytest.approx(scipy_stats.ttest_ind(*equal, equal_var=False).df)


def test_degrees_of_freedom_with_a_cell_of_one_run() -> None:
    """Satterthwaite's formula written out: a cell of three runs, and one of a single run with the pooled deviation."""
    rows = [("0", 1.0, 1.0, s, y) for s, y in enumerate((1.0, 2.0, 4.0))] + [("1", 1.0, 1.0, 9, 3.0)]
    cells = Observations.from_rows(rows, TOP).cells
    many, lone = 0.7, 1.3

    variances = many**2 / 3, lone**2
    expected = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 2)

    assert cells.degrees(np.array([many, lone])) == pytest.approx(expected)


def test_a_pair_of_one_replicate_differs_by_its_difference() -> None:
    rows = [("a", 1.0, 1.0, 0, 2.0), ("b", 1.0, 1.0, 0, 1.0), ("a", 1.0, 2.0, 0, 3.0), ("a", 1.0, 2.0, 1, 3.5)]
    rows += [("b", 1.0, 2.0, 0, 1.0), ("b", 1.0, 2.0, 1, 1.0)]
    rows += [("a", 2.0, 2.0, 0, 1.0), ("b", 2.0, 2.0, 5, 1.0)]  # no replicate of both: no pair
    pairs = Observations.from_rows(rows, TOP).cells.pairs(1, 0)

    assert pairs.freedom == 1

    assert dict(zip(pairs.count.tolist(), pairs.mean.tolist(), strict=True)) == pytest.approx(
        {1: -math.log(2), 2: -math.log(math.sqrt(3 * 3.5))}
    )


def test_a_cell_of_one_run_errs_by_the_pooled_deviation() -> None:
    runs = observed({"base": worth()})
    runs = runs.where(~((runs.n == SIZES[0]) & (runs.d == IMAGES[0]) & (runs.replicate > 0)))
    cells = runs.cells

    covariance = cells.errors.T @ cells.errors

    assert cells.count[0] == 1
    assert covariance[0, 0] == pytest.approx(cells.noise**2)
    assert covariance[0, 1:] == pytest.approx(np.zeros(15))


def test_arms_that_share_replicates_are_compared_more_exactly() -> None:
    paired = observed({"base": worth(), "better": worth(n=2)}, 8, run=0.005, shared=0.03)
    apart = replace(paired, replicate=paired.replicate + 10 * paired.arm)

    at = "better", "base", 1225, 1000, "d"
    widths = [scaling_law.estimate(scaling_law.resample(runs), *at, widened=False).factor for runs in (paired, apart)]

    assert np.log(widths[1]) > 1.5 * np.log(widths[0])


def test_a_law_that_misses_widens_its_intervals() -> None:
    runs = observed({"base": worth(), "better": worth(n=1.2)}, run=0.005, shared=0)
    draws = scaling_law.resample(runs, replace(scaling_law.fit(runs), lack=4.0))
    missed = scaling_law.resample(runs, replace(draws.law, lack=16.0))

    found, wider = (scaling_law.estimate(one, "better", "base", 1225, 1000, "d").factor for one in (draws, missed))

    assert draws.widening("better", "base") == 2.0
    assert np.log(wider) == pytest.approx(2 * np.log(found), rel=0.05)


def test_pairs_that_miss_the_law_by_more_than_they_differ_widen_their_intervals() -> None:
    """A recipe zigzags about its law by 1.5%: little beside the noise that pairs share, much beside what is left."""
    runs = observed({"base": worth(), "better": worth(n=2)}, 8, run=0.003, shared=0.06)
    zigzag = np.where((np.searchsorted(SIZES, runs.n) + np.searchsorted(IMAGES, runs.d)) % 2, 0.015, -0.015)
    crooked = replace(runs, y=runs.y * np.exp(np.where(runs.arm == 1, zigzag, 0.0)))
    straight, found = scaling_law.resample(runs), scaling_law.resample(crooked)
    logs = np.log(crooked.y).reshape(2, 16, 8)  # arm, cell, replicate
    gaps = logs[1] - logs[0]
    expected = np.log(found.law.loss("better", crooked.cells.n[:16], crooked.cells.d[:16]))
    expected -= np.log(found.law.loss("base", crooked.cells.n[:16], crooked.cells.d[:16]))
    chi = float(((gaps.mean(1) - expected) ** 2 / (gaps.var(1, ddof=1).mean() / 8)).sum())

    assert found.law.lack < 1.5 * straight.law.lack
    assert straight.widening("better", "base") < 1.6
    assert found.widening("better", "base") == pytest.approx(math.sqrt(chi / (16 - 3)))
    assert found.widening("better", "base") > 5


@pytest.mark.slow
def test_intervals_hold_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 72 runs (3 x 3 x 4, two arms): 95% intervals of both multipliers, of placebos and of doses."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    intervals = importlib.import_module("intervals")

    found = intervals.measured(intervals.KINDS["plain"], "3x3x4", 80)

    held = {name: found[name] for name in ("n", "d", "placebo", "dose")}
    assert min(held.values()) >= intervals.LEAST, held
    assert found["x/÷ n"] < 1.5  # not by being wide


# --- what is said of it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws() -> scaling_law.Draws:
    """A recipe that is worth twice the parameters and twice the images."""
    return scaling_law.resample(observed({"base": worth(), "better": worth(n=2, d=2)}, run=0.005, shared=0.01))


def test_no_number_of_parameters_is_said_in_words(draws: scaling_law.Draws) -> None:
    """Where the baseline's images alone keep it above the target, and surely so."""
    found = scaling_law.estimate(draws, "better", "base", 5000, 250, "n")

    assert by_hand(worth(), 1e15, 250) > by_hand(worth(n=2, d=2), 5000, 250)
    assert (found.k, found.low, found.high, found.infinite) == (math.inf, math.inf, math.inf, 1.0)
    assert found.words == "no student of any size with base reaches this loss on this dataset"
    assert found.number == "∞"
    assert scaling_law.hidden(found, math.inf) == ""


def test_infinity_is_certain_only_where_the_pairs_of_that_cell_say_so(draws: scaling_law.Draws) -> None:
    runs = draws.observations
    here = (runs.arm == 1) & (runs.n == SIZES[2]) & (runs.d == IMAGES[0])
    base = runs.y[(runs.arm == 0) & (runs.n == SIZES[2]) & (runs.d == IMAGES[0])]
    at = "better", "base", SIZES[2], IMAGES[0], "n"
    assert scaling_law.estimate(draws, *at).low == math.inf

    equal = replace(runs, y=runs.y.copy())
    equal.y[here] = base * np.exp([-0.02, 0.01, 0.02, -0.01])  # in this cell alone the two do not differ
    found = scaling_law.estimate(replace(draws, observations=equal), *at, widened=False)

    assert (found.k, found.low, found.high) == (math.inf, pytest.approx(SIZES[3] / SIZES[2]), math.inf)
    assert "cannot be excluded" in found.words


def test_a_sentence_has_the_multiplier_and_both_ends_of_its_interval(draws: scaling_law.Draws) -> None:
    found = scaling_law.estimate(draws, "better", "base", 1225, 1000, "n")
    closed = replace(found, k=2.0, low=1.5, high=3.25, extrapolated=False, beyond=False)

    assert closed.words == "better is equivalent to ×2.00 parameters [1.50, 3.25]"
    assert replace(closed, low=-0.1, high=math.inf).words.endswith("[0, ∞]")


def test_parameters_that_the_baseline_needs_beyond_its_rungs_are_marked() -> None:
    """Twelve times the parameters: of the second size that is within the rungs, of the largest far beyond."""
    law = scaling_law.resample(observed({"base": worth(), "better": worth(n=12)}, run=0.005, shared=0.01))
    inside = scaling_law.estimate(law, "better", "base", SIZES[0], 4000, "n")
    assert inside.k == pytest.approx(12, rel=0.3)
    assert SIZES[0] * inside.k < SIZES[-1]
    assert not inside.extrapolated
    assert SIZES[-1] / 12 > SIZES[0], "dividing would stay within the rungs"
    assert scaling_law.estimate(law, "better", "base", SIZES[-1], 4000, "n").extrapolated


def test_an_open_interval_is_said_too() -> None:
    """The truth is large, and infinity cannot be excluded."""
    runs = observed({"base": worth(), "better": worth(n=2, d=2)}, run=0.05, shared=0.05)

    found = scaling_law.estimate(scaling_law.resample(runs), "better", "base", 1225, 1000, "n")

    assert 1 < found.low < math.inf
    assert (found.high, found.factor) == (math.inf, math.inf)
    assert 0 < found.infinite < 1


def test_what_lies_outside_of_the_rungs_is_marked(draws: scaling_law.Draws) -> None:
    at_the_top = scaling_law.estimate(draws, "better", "base", 5000, 1000, "d")  # at about 2,000 of 4,000 images
    assert not at_the_top.extrapolated

    runs = observed({"base": worth(), "better": worth(d=12)}, run=0.005, shared=0.01)
    far = scaling_law.estimate(scaling_law.resample(runs), "better", "base", 1225, 4000, "d")
    assert 10 < far.k < 14
    assert (far.extrapolated, far.beyond, far.number) == (True, True, "≥ ×4")
    near = scaling_law.estimate(
        scaling_law.resample(runs), "better", "base", 1225, 630, "d"
    )  # needs about 7,560 images
    assert (near.extrapolated, near.beyond) == (False, False)
    other = scaling_law.estimate(
        scaling_law.resample(runs), "better", "base", 1225, 1000, "d"
    )  # 12,000, past the rung of 10,079
    assert (other.extrapolated, other.beyond) == (True, False)
    assert other.words.endswith("(extrapolated)")

    elsewhere = scaling_law.estimate(
        scaling_law.resample(runs), "better", "base", 40_000, 100, "d"
    )  # far from all sizes, for 1,200 images
    assert (elsewhere.extrapolated, elsewhere.beyond) == (True, False)
    tiny = scaling_law.estimate(
        scaling_law.resample(runs), "better", "base", 1225, 100_000, "n"
    )  # in images that nobody had
    assert tiny.extrapolated

    some = observed({"base": worth(), "better": worth()}, run=0.005, shared=0.01)
    some = some.where((some.arm == 0) | (some.d < 1000))  # the recipe on 250 and 630 images only
    unseen = scaling_law.resample(some)
    assert scaling_law.estimate(unseen, "better", "base", 1225, 4000, "n").extrapolated
    assert not scaling_law.estimate(unseen, "better", "base", 1225, 630, "n").extrapolated

    harmful = scaling_law.resample(observed({"base": worth(), "worse": worth(d=1 / 12)}, run=0.005, shared=0.01))
    below = scaling_law.estimate(
        harmful, "worse", "base", 1225, 500, "d"
    )  # as 42 images; 250 is the least, 99 a rung below
    assert (below.extrapolated, below.beyond, below.number) == (True, True, "≤ ×0.125")
    assert not scaling_law.estimate(harmful, "worse", "base", 1225, 4000, "d").extrapolated  # as 333
    above = scaling_law.estimate(harmful, "worse", "base", 1225, 10**6, "d")  # worse, and as 83,000 images
    assert (above.k < 1, above.beyond, above.number) == (True, True, "≥ ×0.016")


def test_the_smaller_student_and_what_the_baseline_would_need(draws: scaling_law.Draws) -> None:
    smaller = scaling_law.smaller(draws, "better", "base", 5000, 4000)
    size, low, high = smaller.needed
    expected = optimize.brentq(lambda n: by_hand(worth(n=2, d=2), n, 4000) - by_hand(worth(), 5000, 4000), 10, 5000)
    assert low < expected < high < 5000
    assert size == pytest.approx(expected, rel=0.1)

    more = scaling_law.estimate(draws, "better", "base", 1225, 1000, "d").needed
    needed = optimize.brentq(lambda d: by_hand(worth(), 1225, d) - by_hand(worth(n=2, d=2), 1225, 1000), 500, 1e6)
    assert more[1] < needed < more[2]


def test_the_plane_is_the_multipliers_of_its_cells(draws: scaling_law.Draws) -> None:
    found = scaling_law.plane(draws, "better", "base", "d")

    expected = [
        [scaling_law.multiplier(draws.law, "better", "base", float(n), float(d), "d") for d in IMAGES] for n in SIZES
    ]
    assert found.table("k") == pytest.approx(np.array(expected))
    assert (found.table("low") <= found.table("k")).all()


def test_without_any_noise_there_is_no_interval() -> None:
    """Replicates that do not differ: nothing to divide by, and nothing to ask the fit with."""
    resampled = scaling_law.resample(observed({"base": worth(), "better": worth(n=2)}, run=0, shared=0))

    found = scaling_law.estimate(resampled, "better", "base", 1225, 1000, "n")

    assert found.low <= found.k <= found.high
    assert found.low == pytest.approx(found.high, rel=1e-4)
    assert "no spread" in scaling_law.gate(resampled, []).reasons[0]


@pytest.mark.parametrize("scale", [0.001, 3.0])
def test_a_recipe_out_of_all_proportion_is_no_traceback(scale: float) -> None:
    """Far below the baseline's floor, or above chance."""
    runs = observed({"base": worth(), "better": worth()})
    runs = replace(runs, y=np.where(runs.arm == 1, scale * runs.y, runs.y))
    resampled = scaling_law.resample(runs)

    for axis in ("n", "d"):
        found = scaling_law.estimate(resampled, "better", "base", 1225, 1000, axis)
        assert (found.k == math.inf) == (scale < 1)
        assert found.low <= found.k <= found.high
    assert not scaling_law.gate(resampled, scaling_law.sanity_checks(runs, "base", 1225, 1000)).passed


def test_everything_found_goes_into_a_file(draws: scaling_law.Draws, tmp_path: Path) -> None:
    """Infinities and what is not known included; numpy's numbers are not JSON's."""
    runs = draws.observations
    endless = scaling_law.estimate(draws, "better", "base", 5000, 250, "n")
    found = {
        "law": scaling_law.as_dict(replace(draws.law, lack=math.nan)),
        "endless": scaling_law.as_dict(endless),
        "plane": scaling_law.as_dict(scaling_law.plane(draws, "better", "base", "n", [1225], IMAGES)),
        "tests": [scaling_law.as_dict(test) for test in scaling_law.sanity_checks(runs, "base", 1225, 1000, draws=20)],
        "more": scaling_law.as_dict(scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", budget=5)),
    }

    write_json(tmp_path / "found.json", found)

    read = read_json(tmp_path / "found.json")
    assert (read["law"]["lack"], read["law"]["arms"]["base"]["E"]) == (None, draws.law.constants("base")["E"])
    assert (read["endless"]["k"], read["endless"]["words"]) == ("inf", endless.words)
    assert read["plane"]["found"][0][2]["recipe"] == "better"
    assert read["tests"][0]["found"]["low"] < 1
    assert sum(count for _, count in read["more"]["more"]) == 5


def test_two_replicates_are_refused() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, 2)

    with pytest.raises(BadData, match=r"[Tt]oo few replicates.*given: 2.*3 replicates of each cell, better 4"):
        scaling_law.estimate(scaling_law.resample(runs), "better", "base", 1225, 1000, "n")

    tests = scaling_law.sanity_checks(runs, "base", 1225, 1000)
    assert tests == []
    assert "2 replicates are too few" in scaling_law.gate(scaling_law.resample(runs), tests).reasons[0]


def test_three_replicates_are_warned_of() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, 3)
    tests = scaling_law.sanity_checks(runs, "base", 1225, 1000)

    found = scaling_law.gate(scaling_law.resample(runs), tests)

    assert {test.kind for test in tests} == {"dose"}
    assert found.passed
    assert "2 degrees of freedom" in found.warnings[0]


# --- sanity checks and the gate ---------------------------------------------------------------------------------------


def test_a_good_study_passes_and_reads_its_doses() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, run=0.005, shared=0.01)
    tests = scaling_law.sanity_checks(runs, "base", 1225, 1000)

    assert scaling_law.gate(scaling_law.resample(runs), tests) == scaling_law.Gate(True, (), ())
    doses = [test for test in tests if test.kind == "dose"]
    assert {round(test.truth, 3) for test in doses} == {2.554, 2.52}  # the ratios of the rungs
    assert max(test.off for test in doses) < 1.06
    (n, d) = (test for test in tests if test.kind == "placebo")
    assert (n.truth, n.half, n.found.axis, d.found.axis) == (1, (0, 1), "n", "d")
    assert n.covers == d.covers  # both ask whether ×1 is rejected


@pytest.mark.slow
def test_the_additive_law_misreads_a_dose_that_the_saturating_one_reads() -> None:
    """A truth like that of small MLPs on MNIST-1D, in the corner of the largest student and the most images."""
    sizes, images = np.array([358.0, 778, 1834, 4810, 14218]), np.array([250.0, 500, 1000, 2000, 4000])
    arm, exponents = (0.2, 1834**0.7, 0.5 * 1000**1.8), (0.7, 1.8, 0.45)
    runs = observed({"base": arm}, run=0.01, shared=0, exponents=exponents, sizes=sizes, images=images)

    wrong = [
        test for test in scaling_law.sanity_checks(runs, "base", 14218, 4000, shape="additive") if test.kind == "dose"
    ]
    right = [test for test in scaling_law.sanity_checks(runs, "base", 14218, 4000) if test.kind == "dose"]

    assert max(test.off for test in right) < 1.05
    assert max(test.off for test in wrong) > 1.5  # ×2 read as more than ×3
    assert all(test.passed for test in right)
    assert not all(test.passed for test in wrong)
    reasons = scaling_law.gate(scaling_law.resample(runs, scaling_law.fit(runs, "additive")), wrong).reasons
    assert reasons[0].startswith("the law does not fit the runs")
    assert reasons[1].startswith("known-effect test, images: ×2.00 estimated as")


def test_replicates_of_a_few_cells_are_no_half_of_a_study() -> None:
    """After an allocation the cells that tell most have many more runs than the others."""
    many = observed({"base": worth(), "better": worth(n=2)}, 12)
    runs = many.where((many.replicate < 4) | ((many.n == SIZES[2]) & (many.d == IMAGES[2])))

    tests = scaling_law.sanity_checks(runs, "base", 1225, 1000)

    assert [test.half for test in tests if test.kind == "placebo"] == [(0, 1)] * 2
    assert scaling_law.gate(scaling_law.resample(runs), tests).passed


def a_test(kind: str, truth: float, k: float, low: float, high: float) -> scaling_law.SanityCheck:
    found = scaling_law.Multiplier("n", "a", "b", 1000, 500, k, low, high, 0.0, 3.0, False, 4.0, False)
    return scaling_law.SanityCheck(kind, truth, found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "truth", "k", "low", "high", "outcome"),
    [
        ("placebo", 1.0, 1.1, 0.8, 1.5, "passed"),
        ("placebo", 1.0, 1.5, 1.2, 1.9, "missed"),
        ("placebo", 1.0, 1.1, 0.0, math.inf, "uninformative"),
        ("placebo", 1.0, 1.1, 0.3, math.inf, "uninformative"),
        ("placebo", 1.0, 1.1, 0.25, 4.0, "passed"),  # just x/÷4
        ("placebo", 1.0, 1.1, 0.24, 4.0, "uninformative"),
        ("placebo", 1.0, 9.0, 2.0, math.inf, "missed"),  # an open interval can miss, and then it tells something
        ("dose", 2.0, 2.2, 2.1, 2.3, "passed"),  # it misses, within x/÷1.25
        ("dose", 2.0, 3.0, 0.0, 900.0, "uninformative"),
    ],
)
def test_a_self_test_that_could_not_miss_is_uninformative(
    kind: str, truth: float, k: float, low: float, high: float, outcome: str
) -> None:
    found = a_test(kind, truth, k, low, high)

    assert found.outcome == outcome
    assert found.passed == (outcome == "passed")
    assert ("uninformative" in found.words) == (outcome == "uninformative")
    assert scaling_law.as_dict(found)["outcome"] == outcome


def test_the_gate_is_closed_where_every_self_test_is_uninformative() -> None:
    runs = scaling_law.resample(observed({"base": worth(), "better": worth(n=2)}, run=0.005, shared=0.01))
    good, vague = a_test("placebo", 1.0, 1.0, 0.9, 1.1), a_test("placebo", 1.0, 1.0, 0.0, math.inf)

    assert scaling_law.gate(runs, [vague, vague]).reasons[0].startswith("none of 2 sanity checks is informative")
    some = scaling_law.gate(runs, [good, vague])
    assert some.passed
    assert some.warnings == ("1 of 2 sanity checks are uninformative",)


def test_replicates_that_drift_fail_the_placebo() -> None:
    """As when half of the replicates were trained by other code."""
    runs = observed({"base": worth(), "better": worth(n=2)}, run=0.01, shared=0.01, drift=0.1)

    found = scaling_law.gate(scaling_law.resample(runs), scaling_law.sanity_checks(runs, "base", 1225, 1000))

    assert not found.passed
    assert all(reason.startswith("A/A test, ") for reason in found.reasons)


def test_runs_that_follow_no_law_are_said_so() -> None:
    runs = observed({"base": worth()}, run=0.005, shared=0)
    bent = replace(runs, y=runs.y * np.where(runs.n == SIZES[2], 1.1, 1.0))  # one size does not learn well

    found = scaling_law.gate(scaling_law.resample(bent), [])

    assert not found.passed
    assert "the law does not fit the runs: lack of fit" in found.reasons[0]


def test_where_the_curve_is_flat_the_cell_is_hidden() -> None:
    """A student too small for its images: nothing can be told of images there, of parameters it can."""
    starved = observed({"base": (0.1, 60.0, 2.0), "better": (0.1, 55.0, 2.0)}, run=0.02, shared=0.01)
    resampled = scaling_law.resample(starved)

    widths = {axis: scaling_law.resolution(resampled, "base", 300, 4000, axis) for axis in ("n", "d")}

    found = {axis: scaling_law.estimate(resampled, "better", "base", 300, 4000, axis) for axis in ("n", "d")}
    assert widths["n"] < 2 < widths["d"]
    assert scaling_law.hidden(found["n"], widths["n"]) == ""
    assert "resolution ×/÷2.5" in scaling_law.hidden(found["n"], 2.5)
    assert "images" in scaling_law.hidden(found["d"], widths["d"])
    assert scaling_law.resolutions(resampled, "base", "d").table("factor")[0, -1] == widths["d"]


def test_the_resolution_is_that_of_a_placebo_which_was_trained() -> None:
    """Against the baseline again, with replicates of its own; the mean of 6 studies, since 4 replicates tell little."""
    found, trained = [], []
    for seed in range(6):
        runs = observed({"base": worth(), "again": worth()}, shared=0, seed=seed)
        apart = scaling_law.resample(replace(runs, replicate=runs.replicate + 10 * runs.arm), draws=50)
        trained.append(math.log(scaling_law.estimate(apart, "again", "base", 1225, 1000, "n").factor))
        alone = scaling_law.resample(runs.only("base"), draws=50)
        found.append(math.log(scaling_law.resolution(alone, "base", 1225, 1000, "n")))

    assert np.mean(found) == pytest.approx(np.mean(trained), rel=0.35)


# --- more runs --------------------------------------------------------------------------------------------------------


def test_an_allocation_does_what_it_foretells(draws: scaling_law.Draws) -> None:
    """The standard error that it expects, against that of a fit to single runs whose covariance is written out."""
    found = scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", ratio=0.5)

    assert 0.4 < found.ratio <= 0.5
    assert found.after == pytest.approx(found.before**found.ratio)
    cells, free = draws.observations.cells, draws.law.form.free
    names = [(draws.law.arms[arm], n, d) for arm, n, d in zip(cells.arm, cells.n, cells.d, strict=True)]
    added = dict(found.more)
    paired = np.corrcoef(*cells.residuals.reshape(4, 2, 16).swapaxes(0, 1).reshape(2, -1))[0, 1]
    assert paired > 0.5

    def log_k(theta: Floats) -> float:
        full = draws.law.theta.copy()
        full[free] = theta
        return math.log(scaling_law.multiplier(replace(draws.law, theta=full), "better", "base", 1225, 1000, "n"))

    slope = optimize.approx_fprime(draws.law.theta[free], log_k, 1e-6)
    errors = []
    for counts in (cells.count, cells.count + [added.get(name, 0) for name in names]):
        cell = np.repeat(np.arange(len(counts)), counts)
        replicate = np.concatenate([np.arange(count) for count in counts])
        _, by = draws.law.form.jacobian(draws.law.theta, cells.arm[cell], cells.n[cell], cells.d[cell])
        by = by[:, free]
        weights = slope @ np.linalg.solve(by.T @ by + 0.02**2 * np.eye(len(free)), by.T)
        same = (cell[:, None] % 16 == cell % 16) & (replicate[:, None] == replicate) & (cell[:, None] != cell)
        errors.append(math.sqrt(weights @ (np.eye(len(cell)) + paired * same) @ weights))
    assert errors[1] / errors[0] == pytest.approx(found.ratio, rel=1e-3)


def test_an_allocation_spends_its_budget_where_it_tells_most(draws: scaling_law.Draws) -> None:
    found = scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", budget=60)

    even = (4 / (4 + 60 / 32)) ** 0.5  # as many runs spread over all 32 cells
    assert (found.runs, found.cost) == (60, 60)
    assert found.ratio < 0.9 * even
    counts = dict(found.more)
    assert len(counts) >= 15  # about a third is spread
    assert max(counts.values()) >= 5  # the others are not


def test_an_allocation_avoids_what_is_dear(draws: scaling_law.Draws) -> None:
    def cost(_arm: str, n: float, d: float) -> float:
        return n * d / 1e5

    found = scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", budget=400, cost=cost)

    assert found.cost == pytest.approx(sum(count * cost(*cell) for cell, count in found.more))
    assert 300 < found.cost <= 400
    cheap = scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", budget=found.runs)
    price = sum(count * cost(*cell) for cell, count in cheap.more) / cheap.runs
    assert found.cost / found.runs < price


def test_an_allocation_may_add_cells_to_a_pilot_of_two_replicates() -> None:
    """3 x 3 x 2 runs, then what is best of a grid of 5 x 5."""
    sizes, images = np.geomspace(300, 5000, 5), np.geomspace(250, 4000, 5)
    pilot = observed({"base": worth(), "better": worth(n=2)}, 2, sizes=sizes[::2], images=images[::2])
    cells = [(arm, float(n), float(d)) for arm in ("base", "better") for n in sizes for d in images]

    found = scaling_law.allocate(scaling_law.resample(pilot), "better", "base", 1225, 1000, "n", budget=40, cells=cells)

    assert found.runs == 40
    assert {cell for cell, _ in found.more} <= set(cells)
    assert any(cell[1] == sizes[1] or cell[2] == images[1] for cell, _ in found.more)
    assert found.ratio < 0.75


def test_an_allocation_between_equals_has_nothing_to_gain() -> None:
    runs = observed({"base": worth(), "same": worth()})
    equal = replace(runs, y=np.concatenate([runs.y[runs.arm == 0]] * 2))

    found = scaling_law.allocate(scaling_law.resample(equal), "same", "base", 1225, 1000, "n", budget=10)

    assert (found.runs, found.ratio) == (0, 1.0)


def test_variances_of_a_design_are_those_of_its_covariance(draws: scaling_law.Draws) -> None:
    """W' S w with the covariance of the runs written out, for counts of every kind and other arms beside."""
    runs = observed({"base": worth(), "better": worth(n=2), "third": worth(d=2)})
    design = _Design(scaling_law.resample(runs, draws=2), "better", "base", None)
    rng = np.random.default_rng(0)
    free = len(draws.law.form.free) + 3
    counts = rng.integers(1, 6, (5, len(design.cells))).astype(float)
    wanted = rng.normal(size=free)

    found = design.variances(wanted, counts)

    assert len(design._others) == 16
    for row, variance in zip(counts, found, strict=True):
        cell = np.repeat(np.arange(len(row)), row.astype(int))
        replicate = np.concatenate([np.arange(count) for count in row])
        by = np.concatenate([design._slopes[cell], design._others])
        weights = wanted @ np.linalg.solve(by.T @ by + 0.02**2 * np.eye(free), by.T)
        same = (cell[:, None] % 16 == cell % 16) & (replicate[:, None] == replicate) & (cell[:, None] != cell)
        covariance = np.eye(len(weights))
        covariance[: len(cell), : len(cell)] += design._paired * same
        assert variance == pytest.approx(weights @ covariance @ weights, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_variance_is_never_negative(seed: int) -> None:
    """Arms that are one and the same: their difference has none, whatever the rounding of this machine's processor."""
    runs = observed({"base": worth(), "same": worth()}, seed=seed)
    design = _Design(
        scaling_law.resample(replace(runs, y=np.tile(runs.y[runs.arm == 0], 2)), draws=2), "same", "base", None
    )
    wanted = np.zeros(len(design._ridge))
    wanted[-6:-3], wanted[-3:] = (values := np.random.default_rng(seed).normal(size=3)), -values

    found = design.variances(wanted, design.counts + design.choices)

    assert found.min() >= 0
    assert design.variances(wanted, design.counts[None].astype(float))[0] == 0


def test_an_allocation_needs_an_end(draws: scaling_law.Draws) -> None:
    with pytest.raises(BadData, match="needs a stopping criterion"):
        scaling_law.allocate(draws, "better", "base", 1225, 1000, "n")
    with pytest.raises(BadData, match="does not cover a single run"):
        scaling_law.allocate(draws, "better", "base", 1225, 1000, "n", budget=0.5)


def test_the_cost_of_runs_is_found() -> None:
    seen, macs = np.array([1e3, 4e3, 1e3, 4e3]), np.array([1e5, 1e5, 1e6, 1e6])

    found = scaling_law.fit_cost(seen, macs, 2.0 + 3e-9 * seen * macs)

    assert (found.fixed, found.rate) == pytest.approx((2.0, 3e-9))
    assert found.seconds(1e4, 1e6) == pytest.approx(32)
    falling = scaling_law.fit_cost(seen, macs, [9.0, 8.0, 7.0, 6.0])  # noise of a busy machine
    assert falling.rate == 0
    assert scaling_law.fit_cost([10.0], [10.0], [2.0]).seconds(20, 10) == pytest.approx(4)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_arms_may_miss_cells_and_replicates() -> None:
    runs = observed({"base": worth(), "better": worth(n=2)}, 5, run=0.005, shared=0.01)
    some = (runs.arm == 0) | ((runs.n < 4000) & (runs.d > 300))  # 3 sizes, 3 numbers of images
    lost = np.random.default_rng(0).random(len(runs.y)) < 0.1
    runs = runs.where(some & ~lost)

    found = scaling_law.estimate(scaling_law.resample(runs), "better", "base", 1225, 1000, "n")

    assert found.low < 2 < found.high < 3
    assert 2 < found.df < 5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": -1.0}, "losses must be above 0.*leave diverged runs out"),
        ({"y": math.nan}, "losses must be above 0"),
        ({"n": 0.0}, "parameters must be above 0"),
        ({"d": math.inf}, "images must be above 0"),
        ({"arm": 7}, "an arm has no name"),
    ],
)
def test_bad_values_are_named(changed: dict[str, float], said: str) -> None:
    runs = observed({"base": worth()})
    ((name, value),) = changed.items()
    values = getattr(runs, name).copy()
    values[5] = value

    with pytest.raises(BadData, match=f"(?i){said}"):
        replace(runs, **{name: values})


def test_runs_that_stand_twice_and_lists_of_other_lengths_are_refused() -> None:
    rows = [("base", 10.0, 10.0, 0, 1.0)] * 2
    with pytest.raises(BadData, match="is listed twice"):
        Observations.from_rows(rows, TOP)
    with pytest.raises(BadData, match="different lengths"):
        scaling_law.make(("base",), [0], [1.0], [1.0, 2.0], [0], [1.0], TOP)
    with pytest.raises(BadData, match="different lengths"):
        Observations.from_rows([], TOP)


def test_too_few_rungs_and_unknown_arms_are_refused() -> None:
    runs = observed({"base": worth()})
    with pytest.raises(BadData, match="base: 2 sizes, 4 numbers of images"):
        scaling_law.fit(runs.where(runs.n < 1000))
    with pytest.raises(BadData, match="level of chance"):
        scaling_law.fit(replace(runs, chance=math.inf))
    with pytest.raises(BadData, match="Unknown arm"):
        scaling_law.fit(runs).loss("better", 10, 10)
    with pytest.raises(BadData, match="Unknown arm"):
        runs.only("better")


def test_chance() -> None:
    assert scaling_law.chance(10, "nll") == pytest.approx(-math.log(0.1))
    assert scaling_law.chance(10, "error") == pytest.approx(0.9)
