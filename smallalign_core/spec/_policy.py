"""Augmentation policies on their own, as in a policy file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec._canonical import canonical
from smallalign_core.spec._file import loaded
from smallalign_core.spec._words import message_of
from smallalign_core.spec.augment import misplaced
from smallalign_core.spec.parts import Augment, Part
from smallalign_core.spec.python import beside, unfilled


class Policy(Part):
    """An augmentation policy on its own, as in a policy file."""

    augment: Annotated[tuple[Augment, ...], Field(min_length=1, max_length=16, description="Transforms, in order.")]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if wrong := misplaced(self.augment):
            raise ValueError(wrong)
        return self


def read_policy(path: Path) -> tuple[Augment, ...]:
    """The policy in a YAML or JSON file: a list of transforms, or a spec with `augment`.

    Raises:
        BadSpec: the file is missing or not YAML, has no transforms, or one is unknown, misplaced or out of range.
    """
    return parse_policy(beside(loaded(path, "policy"), path.parent))


def parse_policy(written: object) -> tuple[Augment, ...]:
    """A validated policy from plain values: a list of transforms, one transform, or a mapping with `augment`.

    Raises:
        BadSpec: as `read_policy`.
    """
    if isinstance(written, Mapping):
        written = [written] if "kind" in written else written.get("augment")
    if not isinstance(written, Sequence) or isinstance(written, str) or not written:
        raise BadSpec(
            "the policy has no transforms",
            given=written or "nothing",
            do="write a list such as `- {kind: shift, pixels: 2}`",
        )
    try:
        return Policy.model_validate({"augment": written}).augment
    except ValidationError as error:
        raise BadSpec(message_of(Policy, error)) from None


def policy_yaml(policy: Sequence[Augment]) -> str:
    """The shortest YAML list that parses to `policy`."""
    return yaml.safe_dump(
        [canonical(unfilled(part)) for part in policy], sort_keys=False, allow_unicode=True, width=120
    )
