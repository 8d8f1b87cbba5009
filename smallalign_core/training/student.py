"""One student of a lockstep: its network, its optimizer, and its best weights so far."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smallalign_core import networks
from smallalign_core.augment import Batch
from smallalign_core.metrics import Scores
from smallalign_core.networks import Classifier
from smallalign_core.spec import RunSpec
from smallalign_core.system import _compat, batching
from smallalign_core.training import losses, optim
from smallalign_core.training.frozen_features import Features
from smallalign_core.training.losses import EmbeddingScores, NetworkOutput
from smallalign_core.training.timer import Timer


@dataclass
class Student:
    """One student of a lockstep.

    Attributes:
        companion: what its loss learns beside it.
        balance: of its label loss.
        call: the network, joined with those of other processes; `fast`: the same, compiled if that was asked for.
        average: of its weights, where an `ema` keeps one; then that is scored.
        learning: the weights that the optimizer moves.
        rate: the learning rate that the schedule scales; `needs`: what a step needs besides the gradient.
        learns: whether it still takes steps; `stuck`: whether its optimizer cannot take another one.
        gradients: gradients of the loss that its steps asked for so far; `evaluations`: losses of a batch without one.
        clock: of its own forward, backward and optimizer; `shared`: of views and teacher, which a lockstep shares.
        state_bytes: what its optimizer keeps.
        saved_bytes: what a backward pass keeps of a step beside the weights; None before it was counted.
        before: own and shared seconds of earlier attempts.
        best_weights: by validation so far, of what is scored; `best_embedding`: its scores, without a head.
        frozen: what is done about the features of a frozen body, as `frozen.standing` says it; None where all learns.
        features: those, where they are kept; then `call` is the head.
    """

    spec: RunSpec
    classifier: Classifier
    companion: nn.Module | None
    balance: losses.ClassBalance
    call: Callable[[Tensor], Tensor]
    fast: Callable[[Tensor], Tensor]
    steps: int
    clock: Timer
    shared: Timer
    state_bytes: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)
    average: AveragedModel | None = field(init=False)
    learning: list[nn.Parameter] = field(init=False)
    rate: float = field(init=False)
    needs: str | None = field(init=False)
    learns: bool = True
    stuck: bool = False
    gradients: int = 0
    evaluations: int = 0
    saved_bytes: int | None = None
    before: tuple[float, float] = (0.0, 0.0)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, -float("inf"))
    best_embedding: EmbeddingScores | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    recent: list[Tensor] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    frozen: str | None = None
    features: Features | None = None

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Make the optimizer and the average anew from the weights as they are: Lookahead copies its slow ones now."""
        model = nn.ModuleList([self.classifier, self.companion]) if self.companion else self.classifier
        head = networks.head(self.classifier)
        rate = self.spec.head_rate
        self.optimizer = optim.build(self.spec.optimizer, model, self.steps, head=head, head_rate=rate)
        self.average = optim.average(self.spec.optimizer, self.classifier)
        self.rate, self.needs = optim.peak_rate(self.spec.optimizer), optim.closure_kind(self.spec.optimizer)
        self.learning = [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def step(self, closure: Callable[..., Tensor] | None) -> None:
        """Take a step; the gradient is there. `closure` is what some optimizers ask for besides, or instead."""
        self.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs want a float
        if self.average is not None:
            self.average.update_parameters(self.classifier)

    def step_gradient_free(
        self, view: Batch, wanted: NetworkOutput | None, epoch: float, begin: Callable[[], None]
    ) -> None:
        """Take a step without a gradient: it evaluates the losses of candidates around the weights.

        All see the same images and the same dropout mask, so that they are compared and not their luck. Batch norms use
        the statistics of the batch, and count those of the weights themselves only.

        Args:
            begin: sets the generator that dropout and the strategy draw from.
        """

        def terms(logits: Tensor) -> dict[str, Tensor]:
            how: dict[str, Any] = {"epoch": epoch, "balance": self.balance}
            parts = losses.terms(self.spec.loss, NetworkOutput(logits), wanted, view.labels, **how)
            return {**parts, "total": sum(parts.values(), start=torch.zeros(()))}

        def tried(candidates: Tensor) -> Tensor:
            self.evaluations += len(candidates)
            with self.freeze_bn_stats():
                said = optim.answers(self.classifier.body, self.spec.network, candidates, prepared, begin)
                return torch.stack([terms(logits)["total"] for logits in said])

        with torch.no_grad():
            begin()
            prepared = self.classifier.prepare(view.images)
            self.add(terms(self.classifier.body(prepared)))
            self.evaluations += 1
            self.step(tried)

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Count the terms of a step's loss to those since the last report."""
        self.recent.append(parts["total"].detach())
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    @contextlib.contextmanager
    def freeze_bn_stats(self) -> Iterator[None]:
        """Let batch norms use a batch's statistics without keeping them: they count a step once."""
        norms = [
            one for one in self.classifier.modules() if isinstance(one, _compat.BATCH_NORMS) and one.track_running_stats
        ]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    @contextlib.contextmanager
    def count_memory(self) -> Iterator[None]:
        """Count the bytes that a backward pass through what is computed now will need, beside the weights."""
        seen = {weight.untyped_storage().data_ptr() for weight in self.classifier.parameters()}
        found = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal found
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found += storage.nbytes()
            return tensor.detach()  # the tensor itself might hold the graph that holds it

        # A frozen body keeps nothing for a backward pass, and still needs its activations while it computes.
        with (
            batching.Counting() if self.frozen else contextlib.nullcontext() as working,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            yield
        self.saved_bytes = max(found, working.most if working else 0)

    def cost_so_far(self) -> dict[str, Any]:
        """What it took so far, earlier attempts included: gradients, evaluations, own seconds, shared seconds."""
        own, shared = self.before
        return {
            "gradients": self.gradients,
            "evaluations": self.evaluations,
            "own_seconds": own + self.clock.seconds,
            "shared_seconds": shared + self.shared.seconds,
        }

    def cost(self) -> dict[str, Any]:
        """As `spent`, with the median step in milliseconds and what it needs in memory, in bytes.

        `memory_bytes` are weights, gradients, optimizer state, what a backward pass keeps or a frozen body computes
        with, and features that are kept: counted from tensors at one step, so that they do not depend on what trains
        beside it. Buffers inside of operations are not in them, nor is what validation needs: see `peak_bytes`.
        """
        parameters = [*self.classifier.parameters(), *(self.companion.parameters() if self.companion else ())]
        weights = sum(weight.numel() * weight.element_size() for weight in parameters)
        slopes = sum(weight.numel() * weight.element_size() for weight in parameters if weight.requires_grad)
        features = self.features.bytes if self.features else 0
        return {
            **self.cost_so_far(),
            "step_ms": self.clock.median and self.clock.median * 1000,
            "state_bytes": self.state_bytes,
            "memory_bytes": weights + slopes + self.state_bytes + (self.saved_bytes or 0) + features,
        }

    def keep_if_best(self, scored: Classifier, scores: Scores | EmbeddingScores | None, epoch: int) -> bool:
        """Keep the weights that were scored if they are the best on validation: by what the spec selects, then by
        likelihood; of a network without a head by the loss, and always where it has none."""
        if scores is None:
            rank = (0.0, 0.0)
        elif isinstance(scores, EmbeddingScores):
            rank = (0.0, -scores.loss)
        else:
            rank = (scores.macro_recall if self.spec.select == "macro" else scores.accuracy, -scores.nll)
        if rank <= self.best_score:
            return False
        self.best_score, self.best_epoch = rank, epoch
        self.best_embedding = scores if isinstance(scores, EmbeddingScores) else None
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
            **self.cost_so_far(),
            "saved_bytes": self.saved_bytes,
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "best_embedding": asdict(self.best_embedding) if self.best_embedding else {},
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
        self.evaluations = kept.get("evaluations", 0)
        self.before = kept.get("own_seconds", 0.0), kept.get("shared_seconds", 0.0)
        self.saved_bytes = kept.get("saved_bytes")
        self.best_weights = {name: tensor.to(device) for name, tensor in kept["best_weights"].items()}
        self.best_epoch, self.best_score = kept["best_epoch"], tuple(kept["best_score"])
        near = kept.get("best_embedding")
        self.best_embedding = EmbeddingScores(**near) if near else None
        self.sums = {name: tensor.to(device) for name, tensor in kept["sums"].items()}
        self.shares = kept["shares"]
