"""Bodies of our own networks, of any width and depth: normalised float32 [N, C, H, W] to logits [N, classes]."""

from __future__ import annotations

from typing import assert_never

import torch.nn.functional as F
from torch import Tensor, nn

from smallalign_core.spec import Cnn, Mlp, Resnet, Separable
from smallalign_core.spec.parts import OwnNetwork


def _conv(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    ]


class _Residual(nn.Module):
    """Basic block of ResNet (He et al., 2015), figure 2."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*_conv(inside, outside, 3, stride), nn.ReLU(), *_conv(outside, outside))
        plain = stride == 1 and inside == outside
        self.skip = nn.Identity() if plain else nn.Sequential(*_conv(inside, outside, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def _head(features: int, classes: int, dropout: float) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, classes)]


def _mlp(spec: Mlp, shape: tuple[int, int, int], classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    inside = shape[0] * shape[1] * shape[2]
    for _ in range(spec.depth):
        layers += [nn.Linear(inside, spec.width), nn.ReLU(), nn.Dropout(spec.dropout)]
        inside = spec.width
    return nn.Sequential(*layers, nn.Linear(inside, classes))


def _staged(spec: Cnn | Separable, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Stages of doubling width, each halving the side until it is below 4 pixels."""
    side, inside = min(shape[1:]), shape[0]
    layers: list[nn.Module] = []
    for stage in range(spec.depth):
        outside = spec.width * 2**stage
        if isinstance(spec, Cnn) or stage == 0:
            layers += [*_conv(inside, outside), nn.ReLU()]
        else:
            layers += [*_conv(inside, inside, groups=inside), nn.ReLU(), *_conv(inside, outside, 1), nn.ReLU()]
        if side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        inside = outside
    return nn.Sequential(*layers, *_head(inside, classes, spec.dropout))


def _resnet(spec: Resnet, shape: tuple[int, int, int], classes: int) -> nn.Module:
    layers: list[nn.Module] = [*_conv(shape[0], spec.width), nn.ReLU()]
    inside = spec.width
    for stage in range(3):
        outside = spec.width * 2**stage
        for block in range(spec.depth):
            layers.append(_Residual(inside, outside, stride=2 if stage and not block else 1))
            inside = outside
    return nn.Sequential(*layers, *_head(inside, classes, spec.dropout))


def body(network: OwnNetwork, shape: tuple[int, int, int], classes: int) -> nn.Module:
    match network:
        case Mlp():
            return _mlp(network, shape, classes)
        case Cnn() | Separable():
            return _staged(network, shape, classes)
        case Resnet():
            return _resnet(network, shape, classes)
        case _:
            assert_never(network)


def seen(network: OwnNetwork, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of what the body gets from images of `shape`."""
    return (shape[0], network.size, network.size) if network.size else shape
