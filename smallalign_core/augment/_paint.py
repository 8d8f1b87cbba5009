"""Photometric transforms: batched kernels with one parameter per image, after torchvision's of the same names.

Images are float32 [N, C, H, W] in 0..255 and stay unrounded from part to part; factors are float32 [N]. torchvision
rounds after each operation, so the two differ by up to one level an operation. Sums are taken in a fixed order or over
whole numbers: the same image gives the same bits in any batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = 255.0


def _each(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def grey(images: Tensor) -> Tensor:
    """Luma [N, 1, H, W] by ITU-R BT.601, as PIL and torchvision weigh it."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _each(factor)).clamp_(0, WHITE)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is black, 1 as it was, 2 twice as bright."""
    return (images * _each(factor)).clamp_(0, WHITE)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the image's mean grey, 1 as it was."""
    # Floored as torchvision does, and so summed exactly in any order.
    mean = grey(images).floor().double().mean((1, 2, 3), keepdim=True).float()
    return _blend(images, mean, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0 is grey, 1 as it was; nothing happens to grey images."""
    return images if images.shape[1] != 3 else _blend(images, grey(images), factor)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour wheel by `turns` [N]; nothing happens to grey images."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp_min(1e-6).reciprocal_()
    # Sixths of a turn from red. Where two channels are both largest, either formula gives the same angle.
    sixths = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)),
    ).add_(6 * turns.view(-1, 1, 1))
    painted = torch.empty_like(images)
    for channel, peak in enumerate((0, 2, 4)):  # HSV to RGB without its six cases: a channel falls off from its peak
        away = sixths - peak
        away.sub_(torch.round(away / 6).mul_(6)).abs_()  # sixths of a turn from the peak, 0..3
        fall = away.sub_(1).clamp_(0, 1)
        torch.addcmul(value, chroma, fall, value=-1, out=painted[:, channel])
    return painted


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is smoothed by a 3x3 kernel, 1 as it was; the outermost pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images
    height, width = images.shape[-2:]
    inner = images[..., 1:-1, 1:-1]
    total = 4 * inner
    for down in range(3):
        for right in range(3):
            total = total + images[..., down : height - 2 + down, right : width - 2 + right]
    painted = images.clone()
    painted[..., 1:-1, 1:-1] = _blend(inner, (total / 13).round_(), factor)
    return painted


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian of standard deviation `sigma` [N] pixels over 2 radius + 1 of them; the image is mirrored at its rim."""
    taps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in (2, 3):
        side = images.shape[axis]
        room = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, room, mode="reflect")
        images = torch.zeros_like(images)
        for tap in range(2 * radius + 1):  # one after the other: a convolution may sum in another order for another N
            images.addcmul_(padded.narrow(axis, tap, side), _each(weights[:, tap]))
    return images


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Black rectangles; their places are int64 [N]."""
    y = torch.arange(images.shape[-2], device=images.device)
    x = torch.arange(images.shape[-1], device=images.device)
    rows = (y >= top[:, None]) & (y < (top + height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` [N] of 8."""
    levels = _each(2.0 ** (8 - bits))
    return torch.floor(images.round() / levels) * levels


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at least as bright as `threshold` [N], in 0..255."""
    return torch.where(images.round() >= _each(threshold), WHITE - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a channel of one value stays."""
    images = images.round()  # or a flat image that was turned a little would be stretched from nothing
    least, most = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = most == least
    stretched = (images - least) * (WHITE / torch.where(flat, 1, most - least))
    return torch.where(flat, images, stretched)


def equalize(images: Tensor) -> Tensor:
    """Torchvision's own kernel: it takes a batch, and has no parameter that could differ between images."""
    from torchvision.transforms.v2.functional import equalize as kernel

    return kernel(images.round().clamp(0, WHITE).to(torch.uint8)).float()
