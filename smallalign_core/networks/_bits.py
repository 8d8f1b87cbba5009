"""Weight quantization: the forward pass uses rounded weights, training updates the full-precision ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Network = TypeVar("Network", bound=nn.Module)


class _Straight(torch.autograd.Function):
    """Rounds, and passes the gradient on as it is. torch's own fake quantisation has no rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, scale: Tensor, most: int) -> Tensor:
        return (weight / scale).round().clamp(-most, most) * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing has to be kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return gradient, None, None


class Rounded(nn.Module):
    """Symmetric rounding of a weight to so many bits, with one scale for each output (dimension 0).

    The scale puts the largest weight of an output on the largest of the 2^bits - 1 levels; 2 bits leave minus, zero and
    plus. The gradient passes straight through (Bengio et al., 2013, arXiv 1308.3432).
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, of the shape of `weight` [outputs, ...]."""
        largest = weight.detach().flatten(1).abs().amax(1)
        scale = (largest / self.most).clamp(min=torch.finfo(weight.dtype).tiny)
        rounded: Tensor = _Straight.apply(weight, scale.view(-1, *[1] * (weight.ndim - 1)), self.most)
        return rounded


def in_bits(network: Network, bits: int | None) -> Network:
    """Let every convolution and linear layer of `network` compute with rounded weights; nothing without `bits`.

    What learns, and is kept in checkpoints, are the weights before rounding. Biases and norms keep their precision.
    """
    for module in list(network.modules()):
        if bits and isinstance(module, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(module, "weight", Rounded(bits))
    return network


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of weights before rounding, under the names that they have in a network that rounds none."""
    return {name.replace(".parametrizations.weight.original", ".weight"): tensor for name, tensor in tensors.items()}


def baked(network: Network) -> Network:
    """A copy of `network` that keeps the rounded weights only; `network` itself if it rounds none."""
    if not any(map(parametrize.is_parametrized, network.modules())):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if parametrize.is_parametrized(
            module
        ):  # torch's own removal would break the original, since both share a class
            weight: Any = module.weight
            rounded = weight.detach().clone()
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.weight = nn.Parameter(rounded)
    return network
