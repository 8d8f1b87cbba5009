"""Class names of imported models: from text, YAML, JSON or pbtxt files, or from the file's metadata."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallalign_core.errors import BadInput
from smallalign_core.spec import loaded

KEYS = ("names", "classes", "labels", "id2label", "idx_to_class", "class_to_idx", "label2id", "class_indices")
METADATA = ("smallalign", *KEYS)  # where files keep their classes: ours, then others' habits
ENDINGS = (".txt", ".names", ".pbtxt", ".yaml", ".yml", ".json", ".labels")
LONGEST = 1_000_000


def in_metadata(metadata: Mapping[str, str]) -> list[str]:
    """The class names in a model file's metadata, in output order.

    Raises:
        BadInput: it carries none.
    """
    for key in METADATA:
        if found := of_value(_parsed(metadata.get(key, ""))):
            return found
    raise BadInput("the file has no class names", do="give them in output order: --classes a,b,c")


def _parsed(text: str) -> Any:
    """JSON, or a Python literal as Ultralytics writes; None for anything else."""
    for parse in (json.loads, ast.literal_eval):
        if len(text) <= LONGEST:
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
    return None


def in_file(file: Path) -> list[str]:
    """The class names in a file: one a line (`.txt`, `.names`), `item {…}` (`.pbtxt`), or a list or mapping in JSON
    or YAML.

    Raises:
        BadInput: it cannot be read, or holds no names.
    """
    do = "give one name per line, or a JSON or YAML list"
    try:
        if not file.is_file() or file.stat().st_size > LONGEST:
            raise ValueError
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix in (".yaml", ".yml", ".json"):
            found = of_value(loaded(file, "file of class names"))
        else:
            found = _items(text) if file.suffix == ".pbtxt" else _lines(text)
    except (OSError, ValueError):
        found = []
    if not found:
        raise BadInput("the class names cannot be read", given=file, do=do)
    return found


def of_value(held: Any) -> list[str]:
    """Names from plain values: a list, index to name, name to index, or any of these under a usual key."""
    if isinstance(held, Mapping):
        held = {str(key): value for key, value in held.items()}
        for key in KEYS:
            if isinstance(held.get(key), Mapping | Sequence) and (found := of_value(held[key])):
                return found
        if held and all(key.isdecimal() for key in held):
            held = [held[key] for key in sorted(held, key=int)]
        elif held and sorted(map(repr, held.values())) == sorted(map(repr, range(len(held)))):
            held = sorted(held, key=lambda name: held[name])
    if isinstance(held, Sequence) and not isinstance(held, str):
        # ImageNet's class_index.json gives [synset, name] of each.
        names = [one[-1] if isinstance(one, Sequence) and one and not isinstance(one, str) else one for one in held]
        if all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
            return [str(name) for name in names]
    return []


def _lines(text: str) -> list[str]:
    """One name a line; numbers before all of them (`0 cat`, `1: dog`) are taken off if they count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d{1,7})\s*[\s:,;.]\s*(\S.*)", line) for line in lines]
    numbers = [int(one[1]) for one in numbered if one]
    if len(numbers) == len(lines) and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        return [one[2] for one in numbered if one]
    return lines


def _items(text: str) -> list[str]:
    """TensorFlow's label map: `item { id: 1 name: 'cat' }`."""
    found: dict[int, str] = {}
    for item in re.findall(r"\{([^{}]*)\}", text):
        number = re.search(r"\bid\s*:\s*(\d{1,7})\b", item)
        name = re.search(r"\b(?:display_)?name\s*:\s*(?:\"([^\"]*)\"|'([^']*)')", item)
        if number and name:
            found[int(number[1])] = name[1] or name[2] or ""
    return [found[number] for number in sorted(found)]
