"""Classifiers: uint8 images in, logits out, with scaling, resizing and normalising inside.

Because preprocessing is inside, teacher and student with different input sizes see the same raw view, the ONNX file
takes raw pixels, and a browser needs no preprocessing of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from smallalign_core.errors import BadModel, BadSpec
from smallalign_core.networks import _headless, _library, _own, _python, pruning
from smallalign_core.networks._bits import baked as baked, in_bits as in_bits, plain_names
from smallalign_core.networks._library import input_size as input_size, where_weights_are as where_weights_are
from smallalign_core.spec import (
    DataSpec,
    GivenNetwork,
    LibraryNetwork,
    Network,
    Pruned,
    PythonNetwork,
    RunSpec,
)
from smallalign_core.system import machine, usercode

MAX_PARAMS = 200_000_000
START = ("pretrained", "frozen", "head_rate", "weights", "weights_sha256", "num_classes")


class BaseClassifier(nn.Module):
    """The interface of all classifiers: uint8 images [N, channels, H, W] in, logits float32 [N, len(classes)] out.

    Attributes:
        body: where a loss may look for layers; empty for what cannot be looked into.
    """

    classes: tuple[str, ...]
    body: nn.Module

    @property
    def learned_side(self) -> int | None:
        """Pixels a side of the images that it learned from, as far as its network saw them; None if that is unknown."""
        return None


class Classifier(BaseClassifier):
    """A network together with its preprocessing and its classes.

    Args:
        body: float32 [N, channels, height, width] (normalised) -> logits [N, len(classes)].
        classes: the class names, in the order of the logits.
        input_shape: (channels, height, width) of the images it is trained on.
        mean, std: per channel, of pixels scaled to 0..1.
        size: side to which `forward` resizes; None keeps `input_shape`.
        probe: the only layer that learns, for a frozen body; None lets all of it learn.
        channels_last: whether the body may get the faster memory order of convolutions.
        pruned: which layers of the body are smaller than its network has them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        classes: Sequence[str],
        input_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
        probe: nn.Module | None = None,
        channels_last: bool = True,
        pruned: Pruned | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.pruned = pruned
        self.classes = tuple(classes)
        self.input_shape = input_shape
        self.inner_size = (size, size) if size else input_shape[1:]
        self._probe = (probe,)  # in a tuple, so that it is not registered a second time
        convolutions = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
        self.channels_last = channels_last and bool(convolutions) and not any(map(_corrupts, convolutions))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        if self.channels_last:
            self.body.to(memory_format=torch.channels_last)

    @property
    def learned_side(self) -> int:
        """The longer side of its images, or the one to which it resizes them if that is shorter."""
        return min(max(self.input_shape[1:]), max(self.inner_size))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, classes] of uint8 images [N, channels, H, W], any H and W."""
        return self.body(self.prepare(images))

    def train(self, mode: bool = True) -> Self:
        """As every module's; a frozen body stays in evaluation mode, so that its batch norms do not drift."""
        super().train(mode)
        if self._probe[0] is not None:
            self.body.eval()
            self._probe[0].train(mode)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's, for plain mappings too: checkpoints and safetensors keep no versions of layers."""
        return super().load_state_dict(_library.as_saved_by(self, state_dict), strict, assign)

    def prepare(self, images: Tensor, *, always_resize: bool = False) -> Tensor:
        """What the body sees: float32, resized, channels matched, normalised.

        Args:
            images: uint8 [N, channels, H, W].
            always_resize: resize even when the size fits already; an exported graph must, whatever H and W it meets.
        """
        x = images.to(torch.float32) / 255
        if always_resize or tuple(x.shape[-2:]) != self.inner_size:
            x = F.interpolate(x, size=self.inner_size, mode="bilinear", align_corners=False, antialias=True)
        wanted = self.mean.shape[1]
        if x.shape[1] != wanted:
            x = x.expand(-1, wanted, -1, -1) if wanted == 3 else x.mean(1, keepdim=True)
        x = (x - self.mean).div_(self.std)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def _corrupts(layer: nn.Conv2d) -> bool:
    """Whether oneDNN's gradient of this layer's weights writes past its workspace when the input is channels_last.

    Its AVX2 kernel for strided 1 x 1 convolutions of fewer than 8 channels does (oneDNN issue 6035, open in November
    2026): training ends in a crash, a hang or wrong weights. Its AVX-512 kernels and plain memory order are right.
    """
    strided = layer.kernel_size == (1, 1) and max(layer.stride) > 1
    return strided and layer.in_channels // layer.groups < 8 and not machine.avx512()


# --- building, counting, keeping --------------------------------------------------------------------------------------


def _refuse_giants(network: Network, shape: tuple[int, int, int], classes: int) -> None:
    """Count before building: a width and depth that are each allowed may together ask for all of the memory."""
    if isinstance(network, GivenNetwork):
        return
    with torch.device("meta"):
        body = _own.body(network, _own.seen(network, shape), classes)
    params = sum(parameter.numel() for parameter in body.parameters())
    if params > MAX_PARAMS:
        raise BadSpec(
            f"the network would have {params:,} parameters, more than {MAX_PARAMS:,}",
            given=f"{network.kind}, width {network.width}, depth {network.depth}",
            do="lower network.width or network.depth",
        )


