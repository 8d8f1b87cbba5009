"""Saliency maps of classifiers: Grad-CAM for networks with convolutions, occlusion maps for all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from smallalign_core.networks import BaseClassifier
from smallalign_core.system.batching import in_batches

METHODS = {"grad-cam": "Grad-CAM (Selvaraju et al., 2017)", "occlusion": "Occlusion (Zeiler & Fergus, 2014)"}
WINDOW = 0.25
"""Side of the occluding square, as a share of the image's shorter side."""
STEPS = 12
"""Min. positions of the square along a side; fewer if they would be less than a pixel apart."""
CHUNK = 64


@dataclass(frozen=True, eq=False)
class Explanation:
    """The saliency map of a classifier for one class.

    Attributes:
        method: a key of `METHODS`.
        target: the class, as a position in the classifier's classes.
        heat: float32 [H, W] in 0..1: positive evidence for the class, relative to the maximum. All zeros if there is
            none.
        probabilities: float64 [C], of the image as it is.
    """

    method: str
    target: int
    heat: NDArray[np.float32]
    probabilities: NDArray[np.float64]


def explain(
    model: BaseClassifier, image: NDArray[np.uint8], *, target: int | None = None, occluding: bool = False
) -> Explanation:
    """The saliency map of `model` for `image`, uint8 [C, H, W].

    Args:
        target: the class to explain; default: the predicted class.
        occluding: use occlusion even if Grad-CAM is applicable.
    """
    model = model.eval()
    pixels = torch.from_numpy(np.array(image))[None]  # a copy, since arrays from a pipe are read-only
    with torch.no_grad():
        p = model(pixels).float().softmax(1)[0]
    wanted = int(p.argmax()) if target is None else target
    found = None if occluding or has_attention(model.body) else grad_cam(model, pixels, wanted)
    method = "occlusion" if found is None else "grad-cam"
    heat = occlusion(model, pixels, wanted) if found is None else found
    most = float(heat.max())
    return Explanation(method, wanted, heat / most if most > 0 else heat * 0, p.double().numpy())


def has_attention(body: nn.Module) -> bool:
    """Whether a network has attention: its only convolution may be the patch embedding, which is not informative."""
    return any("attention" in type(module).__name__.lower() for module in body.modules())


def grad_cam(model: BaseClassifier, pixels: Tensor, target: int) -> NDArray[np.float32] | None:
    """Grad-CAM (Selvaraju et al., 2017): the last convolutional maps, each weighted by the mean gradient of the logit
    of `target`, summed, and cut at zero: float32 [H, W] of `pixels`, in units of the logit.

    The maps are what the network makes of the last convolution whose output is wider than a pixel, after its norm,
    activation and shortcut. None if there is no such convolution.
    """
    maps = _last_maps(model, pixels)
    if maps is None:
        return None
    module, number = maps
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        kept.append(output)

    handle = module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logit = model(pixels)[0, target]
            shown = kept[number]
            (gradient,) = torch.autograd.grad(logit, shown)
    finally:
        handle.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * shown).sum(1, keepdim=True)).detach()
    wide = F.interpolate(heat, size=tuple(pixels.shape[-2:]), mode="bilinear", align_corners=False)
    return np.asarray(wide[0, 0].float().numpy())


def _last_maps(model: BaseClassifier, pixels: Tensor) -> tuple[nn.Module, int] | None:
    """The module whose output Grad-CAM looks at, and which of its calls; None if there is no suitable convolution."""
    done: list[tuple[nn.Module, int, tuple[int, ...]]] = []
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            done.append((module, calls.get(module, 0), tuple(output.shape[2:])))
            calls[module] = calls.get(module, 0) + 1

    handles = [module.register_forward_hook(note) for module in model.body.modules() if module is not model.body]
    try:
        with torch.no_grad():
            model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    sizes = [size for module, _, size in done if isinstance(module, nn.Conv2d) and min(size) > 1]
    if not sizes:
        return None
    module, number, _ = next(entry for entry in reversed(done) if entry[2] == sizes[-1])
    return module, number


def occlusion(model: BaseClassifier, pixels: Tensor, target: int) -> NDArray[np.float32]:
    """Occlusion (Zeiler & Fergus, 2014): how much the probability of `target` falls while a square of the image's mean
    colour covers a place; float32 [H, W], the mean over the squares that cover each pixel, cut at zero."""
    height, width = pixels.shape[-2:]
    side = max(1, round(WINDOW * min(height, width)))
    places = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
    grey = pixels.float().mean((2, 3)).round().to(torch.uint8)[0, :, None, None]
    with torch.no_grad():
        whole = float(model(pixels).float().softmax(1)[0, target])
        fall: list[float] = []
        for start in range(0, len(places), CHUNK):
            part = places[start : start + CHUNK]
            covered = pixels.repeat(len(part), 1, 1, 1)
            for place, (top, left) in enumerate(part):
                covered[place, :, top : top + side, left : left + side] = grey
            fall += (whole - in_batches(model, covered).float().softmax(1)[:, target]).tolist()
    total, times = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), less in zip(places, fall, strict=True):
        total[top : top + side, left : left + side] += less
        times[top : top + side, left : left + side] += 1
    return np.maximum(total / times, 0).astype(np.float32)


def _starts(length: int, side: int) -> list[int]:
    """Where the square begins along an axis: evenly, from rim to rim."""
    last = length - side
    return sorted(set(np.linspace(0, last, min(last, max(STEPS, 2 * length // side)) + 1).round().astype(int).tolist()))
