"""Networks of torchvision and timm: names, heads, and initial weights."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, assert_never

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from smallalign_core.errors import BadModel, BadSpec
from smallalign_core.spec import GivenNetwork, LibraryNetwork, PythonNetwork, Timm, Torchvision
from smallalign_core.spec.parts import USUAL_SIZE
from smallalign_core.system import extras
from smallalign_core.system.sandbox import COUNTERS, shared

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUXILIARY = ("AuxLogits", "aux1", "aux2", "aux_logits")  # heads that only ImageNet training uses
SMALL = 0.01  # standard deviation of a new head that is not zero
OURS = "body."  # in the files that `to_bytes` writes, the network's own tensors are named so


def build(
    spec: Torchvision | Timm, classes: int
) -> tuple[nn.Module, nn.Module, tuple[Sequence[float], Sequence[float]] | None]:
    """(network, its head, mean and std that its weights expect); the last is None for random weights.

    Raises:
        BadSpec: the library has no such network, or its ImageNet weights cannot be had.
        BadModel: the file to start from is not what it was, or of another network.
    """
    match spec:
        case Timm():
            network, head, normal = _timm(spec, classes)
        case Torchvision():
            network, head, normal = _torchvision(spec, classes)
        case _:
            assert_never(spec)
    if spec.weights is not None:
        normal, new = _start_from(spec, network, head, normal)
    elif spec.pretrained:
        new = not (isinstance(spec, Timm) and network.pretrained_cfg["num_classes"] == classes)  # type: ignore[index]
    else:
        return network, head, None
    if new:
        _begin_small(head)
    if spec.frozen:
        _freeze(network, head)
    return network, head, normal


def input_size(spec: LibraryNetwork) -> int:
    """The side of the images that the network sees: the spec's, else that of the weights that it starts from.

    A file of SmallAlign has its own size in it. Of others it is the size of the pretrained weights of the same name,
    since that is what such files were begun from; 64 where nothing starts from weights, or the library states none.

    Raises:
        BadSpec: the library has no such network.
    """
    if spec.size is not None:
        return spec.size
    if not spec.begins:
        return USUAL_SIZE
    return (spec.weights and _written_size(Path(spec.weights))) or _pretrained_size(spec) or USUAL_SIZE


def _written_size(file: Path) -> int | None:
    """The input size of a network of a library in a file that `to_bytes` wrote; None of other files."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {})["smallalign"])["network"]["size"]
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):  # what reads the weights says what is wrong
        return None
    return found if isinstance(found, int) and found >= 32 else None


def _pretrained_size(spec: LibraryNetwork) -> int | None:
    """What the library states for its pretrained weights: timm in `pretrained_cfg`, torchvision in their transforms."""
    if isinstance(spec, Timm):
        timm = _known_to_timm(spec.name)
        facts = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
        return max(facts.input_size[1:]) if facts is not None and facts.input_size else None
    from torchvision import models

    _known_to_torchvision(spec.name)
    weights = getattr(models.get_model_weights(spec.name), "DEFAULT", None)
    crop = getattr(weights.transforms(), "crop_size", None) if weights is not None else None
    return max(crop) if crop else None


def where_weights_are(name: str) -> str:
    """Where the pretrained weights of a network of timm come from: `cache`, `download`, or `file`, where the hub is
    switched off (HF_HUB_OFFLINE) and only `weights` brings some.

    Raises:
        MissingExtra: timm is not installed.
        BadSpec: it has no such network.
    """
    facts = _known_to_timm(name).get_pretrained_cfg(name)
    hub = extras.load("huggingface_hub", "pretrained weights")  # timm brings it
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(hub.try_to_load_from_cache(facts.hf_hub_id, file), str) for file in files):
        return "cache"
    return "file" if hub.constants.HF_HUB_OFFLINE else "download"


def _unknown(library: str, name: str, offered: Sequence[str], list_models: str) -> NoReturn:
    near = difflib.get_close_matches(name, offered, n=3)
    raise BadSpec(
        f"{library} has no classification model of that name",
        given=name,
        do=f"try {' or '.join(near)}" if near else f"see {list_models}()",
    )


def _unreachable(spec: LibraryNetwork, error: Exception, where: str) -> NoReturn:
    raise BadSpec(
        f"the weights of {spec.name} are not cached and could not be downloaded ({type(error).__name__})",
        given=where,
        do="connect to the internet once, give `weights`, or set pretrained: false",
    ) from None


