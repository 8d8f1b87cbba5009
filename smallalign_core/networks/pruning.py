"""Structured pruning: networks with fewer channels in some layers.

Which weights depend on one another is found by torch-pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023);
a channel's importance is the norm of its group of weights, averaged over the layers of the group.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.spec import Pruned
from smallalign_core.system import extras

if TYPE_CHECKING:
    from smallalign_core.networks import Classifier

Criterion = Literal["l2", "l1"]
KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
"""Layers that can lose channels."""
LEAST = 0.05
"""At least this share of the channels of a group is kept."""


# --- widths -----------------------------------------------------------------------------------------------------------


def resize(body: nn.Module, pruned: Pruned | None, shape: tuple[int, int, int], classes: int) -> None:
    """Give the layers of a fresh body their pruned widths, with new initial weights.

    Args:
        shape: (channels, height, width) of what the body gets.

    Raises:
        BadSpec: there is no such layer, it cannot have that width, or the widths do not fit one another.
    """
    if pruned is None:
        return
    layers = dict(body.named_modules())
    for name, outputs, inputs in pruned.widths:
        layer = layers.get(name)
        if not isinstance(layer, KINDS):
            raise _unfit("has no such layer that can be pruned", name)
        had = _widths(layer)
        if outputs > had[0] or inputs > had[1]:
            raise _unfit("has a layer with fewer channels than that", f"{name}: {outputs}, {inputs}; it has {had}")
        _set_widths(layer, outputs, inputs)
    was_training = body.training
    try:
        with torch.no_grad():
            made = body.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError) as error:
        raise _unfit("has layers of widths that do not fit one another", str(error).splitlines()[0]) from None
    body.train(was_training)
    if made.shape != (1, classes):
        raise _unfit("has another number of outputs than classes", f"{made.shape[-1]} for {classes} classes")


def _unfit(what: str, given: str) -> BadSpec:
    return BadSpec(
        f"the pruned network {what}", given=given, do="take `network.pruned` unchanged from the spec of a pruned run"
    )


def _widths(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a layer, as the shape of its weights has them; inputs 1 where it has no such axis."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight.shape[1] if weight.ndim > 1 else 1


def _set_widths(layer: nn.Module, outputs: int, inputs: int) -> None:
    """Change the widths of a layer; its weights are new."""
    match layer:
        case nn.Conv2d():
            depthwise = layer.groups == layer.in_channels == layer.out_channels
            if layer.groups > 1 and not depthwise:
                raise _unfit("has a grouped convolution, which cannot be pruned", f"groups {layer.groups}")
            layer.groups = outputs if depthwise else 1
            layer.in_channels, layer.out_channels = (outputs, outputs) if depthwise else (inputs, outputs)
            shape: tuple[int, ...] = (outputs, inputs, *layer.kernel_size)
        case nn.Linear():
            layer.in_features, layer.out_features = inputs, outputs
            shape = (outputs, inputs)
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            layer.num_features = outputs
            shape = (outputs,)
            for name in ("running_mean", "running_var"):
                setattr(layer, name, torch.zeros(outputs))
        case _:
            raise AssertionError(f"{type(layer).__name__} is not among KINDS")
    layer.weight = nn.Parameter(torch.empty(shape))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty(outputs))
    layer.reset_parameters()


# --- choosing channels ------------------------------------------------------------------------------------------------


def plan(
    classifier: Classifier,
    head: nn.Module,
    size: Callable[[Classifier], int],
    share: float,
    criterion: Criterion,
    whole: nn.Module,
) -> Pruned:
    """The widths with which a classifier has at most a share of its size: all groups ranked together, so that layers
    whose channels matter less lose more of them.

    Args:
        head: its last layer, which keeps its outputs.
        size: what counts, such as the number of multiply-accumulates.
        share: of the classifier's, between 0 and 1.
        whole: the body before any pruning, whose widths are those of its spec.

    Raises:
        BadInput: the network cannot be pruned, or not as far.
        MissingExtra: torch-pruning is not installed.
    """
    limit = share * size(classifier)
    scores = _scores(classifier, head, criterion)
    ranked = sorted(value for values in scores.values() for value in values)

    def without(count: int) -> Classifier:
        """The classifier without about so many of its weakest channels."""
        most = ranked[count - 1] if count else -1.0
        away = {
            name: min(sum(value <= most for value in values), len(values) - max(1, math.ceil(LEAST * len(values))))
            for name, values in scores.items()
        }
        copied = copy.deepcopy(classifier)
        _take(copied, _same(head, classifier, copied), away, criterion)
        return copied

    low, high, found = 0, len(ranked), without(len(ranked))
    if (smallest := size(found)) > limit:
        raise BadInput(
            "the network cannot be pruned that far",
            given=f"{share:.1%}",
            do=f"give at least {math.ceil(1000 * smallest / size(classifier)) / 10:g}%, or train a smaller network",
        )
    while high - low > 1:
        middle = (low + high) // 2
        tried = without(middle)
        if size(tried) <= limit:
            high, found = middle, tried
        else:
            low = middle
    base = dict(whole.named_modules())
    widths = []
    for name, layer in found.body.named_modules():
        if not isinstance(getattr(layer, "weight", None), Tensor):
            continue
        if _widths(layer) != _widths(base[name]):
            if not isinstance(layer, KINDS):
                raise _cannot(f"a layer {type(layer).__name__} depends on their number of channels")
            widths.append((name, *_widths(layer)))
    return Pruned(widths=tuple(widths), criterion=criterion)


def shrink(classifier: Classifier, pruned: Pruned, head: nn.Module) -> None:
    """Take the weakest channels of a classifier away, until its layers have these widths.

    Args:
        head: its last layer, which keeps its outputs.

    Raises:
        BadInput: the network cannot be pruned.
        MissingExtra: torch-pruning is not installed.
    """
    wanted = {name: outputs for name, outputs, _ in pruned.widths}
    have = {name: _widths(layer)[0] for name, layer in classifier.body.named_modules() if isinstance(layer, KINDS)}
    _take(classifier, head, {name: have[name] - outputs for name, outputs in wanted.items()}, pruned.criterion)


def _scores(classifier: Classifier, head: nn.Module, criterion: Criterion) -> dict[str, list[float]]:
    """The importance of each channel of each group, relative to the mean of its group, by the group's first layer."""
    copied = copy.deepcopy(classifier)
    with _Graph(copied, _same(head, classifier, copied)) as graph:
        found = {}
        for name, group in graph.groups().items():
            if (values := graph.importance(criterion)(group)) is not None:
                found[name] = [float(value) for value in values]
        return found


