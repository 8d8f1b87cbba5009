"""Augmentation policies saved under a name: `<store>/policies/<name>.yaml`, the same format that `preview` reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.store import NAME, Store
from smallalign_core.spec import Augment, policy_yaml, read_policy
from smallalign_core.system.files import write_folder


def names(store: Store) -> list[str]:
    """All saved policies, by name."""
    return sorted(file.stem for file in _folder(store).glob("*.yaml") if re.fullmatch(NAME, file.stem))


def save(store: Store, name: str, policy: Sequence[Augment]) -> Path:
    """Save a policy; saving an equal one again changes nothing.

    Raises:
        Refused: read-only user; it is not a name, another policy has it, or the file cannot be written.
    """
    store.user.require("save policies")
    file = _file(store, name)
    if file.exists():
        try:
            equal = read_policy(file) == tuple(policy)
        except SmallAlignError:  # edited by hand, and damaged: still not ours to replace
            equal = False
        if equal:
            return file
        raise Refused("a policy with that name exists", given=name, do="choose another name, or delete that one first")
    write_folder(file.parent, {file.name: policy_yaml(policy)})
    return file


def load(store: Store, name: str) -> tuple[Augment, ...]:
    """The policy of that name.

    Raises:
        Refused: it is not a name.
        BadSpec: there is none, or its file was damaged.
    """
    return read_policy(_file(store, name))


def delete(store: Store, name: str) -> None:
    """Delete a policy; one that is gone already is no error."""
    store.user.require("delete policies")
    _file(store, name).unlink(missing_ok=True)


def _folder(store: Store) -> Path:
    return store.root / "policies"


def _file(store: Store, name: str) -> Path:
    if not re.fullmatch(NAME, name):
        raise Refused(
            "a policy name must be 3 to 48 of a-z, 0-9 and -, and begin with a letter",
            given=name or "nothing",
            do="choose another name",
        )
    return _folder(store) / f"{name}.yaml"
