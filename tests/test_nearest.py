"""The search of near images among many: against brute force, and in a number of distances that is not quadratic."""

from __future__ import annotations

import numpy as np
import pytest

from smallalign_core.analysis.data_quality import _near_duplicates, _search
from smallalign_core.system import resumable


def found(references: np.ndarray, queries: np.ndarray, count: int, exact: int) -> tuple[np.ndarray, np.ndarray]:
    """(distances, rows of references) in the order of the queries."""
    pieces = list(_search.nearest(references, queries, count, exact=exact))
    rows = np.concatenate([piece[0] for piece in pieces])
    assert sorted(rows.tolist()) == list(range(len(queries)))
    order = np.argsort(rows)
    return tuple(np.concatenate([piece[at] for piece in pieces])[order] for at in (1, 2))  # type: ignore[return-value]


def features(count: int, seed: int = 0) -> np.ndarray:
    """Points of 30 clouds on a surface of 6 dimensions in 40."""
    draw = np.random.default_rng(seed)
    clouds = draw.normal(size=(30, 6))[draw.integers(0, 30, count)] * 3 + draw.normal(size=(count, 6))
    return (clouds @ np.random.default_rng(1).normal(size=(6, 40))).astype(np.float32)


def test_few_references_are_all_compared() -> None:
    sklearn = pytest.importorskip("sklearn.neighbors")
    references, queries = features(700), features(300, seed=2)
    distance, rows = found(references, queries, 9, exact=1_000)
    expected, expected_rows = (
        sklearn.NearestNeighbors(n_neighbors=9, algorithm="brute").fit(references).kneighbors(queries)
    )
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-4)
    assert found(references[:5], queries, 9, exact=1_000)[1].shape == (300, 5)


def test_among_many_most_neighbours_and_all_copies_are_found() -> None:
    references = features(6_000)
    copies = references[::50] + np.random.default_rng(3).normal(0, 0.01, (120, 40)).astype(np.float32)
    everything = np.concatenate([references, copies])
    distance, rows = found(everything, everything, 10, exact=0)
    exact, exact_rows = found(everything, everything, 10, exact=10**6)
    assert np.array_equal(rows[:, 0], np.arange(len(everything)))  # each finds itself
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, exact_rows, strict=True)]) > 0.9
    assert (distance >= exact - 1e-4).all()
    assert np.array_equal(rows[6_000:, 1], np.arange(0, 6_000, 50))


@pytest.mark.parametrize("alike", [False, True])
def test_the_number_of_distances_is_not_quadratic(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the images: about eight times the distances (N times its root), also where all are alike."""
    counted = [0]
    closest = _search._closest

    def counting(seen: np.ndarray, among: np.ndarray, queries: np.ndarray, count: int) -> object:
        counted[0] += len(seen) * len(queries)
        return closest(seen, among, queries, count)

    monkeypatch.setattr(_search, "_closest", counting)

    def distances(count: int) -> int:
        counted[0] = 0
        made = features(count) * np.float32(1e-4 if alike else 1) + np.float32(1)
        found(made, made, 3, exact=0)
        return counted[0]

    few, many = distances(2_000), distances(8_000)
    assert many < 10 * few
    assert many < 0.5 * 8_000**2


def plain(left: np.ndarray, right: np.ndarray) -> float:
    """1 - correlation after the best shift, of one pair, by NumPy's own correlation."""
    best, (high, wide) = 1.0, left.shape[1:]
    for down in (-1, 0, 1):
        for along in (-1, 0, 1):
            a = left[:, max(down, 0) : high + min(down, 0), max(along, 0) : wide + min(along, 0)].ravel()
            b = right[:, max(-down, 0) : high + min(-down, 0), max(-along, 0) : wide + min(-along, 0)].ravel()
            best = min(best, 1 - float(np.corrcoef(a.astype(float), b.astype(float))[0, 1]))
    return max(best, 0.0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 9)])
def test_the_distance_of_a_pair_is_its_correlation_after_the_best_shift(shape: tuple[int, int, int]) -> None:
    draw = np.random.default_rng(0)
    left = draw.integers(0, 256, (40, *shape), dtype=np.uint8)
    right = np.roll(left, 1, axis=2)
    right[20:] = draw.integers(200, 256, (20, *shape), dtype=np.uint8)
    expected = [plain(a, b) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(_near_duplicates.aligned(left, right), expected, atol=2e-6)


@pytest.mark.slow
def test_copies_among_many_images_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    coarse = draw.uniform(0, 255, (3_000, 1, 5, 5))
    images = np.kron(coarse, np.ones((1, 1, 4, 4)))[:, :, :16, :16]
    copies = images[::20] + draw.normal(0, 3, (150, 1, 16, 16))
    copies[::2] = np.roll(copies[::2], 1, axis=3)
    pixels = np.concatenate([images + draw.normal(0, 3, images.shape), copies]).clip(0, 255).round().astype(np.uint8)
    ids = np.arange(len(pixels), dtype=np.uint64)

    def pairs() -> set[tuple[int, int]]:
        one, other, _ = resumable.finish(_near_duplicates.near_duplicates(pixels, ids))
        return set(zip(one.tolist(), other.tolist(), strict=True))

    expected = pairs()
    assert len(expected) >= 140
    monkeypatch.setattr(_search.nearest, "__kwdefaults__", {"exact": 0})
    assert pairs() == expected
