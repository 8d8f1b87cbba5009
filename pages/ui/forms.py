"""Forms drawn from the spec: every range, default, help and choice is read from its fields, none is written here.

Values live in Streamlit's session under `<key>.<field>`, so a form keeps them while the visitor looks at other pages.
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Union, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from pages.ui.fields import begin, label, limit, plain
from smallalign_core.spec import Part, members

ACROSS = 3


def kind_of(member: type[Part]) -> str:
    """A part's kind, as it stands in the YAML."""
    return str(member.model_fields["kind"].default)


def kind_label(member: type[Part]) -> str:
    """The first words of a part's docstring, and its kind."""
    words = re.split(r"\s*[:;(.]", (member.__doc__ or "").strip())[0]
    return words if words.lower() == kind_of(member) else f"{words} ({kind_of(member)})"


def part(
    model: type[Part], *, key: str, only: Iterable[str] | None = None, without: Collection[str] = ()
) -> dict[str, Any]:
    """Draw the fields of one part, three across; returns what was entered.

    Args:
        only: the fields to draw, in this order; all without it.
        without: fields to leave out, besides the kind.
    """
    names = [
        name
        for name in (only or model.model_fields)
        if name != "kind" and name not in without and not _filled_in(model.model_fields[name])
    ]
    values: dict[str, Any] = {}
    flat = [name for name in names if not _families(model.model_fields[name])]
    for start in range(0, len(flat), ACROSS):
        for column, name in zip(st.columns(ACROSS), flat[start : start + ACROSS], strict=False):
            with column:
                values[name] = plain(name, model.model_fields[name], f"{key}.{name}")
    for name in names:
        if name not in flat:
            values[name] = _nested(name, model.model_fields[name], f"{key}.{name}")
    return values


def _filled_in(field: FieldInfo) -> bool:
    """Whether the library finds the value by itself."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("filled_in"))


def choice(
    title: str, family: Iterable[type[Part]], *, key: str, start: str | None = None, help: str | None = None
) -> dict[str, Any]:
    """Draw a menu of kinds and the fields of the one that is chosen.

    Args:
        start: the kind to begin with; the first without it.
    """
    kinds = {kind_of(member): member for member in family}
    begin(f"{key}.kind", start if start in kinds else next(iter(kinds)), kinds)
    chosen = st.selectbox(
        title,
        list(kinds),
        format_func=lambda kind: kind_label(kinds[kind]),
        key=f"{key}.kind",
        help=help,
        persist_state="session",
    )
    member = kinds[str(chosen)]
    st.caption(" ".join((member.__doc__ or "").split()))
    return {"kind": chosen, **part(member, key=f"{key}.{chosen}")}


def several(
    title: str, family: tuple[type[Part], ...], *, key: str, most: int | None, help: str | None = None
) -> list[dict[str, Any]]:
    """Draw a list of parts to which rows can be added, and from which they can be removed."""
    kinds = {kind_of(member): member for member in family}
    rows: list[str] = st.session_state.setdefault(f"{key}.rows", [])
    values = []
    st.markdown(f"**{title}**", help=help)
    for place, name in enumerate(rows):
        with st.container(border=True):
            values.append(choice(f"{title} {place + 1}", family, key=f"{key}.{name}", start=name.partition("-")[0]))
            st.button(
                "Remove",
                key=f"{key}.{name}.remove",
                icon=":material/delete:",
                on_click=rows.remove,
                args=(name,),
                type="tertiary",
            )
    if most is None or len(rows) < most:
        with st.container(horizontal=True):
            for kind, member in kinds.items():
                st.button(
                    f"Add {kind}",
                    key=f"{key}.add.{kind}",
                    icon=":material/add:",
                    help=member.__doc__,
                    on_click=_add,
                    args=(key, kind),
                )
    return values


def fill(values: Mapping[str, Any], *, key: str) -> None:
    """Put `values`, as a spec's plain fields, into the form of that key before it is drawn."""
    for name, value in values.items():
        if isinstance(value, Mapping) and "kind" in value:
            st.session_state[f"{key}.{name}.kind"] = value["kind"]
            fill(
                {field: given for field, given in value.items() if field != "kind"}, key=f"{key}.{name}.{value['kind']}"
            )
        elif isinstance(value, Mapping):
            fill(value, key=f"{key}.{name}")
        elif isinstance(value, list | tuple):
            rows = [f"{item['kind']}-{place}" for place, item in enumerate(value)]
            st.session_state[f"{key}.{name}.rows"] = rows
            for row, item in zip(rows, value, strict=True):
                fill({row: item}, key=f"{key}.{name}")
        else:
            st.session_state[f"{key}.{name}"] = value


def _add(key: str, kind: str) -> None:
    made = st.session_state.get(f"{key}.made", 0)
    st.session_state[f"{key}.made"] = made + 1
    st.session_state[f"{key}.rows"] = [*st.session_state[f"{key}.rows"], f"{kind}-new{made}"]


def _families(field: FieldInfo) -> bool:
    """Whether a field holds parts instead of a plain value."""
    return "BaseModel" in str([base.__mro__ for base in _classes(field.annotation)])


def _classes(annotation: object) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _classes(inner)]


def _nested(name: str, field: FieldInfo, key: str) -> Any:
    annotation = field.annotation
    if get_origin(annotation) is tuple:
        most = limit(field, "max_length")
        return several(
            label(name),
            members(get_args(annotation)[0]),
            key=key,
            most=int(most) if most else None,
            help=field.description,
        )
    if get_origin(annotation) in (Union, types.UnionType):
        default = None if field.is_required() else field.default
        return choice(
            label(name), get_args(annotation), key=key, start=getattr(default, "kind", None), help=field.description
        )
    return part(_classes(annotation)[0], key=key)
