"""Contract checks of networks, losses, transforms and readers: of the library's in its tests, of a user's by `check`.

A check of a network or of a loss returns what is wrong, in words; empty if nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from smallalign_core.errors import SmallAlignError
from smallalign_core.spec import PythonAugment, PythonLoss, PythonNetwork
from smallalign_core.spec.data import PythonReader
from smallalign_core.training.contracts import _augmentations, _losses, _networks, _readers
from smallalign_core.training.contracts._losses import (
    Function as Function,
    averaged as averaged,
    drawn as drawn,
    finite as finite,
    gradient as gradient,
    keeps_gradient_size as keeps_gradient_size,
    least_at_the_teacher as least_at_the_teacher,
    teacher_is_constant as teacher_is_constant,
)

Check = tuple[str, Callable[[], tuple[bool | None, str]]]
"""A name, and a function that gives whether it passed (None: it does not apply) and what was found, in words."""


def of_network(spec: PythonNetwork, *, classes: int, shape: tuple[int, int, int]) -> Iterator[Check]:
    """The names and checks of a user's network, each to be done before the next is taken.

    Args:
        shape: (channels, height, width) of the images.
    """
    for name, passed, check in _networks.checks(spec, classes, shape):
        yield name, partial(_said, passed, check)


def of_loss(spec: PythonLoss, *, classes: int, zero: bool) -> Iterator[Check]:
    """The names and checks of a user's loss.

    Args:
        zero: whether it claims to be 0 where the student's logits are the teacher's.
    """
    for name, passed, check in _losses.checks(spec, classes, zero=zero):
        yield name, partial(_said, passed, check)


def of_augmentation(spec: PythonAugment, *, shape: tuple[int, int, int]) -> Iterator[Check]:
    """The names and checks of a user's transform.

    Args:
        shape: (channels, height, width) of the images.
    """
    for name, passed, check in _augmentations.checks(spec, shape):
        yield name, partial(_said, passed, check)


def of_reader(spec: PythonReader, source: Path) -> Iterator[Check]:
    """The names and checks of a user's reader.

    Args:
        source: the folder or file that it reads.
    """
    for name, passed, check in _readers.checks(spec, source):
        yield name, partial(_said, passed, check)


def _said(words: str, check: Callable[[], str | tuple[bool | None, str]]) -> tuple[bool | None, str]:
    """The result of a check; an error that it raises is its failure. `words` are for one that passed."""
    try:
        found = check()
    except SmallAlignError as error:
        return False, str(error)
    if isinstance(found, tuple):
        return found
    return not found, found or words
