"""Losses that compare outputs of inner layers, captured by hooks: networks are not modified.

A feature is a map float [N, channels, height, width] or a vector float [N, features]; a map of one pixel counts as a
vector. Functions return a scalar float32, computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import AttentionTransfer, OfLayers

Shape = tuple[int, ...]

SMALLEST = 7
"""Pixels a side of the smallest map that attention transfer was published with. Its weight is of a mean over pixels, so
on maps of 2x2 the same number is sixteen times stronger than on 8x8: there it drowned the labels
(docs/results/2026-11-losses.md).
"""


def hint(student: Tensor, teacher: Tensor, regressor: nn.Module) -> Tensor:
    """Mean over all elements of (regressor(student) - teacher)² (Romero et al., ICLR 2015; the mean is RepDistiller's).

    Where maps differ in size, the larger is averaged down to the smaller.
    """
    ours, theirs = _same_size(_feature(student), _feature(teacher))
    return F.mse_loss(regressor(ours), theirs)


def regressor(student: Tensor, teacher: Tensor) -> nn.Module:
    """A projector from student to teacher features: a 1x1 convolution; for vectors, a linear layer."""
    ours, theirs = _feature(student), _feature(teacher)
    if ours.ndim == 4:
        return nn.Conv2d(ours.shape[1], theirs.shape[1], 1)
    return nn.Linear(ours.shape[1], theirs.shape[1])


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and pixels of (A(student) - A(teacher))² (Zagoruyko & Komodakis, ICLR 2017, p = 2).

    A is the mean over channels of squared activations, flattened, with length 1. Where maps differ in size, the larger
    is averaged down to the smaller first.
    """
    ours, theirs = _same_size(_feature(student), _feature(teacher))
    return F.mse_loss(_attention_map(ours), _attention_map(theirs))


def _attention_map(feature: Tensor) -> Tensor:
    """[N, pixels], length 1; 0 for a map without any activity."""
    # The scale does not affect the map and is removed first: fourth powers would overflow float32.
    scaled = feature / feature.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-3)
    energy = scaled.square().mean(1).flatten(1)
    return energy / (energy.square().sum(1, keepdim=True) + 1e-12).sqrt()


def _feature(made: Tensor) -> Tensor:
    made = made.float()
    return made.flatten(1) if made.ndim == 4 and made.shape[2:] == (1, 1) else made


def _same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if one.shape[2:] == other.shape[2:]:
        return one, other
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)


# --- which layers -----------------------------------------------------------------------------------------------------


def paths(written: str) -> tuple[str, ...]:
    """The comma-separated paths in a field."""
    return tuple(path for each in written.split(",") if (path := each.strip()))


def outputs(classifier: nn.Module) -> dict[str, Shape]:
    """The output shapes, without the batch dimension, of the modules below the body for one image.

    Maps and vectors only, in order of execution (a module that runs twice: its last output), without the logits.
    Channels-last maps, as in Swin, are excluded too: their proportions are not those of the image.
    """
    body, found = classifier.get_submodule("body"), dict[str, Tensor]()

    def keep(path: str, _module: nn.Module, _given: Any, made: Any) -> None:
        found.pop(path, None)
        if isinstance(made, Tensor) and made.ndim in (2, 4):
            found[path] = made

    if not any(body.children()):  # an imported file has no accessible modules
        return {}
    handles = [module.register_forward_hook(partial(keep, path)) for path, module in body.named_modules() if path]
    was_training = classifier.training
    shape: Shape = tuple(classifier.input_shape)  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            image = torch.zeros((1, *shape), dtype=torch.uint8, device=next(classifier.buffers()).device)
            logits = classifier.eval()(image)
    finally:
        classifier.train(was_training)
        for handle in handles:
            handle.remove()
    shapes = {path: tuple(_feature(made).shape[1:]) for path, made in found.items() if made is not logits}
    return {path: made for path, made in shapes.items() if len(made) == 1 or _alike(made[1:], shape[1:])}


