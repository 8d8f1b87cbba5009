"""Inside the sandbox: the tensors of a PyTorch checkpoint, whatever else a training loop stored in it.

The pickle is read with `weights_only=True`. Types that only hold values are allowed by name; those of libraries that
need not be installed are replaced by stand-ins, so that none of their code runs.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallalign_core.system.sandbox._prefix import COUNTERS, shared
from smallalign_core.system.sandbox._refusal import Refusal

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "ema_model", "averaged_model")
PLAIN = ("state_dict", "model_state_dict", "model", "net", "module", "network", "params", "weights", "model_state")
OTHERS = ("optim", "sched", "scaler", "loops", "callbacks", "hyper", "rng", "criterion", "loss", "queue", "args")
"""Prefixes of entries that hold tensors which are not a network's weights."""
DEEPEST = 3


class _Held:
    """Stand-in for an object of a library: accepts any state and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> _Held:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Fields:
    """Stand-in for any kind of dict: torch's reader fills plain ones only."""

    def __new__(cls, *_: Any) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class _Items:
    """Stand-in for any kind of list."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


def harmless() -> list[Any]:
    """Types allowed in a checkpoint beside tensors: they hold values and run no code when constructed."""
    import numpy as np

    numpy = [np.dtype, np.ndarray, *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name.endswith("DType"))]
    builders: list[Any] = [  # called by NumPy's pickles, under the names of NumPy 1 and 2
        (one.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for one, name in ((np.float64(0), "scalar"), (np.zeros(0), "_reconstruct"))
        for core in ("core", "_core")
    ]
    values: list[Any] = [argparse.Namespace, types.SimpleNamespace]
    values += [
        datetime.datetime,
        datetime.date,
        datetime.timedelta,
        datetime.timezone,
        dict,
        list,
        set,
        int,
        float,
        str,
    ]
    paths: list[Any] = [
        (pathlib.PurePosixPath, f"pathlib.{local}{name}")
        for local in ("", "_local.")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    ]
    fields = [
        (_Fields, name)
        for name in (
            "collections.defaultdict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "yacs.config.CfgNode",
            "fvcore.common.config.CfgNode",
            "detectron2.config.config.CfgNode",
            "easydict.EasyDict",
            "addict.addict.Dict",
            "ml_collections.config_dict.config_dict.ConfigDict",
        )
    ]
    held = [
        (_Held, name)
        for name in (
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.nodes.AnyNode",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "transformers.training_args.TrainingArguments",
        )
    ]
    return [*numpy, *builders, *values, *paths, *fields, *held, (_Items, "collections.deque")]


def convert(file: Path, to: Path, which: str | None) -> dict[str, Any]:
    """Write one set of a checkpoint's tensors as safetensors.

    Args:
        which: the set's name or path, such as `state_dict_ema`; default: averaged weights, if any.

    Returns:
        `taken`, `sets`: the path of the chosen set, and of all; `prefix`: removed from every name; `left`: the names
        of counters that are no part of a network.
    """
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(harmless()):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise Refusal(
            "the checkpoint contains objects that would run code when it is read",
            named[:160],
            "save its state_dict alone, as safetensors",
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError) as error:
        raise Refusal("the checkpoint is damaged", type(error).__name__) from None
    sets = dict(_sets(held))
    taken = _chosen(sets, which, held)
    tensors = dict(sets[taken])
    left = sorted(name for name in tensors if name in COUNTERS and len(tensors) > 1 and tensors[name].dim() == 0)
    for name in left:
        del tensors[name]
    for name, tensor in tensors.items():
        _refuse_odd(name, tensor)
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * file.stat().st_size + 4096:
        raise Refusal("the checkpoint declares more values than it contains", do="save its tensors with .clone()")
    prefix = shared(tensors)
    plain = {name[len(prefix) :]: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, to)
    params = sum(tensor.numel() for tensor in plain.values())
    about = {"taken": taken, "sets": sorted(sets), "prefix": prefix, "left": left}
    return {"kind": "safetensors", "tensors": len(plain), "params": params, **about}


def _sets(held: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict of named tensors, by its path; the checkpoint itself is called `.`."""
    import torch

    if not isinstance(held, dict) or depth > DEEPEST:
        return
    tensors = {str(name): one for name, one in held.items() if isinstance(one, torch.Tensor)}
    named = all(isinstance(name, str) for name in held)
    if named and tensors and len(tensors) == len(held):
        yield path or ".", tensors
    for name, inner in held.items():
        if isinstance(name, str) and not name.lower().startswith(OTHERS):
            yield from _sets(inner, f"{path}.{name}" if path else name, depth + 1)


def _chosen(sets: dict[str, Any], which: str | None, held: Any) -> str:
    """The path of the requested set, or of the usual one."""
    if not sets:
        raise Refusal("the checkpoint is not a state_dict of tensors", type(held).__name__, "save its state_dict alone")
    listed = ", ".join(sorted(sets))
    if which is not None:
        named = [path for path in sets if which in (path, path.rpartition(".")[2])]
        if len(named) != 1:
            raise Refusal(
                "the checkpoint has no such set of weights", f"{which}; it has {listed}", "choose one of them"
            )
        return named[0]
    for name in (*AVERAGED, ".", *PLAIN):
        named = [path for path in sets if path.rpartition(".")[2] == name or path == name]
        if named:
            return min(named, key=len)
    if len(sets) == 1:
        return next(iter(sets))
    raise Refusal("the checkpoint has several sets of weights", listed, "choose one with --weights")


def _refuse_odd(name: str, tensor: Any) -> None:
    """Accept only dense tensors whose values are all in the file."""
    import torch

    found = f"{name[:80]}, {tensor.dtype}, {tensor.layout}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Refusal("the checkpoint contains a tensor that is not dense", found, "save dense tensors: .to_dense()")
    stretched = any(not step and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if stretched or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refusal("the checkpoint declares more values than it contains", found, "save its tensors with .clone()")
