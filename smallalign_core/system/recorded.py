"""The source of a class or function as a file of its own, so that a run keeps what it was trained with.

From Python a network is given as a class, perhaps of a notebook. Its source is written down with the imports,
constants, and other classes and functions of its module that it uses.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any

PLAIN = (int, float, complex, str, bytes, bool, type(None))


def source_of(made: Callable[..., Any]) -> str:
    """A Python file that defines a class or function as it is here.

    Raises:
        ValueError: its source is not known, or it uses what cannot be written down; the message says which.
    """
    imports, parts = dict[str, None](), dict[str, str]()
    _collect(made, imports, parts)
    name = made.__name__
    head = f"# The source of {name} as it was given to smallalign_core.fit.\nfrom __future__ import annotations\n"
    text = "\n".join([head, *imports, "", *parts.values()])
    compile(text, name, "exec")
    return text


def placeholder(name: str, reason: str, token: str) -> str:
    """A Python file in place of one that cannot be written: whoever imports it gets the reason."""
    words = (
        f"{name} was given to smallalign_core.fit, and its source could not be recorded ({reason}): "
        "the run cannot be resumed, loaded or exported in another process"
    )
    return f"# {token}\nraise RuntimeError({words!r})\n"


def _collect(made: Any, imports: dict[str, None], parts: dict[str, str]) -> None:
    name = getattr(made, "__name__", str(made))
    if name in parts:
        return
    if not isinstance(made, type | types.FunctionType) or not name.isidentifier():
        raise ValueError(f"{name} is neither a class nor a function with a name")
    try:
        text = textwrap.dedent(inspect.getsource(made))
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {name} is not known: {error}") from None
    tree = ast.parse(text)
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {"super", "__class__"}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known = vars(sys.modules[made.__module__]) if made.__module__ in sys.modules else {}
    parts[name] = ""  # it may use itself
    for used in dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)):
        if used in bound or used == name:
            continue
        if used in known:
            _use(used, known[used], made.__module__, imports, parts)
        elif not hasattr(builtins, used):
            raise ValueError(f"{name} uses {used}, which is a local variable of where it was defined")
    del parts[name]  # what it uses comes before it
    parts[name] = text


def _use(used: str, value: Any, module: str, imports: dict[str, None], parts: dict[str, str]) -> None:
    """Write down what a name stands for."""
    if isinstance(value, types.ModuleType):
        imports[f"import {value.__name__} as {used}"] = None
        return
    if isinstance(value, PLAIN) or (isinstance(value, tuple | list) and all(isinstance(one, PLAIN) for one in value)):
        parts.setdefault(used, f"{used} = {value!r}\n")
        return
    home = getattr(value, "__module__", None)
    if home == module and getattr(value, "__name__", None) == used:
        _collect(value, imports, parts)
        return
    name = getattr(value, "__name__", "")
    if home and home != module and getattr(sys.modules.get(home), name, None) is value:
        imports[f"from {home} import {name} as {used}"] = None
        return
    raise ValueError(f"it uses {used}, an object of type {type(value).__name__} that cannot be written down")
