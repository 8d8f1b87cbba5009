"""Readable messages for pydantic's validation errors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from smallalign_core.spec.parts import FAMILIES, Columns, DataSpec, Part, choices, members


def message_of(model: type[BaseModel], error: ValidationError) -> str:
    """The first three errors; errors that follow from another are left out."""
    found = error.errors()
    own = [
        detail
        for detail in found
        if detail["type"] != "too_short"
        or all(other["loc"][: len(detail["loc"])] != detail["loc"] for other in found if other is not detail)
    ]
    words = dict.fromkeys(explain(model, detail) for detail in own)
    return "; ".join(list(words)[:3])


def explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """One pydantic error as text: the field's path, what is wrong, what was given, what is allowed."""
    path = [str(step) for step in detail["loc"]]
    kinds = {kind for family in FAMILIES for kind in choices(family)}
    shown = ".".join(step for step in path if step not in kinds) or "spec"
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    rule: dict[str, Callable[[], str]] = {
        "extra_forbidden": lambda: f"unknown field `{shown}`{_suggestion(model, path)}",
        "missing": lambda: f"`{shown}` is missing",
        "union_tag_invalid": lambda: (
            f"`{shown}` has no kind {context.get('tag')!r}: choose one of {context.get('expected_tags')}"
        ),
        "union_tag_not_found": lambda: f"`{shown}` needs a `kind`",
        "literal_error": lambda: f"`{shown}` must be {context.get('expected')} (given: {given!r:.80})",
        "finite_number": lambda: f"`{shown}` must be a finite number (given: {given})",
        "too_short": lambda: f"`{shown}` needs at least {context.get('min_length')} items (given: {given!r:.80})",
        "too_long": lambda: f"`{shown}` takes at most {context.get('max_length')} items (given: {given!r:.80})",
        "string_too_short": lambda: (
            f"`{shown}` needs at least {_characters(context.get('min_length'))} (given: {given!r})"
        ),
        "string_too_long": lambda: (
            f"`{shown}` takes at most {_characters(context.get('max_length'))} (given: {given!r:.80})"
        ),
        "string_pattern_mismatch": lambda: f"`{shown}` must match {context.get('pattern')} (given: {given!r:.80})",
        "value_error": lambda: str(context.get("error", detail["msg"])),
    }
    if kind in rule:
        return rule[kind]()
    wanted = detail["msg"].removeprefix("Input should be ").split(",")[0]
    return f"`{shown}` must be {wanted} (given: {given!r:.80})"


def _characters(count: int | None) -> str:
    return f"{count:,} character{'' if count == 1 else 's'}"


def _suggestion(model: type[BaseModel], path: Sequence[str]) -> str:
    """The closest known field name, searched over every part, since an error's path passes through unions."""
    known: set[str] = set(model.model_fields)
    if "columns" in path[:-1]:
        known = set(Columns.model_fields)
    elif len(path) > 1:
        parts: list[type[Part]] = [DataSpec, *(m for f in FAMILIES for m in members(f))]
        known = {name for part in parts for name in part.model_fields if part is not DataSpec or path[0] == "data"}
        kinds = {str(part.model_fields["kind"].default): part for part in parts if "kind" in part.model_fields}
        kinds |= _of_field(model, path[0])  # a kind that several families have is that of this field
        owner = next(
            (kinds[step] for step in reversed(path[:-1]) if step in kinds), DataSpec if path[0] == "data" else None
        )
        if owner is not None:
            known = set(owner.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f", did you mean `{near[0]}`?" if near else f": known are {', '.join(sorted(known))}"


def _of_field(model: type[BaseModel], name: str) -> dict[str, type[Part]]:
    """The kinds of the family that a field chooses from."""
    field = model.model_fields.get(name)
    family = next(
        (one for one in FAMILIES if field is not None and str(get_args(one)[0]) in str(field.annotation)), None
    )
    return {} if family is None else dict(zip(choices(family), members(family), strict=True))
