"""The contract of a network: what training, resuming, caching of logits and export rely on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallalign_core import networks
from smallalign_core.networks import Classifier, onnx_graph
from smallalign_core.spec import PythonNetwork

Result = str | tuple[bool | None, str]
ROUNDING = 1e-4
"""Largest difference of logits that rounding explains, in units of the largest logit."""


def checks(
    spec: PythonNetwork, classes: int, shape: tuple[int, int, int]
) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    """Names, the words where they pass, and checks, in order."""
    made: dict[str, Classifier] = {}

    def one() -> Classifier:
        return copy.deepcopy(made["one"])

    def build() -> Result:
        made["one"] = _built(spec, classes, shape)
        size = networks.measure(made["one"])
        return True, f"logits [N, {classes}]; {size.params:,} parameters, {size.macs:,} multiply-accumulates per image"

    yield "shapes", "", build
    if "one" not in made:
        return
    yield (
        "number of classes",
        "another number of classes gives so many logits",
        lambda: _other_classes(spec, classes, shape),
    )
    yield (
        "reproducible initialization",
        "equal seeds give equal weights",
        lambda: _equal_seeds(spec, classes, shape),
    )
    yield "deterministic in evaluation", "two forward passes give equal logits", lambda: deterministic(one())
    yield "batch independence", "an image alone and in a batch has equal logits", lambda: batch_independent(one())
    yield "gradient flow", "a finite gradient reaches every parameter", lambda: all_learn(one())
    yield (
        "state_dict round trip",
        "another network with these weights gives equal logits",
        lambda: round_trip(one(), _built(spec, classes, shape, seed=1)),
    )
    yield "ONNX export", "", lambda: exported(one())
    yield "last layer", "", lambda: _last(one())


def _built(spec: PythonNetwork, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Classifier:
    half = [0.5] * shape[0]
    return networks.build(spec, [str(one) for one in range(classes)], shape, mean=half, std=half, seed=seed)


def images(classifier: Classifier, count: int = 6, seed: int = 0) -> Tensor:
    """Random images uint8 [N, channels, H, W] of the size of a classifier."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *classifier.input_shape), dtype=torch.uint8, generator=draw)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-3))


def _other_classes(spec: PythonNetwork, classes: int, shape: tuple[int, int, int]) -> Result:
    _built(spec.model_copy(update={"weights": None, "weights_sha256": None}), classes + 3, shape)
    return ""


def _equal_seeds(spec: PythonNetwork, classes: int, shape: tuple[int, int, int]) -> Result:
    one, other = (_built(spec, classes, shape, seed=3).state_dict() for _ in range(2))
    odd = [name for name in one if not torch.equal(one[name], other[name])]
    if odd:
        return f"two networks of one seed differ in {odd[0]}: draw initial weights by torch's generator only"
    return ""


def deterministic(classifier: Classifier) -> str:
    """Two forward passes in evaluation mode give the same logits: no dropout is left, nothing is counted."""
    given = images(classifier)
    classifier.eval()
    with torch.no_grad():
        one, other = classifier(given), classifier(given)
    if torch.equal(one, other):
        return ""
    return f"two forward passes differ by {_apart(one, other):.2g} of the largest logit: is there dropout in eval mode?"


def batch_independent(classifier: Classifier) -> str:
    """In evaluation mode the logits of an image do not depend on the other images of its batch."""
    given = images(classifier)
    classifier.eval()
    with torch.no_grad():
        together, alone = classifier(given), torch.cat([classifier(one[None]) for one in given])
    if (gap := _apart(together, alone)) <= ROUNDING:
        return ""
    return (
        f"the logits of an image alone and in a batch differ by {gap:.2g} of the largest logit: "
        "normalise over an image, not over the batch"
    )


def all_learn(classifier: Classifier) -> str:
    """A gradient that is finite and not zero reaches every parameter in a training step."""
    given = images(classifier, 16)
    labels = torch.arange(16) % len(classifier.classes)
    learning = {name: weight for name, weight in classifier.named_parameters() if weight.requires_grad}
    if not learning:
        return "no parameter requires a gradient"
    classifier.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = F.cross_entropy(classifier(given).float(), labels)
        slopes = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    names = {name.removeprefix("body."): slope for name, slope in zip(learning, slopes, strict=True)}
    if odd := [name for name, slope in names.items() if slope is not None and not slope.isfinite().all()]:
        return f"the gradient of {odd[0]} is not finite"
    if none := [name for name, slope in names.items() if slope is None or not slope.abs().sum()]:
        more = f" and {len(none) - 1} more" if len(none) > 1 else ""
        return f"no gradient reaches {none[0]}{more}: is it used in forward, and not detached?"
    return ""


def round_trip(classifier: Classifier, other: Classifier) -> str:
    """The state_dict of a network gives another one of the same kind its logits."""
    given = images(classifier)
    classifier.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        classifier(given)  # statistics of batch norms move
    classifier.eval()
    kept = {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
    try:
        other.load_state_dict(kept)
    except (RuntimeError, KeyError) as error:
        return f"its state_dict cannot be loaded: {' '.join(str(error).split())[:200]}"
    other.eval()
    with torch.no_grad():
        gap = _apart(classifier(given), other(given))
    if gap > ROUNDING:
        return (
            f"after loading its state_dict, logits differ by {gap:.2g} of the largest logit: "
            "register tensors as parameters or buffers"
        )
    return ""


def exported(classifier: Classifier) -> Result:
    """The network can be exported to ONNX, and ONNX Runtime gives the same logits, also for another batch size."""
    classifier.eval()
    with torch.no_grad():
        prepared = classifier.prepare(images(classifier, 5)).contiguous()
        content = onnx_graph.of_body(classifier.body, prepared)
        session: nn.Module = onnx_graph.Graph(content)
        gap = max(_apart(classifier.body(some), session(some)) for some in (prepared, prepared[:1], prepared[:3]))
    if gap > ROUNDING:
        return f"ONNX Runtime's logits differ by {gap:.2g} of the largest logit"
    return True, f"{len(content):,} bytes; largest difference {gap:.1g} of the largest logit"


def _last(classifier: Classifier) -> Result:
    name = next(
        (name for name, module in classifier.body.named_modules() if module is networks.head(classifier) and name), None
    )
    if name is None:
        return None, "no layer of so many outputs was found: weights for other classes cannot be loaded partly"
    return True, f"{name or 'the network itself'}: new where initial weights are for other classes"
