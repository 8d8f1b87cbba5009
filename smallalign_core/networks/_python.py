"""Networks of the user's own Python: called, checked on two images, and with the user's errors in words."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadModel, SmallAlignError
from smallalign_core.networks._library import IMAGENET_MEAN, IMAGENET_STD
from smallalign_core.spec import PythonNetwork
from smallalign_core.system import usercode

Normal = tuple[Sequence[float], Sequence[float]]


def normal_of(spec: PythonNetwork, mean: Sequence[float], std: Sequence[float]) -> Normal:
    """Mean and deviation of each channel that the network gets.

    Args:
        mean, std: of the training images.
    """
    match spec.normalize:
        case "imagenet":
            return IMAGENET_MEAN, IMAGENET_STD
        case "unit":
            return [0.0] * len(mean), [1.0] * len(std)
        case "dataset":
            return mean, std


def build(spec: PythonNetwork, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The module that the user's function returns, which gives logits [N, classes].

    Args:
        shape: (channels, height, width) of the normalised images that it gets.

    Raises:
        BadInput: the file cannot be read or imported, the function cannot be called, or raised an exception.
        BadModel: what it returned is no such module.
    """
    channels, height, width = shape
    size: int | tuple[int, int] = height if height == width else (height, width)
    if spec.file is not None:
        function = usercode.function_of(Path(spec.file), spec.call, spec.sha256)
    else:
        function, _ = usercode.entry_of(spec.group, spec.entry or "", spec.package)
    given = {"classes": classes, **spec.arguments}
    body = usercode.called(function, {"channels": channels, "size": size}, given, spec.shown)
    if not isinstance(body, nn.Module):
        _refuse(spec, f"the return value is {_kind(body)}, not a torch.nn.Module", "return the module itself")
    body.eval()
    with torch.no_grad(), running(spec.shown, shape):
        made = body(torch.zeros(2, *shape))  # lazy layers get their shapes here
    check_output(spec.shown, made, (2, classes))
    return body.train()


@contextlib.contextmanager
def running(shown: str, shape: Sequence[int]) -> Iterator[None]:
    """Raise exceptions of a forward or backward pass as errors with the user's line, or with the layer's own words.

    Raises:
        BadInput: there was one.
    """
    try:
        yield
    except SmallAlignError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a layer raises
        raise usercode.explanation(error) or BadModel(
            f"the network does not run on images of shape {list(shape)}: {type(error).__name__}: {error}",
            given=shown,
            do="correct the sizes of its layers: images are float, [N, channels, height, width]",
        ) from None


def check_output(shown: str, made: Any, shape: tuple[int, int]) -> None:
    """Check that a network's output is logits of this shape.

    Raises:
        BadModel: it is not.
    """
    do = f"return logits: a float tensor of shape [images, {shape[1]}], without softmax"
    if not isinstance(made, Tensor):
        raise BadModel(f"the network's output is {_kind(made)}, not a tensor", given=shown, do=do)
    if tuple(made.shape) != shape:
        raise BadModel(
            f"the network's output for {shape[0]} images has shape {list(made.shape)}, not {list(shape)}",
            given=shown,
            do=do,
        )
    if not made.is_floating_point():
        raise BadModel(f"the network's output has dtype {made.dtype}, not a float", given=shown, do=do)


def takes_channels_last(body: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a training step works in the faster memory order of convolutions: `view` refuses it, `flatten` does not.

    Raises:
        BadModel: the module cannot be copied.
        BadInput: a training step raises an exception in either order.
    """
    images, last = torch.rand(2, *shape), torch.channels_last
    for order in (last, torch.contiguous_format):
        try:
            tried = copy.deepcopy(body).train().to(memory_format=order)
        except Exception as error:  # noqa: BLE001  # whatever a module's own method raises
            raise BadModel(
                f"the network cannot be copied, which keeping its best weights needs: {type(error).__name__}: {error}",
                given=type(body).__name__,
                do="let copy.deepcopy of the module work: keep no tensors with gradients as attributes",
            ) from None
        try:
            made = tried(images.contiguous(memory_format=order))
            learning = [weight for weight in tried.parameters() if weight.requires_grad]
            if made.requires_grad and learning:
                torch.autograd.grad(made.float().sum(), learning, allow_unused=True)
            return order is last
        except RuntimeError as error:
            if order is not last:
                with running(type(body).__name__, shape):
                    raise error
    return False


def _kind(made: object) -> str:
    return "None" if made is None else f"of type {type(made).__name__}"


def _refuse(spec: PythonNetwork, wrong: str, do: str) -> NoReturn:
    raise BadModel(f"the function does not give a network: {wrong}", given=spec.shown, do=do)
