"""The canonical form of a part: the input of digests, and of the shortest YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from smallalign_core.spec.loss import HintonKd
from smallalign_core.spec.parts import USUAL_SIZE, DataSpec, GivenNetwork, LibraryNetwork, Part
from smallalign_core.spec.python import Arguments, Code, unfilled

if TYPE_CHECKING:
    from smallalign_core.spec import RunSpec


def canonical(part: Part) -> dict[str, Any]:
    """The fields of a part that differ from their defaults, and its kind: the input of the digest.

    Omitting defaults means that a new field with a default does not change the ids of old runs. A known fingerprint
    replaces the path of the images, or of the initial weights: a moved folder is still the same data.
    """
    return _fields(part, usual=True)


def shortest(part: Part) -> dict[str, Any]:
    """The fewest fields that parse to `part`, for YAML and addresses: `canonical`, and an input size that pretrained
    weights do not have by themselves."""
    return _fields(part, usual=False)


def _fields(part: Part, usual: bool) -> dict[str, Any]:
    """Args:
    usual: leave the input size of library networks out where it was the default of all of them, until 2026-12.
    """
    written: dict[str, Any] = {}
    for name, field in sorted(type(part).model_fields.items(), key=lambda one: one[0] != "kind"):
        value = getattr(part, name)
        if name == "kind" or field.is_required() or value != field.get_default(call_default_factory=True):
            written[name] = _plain(value, usual)
    if isinstance(part, LibraryNetwork) and part.size == USUAL_SIZE and (usual or not part.begins):
        del written["size"]
    if isinstance(part, DataSpec) and part.fingerprint:
        # the fingerprint covers their effect
        for name in ("source", "reader", "columns", "levels", "decisions", "groups", "skip_unreadable"):
            written.pop(name, None)
    if isinstance(part, DataSpec) and (part.unlabeled_fingerprint or (part.fingerprint and not part.has_labels)):
        written.pop("unlabeled", None)
    if isinstance(part, GivenNetwork) and part.weights_sha256:
        del written["weights"]
    if isinstance(part, Code) and part.sha256:
        del written["file"]
    return written


def _plain(value: object, usual: bool) -> object:
    if isinstance(value, Part):
        return _fields(value, usual)
    if isinstance(value, Arguments):
        return dict(value)
    return [_plain(item, usual) for item in value] if isinstance(value, tuple) else value


def to_yaml(spec: RunSpec) -> str:
    """The shortest YAML that parses to `spec`; filled-in fields (digests of data and weights) are omitted."""
    bare: dict[str, Part] = {"data": spec.data.model_copy(update={"fingerprint": None, "unlabeled_fingerprint": None})}
    if isinstance(spec.network, GivenNetwork):
        bare["network"] = spec.network.model_copy(update={"weights_sha256": None})
    spec = unfilled(spec.model_copy(update=bare))
    written = shortest(spec)
    if isinstance(spec.loss, HintonKd):
        if spec.loss.temperature is None and spec.loss.weight is None:
            del written["loss"]
        else:
            written["loss"] = {name: "auto" if value is None else value for name, value in written["loss"].items()}
    if not spec.data.has_labels:
        del written["data"]["source"]
    if list(written["data"]) == ["source"]:
        written["data"] = written["data"]["source"]
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120)
