"""The forest plot that all pages share, and the colors that the report shares with the dashboard."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from pages.ui.charts import forest, plotting, theme
from pages.ui.charts.forest import Line, Panel
from smallalign_core.analysis.html_report import _page

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ["#0072B2", "#C24E00", "#00805A", "#8899AA"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[go.Figure]:
    """The figures that are drawn, the last one last."""
    kept: list[go.Figure] = []
    monkeypatch.setattr(plotting, "plot", lambda figure, **_: kept.append(figure))
    monkeypatch.setattr(theme, "palette", lambda: COLOURS)
    monkeypatch.setattr(theme, "ink", lambda: "#000000")
    return kept


def marks(figure: go.Figure) -> list[tuple[float, str]]:
    """(x, symbol) of every mark but the single values."""
    found: list[Any] = [trace for trace in figure.data if trace.mode == "markers" and trace.marker.symbol]
    return [(trace.x[0], trace.marker.symbol) for trace in found]


@pytest.mark.parametrize(
    ("line", "shapes"),
    [
        (Line("a", "#000000", 1.0, 0.5, 1.5), ["diamond"]),
        (Line("a", "#000000", 1.0), ["diamond-open"]),
        (Line("a", "#000000", 1.0, 0.5, 1.5, extrapolated=True), ["diamond-open"]),
        (Line("a", "#000000", 1.0, -9.0, 9.0), ["triangle-left", "triangle-right", "diamond"]),
        (Line("a", "#000000", -70.0, -75.0, -65.0), ["triangle-left"]),
        (Line("a", "#000000"), []),
    ],
)
def test_a_value_beyond_the_axis_is_an_arrow_at_its_edge(line: Line, shapes: list[str], drawn: list[go.Figure]) -> None:
    forest.forest([Panel([line], 5.0)], alt="-", key="-")
    assert [symbol for _, symbol in marks(drawn[0])] == shapes
    assert all(abs(x) <= 5 for x, _ in marks(drawn[0]))
    low, high = drawn[0].layout.xaxis.range
    assert low < -5, "arrows are not cut off"
    assert high > 5


def test_better_is_right_where_less_is_better(drawn: list[go.Figure]) -> None:
    forest.forest([Panel([Line("a", "#000000", -70.0, -75.0, -65.0)], 5.0, reverse=True)], alt="-", key="-")
    assert marks(drawn[0]) == [(-5.0, "triangle-right")]
    left, right = drawn[0].layout.xaxis.range
    assert left > right
    assert [note.text for note in drawn[0].layout.annotations] == ["a", "← worse", "better →"]


def test_factors_are_on_a_logarithmic_axis_with_zero_and_infinity_at_its_ends(drawn: list[go.Figure]) -> None:
    line = Line("a", "#000000", 2.0, 0.0, math.inf, truth=1.0)
    forest.forest([Panel([line], 10.0, log=True)], alt="-", key="-", sides=None)
    assert marks(drawn[0]) == [
        (-1.0, "triangle-left"),
        (1.0, "triangle-right"),
        (pytest.approx(math.log10(2)), "diamond"),
        (0.0, "circle-open"),
    ]
    assert "×1" in drawn[0].layout.xaxis.ticktext


def test_equal_single_values_do_not_hide_each_other_and_far_ones_are_left_out(drawn: list[go.Figure]) -> None:
    line = Line("a", "#000000", 1.0, 0.5, 1.5, points=[1.0, 1.0, 80.0], names=["0", "1", "2"])
    forest.forest([Panel([line], 5.0)], alt="-", key="-")
    points = drawn[0].data[0]
    assert (list(points.x), list(points.text)) == ([1.0, 1.0], ["0", "1"])
    assert len(set(points.y)) == 2


def test_panels_have_scales_of_their_own_with_no_effect_at_the_same_place(drawn: list[go.Figure]) -> None:
    panels = [Panel([Line("a", "#000000", 1.0)], 5.0), Panel([Line("b", "#000000", 1.0)], 50.0, reverse=True)]
    forest.forest(panels, alt="-", key="-")
    first, second = drawn[0].layout.xaxis.range, drawn[0].layout.xaxis2.range
    assert sum(first) == sum(second) == 0
    assert (first[1], second[1]) == (5 * forest.MARGIN, -50 * forest.MARGIN)


def test_lines_about_the_same_thing_stand_nearer(drawn: list[go.Figure]) -> None:
    panel = Panel([Line("a", "#000000", 1.0), Line("b", "#000000", 1.0, near=True), Line("c", "#000000", 1.0)], 5.0)
    assert panel.heights() == pytest.approx([0.0, forest.NEAR, 1 + forest.NEAR])


def test_many_lines_have_their_names_beside_them(drawn: list[go.Figure]) -> None:
    forest.forest([Panel([Line(name, "#000000", 0.1) for name in "abc"], 5.0, beside=True)], alt="-", key="-")
    assert list(drawn[0].layout.yaxis.ticktext) == ["a", "b", "c"]
    assert [note.text for note in drawn[0].layout.annotations] == list(forest.SIDES)
    low, high = drawn[0].layout.yaxis.range
    assert high < 0 < 2 < low, "the first on top, all of them inside"


def test_the_report_has_the_colors_of_the_dashboard() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["theme"]
    blocks = re.findall(r"(?:^|\n) *:root \{(.*?)\}", _page.STYLE, re.DOTALL)
    assert len(blocks) == 3, "light, dark, print"
    for block, name in zip(blocks, ("light", "dark", "light"), strict=True):
        colours, of = dict(re.findall(r"--(\w+): (#\w{6})", block)), config[name]
        assert colours["paper"] == of["backgroundColor"]
        assert colours["ink"] == of["textColor"]
        assert colours["rule"] == of["borderColor"]
        assert colours["panel"] == of["secondaryBackgroundColor"]
        assert colours["miss"] == colours["c0"] == of["chartCategoricalColors"][1], "as the teacher on Compare"
        assert colours["c2"] == of["chartCategoricalColors"][2], "better"
        series = {colour for key, colour in colours.items() if re.fullmatch(r"c\d", key)}
        assert len(series) == 8
        assert series < set(of["chartCategoricalColors"])
