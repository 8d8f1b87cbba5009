"""The report: complete, self-contained, and safe whatever a class or a file is called."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from smallalign_core import data
from smallalign_core.analysis import compare, html_report, pareto, robustness
from smallalign_core.analysis.html_report import Report, ReportData, ReportRun, _svg
from smallalign_core.data import ImageSet
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, Store
from smallalign_core.system import resumable, typed

BAD = '<script>alert("x")</script>'


class Read(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def made(taught: tuple[Store, Run, Run]) -> tuple[Report, data.Splits]:
    store, teacher, student = taught
    splits = data.load(student.data, store.data_cache)
    with pytest.MonkeyPatch.context() as short:
        for name, seconds in (("WINDOW", 0.02), ("WARM", (0.06, 0.2)), ("MEASURED", 0.2)):
            short.setattr(pareto, name, seconds)
        return resumable.finish(html_report.gather([teacher, student], splits, "val", store)), splits


@pytest.mark.slow
def test_it_holds_everything(made: tuple[Report, data.Splits], tmp_path: Path) -> None:
    found, splits = made
    files = html_report.save(found, splits, tmp_path / "r.html")
    page, pair = Read(files[0].read_text()), found.pairs[0]

    assert json.loads(files[1].read_text())["pairs"][0]["mcnemar_p"] == pair.mcnemar_p
    for figure in (
        f"{pair.agreement:.2%}",
        f"{pair.student.nll:.4f}",
        f"{pair.student_calibration.scores.brier:.4f}",
        f"{pair.teacher_calibration.temperature:.3f}",
        f"{found.frontier.candidates[1].p50_ms:.3f}",
        f"{found.robustness.runs[0].mean.value:.2%}",
        found.data.fingerprint,
        "not ImageNet-C",
        "exact McNemar test",
        "1 thread",
        *(f"{title}: {pair.counts[kind]:,}" for kind, title in html_report._page.TITLES.items()),
        *robustness.CORRUPTIONS,
    ):
        assert figure in page.text, figure
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == sum(min(24, count) for count in pair.counts.values()) > 0
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 2 + 2 + 1 + 13 + 2
    assert all(chart["aria-label"] for chart in charts)


def test_it_needs_nothing_from_elsewhere(made: tuple[Report, data.Splits]) -> None:
    text = html_report.page(made[0], made[1].val.images)
    page = Read(text)

    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:image/png").startswith("data:image/png"), (tag, attributes)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] or "" for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert len(text) < 3_000_000


def test_it_stays_small_with_photographs_and_many_classes() -> None:
    draw = np.random.default_rng(0)
    count, classes = 600, tuple(f"class {number}" for number in range(40))
    images = ImageSet(
        draw.integers(0, 256, (count, 3, 224, 224), np.uint8),
        draw.integers(0, 40, count),
        np.arange(count, dtype=np.uint64),
        classes,
    )
    logits = [draw.normal(size=(count, 40)).astype(np.float32) for _ in range(2)]
    pair = compare.of_logits(*logits, images)
    runs = [ReportRun(i, i, i, 1, 1, "0" * 64) for i in "ab"]
    found = Report(1, "", "test", 1, ReportData("x", "f", count, classes), runs, [pair], None, None)

    page = html_report.page(found, images.images)

    assert len(Read(page).text) > 1000
    assert 200_000 < len(page) < 3_000_000


def test_markup_in_names_stays_text(made: tuple[Report, data.Splits]) -> None:
    found, splits = made
    held = typed.encode(found)
    for name in splits.classes:
        held = held.replace(f'"{name}"', json.dumps(f"{name}{BAD}"))
    evil = json.loads(held)
    evil["data"]["source"] = BAD
    for run in (*evil["runs"], *evil["frontier"]["candidates"]):
        run["name"] = f"{BAD}'\" onmouseover=alert(1) x"
    for run in evil["runs"]:
        run["title"] = run["name"]
    text = html_report.page(typed.decode(Report, evil, BadInput, "wrong", "do"), splits.val.images)
    page = Read(text)

    assert "<script" not in text
    assert page.text.count('alert("x")') > 20, "what was meant as text can be read"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("name", ["r.txt", "r", "nowhere/r.html"])
def test_a_place_that_cannot_be_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.html"):
        html_report.target(tmp_path / name)


def test_no_digit_of_the_drawing_is_off_the_page(made: tuple[Report, data.Splits]) -> None:
    page = Read(html_report.page(made[0], made[1].val.images))
    inside = None
    for tag, attributes in page.tags:
        if tag == "svg":
            inside = [float(number) for number in (attributes["viewbox"] or "").split()]
        elif inside and tag in ("text", "circle", "rect"):
            x = float(attributes.get("x") or attributes.get("cx") or 0)
            y = float(attributes.get("y") or attributes.get("cy") or 0)
            assert -1 <= x <= inside[2] + 1, attributes
            assert -1 <= y <= inside[3] + 1, attributes
        elif inside and tag == "polyline":
            for x, y in re.findall(r"([-\d.]+),([-\d.]+)", attributes["points"] or ""):
                assert -1 <= float(x) <= inside[2] + 1, attributes
                assert -1 <= float(y) <= inside[3] + 1, attributes


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.62, 1.0), (0.0, 5.15), (0.9973, 1.0), (0.0, 1234.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = _svg.ticks(low, high)

    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert np.allclose(np.diff(found), np.diff(found)[0])


def test_a_value_is_drawn_where_it_stands() -> None:
    axes = _svg.Axes(400, 300, (1, 100), (0, 1), log=True)

    assert axes.at(1, 0) == (_svg.LEFT, 300 - _svg.BOTTOM)
    assert axes.at(100, 1) == (400 - _svg.RIGHT, _svg.TOP)
    assert axes.at(10, 0.5)[0] == pytest.approx((_svg.LEFT + 400 - _svg.RIGHT) / 2)


@pytest.mark.slow
def test_runs_of_more_than_two_each_have_their_section(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    splits = data.load(student.data, store.data_cache)
    runs = [teacher, student, store.run("digits-student")]
    found = resumable.finish(html_report.gather(runs, splits, "val", store, pareto.Limits(kb=60, ms=5, accuracy=0.5)))

    page = Read(html_report.page(found, splits.val.images))

    assert page.text.count("against") >= 2
    assert "passes all limits" in page.text or "pass all limits" in page.text
    assert found.frontier is not None
    assert found.frontier.limits == pareto.Limits(kb=60, ms=5, accuracy=0.5)


def test_a_report_takes_no_others_json(tmp_path: Path) -> None:
    """The JSON is written beside the HTML, unasked: whatever lies there and is no earlier report's stays."""
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(BadInput, match="would overwrite"):
        html_report.target(tmp_path / "results.html")
    (tmp_path / "results.html").write_text("an earlier report")
    assert html_report.target(tmp_path / "results.html") == tmp_path / "results.html"
