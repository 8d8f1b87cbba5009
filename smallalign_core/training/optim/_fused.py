"""SGD and AdamW of torch with a direct call of their fused kernels.

torch's own path inspects every tensor, groups tensors by device, and writes a profiler record. The steps are
bit-identical, but for a small network that overhead is a tenth of the whole training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from smallalign_core.system import _compat


class FusedSgd(torch.optim.SGD):
    """As torch's with `fused=True`, and with momentum; without it, or at the first step, torch's own way is taken."""

    @_compat.unprofiled
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        if closure is not None or (kernel := _compat.fused_sgd()) is None or not _begun(self):
            return super().step(closure)
        with torch.no_grad():
            for group, weights, slopes, (momenta,) in _lists(self, "momentum_buffer"):
                kernel(weights, slopes, momenta, group)
        return None


class FusedAdamW(torch.optim.AdamW):
    """As torch's with `fused=True`; at the first step torch's own way is taken."""

    @_compat.unprofiled
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        if closure is not None or (kernel := _compat.fused_adamw()) is None or not _begun(self):
            return super().step(closure)
        with torch.no_grad():
            for group, weights, slopes, kept in _lists(self, "exp_avg", "exp_avg_sq", "step"):
                kernel(weights, slopes, *kept, group)
        return None


def _begun(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every weight has a gradient and a state."""
    state = optimizer.state
    return all(
        weight.grad is not None and state.get(weight) for group in optimizer.param_groups for weight in group["params"]
    )


def _lists(
    optimizer: torch.optim.Optimizer, *names: str
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor], list[list[Tensor]]]]:
    """Each group of parameters: its settings, weights, gradients, and what the state calls `names`."""
    state = optimizer.state
    for group in optimizer.param_groups:
        weights = group["params"]
        states = [state[weight] for weight in weights]
        yield group, weights, [weight.grad for weight in weights], [[one[name] for one in states] for name in names]
