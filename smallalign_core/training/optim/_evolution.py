"""Evolution strategies: gradient-free steps from the losses of candidates sampled around the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadSpec
from smallalign_core.spec import Mlp, Pgpe, Snes
from smallalign_core.system import extras

MOST = 100_000
"""Max. number of weights: the required population grows with it."""
COPIES = 4
"""Population-sized tensors at the peak of a step: candidates, their noise, its square, and a product of these."""
TOGETHER = 4_000_000
"""Max. weights of candidates that are evaluated in one batch, where that is faster."""

Losses = Callable[[Tensor], Tensor]


class Evolution(torch.optim.Optimizer):
    """SNES or PGPE around the weights, by evotorch's distributions and functional algorithms.

    The centre of the search is the weights themselves; beside them it keeps a deviation for each (and PGPE a velocity).
    Candidates come from torch's global generator, which the training loop sets at each step, so there is no state of
    random numbers to keep.

    Raises:
        MissingExtra: evotorch is not installed.
    """

    def __init__(self, spec: Snes | Pgpe, weights: list[Tensor]) -> None:
        self._spec, self._evotorch = spec, _library(spec.kind)
        super().__init__([{"params": weights}], {"lr": spec.lr})

    def step(self, closure: Losses | None = None) -> Any:  # type: ignore[override]
        """Take a step. `closure` gives the losses float32 [K] of candidates float32 [K, weights].

        Raises:
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError("an evolution strategy needs a closure with the losses of candidates")
        (group,) = self.param_groups
        weights: list[Tensor] = group["params"]
        with torch.no_grad():
            centre = _flat(weights)
            kept = self._state(weights)
            step = self._snes if isinstance(self._spec, Snes) else self._pgpe
            moved = step(centre, kept, float(group["lr"]), closure)
            _put(moved.pop("centre"), weights)  # wherever the closure left them
            for name, vector in moved.items():
                _put(vector, [self.state[weight][name] for weight in weights])

    def _state(self, weights: list[Tensor]) -> dict[str, Tensor]:
        names = ("sigma",) if isinstance(self._spec, Snes) else ("sigma", "velocity")
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"sigma": torch.full_like(weight, self._spec.sigma)}
                if "velocity" in names:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
        return {name: _flat([self.state[weight][name] for weight in weights]) for name in names}

    def _snes(self, centre: Tensor, kept: dict[str, Tensor], rate: float, losses: Losses) -> dict[str, Tensor]:
        n = len(centre)
        drawn = self._evotorch.distributions.ExpSeparableGaussian({"mu": centre, "sigma": kept["sigma"]})
        candidates = drawn.sample(self._spec.population)
        slopes = drawn.compute_gradients(candidates, losses(candidates), objective_sense="min", ranking_method="nes")
        # The usual rate of the deviation (Schaul et al., 2011); evotorch has it inside its class.
        rates = {"mu": rate, "sigma": 0.2 * (3 + float(torch.tensor(n).log())) / n**0.5}
        moved = drawn.update_parameters(slopes, learning_rates=rates)
        return {"centre": moved.mu, "sigma": moved.sigma}

    def _pgpe(self, centre: Tensor, kept: dict[str, Tensor], rate: float, losses: Losses) -> dict[str, Tensor]:
        algorithms = self._evotorch.algorithms.functional
        assert isinstance(self._spec, Pgpe)
        state = algorithms.pgpe(
            center_init=centre,
            center_learning_rate=rate,
            stdev_learning_rate=self._spec.sigma_lr,
            objective_sense="min",
            stdev_init=kept["sigma"],
        )
        state = state._replace(optimizer_state=state.optimizer_state._replace(velocity=kept["velocity"]))
        candidates = algorithms.pgpe_ask(state, popsize=self._spec.population)
        state = algorithms.pgpe_tell(state, candidates, losses(candidates))
        found = state.optimizer_state
        return {"centre": found.center, "sigma": state.stdev, "velocity": found.velocity}


def _flat(tensors: list[Tensor]) -> Tensor:
    """All in one vector. (torch's own function takes no channels_last.)"""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _put(vector: Tensor, tensors: list[Tensor]) -> None:
    """Write a vector of all weights into tensors of their shapes. (torch's own function would replace their storage,
    and with it the order of a convolution's weights in memory, which decides the last bits.)
    """
    for tensor, piece in zip(tensors, vector.split([one.numel() for one in tensors]), strict=True):
        tensor.copy_(piece.view(tensor.shape))


def _library(kind: str) -> Any:
    """evotorch, which imports ray and matplotlib: loaded only if a spec uses one of its strategies."""
    extras.load("evotorch.algorithms.functional", f"the optimizer {kind}")
    evotorch = extras.load("evotorch", f"the optimizer {kind}")
    logging.getLogger("evotorch").setLevel(logging.ERROR)
    return evotorch


def refuse_large(spec: Snes | Pgpe, model: nn.Module) -> None:
    """Check that a network is small enough for an evolution strategy.

    Raises:
        BadSpec: it has too many weights.
    """
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if count > MOST:
        needed = population_bytes(spec, count)
        raise BadSpec(
            f"an evolution strategy supports at most {MOST:,} weights; its population would take "
            f"{needed / 1e9:,.1f} GB",
            given=f"{spec.kind}, population {spec.population}, {count:,} weights",
            do="choose a smaller network, or a gradient-based optimizer",
        )


def population_bytes(spec: Snes | Pgpe, weights: int) -> int:
    """Peak bytes of a step beside the optimizer state, independent of the number of images."""
    return COPIES * spec.population * weights * 4


def answers(
    body: nn.Module, network: object, candidates: Tensor, prepared: Tensor, begin: Callable[[], None]
) -> Iterator[Tensor]:
    """The logits [N, C] of each candidate [K, weights], one after the other.

    An MLP without dropout is evaluated for many candidates in one batch, in half of the time; batched convolutions with
    individual weights are slower than a loop on CPUs, and are not used.

    Args:
        body: float32 [N, ...] -> logits; after sequential evaluation it has the weights of the last candidate.
        network: its spec.
        prepared: the preprocessed images.
        begin: called before each forward pass that may draw random numbers.
    """
    learning = {name: weight for name, weight in body.named_parameters() if weight.requires_grad}
    if not (isinstance(network, Mlp) and not network.dropout):
        for candidate in candidates:
            _put(candidate, list(learning.values()))
            begin()
            yield body(prepared)
        return

    def answer(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(body, weights, (prepared,))

    sizes = [weight.numel() for weight in learning.values()]
    for some in candidates.split(max(1, TOGETHER // sum(sizes))):
        pieces = zip(learning.items(), some.split(sizes, 1), strict=True)
        stacked = {name: piece.view(-1, *weight.shape) for (name, weight), piece in pieces}
        yield from torch.func.vmap(answer)(stacked)
