"""What a comparison can be expected to decide before it starts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smallalign_core.runs import logits
from smallalign_core.runs.store import Store
from smallalign_core.studies import power
from tests.conftest import Train


@pytest.mark.parametrize(("discordant", "images"), [(0.1, 1500), (0.3, 600)])
def test_four_of_five_simulated_comparisons_decide_that_difference(discordant: float, images: int) -> None:
    """Against McNemar's test of simulated pairs of classifiers."""
    wanted = power.smallest_difference(discordant, images, 1)
    draw = np.random.default_rng(0)
    shares = [(discordant + wanted) / 2, (discordant - wanted) / 2, 1 - discordant]
    counts = draw.multinomial(images, shares, size=4000)
    z = np.abs(counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    power_of_it = float((z > 1.959964).mean())
    even = power.smallest_difference(discordant, images, 1, power=0.0)
    assert even < wanted
    counts = draw.multinomial(images, [(discordant + even) / 2, (discordant - even) / 2, 1 - discordant], size=4000)
    z = np.abs(counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert float((z > 1.959964).mean()) == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 4000) + 0.02)
    # The variance under the alternative is a little smaller than under the null: 5 standard errors and that.
    assert power_of_it == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / 4000) + 0.02)


def test_more_images_and_seeds_decide_less_and_more_comparisons_need_more() -> None:
    one = power.smallest_difference(0.1, 400, 1)
    assert power.smallest_difference(0.1, 1600, 1) == pytest.approx(one / 2)
    assert power.smallest_difference(0.1, 400, 4) == pytest.approx(one / 2)
    assert power.smallest_difference(0.1, 400, 1, tests=5) > one


@pytest.mark.slow
def test_it_is_from_finished_runs_on_the_same_images(store: Store, train: Train) -> None:
    first = train(seed=1)
    other = power.expected(store, "other images", seeds=3)
    assert other is None
    data = first.spec.data.fingerprint
    assert data is not None
    second = train(seed=2)
    found = power.expected(store, data, seeds=3)
    right = [logits.kept(run).right for run in (first, second)]  # type: ignore[union-attr]
    assert found is not None
    assert found.pairs >= 1
    assert found.images == len(right[0])
    if found.pairs == 1:
        assert found.discordant == pytest.approx(float((right[0] != right[1]).mean()))
    assert f"{found.images:,} test images and 3 seeds" in found.words()
    assert f"a difference below {100 * found.even:.1f} points" in found.words()
