"""Reading a user's YAML or JSON file into plain values, safely and before validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from smallalign_core.errors import BadSpec

MOST_VALUES = 10_000
"""Max. number of values in a file with all aliases expanded; the longest spec has a few hundred."""

LONGEST_NUMBER = 100


class _Loader(yaml.SafeLoader):
    """YAML's plain values. Dates stay strings; documents that expand enormously are rejected before construction."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # a date is a name here, and 2001-99-99 is none
        first: [(tag, regexp) for tag, regexp in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        """The document's root, of bounded size."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _measured(node, {})
        return node


def _text(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else str(loader.construct_object(node))


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def _measured(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of values below a node, with aliases expanded.

    Raises:
        ComposerError: it contains itself, or more than MOST_VALUES.
    """
    if known.get(node) == 0:
        raise _marked("a value that contains itself", node)
    if node not in known:
        known[node] = 0
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
                raise _marked(f"a number of {len(node.value):,} characters", node)
            known[node] = 1
            return 1
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + sum(_measured(one, known) for one in inner)
        if known[node] > MOST_VALUES:
            raise _marked(f"more than {MOST_VALUES:,} values", node)
    return known[node]


def _marked(found: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return _Refused(problem=found, problem_mark=node.start_mark)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not allowed in a spec."""


def value_of(text: str) -> Any:
    """The plain values in a YAML or JSON text.

    Raises:
        YAMLError: it is not YAML, or a value in it cannot be read, contains itself, or is unreasonably large.
        RecursionError: it is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: it makes plain values only
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # `!!int x`, `!!timestamp ~`
        raise yaml.YAMLError(str(error)) from None


def loaded(path: Path, what: str) -> Any:
    """The plain values in a YAML or JSON file.

    Raises:
        BadSpec: it is missing, not a regular file, too large, not text, or not YAML.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, a pipe, an endless device
            raise BadSpec(
                f"the {what} cannot be read: it is not a regular file", given=path, do="name a YAML or JSON file"
            )
        if path.stat().st_size > 1_000_000:
            raise BadSpec(f"the {what} is larger than 1 MB", given=path, do="name a YAML or JSON file")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError: a zero byte in the name, or bytes that are not UTF-8
        reason = (error.strerror or "cannot be read").lower() if isinstance(error, OSError) else "is not text"
        raise BadSpec(f"the {what} cannot be read: {reason}", given=path, do="name a YAML or JSON file") from None
    try:
        return value_of(text)
    except RecursionError:
        raise BadSpec(f"the {what} is nested too deeply", given=path, do="use at most four levels") from None
    except _Refused as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadSpec(f"the {what} has {error.problem}{where}", given=path, do="write the value out") from None
    except yaml.YAMLError as error:
        where = (
            f" in line {error.problem_mark.line + 1}"
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
            else ""
        )
        wrong = f"the {what} is not valid YAML{where}"
        raise BadSpec(wrong, given=path, do="check indentation and quotes") from None
