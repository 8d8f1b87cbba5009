"""Forms drawn from the spec: every range, default, help and choice is read from its fields, none is written here.

Values live in Streamlit's session under `<key>.<field>`, so a form keeps them while other pages are open.
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Union, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from pages.ui.security import auth
from pages.ui.widgets.fields import begin, label, limit, plain
from smallalign_core.service.users import Role
from smallalign_core.spec import Code, Part, members
from smallalign_core.spec.augment import GROUPS
from smallalign_core.spec.python import on_one_line

ACROSS = 3

PRUNED = "pruned"
"""The field of a network that no form draws, and that is kept where a form is filled from a run."""


def kind_of(member: type[Part]) -> str:
    """A part's kind, as it stands in the YAML."""
    return str(member.model_fields["kind"].default)


def kind_label(member: type[Part]) -> str:
    """The first words of a part's docstring, and its kind."""
    words = re.split(r"\s*[:;(.]", (member.__doc__ or "").strip())[0]
    return words if words.lower() == kind_of(member) else f"{words} ({kind_of(member)})"


def offered(family: Iterable[type[Part]]) -> list[type[Part]]:
    """The members of a family for the current user: Python files run for the owner of the machine only."""
    own = auth.current_user().role is Role.LOCAL
    return [member for member in family if own or not issubclass(member, Code)]


def part(
    model: type[Part],
    *,
    key: str,
    only: Iterable[str] | None = None,
    without: Collection[str] = (),
    across: int = ACROSS,
) -> dict[str, Any]:
    """Draw the fields of one part, `across` in a row; returns the entered values.

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
    for start in range(0, len(flat), across):
        for column, name in zip(
            st.columns(across, vertical_alignment="bottom"), flat[start : start + across], strict=False
        ):
            with column:
                values[name] = plain(name, model.model_fields[name], f"{key}.{name}", model.__name__)
    for name in names:
        if name not in flat:
            values[name] = _nested(name, model.model_fields[name], f"{key}.{name}", without)
    if (widths := st.session_state.get(f"{key}.{PRUNED}")) and st.checkbox(
        f"Pruned widths of {len(widths['widths'])} layers",
        value=True,
        key=f"{key}.{PRUNED}.kept",
        persist_state="session",
        help="From the run that this form was filled from. They fit its width and depth only.",
    ):
        values[PRUNED] = widths
    return values


def _filled_in(field: FieldInfo) -> bool:
    """Whether the library finds the value by itself."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("filled_in"))


def choice(
    title: str,
    family: Iterable[type[Part]],
    *,
    key: str,
    start: str | None = None,
    help: str | None = None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Draw a menu of kinds and the fields of the one that is chosen.

    Args:
        start: the kind to begin with; the first without it.
        without: fields to leave out, in parts below it, too.
    """
    kinds = {kind_of(member): member for member in family}
    held = begin(f"{key}.kind", start if start in kinds else next(iter(kinds)), kinds)
    chosen = st.selectbox(
        title,
        list(kinds),
        index=list(kinds).index(held),
        format_func=lambda kind: kind_label(kinds[kind]),
        key=f"{key}.kind",
        help=help,
        persist_state="session",
    )
    member = kinds[str(chosen)]
    st.caption(" ".join((member.__doc__ or "").split()))
    return {"kind": chosen, **part(member, key=f"{key}.{chosen}", without=without)}


def several(
    title: str, family: tuple[type[Part], ...], *, key: str, most: int | None, help: str | None = None
) -> list[dict[str, Any]]:
    """Draw a list of parts that can be added to, put in another order and shortened."""
    kinds = {kind_of(member): member for member in family}
    rows: list[str] = st.session_state.setdefault(f"{key}.rows", [])
    values = []
    st.markdown(f"**{title}**", help=help)
    for place, name in enumerate(rows):
        kind = name.partition("-")[0]
        with st.container(border=True, gap="small"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"{key}.{name}.head"):
                words = " ".join((kinds[kind].__doc__ or "").split())
                st.markdown(f"**{place + 1}. {_short(kinds[kind])}**", help=words, width="stretch")
                with st.container(horizontal=True, gap="small", width="content"):  # wraps as a whole
                    _order(key, place, len(rows))
            values.append({"kind": kind, **part(kinds[kind], key=f"{key}.{name}.{kind}", across=2)})
    if most is None or len(rows) < most:
        with st.popover("Add transform", icon=":material/add:", width="stretch"):
            for heading, group in _grouped(family).items():
                st.caption(heading)
                with st.container(horizontal=True, gap="xsmall"):
                    for member in group:
                        kind = kind_of(member)
                        st.button(
                            _short(member),
                            key=f"{key}.add.{kind}",
                            help=" ".join((member.__doc__ or "").split()),
                            on_click=_add,
                            args=(key, kind),
                        )
    return values


def _order(key: str, place: int, count: int) -> None:
    """The buttons that move and remove the part at `place`."""
    rows = st.session_state[f"{key}.rows"]
    for word, to in (("Up", place - 1), ("Down", place + 1)):
        st.button(
            word,
            key=f"{key}.{rows[place]}.{word.lower()}",
            on_click=_move,
            args=(key, place, to),
            disabled=not 0 <= to < count,
            type="tertiary",
        )
    st.button(
        "Remove",
        key=f"{key}.{rows[place]}.remove",
        on_click=rows.remove,
        args=(rows[place],),
        type="tertiary",
    )


def _short(member: type[Part]) -> str:
    """A kind in one or two words: those its docstring begins with, or its own."""
    words = re.split(r"\s*[:;(.]", (member.__doc__ or "").strip())[0]
    return words if len(words.split()) <= 2 else kind_of(member).replace("_", " ").capitalize()


def _grouped(family: Iterable[type[Part]]) -> dict[str, list[type[Part]]]:
    """A family in the groups that its spec names; what is in none comes last."""
    left = list(family)
    groups = {heading: [member for member in left if member in group] for heading, group in GROUPS.items()}
    rest = [member for member in left if not any(member in group for group in groups.values())]
    return {heading: group for heading, group in (groups | {"More": rest}).items() if group}


def fill(values: Mapping[str, Any], *, key: str) -> None:
    """Put `values`, as a spec's plain fields, into the form of that key before it is drawn."""
    for name, value in values.items():
        if name == PRUNED:
            st.session_state[f"{key}.{name}"] = value
        elif isinstance(value, Mapping) and "kind" in value:
            st.session_state[f"{key}.{name}.kind"] = value["kind"]
            fill(
                {field: given for field, given in value.items() if field != "kind"}, key=f"{key}.{name}.{value['kind']}"
            )
        elif name == "with" and isinstance(value, Mapping):
            st.session_state[f"{key}.{name}"] = on_one_line(value)
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


def _move(key: str, place: int, to: int) -> None:
    rows = list(st.session_state[f"{key}.rows"])
    rows[place], rows[to] = rows[to], rows[place]
    st.session_state[f"{key}.rows"] = rows


def _families(field: FieldInfo) -> bool:
    """Whether a field holds parts instead of a plain value."""
    return "BaseModel" in str([base.__mro__ for base in _classes(field.annotation)])


def _classes(annotation: object) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _classes(inner)]


def _nested(name: str, field: FieldInfo, key: str, without: Collection[str]) -> Any:
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
            label(name),
            get_args(annotation),
            key=key,
            start=getattr(default, "kind", None),
            help=field.description,
            without=without,
        )
    return part(_classes(annotation)[0], key=key, without=without)
