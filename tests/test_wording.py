"""Texts for people: names in them are no links and no tags, and their words are the field's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from conftest import Show, texts

from pages.ui.charts import plotting
from pages.ui.widgets import formatting


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a [x](http://e.example/y).", "a [x\\](`http://e.example/y`)."),
        ("www.e.example and a@b.co", "`www.e.example` and `a@b.co`"),
        (":red[x] :material/home: 10:30", "\\:red[x] \\:material/home: 10:30"),
        ("<b>x</b> $y$ ~~z~~", "\\<b>x\\</b> \\$y\\$ \\~\\~z\\~\\~"),
        ("`data.x_y` and SMALLALIGN_ROOTS [a, b]", "`data.x_y` and SMALLALIGN_ROOTS [a, b]"),
        ("**bold** 2 * 3 a_b", "\\*\\*bold\\*\\* 2 * 3 a_b"),
        ("one ` alone [x](y)", "one ' alone [x\\](y)"),
        ("\x1b[31m\u202e", "\\x1b[31m\\u202e"),
        ("# head", "\\# head"),
    ],
)
def test_markdown_shows_a_name_and_does_nothing_else(given: str, shown: str) -> None:
    assert formatting.plain(given) == shown


def test_a_link_in_an_address_is_no_link_on_the_page(shown: Show) -> None:
    said = texts(shown("data", data="[free](http://evil.example/x)"))
    assert "evil.example" in said
    assert "](http" not in said


def test_names_in_charts_are_no_links() -> None:
    evil = '<a href="http://evil.example">x</a>'
    figure = go.Figure(go.Bar(x=[evil, "b"], y=[1, 2], name=evil, text=[f"{evil}<br><b>ours</b>", "c"]))
    figure.update_layout(xaxis={"ticktext": [evil], "tickvals": [0]}, annotations=[{"text": evil}])
    plotting.without_markup(figure)
    assert "<a" not in str(figure.to_plotly_json())
    assert figure.data[0].text[0].endswith("<br><b>ours</b>")
    assert list(figure.data[0].y) == [1, 2]


# --- the field's words ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
WATCHED = [ROOT / "pages"]
"""Folders whose texts for people are checked: every label, help, caption, message and chart title in them."""
PERSONS = "who|whom|whose|whoever|nobody|somebody|anybody|everybody|pupils?|visitors?"
ACTS = "asks?|asked|tells?|told|says?|said|speaks?|knows?|judges?|judged|judging|looks? at|looked at|wants?"
DIALECT = "anew|worth|desk|jail|shelf|wall|lesson|raced?|surer|surest|taught|answers|answered"
BRITISH = r"distils?|colours?|coloured|grey|centre|labelled|normalised|optimisers?|cancelling"
BANNED = re.compile(rf"(?<![\w./-])(?:{PERSONS}|{ACTS}|{DIALECT}|{BRITISH})(?![\w/=-]|\.\w)", re.IGNORECASE)
"""Programs and data are not persons, and have the names that PyTorch, timm and the papers give them."""
ALLOWED = {
    "onnxruntime-web {version}, from npm.": "a license is quoted word by word",
}
"""Beginnings of texts in which such a word is right, and why."""
TEXTS = {
    "alt",
    "help",
    "label",
    "name",
    "placeholder",
    "text",
    "title",
    "x_label",
    "xaxis_title",
    "y_label",
    "yaxis_title",
}
"""Arguments and keys whose value is for people even where it is one lower-case word."""


def _flat(node: ast.expr) -> str:
    """A literal as text; what is filled in is `{}`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_flat(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each literal that is no docstring and reads like a label or a sentence."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    shown = {id(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg in TEXTS}
    for node in nodes:
        if isinstance(node, ast.Dict):
            shown |= {
                id(value) for key, value in zip(node.keys, node.values, strict=True) if key and _flat(key) in TEXTS
            }
    for node in nodes:
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in skipped:
            text = _flat(node)
            if id(node) in shown or text[:1].isupper() or re.search(r"\w[,.:;]? \w", text):
                yield node.lineno, text


def texts_of_module(source: str) -> Iterator[tuple[int, str]]:
    """The same of a browser module, without its comments."""
    source = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), source, flags=re.DOTALL)
    for number, line in enumerate(source.splitlines(), 1):
        line = re.sub(r"(?<!:)//.*", "", line)
        for found in re.finditer(r"'([^']*)'|\"([^\"]*)\"|`([^`]*)`", line):
            text = re.sub(r"\$\{[^}]*\}", "{}", next(filter(None, found.groups()), ""))
            if text[:1].isupper() or re.search(r"\w[,.:;]? \w", text):
                yield number, text


class _Page(HTMLParser):
    """The texts and the spoken labels of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag
        self.found += [(self.getpos()[0], value or "") for name, value in attrs if name in ("aria-label", "title")]

    def handle_data(self, data: str) -> None:
        if self.within not in ("style", "script") and data.strip():
            self.found.append((self.getpos()[0], data))

    def handle_endtag(self, tag: str) -> None:
        if tag == self.within:
            self.within = ""


def texts_of_page(source: str) -> Iterator[tuple[int, str]]:
    page = _Page()
    page.feed(source)
    yield from page.found


READERS = {".py": texts_of_python, ".mjs": texts_of_module, ".html": texts_of_page}


@pytest.mark.parametrize("folder", WATCHED, ids=lambda folder: folder.name)
def test_texts_use_the_words_of_the_field(folder: Path) -> None:
    wrong = []
    for file in sorted(folder.rglob("*")):
        if (read := READERS.get(file.suffix)) and "node_modules" not in file.parts:
            for line, text in read(file.read_text(encoding="utf-8")):
                bad = BANNED.findall(re.sub(r"`[^`]*`", "", text))
                if bad and not text.startswith(tuple(ALLOWED)):
                    wrong.append(f"{file.relative_to(ROOT)}:{line}: {', '.join(bad)}: {' '.join(text.split())[:100]}")
    assert not wrong, "\n".join(wrong)


def test_what_is_allowed_is_still_there() -> None:
    files = [file.read_text(encoding="utf-8") for folder in WATCHED for file in folder.rglob("*.py")]
    there = [text for file in files for _, text in texts_of_python(file)]
    assert [start for start in ALLOWED if not any(text.startswith(start) for text in there)] == []


@pytest.mark.parametrize(
    ("read", "source", "found"),
    [
        (texts_of_python, 'st.caption(f"The model {name} says it")', ["The model {} says it"]),
        (texts_of_python, 'call("views")["said"]', []),
        (texts_of_python, 'axis = {"title": "said"}', ["said"]),
        (texts_of_python, 'def f():\n    """Who asks."""', []),
        (texts_of_module, "show('It says no'); // who", ["It says no"]),
        (texts_of_page, '<style>.a{}</style><p title="who">says</p>', ["who", "says"]),
    ],
)
def test_the_readers_find_texts_and_nothing_else(read: Any, source: str, found: list[str]) -> None:
    assert [text for _, text in read(source)] == found
