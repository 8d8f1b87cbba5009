"""The reference pages, made from the code: `python docs/generate.py FOLDER`, and a hook of `mkdocs build`.

Commands come from typer, specs from pydantic, limits from their dataclass, the Python API from docstrings. The pages
are made when the site is built and are not committed, so they cannot fall behind the code.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PACKAGES = (
    "smallalign_core",
    "smallalign_core.data",
    "smallalign_core.augment",
    "smallalign_core.networks",
    "smallalign_core.training.losses",
    "smallalign_core.training.teacher",
    "smallalign_core.runs.store",
    "smallalign_core.metrics",
    "smallalign_core.export",
    "smallalign_core.analysis.compare",
    "smallalign_core.analysis.data_quality",
    "smallalign_core.studies.scaling_law",
)
"""The packages whose public names are documented, in the order of the path of the data."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Docstrings are no Markdown: `confusion[true][predicted]` in one is an index, and no broken link."""
    logging.getLogger("mkdocs.plugins.mkdocs_autorefs").setLevel(logging.ERROR)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site (a hook that mkdocs calls)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """The Markdown of every generated page, by its path below `docs/`."""
    return {
        "reference/commands.md": commands(),
        "reference/specs.md": specs(),
        "reference/networks.md": networks(),
        "reference/limits.md": limits(),
        "reference/python.md": python(),
    }


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command that is not hidden, with its arguments and options."""
    text = [
        "# Commands",
        "`smallalign COMMAND`, or `python -m smallalign_core COMMAND`. Exit codes: 0 done, 1 the work failed, 2 bad "
        "input. With `--json`, one JSON object goes to stdout and progress to stderr.",
    ]
    for name, command in listed(program()):
        text += [f"## {name}", _plain(command.help or "")]
        if usage := [_metavar(one) for one in command.params if one.param_type_name == "argument"]:
            text.append(f"`smallalign {name} {' '.join(usage)} [OPTIONS]`")
        rows = [
            (_flags(one), _plain(getattr(one, "help", "") or ""), _default(one.default))
            for one in command.params
            if one.name != "help" and not getattr(one, "hidden", False)
        ]
        text.append(_table(("argument or option", "description", "default"), rows))
    return "\n\n".join(text) + "\n"


def program() -> Any:
    """The command line as click sees it."""
    import typer.main

    from smallalign_core.cli._main import app

    return typer.main.get_command(app)


def listed(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, command) of every command that is not hidden, below groups too."""
    for name, command in group.commands.items():
        if not command.hidden and hasattr(command, "commands"):
            yield from listed(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def _flags(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{_metavar(one)}`"
    return ", ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts])


def _metavar(one: Any) -> str:
    return str(one.metavar or one.name).upper() + ("..." if one.nargs == -1 else "")


def _default(value: Any) -> str:
    return "" if value in (None, False, ()) or callable(value) or type(value).__name__ == "Sentinel" else f"`{value}`"


# --- specs ------------------------------------------------------------------------------------------------------------


def specs() -> str:
    """Every spec and every member of every family, with fields, types, defaults, ranges and descriptions."""
    text = [
        "# Specs",
        "A spec decides the weights of a run and nothing else; its digest is the run's id. `kind` selects the member "
        "of a family: `{kind: cnn, width: 8}`, or `cnn` alone for its defaults. A field with a default may be left "
        "out.",
    ]
    for title, classes in families().items():
        text.append(f"## {title}")
        for one in classes:
            kind = one.model_fields.get("kind")
            text += [f"### {kind.default if kind else one.__name__}", _plain(inspect.getdoc(one) or "").strip()]
            text.append(_table(("field", "type", "default", "range", "description"), list(_fields(one))))
    return "\n\n".join(text) + "\n"


def families() -> dict[str, tuple[Any, ...]]:
    """Every spec class, by the heading that it stands under."""
    from smallalign_core import spec
    from smallalign_core.search import _spec as search
    from smallalign_core.spec import parts
    from smallalign_core.studies.optimizers import _spec as optimizers
    from smallalign_core.studies.scaling import _spec as scaling

    return {
        "Run": (spec.RunSpec,),
        "Data": (parts.DataSpec, parts.Columns, parts.PythonReader),
        "Networks": (*parts.members(parts.Network), parts.Pruned),
        "Losses": parts.members(parts.Loss),
        "Class balance": parts.members(parts.Balance),
        "Augmentation transforms": parts.members(parts.Augment),
        "Optimizers": parts.members(parts.Optimizer),
        "Learning-rate schedules": parts.members(parts.Schedule),
        "Imported models": (spec.Import,),
        "Optimizer study": (optimizers.OptimizerStudySpec,),
        "Scaling study": (scaling.ScalingStudySpec, scaling.Target),
        "Budget search": (search.SearchSpec, search.Budget),
    }


def _fields(one: Any) -> Iterator[tuple[str, str, str, str, str]]:
    schema = one.model_json_schema()
    for name, field in one.model_fields.items():
        if name == "kind":
            continue
        found = schema["properties"].get(field.alias or name, {})
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        yield f"`{name}`", _type(found), default, _range(found), _plain(field.description or "")


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and value and hasattr(value[0], "model_dump"):
        return ", ".join(map(_shown, value))
    if hasattr(value, "model_dump"):
        return f"`{getattr(value, 'kind', type(value).__name__)}`"
    return "" if value is None else f"`{value}`"


def _type(schema: dict[str, Any]) -> str:
    """`integer`, `fp32 or bf16`, `list of Flip, ...`: a JSON Schema in a few words."""
    if reference := schema.get("$ref"):
        return str(reference).rsplit("/", 1)[1]
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        kinds = list(dict.fromkeys(_type(one) for one in several))
        return " or ".join(kinds) if len(kinds) < 5 else "one of the family"
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _range(schema: dict[str, Any]) -> str:
    for one in (schema, *schema.get("anyOf", ())):
        low, above = one.get("minimum"), one.get("exclusiveMinimum")
        high, below = one.get("maximum"), one.get("exclusiveMaximum")
        found = [
            *([f"≥ {low:g}"] if low is not None else []),
            *([f"> {above:g}"] if above is not None else []),
            *([f"≤ {high:g}"] if high is not None else []),
            *([f"< {below:g}"] if below is not None else []),
        ]
        if found:
            return ", ".join(found)
    return ""


def networks() -> str:
    """The catalog of pretrained networks."""
    from smallalign_core.spec.catalog import PRETRAINED

    columns = ("name in timm", "parameters", "MACs", "features", "input", "license of the weights")
    text = [
        "# Pretrained networks",
        "Small networks of timm with ImageNet weights, to start a student from, and larger ones to fine-tune as its "
        "teacher. `smallalign networks` lists them with the place of their weights: the cache of `huggingface_hub`, a "
        "download, or a file of yours (`weights: FILE` instead of `pretrained: true`). Any other network of timm and "
        "torchvision works as well.",
        "`network: {kind: timm, name: mobilenetv3_small_100.lamb_in1k, pretrained: true}`",
        "Without `size`, a network that starts from pretrained weights sees images of their size, whatever the size of "
        "yours; `size: 96` costs a fifth of 224. Parameters and MACs are those without the head, which adds "
        "`features` + 1 parameters for each class. Licenses are those that timm states; that of ImageNet itself allows "
        "research only, and what this means for weights is disputed.",
    ]
    for role in ("student", "teacher"):
        rows = [
            (f"`{one.name}`", f"{one.params:,}", f"{one.macs:,}", f"{one.features:,}", f"{one.size}", one.license)
            for one in PRETRAINED
            if one.role == role
        ]
        text += [f"## {role.capitalize()}s", _table(columns, rows)]
    return "\n\n".join(text) + "\n"


# --- limits and Python ------------------------------------------------------------------------------------------------


def limits() -> str:
    """The limits of a dashboard that several people use, with the variables that set them."""
    from smallalign_core.system.limits import Limits

    rows = [(f"`{name}`", f"{value:,}", _plain(what)) for name, value, what in Limits().said()]
    return "\n\n".join(
        [
            "# Limits",
            "Each limit is set by the environment variable of its name and shown by `smallalign doctor`. They hold for "
            "the dashboard; the command line of the machine's owner has none of them. Other variables: "
            "[Configure](../how-to/configure.md).",
            _table(("variable", "default", "limit"), rows),
        ]
    )


def python() -> str:
    """Directives for mkdocstrings: the public names of the public packages."""
    text = [
        "# Python API",
        "`import smallalign_core as sa` costs next to nothing; torch is imported when something first needs it. The "
        "names of the first section are available as `sa.NAME`.",
    ]
    for package in PACKAGES:
        module = importlib.import_module(package)
        text += [f"## {package}", _plain(inspect.getdoc(module) or "").split("\n\n")[0]]
        text += [f"::: {package}.{name}" for name in names(package)]
    return "\n\n".join(text) + "\n"


def names(package: str) -> list[str]:
    """The public names of a package: its `__all__`, or the classes and functions that it or its modules define."""
    module = importlib.import_module(package)
    if found := getattr(module, "__all__", None):
        return list(found)
    return [
        name
        for name, one in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(one) or inspect.isfunction(one))
        and one.__module__.startswith(package)
        and one.__doc__
    ]


def _plain(text: str) -> str:
    return text.replace("\b", "").replace("|", "\\|")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "No fields."
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    for path, text in pages().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
