"""One learner of a lockstep: its network, its optimizer, what it is scored by, and its best weights so far."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from smallalign_core import networks, optim
from smallalign_core.evaluate import Scores
from smallalign_core.networks import Classifier
from smallalign_core.spec import RunSpec


@dataclass
class Student:
    """One learner of a lockstep.

    Attributes:
        companion: what its loss learns beside it.
        call: the network, joined with those of other processes; `fast`: the same, compiled if that was asked for.
        average: of its weights, where an `ema` keeps one; then that is scored.
        learning: the weights that the optimizer moves.
        learns: whether it still takes steps; `stuck`: whether its optimizer cannot take another one.
        gradients: gradients of the loss that its steps asked for so far.
        best_weights: by validation so far, of what is scored.
    """

    spec: RunSpec
    classifier: Classifier
    companion: nn.Module | None
    call: Callable[[Tensor], Tensor]
    fast: Callable[[Tensor], Tensor]
    steps: int
    optimizer: torch.optim.Optimizer = field(init=False)
    average: AveragedModel | None = field(init=False)
    learning: list[nn.Parameter] = field(init=False)
    learns: bool = True
    stuck: bool = False
    gradients: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, -float("inf"))
    sums: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Make the optimizer and the average anew from the weights as they are: Lookahead copies its slow ones now."""
        model = nn.ModuleList([self.classifier, self.companion]) if self.companion else self.classifier
        head = networks.head(self.classifier)
        self.optimizer = optim.build(self.spec.optimizer, model, self.steps, head=head)
        self.average = optim.average(self.spec.optimizer, self.classifier)
        self.learning = [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def step(self, closure: Callable[[], Tensor] | None) -> None:
        """Take a step; the gradient is there. `closure` is what some optimizers ask for besides."""
        self.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs want a float
        if self.average is not None:
            self.average.update_parameters(self.classifier)

    @contextlib.contextmanager
    def norms_at_rest(self) -> Iterator[None]:
        """Let batch norms use a batch's statistics without keeping them: they count a step once."""
        norms = [one for one in self.classifier.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    def consider(self, scored: Classifier, scores: Scores, epoch: int) -> bool:
        """Keep the weights that were scored if they are the best on validation: by accuracy, then by likelihood."""
        rank = (scores.accuracy, -scores.nll)
        if rank <= self.best_score:
            return False
        self.best_score, self.best_epoch = rank, epoch
        self.best_weights = {name: tensor.detach().clone() for name, tensor in scored.state_dict().items()}
        return True

    def best(self) -> Classifier:
        """A copy of the classifier with its best weights."""
        classifier = copy.deepcopy(self.classifier)
        classifier.load_state_dict(self.best_weights)
        return classifier.eval()

    def measure_shares(self, parts: Mapping[str, Tensor]) -> None:
        """Compare the lengths of the gradients that the terms of the loss ask for."""
        if len(parts) == 1:
            self.shares = dict.fromkeys(parts, 1.0)
            return
        weights = [weight for weight in self.classifier.parameters() if weight.requires_grad]
        lengths = {}
        for name, part in parts.items():
            slopes = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
            squares = [slope.float().square().sum() for slope in slopes if slope is not None]
            lengths[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        total = sum(lengths.values())
        self.shares = {name: length / total if total else 0.0 for name, length in lengths.items()}

    def state(self) -> dict[str, Any]:
        """All that it needs to go on as if nothing had happened: plain tensors, numbers and text."""
        return {
            "weights": self.classifier.state_dict(),
            "companion": self.companion.state_dict() if self.companion else {},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "gradients": self.gradients,
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "sums": self.sums,
            "shares": self.shares,
        }

    def restore(self, kept: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state`."""
        self.classifier.load_state_dict(kept["weights"])
        if self.companion:
            self.companion.load_state_dict(kept["companion"])
        self.begin()
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.average:
            self.average.load_state_dict(kept["average"])
        self.gradients = kept.get("gradients", kept["step"])  # checkpoints did not always say
        self.best_weights = {name: tensor.to(device) for name, tensor in kept["best_weights"].items()}
        self.best_epoch, self.best_score = kept["best_epoch"], tuple(kept["best_score"])
        self.sums = {name: tensor.to(device) for name, tensor in kept["sums"].items()}
        self.shares = kept["shares"]
