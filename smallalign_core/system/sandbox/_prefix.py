"""Prefixes that training code adds to tensor names, shared by checkpoints and safetensors."""

from __future__ import annotations

from collections.abc import Collection

WRAPPERS = frozenset(
    [
        "module",
        "_orig_mod",
        "model",
        "net",
        "network",
        "backbone",
        "encoder",
        "student",
        "teacher",
        "ema_model",
        "online_model",
        "averaged_model",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "base_model",
        "classifier_model",
    ]
)
"""DataParallel, DDP, AveragedModel: `module`; torch.compile: `_orig_mod`; Lightning: the name of an attribute."""

COUNTERS = frozenset(["n_averaged", "initted", "step", "decay", "num_updates"])
"""Counters that weight averaging (torch's AveragedModel, ema-pytorch, timm) stores beside the weights."""


def shared(names: Collection[str], known: Collection[str] = WRAPPERS) -> str:
    """The longest prefix of dotted parts, each in `known`, that all names share; empty if there is none.

    Args:
        known: parts that may be removed; any other shared part belongs to the network.
    """
    found = ""
    while names:
        parts = {name[len(found) :].partition(".")[0] for name in names}
        part = parts.pop()
        if parts or part not in known or any(name[len(found) :].count(".") == 0 for name in names):
            break
        found += f"{part}."
    return found