def build(
    network: Network,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> Classifier:
    """A freshly initialised classifier; equal arguments give equal weights.

    Args:
        classes: none for a network without a head, which outputs its pooled features [N, F] instead of logits.
        shape: (channels, height, width) of the images.
        mean, std: per channel of the training images, scaled to 0..1. Weights to start from keep their own.

    Raises:
        BadSpec: torchvision or timm has no such model, or its ImageNet weights cannot be had.
        BadModel: the file to start from has changed, or belongs to another network.
        BadInput: the user's Python file cannot be read or imported, may not run, or raised an exception.
    """
    outputs = len(classes) or _headless.OUTPUTS
    _refuse_giants(network, shape, outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(network, PythonNetwork):
            return _of_user(network, classes, shape, mean, std)
        if not isinstance(network, LibraryNetwork):
            seen = _own.seen(network, shape)
            body = _own.body(network, seen, outputs)
            pruning.resize(body, network.pruned, seen, outputs)
            _headless.strip(body, classes, outputs)
            return Classifier(body, classes, shape, mean, std, size=network.size, pruned=network.pruned)
        size = input_size(network)
        body, head, normal = _library.build(network, outputs)
        pruning.resize(body, network.pruned, (3, size, size), outputs)
        _headless.strip(body, classes, outputs)
    if normal is not None:
        mean, std = normal
    elif len(mean) == 1:
        mean, std = [mean[0]] * 3, [std[0]] * 3
    probe = head if network.frozen else None
    return Classifier(body, classes, shape, mean, std, size=size, probe=probe, pruned=network.pruned)


def _of_user(
    network: PythonNetwork,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    normal = _python.normal_of(network, mean, std)
    side = network.size
    seen = (len(normal[0]), side, side) if side else (len(normal[0]), *shape[1:])
    outputs = len(classes) or _headless.OUTPUTS
    body = _python.build(network, outputs, seen)
    pruning.resize(body, network.pruned, seen, outputs)
    params = sum(parameter.numel() for parameter in body.parameters())
    if params > MAX_PARAMS:
        raise BadSpec(
            f"the network has {params:,} parameters, more than {MAX_PARAMS:,}",
            given=network.shown,
            do="make it smaller",
        )
    fast = _python.takes_channels_last(body, seen)
    last = _head_of(body, outputs)
    normal = normal if network.weights is None else _library.begin(network, body, last, normal)
    _headless.strip(body, classes, outputs)
    more: dict[str, Any] = {"probe": last if network.frozen else None, "pruned": network.pruned}
    return Classifier(body, classes, shape, *normal, size=side, channels_last=fast, **more)


def head(classifier: Classifier) -> nn.Module:
    """The last layer, which outputs the logits; an empty module where there is none, or none that can be found in a
    user's network."""
    return _head_of(classifier.body, len(classifier.classes))


def _head_of(body: nn.Module, classes: int) -> nn.Module:
    try:
        return body.get_submodule(_library.head_name(body, classes))
    except BadSpec:
        return nn.Identity()


class Embedder(BaseClassifier):
    """The features before the head of a classifier: uint8 images [N, channels, H, W] to float32 [N, F].

    Those of a network without a head are its output.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.classes, self.body = classifier, (), classifier.body

    @property
    def learned_side(self) -> int | None:
        """That of the classifier."""
        return self.classifier.learned_side

    def forward(self, images: Tensor) -> Tensor:
        """The input of the head for uint8 images [N, channels, H, W]."""
        if not self.classifier.classes:
            found: Tensor = self.classifier(images)
            return found.float()
        caught: list[Tensor] = []
        handle = head(self.classifier).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            self.classifier(images)
        finally:
            handle.remove()
        return caught[0].float()


def feature_width(classifier: Classifier, shown: str) -> int:
    """The number of features before the head, counted by running an image through the network.

    Args:
        shown: what to call it in the message.

    Raises:
        BadModel: they are not one vector an image, or a user's network has no head that can be found.
    """
    was_training, black = classifier.training, torch.zeros((2, *classifier.input_shape), dtype=torch.uint8)
    classifier.eval()
    if classifier.classes and isinstance(head(classifier), nn.Identity):
        _headless.refuse(shown)
    with torch.no_grad():
        made = Embedder(classifier)(black.to(classifier.mean.device))
    classifier.train(was_training)
    if made.ndim != 2:
        _headless.refuse(shown, made)
    return made.shape[1]


@dataclass(frozen=True)
class Size:
    """The size of a classifier.
    Attributes:
            params: numbers that training finds or keeps; a frozen body's count too.
            macs: multiply-accumulates for one image (convolutions and matrix products; half of the counted FLOPs).
    """

    params: int
    macs: int


def measure(classifier: Classifier) -> Size:
    """Parameters and multiply-accumulates of `classifier`, counted by running one image through it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was_training = classifier.training
    image = torch.zeros((1, *classifier.input_shape), dtype=torch.uint8, device=classifier.mean.device)
    # As plain matrix products: PyTorch's counter does not have the fused attention of processors.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        classifier.eval()(image)
    classifier.train(was_training)
    return Size(sum(p.numel() for p in classifier.parameters()), counter.get_total_flops() // 2)


def to_bytes(classifier: Classifier, spec: RunSpec) -> bytes:
    """The weights as a safetensors file that names its own network: the same weights always give the same bytes."""
    facts: dict[str, object] = {
        "network": _architecture(_sized(spec.network).model_dump(mode="json")),
        "classes": list(classifier.classes),
        "input_shape": list(classifier.input_shape),
    }
    if spec.bits:
        facts["bits"] = spec.bits
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    # One metadata key only: safetensors writes several in an order that changes from process to process.
    return save(tensors, metadata={"smallalign": json.dumps(facts, sort_keys=True)})


def _sized(network: Network) -> Network:
    """With the input size of its weights: the file is read where these need not be."""
    update = {"size": input_size(network)} if isinstance(network, LibraryNetwork) else {}
    return network.model_copy(update=update)


def _architecture(network: dict[str, object]) -> dict[str, object]:
    """The fields of a network without those that say what it starts from: a file with weights needs no others. Empty
    fields that came later are left out too, so that files keep the bytes that they had before. A user's
    Python file is named by its digest: neither its name nor its folder may change the bytes."""
    empty = [("size", None), ("pruned", None)]
    kept = {name: value for name, value in network.items() if name not in START and (name, value) not in empty}
    return kept | ({"file": f"{str(kept['sha256'])[:16]}.py"} if kept.get("file") else {})


def begin_from(classifier: Classifier, file: Path) -> None:
    """Put the weights in a file that `to_bytes` wrote into a fresh classifier of the same network; the images' mean and
    deviation come with them. Of few bits, those before rounding are taken. Where both have the same classes in another
    order, the outputs follow the names. A pruned network keeps the strongest channels of one with more. From a network
    without a head, a new one starts at zero.

    Raises:
        BadModel: the file is missing or damaged, or of another network.
        MissingExtra: channels are to be chosen, and the package that groups their weights is not installed.
    """
    origin = from_file(file, learning=True)
    given = plain_names(origin.state_dict())
    wanted = classifier.state_dict()
    if bool(origin.classes) != bool(classifier.classes):  # one of both has no head
        given = _headless.without_head(given, wanted, origin, classifier)
    odd = _other_shapes(given, wanted)
    if odd and classifier.pruned is not None and classifier.pruned != origin.pruned:
        origin = from_file(file)
        pruning.shrink(origin, classifier.pruned, head(origin))
        given = origin.state_dict()
        odd = _other_shapes(given, wanted)
    if odd:
        raise BadModel(
            "the initial weights are of another network",
            given=f"{len(odd)} tensors differ, the first is {odd[0]}",
            do="start from a run with the same network, images of the same size and the same number of classes",
        )
    if origin.classes != classifier.classes and set(origin.classes) == set(classifier.classes):
        rows = [origin.classes.index(name) for name in classifier.classes]
        place = "body." + _library.head_name(classifier.body, len(rows))
        given |= {name: held[rows] for name, held in given.items() if name in (f"{place}.weight", f"{place}.bias")}
    classifier.load_state_dict(given)


def _other_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that only one of both has, or that differ in shape."""
    return [
        name
        for name in {**wanted, **given}
        if getattr(given.get(name), "shape", 0) != getattr(wanted.get(name), "shape", 0)
    ]


def from_file(file: Path, sha256: str | None = None, *, learning: bool = False) -> Classifier:
    """The classifier in a safetensors file that `to_bytes` wrote, in evaluation mode.

    A file of few bits holds the weights before rounding, so that another run can go on from them; the classifier has
    the rounded ones, and its layers are ordinary.

    Args:
        sha256: the digest that the file must have; any without.
        learning: leave them as they learn: rounded anew whenever they are used.

    Raises:
        BadModel: the file is missing, damaged, or not one of ours.
    """
    try:
        with file.open("rb") as stream:
            if sha256 not in (None, hashlib.file_digest(stream, "sha256").hexdigest()):
                raise ValueError
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["smallalign"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        spec = RunSpec.model_validate({"data": DataSpec(source="-"), "network": _architecture(facts["network"])})
        network = spec.network
        if isinstance(network, PythonNetwork) and network.file and network.sha256:  # its copy lies beside the weights
            beside = usercode.copy_in(file.parent, network.sha256) or file.parent / usercode.FOLDER / network.file
            network = network.model_copy(update={"file": str(beside)})
        channels, height, width = map(int, facts["input_shape"])
        plain = [1.0] * tensors["mean"].numel()
        classifier = build(network, facts["classes"], (channels, height, width), mean=plain, std=plain)
        in_bits(classifier, facts.get("bits")).load_state_dict(tensors)
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged, or not a SmallAlign model"
        raise BadModel(
            f"the weights file {reason}", given=file, do="train the run again, or restore the file"
        ) from None
    return (classifier if learning else baked(classifier)).eval()
