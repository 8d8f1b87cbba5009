"""The law's formula: losses, their derivatives, and its inverse, for one set of parameters or many at once.

    u = (A (n / n_ref)^-alpha + B (d / d_ref)^-beta)^gamma
    L = E + (L0 - E) u / (1 + u)        saturating: no student is worse than chance, L0
    L = E + u                           additive (Hoffmann et al., 2022): right only far below chance

alpha, beta and gamma are shared by all arms; E, A and B are an arm's own. Rosenfeld et al. (2020) saturate by an
envelope, Alabdulmohsin et al. (2022) in one variable; the saturating law is theirs with exponent 1, for two variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from smallalign_core.studies.scaling_law._observed import Floats, Ints

Axis = Literal["n", "d"]
Shape = Literal["saturating", "additive"]
SHARED = 3
LOW_E, HIGH_E = -9.0, -0.02
"""Bounds of ln E, below the logarithm of the top."""


@dataclass(frozen=True)
class Form:
    """Which law, and its units.

    Parameters are one vector [3 + 3 arms]: alpha, beta, gamma, then ln E, ln A and ln B of each arm in turn.

    Attributes:
        top: L0 of a saturating law; of an additive one the largest loss, which bounds E.
        arms: how many.
        free_gamma: whether gamma is fitted; else it is 1.
        n_ref, d_ref: the middle of what was measured, so that parameters are of order 1.
    """

    shape: Shape
    top: float
    arms: int
    free_gamma: bool
    n_ref: float
    d_ref: float

    @property
    def free(self) -> Ints:
        """Indices of what is fitted."""
        return np.array([i for i in range(SHARED + 3 * self.arms) if i != 2 or self.free_gamma])

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lowest and highest parameters: [P] each."""
        log_top = np.log(self.top)
        low = np.array([0.02, 0.02, 0.05] + [log_top + LOW_E, -15.0, -15.0] * self.arms)
        high = np.array([4.0, 4.0, 2.0] + [log_top + HIGH_E, 15.0, 15.0] * self.arms)
        return low, high

    def guess(self, loss: float, gamma: float = 1.0, exponent: float = 0.5, floor: float = 0.15) -> Floats:
        """Where a fit may start: both terms equal in the middle, where the loss is `loss`, and E = `floor` * loss."""
        bottom = floor * loss
        u = (loss - bottom) / max(self.top - loss, 0.05 * self.top) if self.shape == "saturating" else loss - bottom
        term = np.log(u) / gamma - np.log(2)
        return np.array([exponent, exponent, gamma] + [np.log(bottom), term, term] * self.arms)

    def _terms(
        self, theta: Floats, arm: Ints | int, n: ArrayLike, d: ArrayLike
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Logarithms of E, of of both terms, and of their sum: [..., C]."""
        x, z = np.log(np.asarray(n) / self.n_ref), np.log(np.asarray(d) / self.d_ref)
        own = SHARED + 3 * np.atleast_1d(arm)
        of_n = theta[..., own + 1] - theta[..., :1] * x
        of_d = theta[..., own + 2] - theta[..., 1:2] * z
        return theta[..., own], of_n, of_d, np.logaddexp(of_n, of_d)

    def log_loss(self, theta: Floats, arm: Ints | int, n: ArrayLike, d: ArrayLike) -> Floats:
        """Logarithms of L [..., C] for parameters [..., P]; `arm`, `n` and `d` are [C], or scalars beside it."""
        log_e, _, _, total = self._terms(theta, arm, n, d)
        log_u, e = theta[..., 2:3] * total, np.exp(log_e)
        if self.shape == "additive":
            return np.logaddexp(log_e, log_u)
        return np.log(e + (self.top - e) * _sigmoid(log_u))

    def jacobian(self, theta: Floats, arm: Ints, n: Floats, d: Floats) -> tuple[Floats, Floats]:
        """Logarithms of L [..., C], and their derivatives by all parameters [..., C, P]."""
        log_e, of_n, _, total = self._terms(theta, arm, n, d)
        gamma, e = theta[..., 2:3], np.exp(log_e)
        log_u = gamma * total
        share = np.exp(of_n - total)
        if self.shape == "additive":
            u = np.exp(log_u)
            loss, by_u, by_e = e + u, u, e
        else:
            s = _sigmoid(log_u)
            loss, by_u, by_e = e + (self.top - e) * s, (self.top - e) * s * (1 - s), e * (1 - s)
        by_u, by_e = by_u / loss, by_e / loss
        x, z = np.log(n / self.n_ref), np.log(d / self.d_ref)
        by_a, by_b = by_u * gamma * share, by_u * gamma * (1 - share)
        found = np.zeros((*loss.shape, theta.shape[-1]))
        found[..., 0], found[..., 1], found[..., 2] = -by_a * x, -by_b * z, by_u * total
        at = np.arange(len(arm))
        for offset, values in enumerate((by_e, by_a, by_b)):
            found[..., at, SHARED + 3 * arm + offset] = values
        return np.log(loss), found

    def reach(self, theta: Floats, arm: int, loss: ArrayLike, axis: Axis, other: float) -> Floats:
        """The logarithm of the parameters (axis "n") or images ("d") at which an arm has that loss: [...]; closed form.

        Args:
            theta: [..., P].
            loss: [...].
            other: the images, or the parameters, that are given.

        Returns:
            infinity where no number is enough: the term of what is given, or E, is already above it.
        """
        loss, own = np.asarray(loss, np.float64), SHARED + 3 * arm
        ref, other_ref = (self.n_ref, self.d_ref) if axis == "n" else (self.d_ref, self.n_ref)
        at, beside = (0, 1) if axis == "n" else (1, 0)
        above = loss - np.exp(theta[..., own])
        below = self.top - loss if self.shape == "saturating" else np.ones_like(loss)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            total = (np.log(above) - np.log(below)) / theta[..., 2]
            given = theta[..., own + 1 + beside] - theta[..., beside] * np.log(other / other_ref)
            left = total + np.log1p(-np.exp(given - total))
            found = (theta[..., own + 1 + at] - left) / theta[..., at] + np.log(ref)
        found = np.where((above <= 0) | ~(total > given), np.inf, found)
        return np.where(below <= 0, -np.inf, found)


def _sigmoid(values: Floats) -> Floats:
    from scipy.special import expit

    return expit(values)