def _known_to_torchvision(name: str) -> None:
    from torchvision import models

    offered = models.list_models(module=models)
    if name not in offered:
        _unknown("torchvision", name, offered, "torchvision.models.list_models")


def _known_to_timm(whole: str) -> Any:
    """timm, which has a model of that name."""
    timm = extras.load("timm", f"the network timm:{whole}")  # imported only here: it costs seconds
    name, _, tag = whole.partition(".")
    if not timm.is_model(name):
        _unknown("timm", name, timm.list_models(), "timm.list_models")
    if tag and whole not in timm.list_models(f"{name}.*", pretrained=True):
        _unknown("timm", whole, timm.list_models(f"{name}.*", pretrained=True), "timm.list_pretrained")
    return timm


def _torchvision(spec: LibraryNetwork, classes: int) -> tuple[nn.Module, nn.Module, Any]:
    from torchvision import models

    _known_to_torchvision(spec.name)
    options: dict[str, Any] = {"aux_logits": False} if spec.name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception announce a change of their default initialisation
        if not spec.pretrained:
            network: nn.Module = models.get_model(spec.name, weights=None, num_classes=classes, **options)
            return network, network.get_submodule(head_name(network, classes)), (IMAGENET_MEAN, IMAGENET_STD)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the download announces itself; stdout is for the answer
                network = models.get_model(spec.name, weights="DEFAULT")
        except OSError as error:  # urllib's errors are OSErrors
            _unreachable(spec, error, f"looked in {torch.hub.get_dir()}")
    for attribute in AUXILIARY[:3]:
        if hasattr(network, attribute):
            setattr(network, attribute, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False  # type: ignore[assignment]
    return network, _new_head(network, classes), (IMAGENET_MEAN, IMAGENET_STD)


def _timm(spec: LibraryNetwork, classes: int) -> tuple[nn.Module, nn.Module, Any]:
    timm = _known_to_timm(spec.name)

    def make(**options: Any) -> nn.Module:
        with contextlib.redirect_stdout(sys.stderr):
            return timm.create_model(spec.name, pretrained=spec.pretrained, num_classes=classes, **options)

    try:
        network = _at_size(make, input_size(spec))
    except Exception as error:  # noqa: BLE001  # the hub's errors share no base class
        if not spec.pretrained:
            raise BadSpec(f"timm cannot build {spec.name}: {error}", do="choose another model or size") from None
        _unreachable(spec, error, "looked in the cache of the Hugging Face hub")
    head = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise BadSpec("this model has several heads", given=spec.name, do="choose another model")
    facts: Any = network.pretrained_cfg
    return network, head, (facts["mean"], facts["std"])


def _at_size(make: Callable[..., nn.Module], size: int) -> nn.Module:
    """Transformers take the size of their input; other networks have no such argument."""
    try:
        return make(img_size=size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return make()


def head_name(network: nn.Module, outputs: int) -> str:
    """The last layer that gives so many outputs."""
    for name, module in reversed(list(network.named_modules())):
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == outputs and hasattr(
            module, "weight"
        ):
            return name
    raise BadSpec(f"this model has no head of {outputs:,} classes to replace", do="choose another model")


def _new_head(network: nn.Module, classes: int) -> nn.Module:
    """Put a head for `classes` where the one for ImageNet's 1,000 is."""
    name = head_name(network, 1000)
    old = network.get_submodule(name)
    new = (
        nn.Conv2d(old.in_channels, classes, 1) if isinstance(old, nn.Conv2d) else nn.Linear(old.in_features, classes)  # type: ignore[arg-type]
    )
    setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
    return new


def _begin_small(head: nn.Module) -> None:
    """Start a new head at zero, so that the first loss is log(classes) and the body's first gradient is zero.

    timm's EfficientNets and MobileNets draw it 10 to 11 times as large as a linear layer's usual start: at ten classes
    the first loss is then 5 to 6 nats, and its gradients spoil what the body has learned. A convolution is drawn small
    instead: behind SqueezeNet's stands a ReLU, which passes no gradient at zero.
    """
    with torch.no_grad():
        for parameter in head.parameters():
            if isinstance(head, nn.Linear) or parameter.ndim < 2:
                parameter.zero_()
            else:
                nn.init.normal_(parameter, std=SMALL)


def begin(
    spec: PythonNetwork, network: nn.Module, head: nn.Module, normal: tuple[Sequence[float], Sequence[float]]
) -> tuple[Sequence[float], Sequence[float]]:
    """Load the initial weights of a user's network; a head for other classes starts at zero. Returns the mean and std
    that they expect: those of the spec, or of a file that SmallAlign wrote.

    Raises:
        BadModel: the file has changed, or belongs to another network.
        BadSpec: the head is to be trained alone or at its own rate, and none was found.
    """
    if (spec.frozen or spec.head_rate != 1) and not list(head.parameters()):
        raise BadSpec(
            "the network has no last linear layer with one output per class that could be found",
            given=spec.shown,
            do="leave `frozen` and `head_rate` out, or end the network in an nn.Linear of `classes` outputs",
        )
    normal, new = _start_from(spec, network, head, normal)
    if new:
        _begin_small(head)
    if spec.frozen:
        _freeze(network, head)
    return normal


def _freeze(network: nn.Module, head: nn.Module) -> None:
    network.requires_grad_(False)
    head.requires_grad_(True)


def _start_from(
    spec: GivenNetwork, network: nn.Module, head: nn.Module, normal: tuple[Sequence[float], Sequence[float]]
) -> tuple[tuple[Sequence[float], Sequence[float]], bool]:
    """Load the file's tensors; a head for other classes is new.

    Returns:
        The mean and std that they expect, and whether the head is new.
    """
    assert spec.weights is not None
    try:
        content = Path(spec.weights).read_bytes()
        if spec.weights_sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise BadModel(
                "the initial weights file has changed",
                given=spec.weights,
                do="restore the file, or submit the spec again",
            )
        given = load(content)
    except (OSError, SafetensorError) as error:
        raise BadModel(
            f"the initial weights cannot be read ({type(error).__name__})",
            given=spec.weights,
            do="give a .safetensors file",
        ) from None
    if {"mean", "std"} <= set(given) and any(name.startswith(OURS) for name in given):  # one of our own
        normal = given["mean"].flatten().tolist(), given["std"].flatten().tolist()
        given = {name.removeprefix(OURS): tensor for name, tensor in given.items() if name.startswith(OURS)}
    if isinstance(spec, LibraryNetwork):
        given = {name: tensor for name, tensor in given.items() if not name.startswith(AUXILIARY)}
    wanted = network.state_dict()
    given = _unwrapped(given, wanted)
    if isinstance(spec, Timm):
        given = _at_grid(network, given, wanted)
    place = next((name for name, module in network.named_modules() if module is head), "-")
    heads = {f"{place}.weight", f"{place}.bias"} & set(wanted)
    if any(name not in given or given[name].shape != wanted[name].shape for name in heads):
        given = {name: tensor for name, tensor in given.items() if name not in heads}
    else:
        heads = set()
    _refuse_others(spec, given, {name: tensor for name, tensor in wanted.items() if name not in heads})
    network.load_state_dict(as_saved_by(network, given), strict=False)
    return normal, bool(heads)


def _at_grid(network: nn.Module, given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a vision transformer's position embeddings interpolated to its grid of patches, as timm loads
    weights of another input size: DINOv2's are of 518 pixels."""
    name, grid = "pos_embed", getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or name not in given or name not in wanted or given[name].shape == wanted[name].shape:
        return given
    if given[name].ndim != 3 or given[name].shape[-1] != wanted[name].shape[-1]:
        return given  # of another network: refused below
    timm = extras.load("timm", "position embeddings")
    prefix = 0 if getattr(network, "no_embed_class", False) else getattr(network, "num_prefix_tokens", 1)
    return given | {name: timm.layers.resample_abs_pos_embed(given[name], list(grid), num_prefix_tokens=prefix)}


def as_saved_by(network: nn.Module, tensors: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Tensors with the versions that `network` writes beside its own: MNASNet refuses a state dict without."""
    given = OrderedDict(tensors)
    given._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return given


def _unwrapped(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what training code put before all names, unless the network's own begin so."""
    kept = {name: tensor for name, tensor in given.items() if name in wanted or name not in COUNTERS}
    parts = {part for name in kept for part in name.split(".")[:-1]} - {name.partition(".")[0] for name in wanted}
    prefix = shared(kept, parts)
    return {name[len(prefix) :]: tensor for name, tensor in kept.items()}


def _refuse_others(spec: GivenNetwork, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in wanted]
    odd = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if missing or unknown or odd:
        first = (odd or missing or unknown)[0]
        raise BadModel(
            f"the weights are of another network than {spec.name}",
            given=f"{len(missing)} tensors are missing, {len(unknown)} unknown, {len(odd)} of another shape: {first}",
            do="choose the network that they belong to",
        )