def _take(classifier: Classifier, head: nn.Module, away: Mapping[str, int], criterion: Criterion) -> None:
    """Remove so many of the weakest channels of each group, by the group's first layer."""
    with _Graph(classifier, head) as graph:
        weakest = []
        for name, group in graph.groups().items():  # all before the first one changes the others
            scores = graph.importance(criterion)(group) if away.get(name, 0) > 0 else None
            if scores is not None:
                dependency, rows = group[0]
                order = torch.argsort(scores, stable=True)[: away[name]]
                weakest.append((dependency.target.module, dependency.handler, [rows[at] for at in order.tolist()]))
        for layer, handler, channels in weakest:
            graph.dependencies.get_pruning_group(layer, handler, channels).prune()
        with torch.no_grad():
            classifier.body(graph.example)


class _Graph:
    """torch-pruning's view of a classifier's body, in plain memory order and in evaluation mode; what it raises inside
    means that the network cannot be pruned."""

    def __init__(self, classifier: Classifier, head: nn.Module) -> None:
        self.library: Any = extras.load("torch_pruning", "pruning")
        if isinstance(head, nn.Identity):
            raise _cannot("its last layer cannot be found")
        kinds = {type(layer).__name__ for layer in classifier.body.modules()}
        if mixers := sorted(one for one in kinds if "Attention" in one or "LayerNorm" in one):
            raise _cannot(f"it has {mixers[0]}: heads and residual widths of transformers are fixed by its code")
        if any(
            isinstance(layer, nn.Conv2d)
            and layer.groups > 1
            and not layer.groups == layer.in_channels == layer.out_channels
            for layer in classifier.body.modules()
        ):
            raise _cannot("it has grouped convolutions that are not depthwise")
        self.body, self.head = classifier.body, head
        self.example = torch.zeros(1, classifier.mean.shape[1], *classifier.inner_size)

    def __enter__(self) -> _Graph:
        self.body.eval().to(memory_format=torch.contiguous_format)
        for parameter in self.body.parameters():
            parameter.requires_grad_(True)  # the graph is traced by automatic differentiation
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._quiet.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, BadInput | MemoryError | OSError):
            raise _cannot(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error

    @property
    def dependencies(self) -> Any:
        """The dependency graph, traced once."""
        if not hasattr(self, "_dependencies"):
            self._dependencies = self.library.DependencyGraph().build_dependency(self.body, example_inputs=self.example)
        return self._dependencies

    def groups(self) -> dict[str, Any]:
        """All groups of weights that lose channels together, by the name of their first layer."""
        names = {layer: name for name, layer in self.body.named_modules()}
        ignored = list(self.head.modules())
        every = self.dependencies.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear])
        return {names[group[0].dep.target.module]: group for group in every}

    def importance(self, criterion: Criterion) -> Any:
        """Scores of the channels of a group: float [channels]."""
        return self.library.importance.GroupMagnitudeImportance(p=2 if criterion == "l2" else 1)


def _same(layer: nn.Module, origin: nn.Module, copied: nn.Module) -> nn.Module:
    """The layer of a copy that is `layer` in the original."""
    name = next((name for name, one in origin.named_modules() if one is layer), None)
    return layer if name is None else copied.get_submodule(name)


def _cannot(reason: str) -> BadInput:
    return BadInput(
        "this network cannot be pruned", given=reason, do="train a smaller network of its family, or another one"
    )
