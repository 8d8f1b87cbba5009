"""Networks without a head: built with one, which is removed, so that a body starts with the same weights either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from smallalign_core.errors import BadModel, BadSpec
from smallalign_core.networks import _library

if TYPE_CHECKING:
    from smallalign_core.networks import Classifier

OUTPUTS = 2
"""Outputs of the head that is built and removed."""


def refuse(shown: str, made: Tensor | None = None) -> NoReturn:
    """Refuse a network that has no pooled features.

    Args:
        made: what it has before its head.

    Raises:
        BadModel: always.
    """
    what = "no head that can be found" if made is None else f"a tensor of shape {list(made.shape[1:])} before the head"
    raise BadModel(
        "loss embedding needs one vector of features an image, from pooling to the head",
        given=f"{shown}: {what}",
        do="choose a network that ends in pooling and an nn.Linear",
    )


def strip(body: nn.Module, classes: Sequence[str], outputs: int) -> None:
    """Remove the head, with `outputs` outputs, of the network of no `classes`; others stay as they are.

    Raises:
        BadModel: no head can be found.
    """
    if classes:
        return
    if callable(remove := getattr(body, "reset_classifier", None)):  # of timm: it has several heads in some networks
        remove(0)
        return
    try:
        parent, _, name = _library.head_name(body, outputs).rpartition(".")
    except BadSpec:
        refuse(type(body).__name__)
    setattr(body.get_submodule(parent), name, nn.Identity())


def without_head(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: Classifier, classifier: Classifier
) -> dict[str, Tensor]:
    """The weights `given` of `origin` for a `classifier`, of which one has no head: then it is left out, or zero."""
    headed = origin if origin.classes else classifier
    place = "body." + _library.head_name(headed.body, len(headed.classes))
    names = {f"{place}.weight", f"{place}.bias"}
    kept = {name: tensor for name, tensor in given.items() if name not in names}
    return kept | {name: torch.zeros_like(wanted[name]) for name in names & wanted.keys()}