def _alike(size: Shape, image: Shape) -> bool:
    """Whether two sizes have the same proportions, as far as rounding and padding allow."""
    return 0.5 < size[0] * image[1] / (size[1] * image[0]) < 2


def place(loss: OfLayers, student: nn.Module, teacher: nn.Module) -> OfLayers:
    """`loss` with empty layers filled in, and given layers validated.

    Defaults: for FitNets, the last map of each network, or the last vector before the logits if one network has no
    maps. For attention transfer, the last map of each size from 7x7 (else the largest), paired from the deepest; if
    layers are given for one network, the deepest of any size for the other.

    Raises:
        BadSpec: a network has no such layer, the layers cannot be compared, or there are not as many.
    """
    ours, theirs = outputs(student), outputs(teacher)
    requested = paths(loss.student_layer), paths(loss.teacher_layer)
    for role, named, there in (("student", requested[0], ours), ("teacher", requested[1], theirs)):
        for path in named:
            if path not in there:
                raise BadSpec(
                    f"the {role} has no comparable layer at that path",
                    given=path,
                    do=f"leave {role}_layer empty"
                    + (f", or use one of: {offered}" if (offered := _offered(there)) else ""),
                )
    maps = isinstance(loss, AttentionTransfer) or all(
        any(len(there[path]) == 3 for path in named or there)
        for named, there in ((requested[0], ours), (requested[1], theirs))
    )
    chosen = [named or _choose(there, maps=maps) for named, there in ((requested[0], ours), (requested[1], theirs))]
    if isinstance(loss, AttentionTransfer) and not any(requested):
        chosen = [_large(there, found) for there, found in zip((ours, theirs), chosen, strict=True)]
    for role, there, found in (("student", ours, chosen[0]), ("teacher", theirs, chosen[1])):
        wanted, size = ("maps", 3) if maps else ("vectors", 1)
        wrong = [path for path in found if len(there[path]) != size]
        if wrong or not found:
            offered = _offered(there, size)
            raise BadSpec(
                f"loss {loss.kind} compares feature {wanted}, and the {role} has none"
                + (" at these layers" if wrong else ""),
                given=", ".join(f"{path} ({_written(there[path])})" for path in wrong) or f"{role}_layer empty",
                do="use loss kd" + (f", or one of the {role}'s layers with {wanted}: {offered}" if offered else ""),
            )
    many = isinstance(loss, AttentionTransfer)
    count = min(map(len, chosen)) if many else 1
    if any(len(named) not in (0, count) for named in requested):
        raise BadSpec(
            f"loss {loss.kind} compares layers in pairs" if many else f"loss {loss.kind} compares one pair of layers",
            given=f"student: {', '.join(chosen[0])}; teacher: {', '.join(chosen[1])}",
            do="give as many student layers as teacher layers" if many else "give one layer of each",
        )
    names = [", ".join(found[-count:]) for found in chosen]
    return loss.model_copy(update={"student_layer": names[0], "teacher_layer": names[1]})


def _choose(there: Mapping[str, Shape], *, maps: bool) -> tuple[str, ...]:
    last: dict[Shape, str] = {}
    for path, shape in there.items():
        if (len(shape) == 3) == maps:
            size = shape[1:]  # empty for a vector, so that only the last is left
            last.pop(size, None)
            last[size] = path
    return tuple(last.values())


def _large(there: Mapping[str, Shape], found: tuple[str, ...]) -> tuple[str, ...]:
    large = tuple(path for path in found if min(there[path][1:]) >= SMALLEST)
    return large or tuple(sorted(found, key=lambda path: there[path][1] * there[path][2])[-1:])


def _offered(there: Mapping[str, Shape], size: int | None = None, most: int = 60) -> str:
    listed = [f"{path} ({_written(shape)})" for path, shape in there.items() if size in (None, len(shape))]
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def _written(shape: Shape) -> str:
    return "×".join(map(str, shape))
