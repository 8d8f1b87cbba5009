"""The canonical form of a part: the input of digests, and of the shortest YAML."""

from __future__ import annotations

from typing import Any

from smallalign_core.spec.parts import DataSpec, LibraryNetwork, Part


def canonical(part: Part) -> dict[str, Any]:
    """The fields of a part that differ from their defaults, and its kind: the input of the digest.

    Omitting defaults means that a new field with a default does not change the ids of old runs. A known fingerprint
    replaces the path of the images, or of the initial weights: a moved folder is still the same data.
    """
    written: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "kind" or field.is_required() or value != field.get_default(call_default_factory=True):
            written[name] = _plain(value)
    if isinstance(part, DataSpec) and part.fingerprint:
        for name in ("source", "decisions", "groups", "skip_unreadable"):  # the fingerprint covers their effect
            written.pop(name, None)
    if isinstance(part, DataSpec) and part.unlabeled_fingerprint:
        written.pop("unlabeled", None)
    if isinstance(part, LibraryNetwork) and part.weights_sha256:
        del written["weights"]
    return written


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return canonical(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
