"""Comparing in a real browser: click a cell, draw, take a photo, make a report that stands alone; axe-core in both
themes on every tab."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import axe
import chromium
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser]
FOUND = chromium.executable()
MINUTE = 60_000
TABS = ("Overview", "Images", "Calibration", "Robustness", "Your image", "Size and speed", "Report")
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

if FOUND is None:
    if os.environ.get("CI"):
        pytest.fail("no Chromium on this machine: .ci/run installs it", pytrace=False)
    warnings.warn("NO BROWSER TEST RAN: no Chromium was found. Install one, or set CHROMIUM to its path.", stacklevel=1)
    pytest.skip("no Chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("compare") / "models"
    environment = {"SMALLALIGN_STORE": str(models), "OMP_NUM_THREADS": "1"}
    with chromium.dashboard(models.parent / "server.log", environment=environment) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = chromium.launched(playwright, FOUND, *CAMERA)
        yield opened
        opened.close()


def opened(page: Page, site: str, tab: str) -> None:
    page.set_default_timeout(2 * MINUTE)  # the machine may be busy
    page.goto(f"{site}/compare?teacher=digits-teacher&student=digits-student&tab={tab.replace(' ', '+')}")
    expect(page.get_by_text("Agreement").first).to_be_visible(timeout=2 * MINUTE)
    expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true", timeout=MINUTE)


def test_from_a_matrix_to_its_images_and_from_a_drawing_to_two_maps(site: str, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, permissions=["camera"])
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if "Content Security" in said.text else None)

    opened(page, site, "Images")
    cell = page.locator(".st-key-confusion-student .annotation-text", has_text=re.compile("^2$")).first
    expect(cell).to_be_visible(timeout=MINUTE)
    box = cell.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url(re.compile(r"cell=student-\d-\d"), timeout=MINUTE)
    expect(page.get_by_text("All images: 2 of 359")).to_be_visible(timeout=MINUTE)
    page.reload()
    expect(page.get_by_text("All images: 2 of 359")).to_be_visible(timeout=MINUTE)
    page.get_by_role("tab", name="Images").press("ArrowRight")
    expect(page.get_by_role("tab", name="Calibration")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Teacher temperature")).to_be_visible(timeout=MINUTE)
    assert "tab=Calibration" in page.url

    opened(page, site, "Your image")
    page.get_by_text("Draw", exact=True).first.click()
    paper = page.locator("canvas.paper")
    expect(paper).to_be_visible(timeout=MINUTE)
    place = paper.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + 0.4 * place["width"], place["y"] + 0.2 * place["height"])
    page.mouse.down()
    for step in range(20):
        across, down = 0.4 + 0.01 * step, 0.2 + 0.03 * step
        page.mouse.move(place["x"] + across * place["width"], place["y"] + down * place["height"])
    page.mouse.up()
    expect(page.get_by_text("Grad-CAM (Selvaraju").nth(1)).to_be_visible(timeout=MINUTE)
    page.get_by_text("Occlusion", exact=True).first.click()
    expect(page.get_by_text("Occlusion (Zeiler").nth(1)).to_be_visible(timeout=MINUTE)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.get_by_text("Occlusion (Zeiler").first).to_be_hidden(timeout=MINUTE)
    page.get_by_text("Camera", exact=True).first.click()
    video = page.locator("video")
    expect(video).to_be_visible(timeout=MINUTE)
    until = time.monotonic() + 60
    while video.evaluate("video => video.readyState") < 2:  # before its first picture the button does nothing
        assert time.monotonic() < until
        page.wait_for_timeout(200)
    page.get_by_role("button", name="Take Photo").click()
    expect(page.get_by_text("(Zeiler").or_(page.get_by_text("(Selvaraju")).first).to_be_visible(timeout=MINUTE)
    assert refused == []
    context.close()


def test_the_report_stands_alone(site: str, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    opened(page, site, "Report")
    page.get_by_role("button", name="Create report").click()
    for kind in ("HTML", "JSON"):
        with page.expect_download(timeout=2 * MINUTE) as waiting:
            page.get_by_role("button", name=f"Download {kind}").click(timeout=2 * MINUTE)
        waiting.value.save_as(tmp_path / f"report.{kind.lower()}")
    page.close()
    held = json.loads((tmp_path / "report.json").read_text())
    assert held["pairs"][0]["images"] == 359

    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 400, "height": 800})  # type: ignore[arg-type]
        read = context.new_page()
        told: list[str] = []
        read.on("console", lambda said, told=told: told.append(said.text))
        read.on(
            "request",
            lambda request, told=told: None if request.url.startswith(("file:", "data:")) else told.append(request.url),
        )
        read.goto(f"file://{tmp_path / 'report.html'}")
        expect(read.get_by_text("Inherited errors")).to_be_visible()
        assert told == [], "nothing is refused and nothing is asked of anybody"
        assert read.evaluate("document.documentElement.scrollWidth") <= 400
        assert axe.grave(read) == []
        dark = read.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 28)"
        assert dark == (scheme == "dark")
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_grave_on_any_tab(site: str, browser: Browser, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 1400})  # type: ignore[arg-type]
    page = context.new_page()
    opened(page, site, TABS[0])
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true", timeout=MINUTE)
        page.wait_for_timeout(500)
        expect(page.locator("[data-testid=stSpinner], [data-testid=stProgress]")).to_have_count(0, timeout=2 * MINUTE)
        page.wait_for_timeout(1000)
        assert axe.grave(page) == [], tab
        page.set_viewport_size({"width": 400, "height": 900})
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, f"{tab} scrolls sideways on a telephone"
        page.set_viewport_size({"width": 1280, "height": 1400})
    context.close()


def test_axe_would_find_something_grave(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<html lang=en><title>x</title><main><h1>x</h1><img src=x><p style='color:#ddd'>faint</p></main>")
    found = " ".join(axe.grave(page))
    assert "image-alt" in found
    assert "color-contrast" in found
    page.close()
