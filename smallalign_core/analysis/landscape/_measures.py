"""Measures of a loss surface, as resumable work: slices, the path to another solution, curvature, and gradient
predictiveness.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from smallalign_core.analysis.landscape._surface import Surface
from smallalign_core.system.resumable import Work, by_callback

RISE_AT = 0.2
"""Where along a direction the rise of the loss is read, in lengths of the weights."""
PAST = 0.25
"""Margin of a plane beyond two solutions, relative to their distance."""
STRIDES = (0.01, 0.05)
"""Steps along the gradient, in lengths of all weights."""
Found = dict[str, Any]


def line(surface: Surface, *, directions: int, points: int, reach: float, seed: int) -> Work[Found]:
    """The loss along random filter-normalised directions (Li et al., 2018).

    Returns:
        `at` [points]; `losses` [directions][points], None where they are infinite; `rise`: the mean over directions and
        both sides at 0.2 above the loss at the weights, with its standard error over directions; `maxima`: mean number
        of local maxima a line.
    """
    at = np.linspace(-reach, reach, points)
    drawn = surface.directions(directions, seed)
    losses = yield from _losses(
        surface, (surface.start + float(a) * one for one in drawn for a in at), directions * points
    )
    table = np.reshape(losses, (directions, points))
    centre = table[:, points // 2]
    near = [int(np.abs(at - side).argmin()) for side in (-RISE_AT, RISE_AT)]
    rise = table[:, near].mean(1) - centre
    inner = table[:, 1:-1]
    peaks = ((inner > table[:, :-2]) & (inner > table[:, 2:])).sum(1)
    return {
        "at": at.tolist(),
        "losses": _plain(table),
        "rise": _finite(rise.mean()),
        "rise_se": _error(rise),
        "rise_at": float(at[near[1]]),
        "maxima": float(peaks.mean()),
    }


def plane(surface: Surface, *, points: int, reach: float, seed: int) -> Work[Found]:
    """The loss on a plane through two random filter-normalised directions: `at` [points], `losses` [points][points],
    rows along the second direction.
    """
    at = np.linspace(-reach, reach, points)
    one, other = surface.directions(2, seed)
    places = (surface.start + float(a) * one + float(b) * other for b in at for a in at)
    losses = yield from _losses(surface, places, points**2)
    return {"at": at.tolist(), "losses": _plain(np.reshape(losses, (points, points)))}


def path(surface: Surface, other: Surface, *, points: int) -> Work[Found]:
    """The loss on the linear path to another solution, and its barrier (Frankle et al., 2020): the largest
    height above the straight line between the losses at both ends. Running statistics of batch norms are mixed like
    the weights, unless they are re-estimated.
    """
    at = np.linspace(0, 1, points)
    losses = yield from _on_the_way(surface, other, ((float(share), torch.zeros(())) for share in at), points)
    straight = (1 - at) * losses[0] + at * losses[-1]
    return {"at": at.tolist(), "losses": _plain(np.array(losses)), "barrier": _finite((losses - straight).max())}


def between(surface: Surface, other: Surface, *, points: int, reach: float, seed: int) -> Work[Found]:
    """The loss on a plane through two solutions: `shares` [points] of the way from one to the other, a quarter past
    both, and `at` [points] along a filter-normalised random direction; `losses` [points][points], rows along that
    direction. Running statistics are mixed as on the way; past an end they are those of that end.
    """
    shares, at = np.linspace(-PAST, 1 + PAST, points), np.linspace(-reach, reach, points)
    (direction,) = surface.directions(1, seed)
    places = ((float(share), float(a) * direction) for a in at for share in shares)
    losses = yield from _on_the_way(surface, other, places, points**2)
    return {"shares": shares.tolist(), "at": at.tolist(), "losses": _plain(np.reshape(losses, (points, points)))}


def _on_the_way(surface: Surface, other: Surface, places: Iterable[tuple[float, Tensor]], of: int) -> Work[list[float]]:
    """The losses at `of` places: a share of the way from one solution to another, and so far beside it."""
    ends = [dict(one.network.named_buffers()) for one in (surface, other)]
    kept = {name: tensor.clone() for name, tensor in ends[0].items()}

    def mixed(share: float) -> None:
        for name, tensor in ends[0].items():
            if tensor.is_floating_point():
                tensor.copy_((1 - share) * kept[name] + share * ends[1][name])

    losses = []
    for count, (share, beside) in enumerate(places):
        if surface.norms == "eval":
            mixed(min(1.0, max(0.0, share)))
        surface.put((1 - share) * surface.start + share * other.start + beside)
        for value in surface.value():
            last = value
            yield count / of
        losses.append(last)
    mixed(0.0)
    surface.put(surface.start)
    return losses


def curvature(surface: Surface, *, eigenvalues: int, probes: int, seed: int) -> Work[Found]:
    """The largest eigenvalues of the Hessian (ARPACK's Lanczos) and its trace (Hutchinson, 1990, random signs).

    Returns:
        `eigenvalues`, the largest first (of equal ones Lanczos may miss some); `trace` with `trace_se`, its standard
        error over probes; `scaled`: the largest times the squared length of the weights, which does not change when a
        layer is scaled and its next divided; `products`: number of Hessian-vector products.
    """
    n, evaluations = surface.size, 0
    wanted = min(eigenvalues, n - 2)
    expected = 20 + 4 * wanted + probes
    draws = np.random.Generator(np.random.Philox(key=[seed, 0xCA11]))

    def times(vector: NDArray[Any]) -> Generator[None, None, NDArray[np.float64]]:
        nonlocal evaluations
        evaluations += 1
        given = torch.from_numpy(np.asarray(vector, np.float32).ravel().copy())
        total = torch.zeros(n, dtype=torch.float64)
        for part in surface.parts:
            total += surface.curved(part, given).double()
            yield
        return (total / len(surface.parts)).numpy()

    def largest(call: Callable[[NDArray[Any]], NDArray[np.float64]]) -> NDArray[np.float64]:
        operator = LinearOperator((n, n), matvec=call, dtype=np.float64)
        try:
            found = eigsh(
                operator,
                k=wanted,
                which="LA",
                tol=1e-3,
                v0=draws.standard_normal(n),
                return_eigenvectors=False,
                maxiter=50,
            )
        except ArpackNoConvergence as error:
            found = error.eigenvalues  # the converged ones
        return np.sort(found)[::-1]

    def shared(work: Generator[None, None, Any]) -> Work[Any]:
        while True:
            try:
                next(work)
            except StopIteration as finished:
                return finished.value
            yield min(0.99, evaluations / expected)

    top = yield from shared(by_callback(largest, times))
    traces = []
    for _ in range(probes):
        signs = draws.choice([-1.0, 1.0], n)
        traces.append(float(signs @ (yield from shared(times(signs)))))
    return {
        "eigenvalues": top.tolist(),
        "trace": float(np.mean(traces)),
        "trace_se": _error(traces),
        "scaled": float(top[0] * float(surface.start.double().square().sum())) if len(top) else None,
        "products": evaluations,
    }


def predictiveness(surface: Surface, *, strides: Sequence[float] = STRIDES) -> Work[Found]:
    """Predictiveness of a batch's gradient for its gradient and loss one step further (Santurkar et al., 2018).

    A step goes down the gradient of one batch, as far as a share of the length of all weights.

    Returns:
        by stride: `cosines` between the gradients before and after, and `changes` of the loss, both [batches], with
        `cosine`, the mean, `cosine_low`, the 5th percentile, and `change`, the mean.
    """
    length = float(surface.start.norm())
    found: list[Found] = [{"stride": stride, "cosines": [], "changes": []} for stride in strides]
    for place, part in enumerate(surface.parts):
        loss, slope = surface.gradient(part)
        for turn, one in enumerate(found):
            surface.put(surface.start - slope * (one["stride"] * length / max(float(slope.norm()), 1e-30)))
            there, then = surface.gradient(part)
            surface.put(surface.start)
            one["cosines"].append(float(torch.cosine_similarity(slope, then, dim=0)))
            one["changes"].append(float(there - loss))
            yield (place + (turn + 1) / len(found)) / len(surface.parts)
    for one in found:
        one["cosine"], one["change"] = _finite(np.mean(one["cosines"])), _finite(np.mean(one["changes"]))
        one["cosine_low"] = _finite(np.percentile(one["cosines"], 5))
        one["cosines"], one["changes"] = _plain(np.array(one["cosines"])), _plain(np.array(one["changes"]))
    return {"strides": found, "batches": len(surface.parts)}


def _losses(surface: Surface, places: Iterable[Tensor], of: int) -> Work[list[float]]:
    """The losses at `of` places, one at a time: each is as large as the network, and a plane has thousands."""
    losses = []
    for count, place in enumerate(places):
        surface.put(place)
        for value in surface.value():
            last = value
            yield count / of
        losses.append(last)
    surface.put(surface.start)
    return losses


def _plain(values: NDArray[np.float64]) -> list[Any]:
    """As lists, with None for non-finite values, which JSON does not support."""
    lists: list[Any] = [_plain(one) if values.ndim > 1 else _finite(one) for one in values]
    return lists


def _finite(value: float | np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def _error(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    """The standard error of a mean; None of a single value."""
    return _finite(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
