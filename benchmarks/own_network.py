"""A network as a user might bring it, for `targets.py`: layers that none of the library's own families have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Own(nn.Module):
    """Convolutions with group normalization and a gate over channels, then self-attention over what is left."""

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalized images [N, channels, H, W]."""
        features = self.first(images)
        features = nn.functional.gelu(self.second(features * self.gate(features)))
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(torch.cat([tokens.mean(1), tokens.amax(1)], 1))


def make(classes: int, channels: int, width: int = 24) -> nn.Module:
    """Build it, as `kind: python` does."""
    return Own(classes, channels, width)
