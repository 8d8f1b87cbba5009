"""One widget for one plain field of a spec: its range, default and help are the field's own."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

NAMES = {
    "lr": "Learning rate",
    "k": "k",
    "beta1": "β₁",
    "beta2": "β₂",
    "beta3": "β₃",
    "rho": "ρ",
    "averaging": "λ",
    "sigma": "σ",
    "sigma_lr": "Rate of σ",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "kd_weight": "KD weight",
    "views": "Cached augmentations per image",
    "images": "Training images",
    "batch": "Batch size",
    "RunSpec.bits": "Weight bits",
    "shuffled": "Shuffle logits",
    "answers": "Teacher inference backend",
    "draw": "Subset seed",
    "noise": "Label noise",
    "decisions": "Cleaning decisions file",
    "size": "Input size",
    "DataSpec.size": "Image size",
    "validation": "Validation share",
    "test": "Test share",
    "head_rate": "Head LR multiplier",
    "hint_weight": "Hint weight",
    "labels_weight": "Label loss weight",
    "teacher_weight": "Distillation loss weight",
    "compile": "torch.compile",
    "amount": "Standard deviation",
    "augment": "Augmentation",
    "warmup": "Warm-up",
    "with": "Arguments",
    "call": "Function or class",
    "entry": "Entry point",
    "PythonNetwork.weights": "Initial weights",
    "balance": "Class balance",
    "tau": "τ",
    "unlabeled": "Unlabeled images",
    "q": "q",
    "select": "Best epoch by",
    "Columns.path": "Image column",
    "Columns.label": "Label column",
    "Columns.split": "Split column",
    "levels": "Levels of class folders",
}
"""Labels of fields whose name is a symbol, short, or not the usual term."""
UNSET = {"size": "original", "bits": "full precision", "groups": "none"}
"""Placeholders of optional fields without a value; others have that of their spec, or `all`."""


def label(name: str, owner: str = "") -> str:
    """A field's name as a label; `owner` is the class it belongs to."""
    return NAMES.get(f"{owner}.{name}") or NAMES.get(name) or name.replace("_", " ").capitalize()


def plain(name: str, field: FieldInfo, key: str, owner: str = "") -> Any:
    """One widget for one plain field; `owner` is the class it belongs to."""
    annotation, default = field.annotation, None if field.is_required() or empty(field) else field.default
    look: dict[str, Any] = {
        "label": label(name, owner),
        "key": key,
        "help": field.description,
        "persist_state": "session",
    }
    optional = type(None) in get_args(annotation)
    kind = (
        next((inner for inner in get_args(annotation) if inner is not type(None)), annotation)
        if optional
        else annotation
    )
    if get_origin(kind) is Literal:
        options = [*([None] if optional else []), *get_args(kind)]
        held = begin(key, default if default in options else options[0], options)
        unset = UNSET.get(name, "none")
        return st.selectbox(
            options=options,
            index=options.index(held),
            format_func=lambda one: unset if one is None else str(one),
            placeholder=unset,
            **look,
        )
    if get_origin(kind) is dict:  # keyword arguments, on one line
        return st.text_input(value=begin(key, ""), placeholder="width=24, depth=2", **look)
    held = begin(key, default)
    if kind is bool:
        return st.toggle(value=held, **look)
    if kind in (int, float):
        return _number(name, field, kind is int, default, optional, look)
    if field.examples:
        return _suggested(field, held, look)
    text = st.text_input(value=held or "", max_chars=int(limit(field, "max_length") or 0) or None, **look)
    return text or (None if optional else text)


def _suggested(field: FieldInfo, held: str | None, look: dict[str, Any]) -> str | None:
    """A text for which the spec has examples, with what it states about each; any other may be typed."""
    extra = field.json_schema_extra
    about: Any = extra.get("about", {}) if isinstance(extra, dict) else {}
    options = list(dict.fromkeys([*(field.examples or ()), *([held] if held else [])]))
    index = options.index(held) if held else None
    text = st.selectbox(options=options, index=index, accept_new_options=True, placeholder="Choose or type", **look)
    if text in about:
        st.caption(about[text])
    return text


def _number(
    name: str, field: FieldInfo, whole: bool, default: float | None, optional: bool, look: dict[str, Any]
) -> float | None:
    cast = int if whole else float
    low, high = (
        next((cast(bound) for name in names if (bound := limit(field, name)) is not None), None)
        for names in (("ge", "gt"), ("le", "lt"))
    )
    if whole:
        step: float = 1
    elif isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("log") and default:
        step = 10.0 ** math.floor(math.log10(default))
    else:
        step = 0.05 if high is not None and high <= 1 else 0.5 if (default or 1) >= 1 else (default or 1) / 2
    if st.session_state[look["key"]] is not None:
        st.session_state[look["key"]] = cast(st.session_state[look["key"]])
    draw: Any = st.number_input  # its overloads separate int from float; here the field decides
    return draw(
        min_value=low,
        max_value=high,
        step=cast(step),
        format="%d" if whole else "%g",
        value=st.session_state[look["key"]],
        placeholder=(empty(field) or UNSET.get(name) or "all") if optional else None,
        **look,
    )


def empty(field: FieldInfo) -> str | None:
    """Meaning of a field without a value, if its spec defines one: such a field starts empty."""
    extra = field.json_schema_extra
    return str(extra["empty"]) if isinstance(extra, dict) and extra.get("empty") else None


def limit(field: FieldInfo, name: str) -> float | None:
    """One of a field's rules, such as `ge` or `max_length`; None without it."""
    return next((getattr(rule, name) for rule in field.metadata if getattr(rule, name, None) is not None), None)


def begin(key: str, value: Any, allowed: Collection[Any] | None = None) -> Any:
    """Set a widget's initial value through the session, the only place from which `fill` can change it later.

    Returns the value to draw the widget with. The browser falls back to that one, and reports it as the user's own
    choice, where a click ends the script before the browser has drawn the value of the session.
    """
    if key not in st.session_state or (allowed is not None and st.session_state[key] not in allowed):
        st.session_state[key] = value
    return st.session_state[key]
