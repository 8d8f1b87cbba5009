"""What the library and the command line say is written in the field's words: programs and data are not persons."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).parent.parent / "smallalign_core"
BANNED = re.compile(
    r"\b(who|whom|whose|asks?|asked|tells?|told|said|says?|speaks?|knows?|wants?|wanted|judges?|judged|judging|anew"
    r"|nobody|somebody|desk|jail|visitors?|pupils?|lessons?|verbs?|worth|mend|mended|foretells?|surest|surer)\b",
    re.IGNORECASE,
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string with a space in it that a user may read: all but docstrings and other code's text.

    Docstrings count where they are shown: those of commands (their help) and of the parts of a spec (forms' help).
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shown = path.parent.name in {"cli", "spec"}
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for at, one in enumerate(node.body):
                if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                    first = at == 0 and not isinstance(node, ast.Module) and not node.name.startswith("_")
                    if not (shown and first):
                        docstrings.add(one.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in docstrings and " " in str(node.value).strip():
            yield node.lineno, str(node.value)


def found(text: str) -> list[str]:
    """The banned words in a text; options, names of files, and code in backticks are not words."""
    bare = re.sub(r"`[^`]*`|--[\w-]+|[\w-]+\.log", "", text)
    return [match.group() for match in BANNED.finditer(bare)]


def test_a_banned_word_is_found_and_a_name_in_backticks_is_not() -> None:
    assert found("the teacher was asked nothing") == ["asked"]
    assert found("leave `asked` out, give --told, or see desk.log") == []


def test_no_text_of_the_library_makes_a_person_of_a_program() -> None:
    wrong = [
        f"{path.relative_to(CORE.parent)}:{line}: {', '.join(words)}: {' '.join(text.split())}"
        for path in sorted(CORE.rglob("*.py"))
        for line, text in prose(path)
        if (words := found(text))
    ]
    assert not wrong, "\n" + "\n".join(wrong)
