"""Evolution strategies: steps without a gradient, from the losses of candidates that are drawn around the weights."""

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
"""Weights that a strategy may look for: the candidates that it needs grow with their number."""
COPIES = 4
"""Populations that a step holds at its peak: candidates, their noise, its square, and a product of these."""
TOGETHER = 4_000_000
"""Weights of all candidates that are answered for at once, where that is faster."""

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
            raise ValueError("an evolution strategy needs the losses of candidates")
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
    """evotorch, which brings ray and matplotlib: imported where a spec names one of its strategies."""
    extras.load("evotorch.algorithms.functional", f"the optimizer {kind}")
    evotorch = extras.load("evotorch", f"the optimizer {kind}")
    logging.getLogger("evotorch").setLevel(logging.ERROR)
    return evotorch


def refuse_large(spec: Snes | Pgpe, model: nn.Module) -> None:
    """Refuse a network that no population can feel its way through.

    Raises:
        BadSpec: it has too many weights.
    """
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if count > MOST:
        needed = population_bytes(spec, count)
        raise BadSpec(
            f"an evolution strategy looks for up to {MOST:,} weights; its populations would take "
            f"{needed / 1e9:,.1f} GB here, and the steps that it needs grow with the weights",
            given=f"{spec.kind}, population {spec.population}, {count:,} weights",
            do="choose a smaller network, or an optimizer that takes gradients",
        )


def population_bytes(spec: Snes | Pgpe, weights: int) -> int:
    """Bytes that a step holds at its peak beside what is kept: they do not depend on the number of images."""
    return COPIES * spec.population * weights * 4


def answers(
    body: nn.Module, network: object, candidates: Tensor, prepared: Tensor, begin: Callable[[], None]
) -> Iterator[Tensor]:
    """The logits [N, C] of each candidate [K, weights], one after the other.

    An MLP without dropout answers for many candidates at once, which takes half of the time; batched convolutions
    with weights of their own are slower than a loop on CPUs, and are not used.

    Args:
        body: float32 [N, ...] -> logits; where the candidates are weights one by one, it is left with the last.
        network: its spec.
        prepared: what it sees of the images.
        begin: is called before each answer that may draw random numbers.
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
