"""The fields in which the specs of several runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smallalign_core.runs.store import Run
from smallalign_core.spec import RunSpec

NONE = "–"
"""What a spec has in place of a field that only others have."""


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The fields that are not equal in all runs, by their path in the YAML, with the value of each run as text.

    Raises:
        Refused: a run was imported, so it has no spec.
        BadModel: the spec of a run is damaged.
    """
    found = [fields(run.spec) for run in runs]
    paths = dict.fromkeys(path for one in found for path in one)
    values = {path: [one.get(path, NONE) for one in found] for path in paths}
    return {path: listed for path, listed in values.items() if len(set(listed)) > 1}


def fields(spec: RunSpec) -> dict[str, str]:
    """Every plain field of a spec by its path, such as `optimizer.lr`, as text; a list is one field."""
    return {path: _text(value) for path, value in _flat(spec.model_dump(mode="json"), "")}


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [pair for name, one in value.items() for pair in _flat(one, f"{path}.{name}" if path else str(name))]
    return [(path, value)]


def _text(value: Any) -> str:
    if value is None or value in ([], {}):
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
