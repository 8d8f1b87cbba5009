"""Results as JSON-able values."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from smallalign_core.studies.scaling_law._fit import Law

SHOWN: dict[str, tuple[str, ...]] = {
    "Multiplier": ("factor", "needed", "number", "words"),
    "SanityCheck": ("covers", "off", "outcome", "passed", "words"),
}
"""Properties that are included beside the fields."""


def as_dict(found: Any) -> dict[str, Any]:
    """Any result of this package. Infinity becomes "inf", what is not known (NaN) null; a law loses its arrays."""
    if isinstance(found, Law):
        fit = {name: _plain(getattr(found, name)) for name in ("rms", "lack", "freedom", "exponents")}
        arms = {arm: _plain(found.constants(arm)) for arm in found.arms}
        return {"shape": found.form.shape, "chance": _plain(found.form.top), **fit, "arms": arms}
    every = tuple(one.name for one in fields(found)) + SHOWN.get(type(found).__name__, ())
    return {name: _plain(getattr(found, name)) for name in every}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_dict(value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
