"""All private torch functions that the library calls, each with a documented fallback that does the same.

torch from 2.9 on is supported, and may change its private functions at any time. A private function is used only if it
exists and gives the same result as the documented one, tested once per process; `tests/test_compat.py` compares both.
Import this module only where torch is needed anyway.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Step = TypeVar("Step", bound=Callable[..., Any])

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Every class that torch derives from its private `_BatchNorm`."""


class NoOperationMode:
    """Fallback where torch has no private dispatch mode: no operation is observed."""

    def __enter__(self) -> NoOperationMode:
        return self

    def __exit__(self, *_: object) -> None: ...


try:
    from torch.utils._python_dispatch import TorchDispatchMode as _Mode
except ImportError:
    _Mode = NoOperationMode  # type: ignore[assignment, misc]
OperationMode: Any = _Mode
"""A context whose `__torch_dispatch__` sees each operation; without torch's class it sees none, so memory is not
counted and all images form one batch."""


# --- fused steps ------------------------------------------------------------------------------------------------------


@functools.cache
def fused_sgd() -> Callable[..., None] | None:
    """The fused step of torch's SGD with momentum, after the first step; None: take the step of `torch.optim.SGD`."""
    kernel: Any = getattr(torch, "_fused_sgd_", None)

    def step(weights: Any, slopes: Any, momenta: Any, group: dict[str, Any]) -> None:
        kernel(
            weights,
            slopes,
            momenta,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
        )

    def probe(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
        step([weight], [weight.grad], [optimizer.state[weight]["momentum_buffer"]], optimizer.param_groups[0])

    def make(weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True)

    return step if kernel is not None and _agrees(make, probe) else None


@functools.cache
def fused_adamw() -> Callable[..., None] | None:
    """The fused step of torch's AdamW, after the first; None: take the step of `torch.optim.AdamW`."""
    kernel: Any = getattr(torch, "_fused_adamw_", None)

    def step(weights: Any, slopes: Any, means: Any, squares: Any, counts: Any, group: dict[str, Any]) -> None:
        foreach_add_(counts, 1)
        kernel(
            weights,
            slopes,
            means,
            squares,
            [],
            counts,
            amsgrad=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def probe(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
        state = optimizer.state[weight]
        means, squares, counts = ([state[name]] for name in ("exp_avg", "exp_avg_sq", "step"))
        step([weight], [weight.grad], means, squares, counts, optimizer.param_groups[0])

    def make(weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=0.1, weight_decay=0.01, fused=True)

    return step if kernel is not None and _agrees(make, probe) else None


def _agrees(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], probe: Callable[[torch.optim.Optimizer, Tensor], None]
) -> bool:
    """Whether a private step is the second step of torch's own optimizer, to the last bit."""
    found = []
    for private in (True, False):
        weight = torch.linspace(-1, 1, 8).requires_grad_()
        optimizer = make([weight])
        for step in range(2):
            weight.grad = torch.linspace(0.5, -2, 8) * (1 + step)
            try:
                with torch.no_grad():
                    probe(optimizer, weight) if private and step else optimizer.step()
            except (RuntimeError, TypeError, KeyError):  # changed arguments or state
                return False
        found.append(weight.detach())
    return torch.equal(*found)


def unprofiled(step: Step) -> Step:
    """Mark a `step` that torch must not wrap in a profiler record; without support for the mark, it is wrapped."""
    step.hooked = True  # type: ignore[attr-defined]
    return step


def load_compiler() -> None:
    """Preload what torch imports with its first optimizer: seconds that should not count for the first run."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)


# --- the same for each of many tensors --------------------------------------------------------------------------------


def foreach(name: str) -> Callable[..., Any]:
    """`Tensor.name` for each tensor of a list, in one call where torch has it."""
    return getattr(torch, f"_foreach_{name}", None) or one_by_one(name)


def one_by_one(name: str) -> Callable[..., Any]:
    """`Tensor.name` for each tensor of a list, one after the other; arguments are numbers, or lists as long."""

    def apply(tensors: Sequence[Tensor], *arguments: Any) -> list[Any]:
        made = []
        for place, tensor in enumerate(tensors):
            own = [one[place] if isinstance(one, list | tuple) else one for one in arguments]
            named = {"value": own.pop()} if name == "addcmul_" and len(own) > 2 else {}
            made.append(getattr(tensor, name)(*own, **named))
        return made

    return apply


foreach_add_, foreach_mul_, foreach_sub_ = foreach("add_"), foreach("mul_"), foreach("sub_")
foreach_sub, foreach_div, foreach_sqrt_ = foreach("sub"), foreach("div"), foreach("sqrt_")
foreach_addcmul_, foreach_lerp_, foreach_copy_ = foreach("addcmul_"), foreach("lerp_"), foreach("copy_")


# --- oneDNN -----------------------------------------------------------------------------------------------------------


def packed_linear(linear: nn.Linear) -> Callable[[Tensor], Tensor] | None:
    """A bf16 layer on the CPU with weights packed for oneDNN; None: call the layer itself.

    Outputs are bit-identical; without packing, oneDNN reorders the weights at each call.
    """
    kernels: Any = torch.ops.mkldnn
    try:
        if not (torch.backends.mkldnn.is_available() and kernels._is_mkldnn_bf16_supported()):
            return None
        packed, bias = kernels._reorder_linear_weight(linear.weight.detach(), None), linear.bias

        def forward(x: Tensor) -> Tensor:
            return kernels._linear_pointwise(x.to(torch.bfloat16), packed, bias, "none", [], "")

        with torch.no_grad():
            forward(torch.zeros(1, linear.in_features, dtype=torch.bfloat16))  # fails if the arguments have changed
    except (AttributeError, RuntimeError, TypeError):
        return None
    return forward


# --- ONNX -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_operator_table() -> Iterator[None]:
    """Let `torch.onnx.export` build its table of operators once per process: it parses hundreds of functions for it.

    Only in this context, since others might register operators in the table. Fallback: one table per export.
    """
    kept = _kept_operator_table()
    if kept is None:
        yield
        return
    owner, original, cached = kept
    owner.from_torchlib = cached
    try:
        yield
    finally:
        owner.from_torchlib = original


@functools.cache
def _kept_operator_table() -> tuple[Any, Any, Any] | None:
    """(class, its classmethod `from_torchlib`, that with a memory)."""
    try:
        from torch.onnx._internal.exporter import _registration

        owner: Any = _registration.ONNXRegistry
        return owner, vars(owner)["from_torchlib"], staticmethod(functools.cache(owner.from_torchlib))
    except (ImportError, AttributeError, KeyError):
        return None
