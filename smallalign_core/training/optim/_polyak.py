"""The teacher-informed Polyak step, which no library implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smallalign_core.system import _compat


class PolyakStep(torch.optim.Optimizer):
    """Iterate averaging with a Polyak step (IAM; Gower et al., 2025, arXiv 2504.01898), preconditioned as in Adam.

    At weights x with gradient g, and D the root of Adam's second moment:

        η = max(0, excess + ⟨g, z - x⟩) / ⟨g, D⁻¹ g⟩,   z ← z - η D⁻¹ g,   x ← (λ x + z) / (1 + λ)

    where `excess` is the loss at x above that of the teacher on the same images. It has no learning rate, and
    no weight decay, since the excess does not include it.

    Args:
        groups: parameters, as for every optimizer of torch.
        averaging: λ.
        beta2: decay of the second moment.
    """

    def __init__(self, groups: Any, *, averaging: float = 9.0, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(groups, {"averaging": averaging, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step. Gradients must be there; `closure` gives the excess, a scalar float32.

        Raises:
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError("a Polyak step needs a closure with the excess loss over the teacher's")
        excess: Tensor = closure()
        group = self.param_groups[0]
        weights = [weight for one in self.param_groups for weight in one["params"] if weight.grad is not None]
        if not weights:
            return excess
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "lead": weight.detach().clone(),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        gradients = [weight.grad for weight in weights]
        leads, squares, counts = ([self.state[w][name] for w in weights] for name in ("lead", "exp_avg_sq", "step"))
        _compat.foreach_add_(counts, 1)
        _compat.foreach_mul_(squares, group["beta2"])
        _compat.foreach_addcmul_(squares, gradients, gradients, 1 - group["beta2"])
        scales = _compat.foreach_div(squares, [float(1 - group["beta2"] ** float(count)) for count in counts])
        _compat.foreach_sqrt_(scales)
        _compat.foreach_add_(scales, group["eps"])
        directions = _compat.foreach_div(gradients, scales)
        ahead = _dot(gradients, _compat.foreach_sub(leads, weights))
        length = _dot(gradients, directions)
        reach = (excess + ahead).clamp(min=0) / length.clamp(min=torch.finfo(length.dtype).tiny)
        _compat.foreach_mul_(directions, reach)
        _compat.foreach_sub_(leads, directions)
        _compat.foreach_lerp_(weights, leads, 1 / (1 + group["averaging"]))
        return excess


def _dot(ones: list[Any], others: Any) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(ones, others, strict=True)]).sum()
