"""The scaling law: against scipy, closed forms, published figures, and simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from smallalign_core import law
from smallalign_core.law import Observations

SIZES, IMAGES = np.geomspace(300, 5000, 4), np.geomspace(250, 4000, 4)
TOP = float(np.log(10))
Arms = dict[str, tuple[float, float, float]]


def truth(e: float, a: float, b: float, gamma: float = 1.0) -> NDArray[np.float64]:
    """The saturating law by hand, alpha .45 and beta .5, on the grid: [sizes, images]."""
    u = (a * SIZES[:, None] ** -0.45 + b * IMAGES[None] ** -0.5) ** gamma
    return e + (TOP - e) * u / (1 + u)


def observed(arms: Arms, replicates: int = 4, run: float = 0.02, shared: float = 0.02, seed: int = 0) -> Observations:
    """Runs of these (E, A, B), with noise of each run, and noise that arms share."""
    rng = np.random.default_rng(seed)
    together = rng.normal(0, shared, (len(SIZES), len(IMAGES), replicates))
    rows = []
    for name, (e, a, b) in arms.items():
        logs = np.log(truth(e, a, b))[..., None] + together + rng.normal(0, run, together.shape)
        for i, size in enumerate(SIZES):
            for j, images in enumerate(IMAGES):
                rows += [(name, size, images, s, float(np.exp(logs[i, j, s]))) for s in range(replicates)]
    return Observations.of(rows, TOP)


def worth(n: float, d: float) -> tuple[float, float, float]:
    """A recipe that is worth n times the parameters and d times the images of the baseline."""
    return 0.1, 6 * n**-0.45, 14 * d**-0.5


def test_a_law_without_noise_is_found() -> None:
    runs = observed({"base": worth(1, 1), "better": worth(2, 1)}, run=1e-9, shared=0)

    found = law.fit(runs, ridge=0)

    assert found.exponents == pytest.approx({"alpha": 0.45, "beta": 0.5, "gamma": 1}, rel=1e-3)
    assert found.constants("base") == pytest.approx({"E": 0.1, "A": 6, "B": 14}, rel=1e-2)
    assert law.multiplier(found, "better", "base", 1000, 1000, "n") == pytest.approx(2, rel=1e-3)
