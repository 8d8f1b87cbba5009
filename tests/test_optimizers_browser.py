"""The Optimizers page in a real browser: a study by clicks, its forest plot, and the plot as three files that open."""

from __future__ import annotations

import csv
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smallalign_core.runs.store import Store
from smallalign_core.studies import lifecycle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STUDENT = '{"network":{"kind":"mlp","width":8,"depth":1},"epochs":3,"batch":50,"data":{"images":100}}'
PATIENCE = 240_000
"""Milliseconds that a study may take on a busy machine."""


def save(page: Any, kind: str, folder: Path) -> Path:
    label = {"csv": "Save this plot's numbers as CSV"}.get(kind, f"Save this plot as {kind.upper()}")
    with page.expect_download() as event:
        page.get_by_label(label).first.click()
    assert event.value.suggested_filename == f"smallalign-optimizers-forest.{kind}"
    event.value.save_as(folder / f"forest.{kind}")
    return folder / f"forest.{kind}"


def test_a_study_by_clicks_and_its_forest_as_files(browser: Any, site: str, place: Store, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(PATIENCE)
    page.goto(f'{site}/optimizers?student={STUDENT}&optimizers=["sgd"]&hands-off=[]&seeds=2&trials=1')
    page.get_by_text("Estimated time").wait_for()

    page.get_by_role("button", name="Start study").click()
    page.get_by_role("button", name="All studies").wait_for()
    page.reload()  # it goes on without the page, and is found again
    (study,) = lifecycle.listing(place)
    until = time.monotonic() + PATIENCE / 1000
    while not study.report(place).complete and time.monotonic() < until:
        page.wait_for_timeout(200)
    page.reload()  # between two of its runs nothing is in training either
    page.get_by_role("button", name="Delete").wait_for()
    page.locator(".st-key-plot-optimizers-forest .main-svg").first.wait_for()
    page.locator(".st-key-plot-optimizers-forest").get_by_text("better →").wait_for()

    report = study.report(place)
    found = report.arm("sgd", 1).differences["accuracy"]
    assert report.complete
    assert page.get_by_text(report.verdict(1)).first.is_visible()

    (row,) = csv.DictReader(save(page, "csv", tmp_path).open(newline=""))
    assert (row["optimizer"], row["seeds"], row["verdict"]) == ("SGD", "2", found.words())
    assert float(row["difference"]) == found.mean
    assert [float(row["seed_0"]), float(row["seed_1"])] == list(found.by_seed)

    picture = ElementTree.fromstring(save(page, "svg", tmp_path).read_text())
    texts = " ".join("".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert "SGD" in texts
    assert "better" in texts
    for node in picture.iter():  # nothing in it points out of the file
        for value in [*node.attrib.values(), node.text or ""]:
            assert "http" not in value
            assert "url(" not in value or "url(#" in value or "url(&quot;#" in value or 'url("data:' in value
    size = [round(float(picture.attrib[side])) for side in ("width", "height")]

    image = Image.open(save(page, "png", tmp_path)).convert("RGB")
    assert list(image.size) == [2 * side for side in size]
    colours = image.getcolors(1_000_000)
    assert colours is not None
    assert max(colours)[1] == (255, 255, 255)  # the page's colour, in light
    assert len(colours) > 20
    assert 0.005 < 1 - max(colours)[0] / (image.width * image.height) < 0.6

    dark = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
    dark.goto(page.url, timeout=PATIENCE)
    dark.locator(".st-key-plot-optimizers-forest .main-svg").first.wait_for(timeout=PATIENCE)
    dark.wait_for_timeout(1000)
    assert dark.evaluate("document.documentElement.scrollWidth") <= 400
    night = Image.open(save(dark, "png", tmp_path)).convert("RGB").getcolors(1_000_000)
    assert night is not None
    assert max(night)[1] == (16, 22, 28)
