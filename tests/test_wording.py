"""Names of files, classes and addresses are text on a page: no links, no directives, no tags."""

from __future__ import annotations

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
