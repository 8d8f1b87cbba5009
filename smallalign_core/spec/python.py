"""A user's own Python in a spec: a file with a callable, or an entry point of an installed package.

The file's digest is part of the digest of the spec, its path is not. Nothing here reads or runs a file; that is done by
`smallalign_core.system.usercode`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from smallalign_core.spec._part import Part

FILLED_IN: dict[str, Any] = {"filled_in": True}  # for fields that forms do not show
KIND = "python"
IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"
MOST_ARGUMENTS = 10_000
"""Characters of `with` as JSON."""


class Arguments(dict[str, Any]):
    """Keyword arguments of plain values. Specs are hashable, so these are too; nothing changes them."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def _mapping(given: object) -> object:
    """`width=24, act=relu` as a mapping: forms and the command line have one line for it."""
    if not isinstance(given, str):
        return {} if given is None else given
    try:
        if given.strip().startswith("{"):
            return yaml.safe_load(given)
        call = ast.parse(f"f({given.strip()})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(one.arg for one in call.keywords):
            raise ValueError
        return {str(one.arg): _value(one.value) for one in call.keywords}
    except (yaml.YAMLError, ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"`with` has arguments such as `width=24, depth=2` (given: {given!r:.80})") from None


def _value(node: ast.expr) -> object:
    """A literal; a bare word is text, or one of YAML's true, false and null."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)


def on_one_line(arguments: Mapping[str, Any]) -> str:
    """Keyword arguments as forms show them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _checked(given: dict[str, Any]) -> Arguments:
    for name in given:
        if not re.match(IDENTIFIER, name):
            raise ValueError(f"`with` has names of keyword arguments (given: {name!r:.80})")
    if len(json.dumps(given)) > MOST_ARGUMENTS:
        raise ValueError(f"`with` takes at most {MOST_ARGUMENTS:,} characters")
    return Arguments(given)


With = Annotated[
    dict[str, JsonValue],
    Field(default_factory=Arguments, description="Keyword arguments, as in `width=24, depth=2`."),
    BeforeValidator(_mapping),
    AfterValidator(_checked),
]


class Code(Part):
    """Common fields of the user's own Python.

    Attributes:
        group: of entry points, in the metadata of installed packages.
    """

    group: ClassVar[str]
    file: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="A Python file, relative to the spec's folder. Its digest is part of the run's id.",
        ),
    ] = None
    call: Annotated[
        str, Field(pattern=IDENTIFIER, max_length=100, description="Name of the function or class in the file.")
    ] = "make"
    entry: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=100,
            description="Instead of a file: name of an entry point of an installed package.",
        ),
    ] = None
    # A field named `with`, as in YAML: Python's grammar has no other way to write the annotation.
    __annotations__["with"] = With
    sha256: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{64}$", description="Digest of the file; filled in.", json_schema_extra=FILLED_IN),
    ] = None
    package: Annotated[
        str | None,
        Field(
            max_length=200,
            description="Package and version of the entry point; filled in.",
            json_schema_extra=FILLED_IN,
        ),
    ] = None

    @property
    def arguments(self) -> Arguments:
        """The keyword arguments in `with`."""
        found = getattr(self, "with")
        return found if isinstance(found, Arguments) else Arguments(found)

    @property
    def shown(self) -> str:
        """`make(width=24) of net.py`, for titles and messages."""
        words = f"{self.entry or self.call}({on_one_line(self.arguments)})"
        return f"{words} of {self.file_name}" if self.file else words

    @property
    def file_name(self) -> str:
        """The name of the file, also where `file` is the copy beside a run."""
        return copy_name(self.file or "", self.sha256 or "")[17:]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.entry is None):
            raise ValueError("kind python needs a `file`, or the `entry` of an installed package: give one of them")
        return self


def copy_name(file: str, sha256: str) -> str:
    """The name of a file's copy beside a run: the beginning of its digest, and its own name."""
    return f"{sha256[:16]:16}-{Path(file).name.removeprefix(f'{sha256[:16]}-')}"


Kind = TypeVar("Kind", bound=Part)


def each_code(part: Part) -> list[Code]:
    """The parts of a spec that are a user's own Python, in the order of its fields."""
    if isinstance(part, Code):
        return [part]
    found: list[Code] = []
    for name in type(part).model_fields:
        value = getattr(part, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Part):
                found += each_code(one)
    return found


def with_code(part: Kind, change: Callable[[Code], Code]) -> Kind:
    """A spec with another value of each part that is a user's own Python; `part` itself if it has none."""
    if isinstance(part, Code):
        return change(part)  # type: ignore[return-value]
    update: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Part):
            changed: Any = with_code(value, change)
        elif isinstance(value, tuple):
            changed = tuple(with_code(one, change) if isinstance(one, Part) else one for one in value)
        else:
            continue
        if changed != value:
            update[name] = changed
    return part.model_copy(update=update) if update else part


def unfilled(part: Kind) -> Kind:
    """A spec as it is written: without what is filled in of a user's own Python."""
    return with_code(part, lambda one: one.model_copy(update={"sha256": None, "package": None}))


def beside(written: Any, folder: Path) -> Any:
    """Plain values of a spec, in which the paths of every part of kind python are relative to the spec's folder.

    So are `weights` of networks of a library, where they are there: they were once relative to the current folder only.
    """
    if isinstance(written, list):
        return [beside(one, folder) for one in written]
    if not isinstance(written, Mapping):
        return written
    found = dict(written)
    if isinstance(reader := found.get("reader"), str | Mapping):
        found["reader"] = {"kind": KIND, **({"file": reader} if isinstance(reader, str) else reader)}
    found = {name: beside(one, folder) for name, one in found.items()}
    if found.get("kind") == KIND:
        for name in ("file", "weights"):
            if isinstance(found.get(name), str) and found[name]:
                found[name] = str(folder / Path(found[name]).expanduser())
    elif isinstance(given := found.get("weights"), str) and given and (folder / given).is_file():
        found["weights"] = str(folder / given)
    return found
