"""The canonical form of a part: the input of digests, and of the shortest YAML."""

from __future__ import annotations

from typing import Any

from smallalign_core.spec.parts import DataSpec, GivenNetwork, Part
from smallalign_core.spec.python import Arguments, Code


def canonical(part: Part) -> dict[str, Any]:
    """The fields of a part that differ from their defaults, and its kind: the input of the digest.

    Omitting defaults means that a new field with a default does not change the ids of old runs. A known fingerprint
    replaces the path of the images, or of the initial weights: a moved folder is still the same data.
    """
    written: dict[str, Any] = {}
    for name, field in sorted(type(part).model_fields.items(), key=lambda one: one[0] != "kind"):
        value = getattr(part, name)
        if name == "kind" or field.is_required() or value != field.get_default(call_default_factory=True):
            written[name] = _plain(value)
    if isinstance(part, DataSpec) and part.fingerprint:
        # the fingerprint covers their effect
        for name in ("source", "columns", "levels", "decisions", "groups", "skip_unreadable"):
            written.pop(name, None)
    if isinstance(part, GivenNetwork) and part.weights_sha256:
        del written["weights"]
    if isinstance(part, Code) and part.sha256:
        del written["file"]
    return written


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return canonical(value)
    if isinstance(value, Arguments):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
