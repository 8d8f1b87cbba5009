"""The downloads in a real browser: the demo and the plain page, from a server that sends no special headers."""

from __future__ import annotations

import json
import re
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import axe
import chromium
import numpy as np
import processes
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pages.ui.browser import demo_zip
from pages.ui.browser._npm import PACKAGES
from smallalign_core import export
from smallalign_core.data import Splits
from smallalign_core.runs.store import Store

pytestmark = [pytest.mark.browser]
FOUND = chromium.executable()
if FOUND is None or not PACKAGES.installed():
    pytest.skip("no Chromium, or the browser parts are not installed", allow_module_level=True)
MINUTE = 60_000
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = chromium.launched(playwright, FOUND, *CAMERA)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The downloads of the zoo's student, unpacked: `demo/` and the zip's files."""
    to = tmp_path_factory.mktemp("downloads")
    store = Store(to / "models")
    run = store.run("digits-student")
    report = export.bundle(run, store)
    place = export.bundle_folder(run, store)
    (to / "demo.zip").write_bytes(demo_zip((place / "model.onnx").read_bytes(), report, "digits-student fp32"))
    for file in (to / "demo.zip", place / "model.zip"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(to)
    (to / "node_modules").symlink_to(PACKAGES.folder / "node_modules")
    return to


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """`python -m http.server` in that folder: no isolation, so one thread."""
    port = chromium.free_port()
    address = f"http://127.0.0.1:{port}"
    with processes.started(processes.python("-m", "http.server", port, "--bind", "127.0.0.1"), cwd=folder):
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A page that may ask only this site, and may not write errors."""
    opened = browser.new_page(viewport={"width": 1000, "height": 800})
    outside: list[str] = []
    opened.on(
        "request",
        lambda request: None if request.url.startswith((site, "data:", "blob:")) else outside.append(request.url),
    )
    said: list[str] = []
    opened.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    opened.close()
    assert outside == []
    assert [line for line in said if "favicon" not in line and "404" not in line] == []


def answers(page: Page) -> list[tuple[str, str]]:
    """The three rows of the pad: class and share."""
    rows = page.locator(".bars li").all()
    return [(row.locator(".class").inner_text(), row.locator(".share").inner_text()) for row in rows]


def digit(to: Path, digits: Splits, number: int = 7) -> tuple[Path, np.ndarray]:  # type: ignore[type-arg]
    """A test image as a picture of the pad's size, and its pixels as the file takes them."""
    image = digits.test.images[number, 0]
    Image.fromarray(image.repeat(35, axis=0).repeat(35, axis=1)).save(to / "digit.png")
    return to / "digit.png", image[None, :, :, None]


def test_the_demo_answers_to_drawings_pictures_and_the_camera(
    page: Page, site: str, folder: Path, tmp_path: Path, digits: Splits
) -> None:
    page.goto(f"{site}/demo/")
    expect(page.locator("h1")).to_have_text("digits-student fp32")
    assert page.evaluate("crossOriginIsolated") is False
    box = page.locator("canvas.paper").bounding_box()
    assert box is not None
    x, top = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.2
    page.mouse.move(x, top)
    page.mouse.down()
    page.mouse.move(x, top + box["height"] * 0.6, steps=12)
    page.mouse.up()
    expect(page.locator(".ms")).to_have_text(re.compile(r"\d+(\.\d)? ms"), timeout=MINUTE)
    assert all(re.search(r"\d%", share) for _, share in answers(page))

    # A picture of a test image, one square a pixel: the pad gives the model exactly that image.
    picture, pixels = digit(tmp_path, digits)
    page.get_by_label("Center and scale").uncheck()
    page.locator("input[type=file]").set_input_files(picture)
    page.get_by_label("Invert").uncheck()
    model = export.OnnxClassifier((folder / "demo" / "model.onnx").read_bytes())
    (wanted,) = model.session.run(["probabilities"], {"images": pixels})
    order = np.argsort(-wanted[0])[:3]
    expect(page.locator(".bars .class").first).to_have_text(str(order[0]), timeout=MINUTE)
    page.wait_for_timeout(400)
    for (name, share), place in zip(answers(page), order, strict=True):
        assert name == str(place)
        if share[0] not in "<>":
            assert abs(float(share.split()[0]) / 100 - wanted[0][place]) < 2e-3

    page.get_by_role("button", name="Clear").click()
    assert [name for name, _ in answers(page)] == ["–"] * 3
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("button", name="Stop camera")).to_be_visible(timeout=MINUTE)
    expect(page.locator(".bars .class").first).not_to_have_text("–", timeout=MINUTE)
    page.get_by_role("button", name="Stop camera").click()
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_visible()
    assert axe.grave(page) == []


def test_the_demo_grays_out_what_is_not_accepted(page: Page, site: str, folder: Path, digits: Splits) -> None:
    store = Store(folder / "models")
    run, how = store.run("digits-student"), export.FileOptions(coverage=0.9)
    report = export.bundle(run, store, options=how)
    content = (export.bundle_folder(run, store) / report["file"]).read_bytes()
    (folder / "careful").mkdir()
    (folder / "careful.zip").write_bytes(demo_zip(content, report, "careful"))
    with zipfile.ZipFile(folder / "careful.zip") as archive:
        archive.extractall(folder / "careful")
    (accepted,) = export.OnnxClassifier(content).outputs_of(digits.test, ("accepted",))
    assert 0 < accepted.sum() < len(accepted)

    page.goto(f"{site}/careful/demo/")
    page.get_by_label("Center and scale").uncheck()
    words = page.locator(".rejection")
    expect(words).to_be_hidden()
    for wanted in (False, True):
        picture, _ = digit(folder, digits, int(np.flatnonzero(accepted == wanted)[0]))
        page.locator("input[type=file]").set_input_files(picture)
        page.get_by_label("Invert").uncheck()
        expect(page.locator(".bars .class").first).not_to_have_text("–", timeout=MINUTE)
        expect(words).to_be_visible(visible=not wanted, timeout=MINUTE)
        expect(page.locator(".bars.rejected")).to_have_count(0 if wanted else 1)
        if not wanted:
            assert axe.grave(page) == []
    page.get_by_role("button", name="Clear").click()
    expect(words).to_be_hidden()


def test_the_demo_says_why_there_is_no_camera(page: Page, site: str) -> None:
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotFoundError'))"
    )
    page.goto(f"{site}/demo/")
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("alert")).to_contain_text("no camera found", timeout=MINUTE)


def test_the_plain_page_answers_as_python_does(
    page: Page, site: str, folder: Path, tmp_path: Path, digits: Splits
) -> None:
    picture, _ = digit(tmp_path, digits)
    said = processes.run(processes.python("classify.py", picture), cwd=folder, check=True).stdout.splitlines()
    page.goto(f"{site}/index.html")
    page.wait_for_function("() => document.querySelector('input').onchange !== null", timeout=MINUTE)
    page.locator("input").set_input_files(picture)
    expect(page.locator("li")).to_have_count(3, timeout=MINUTE)
    for line, wanted in zip(page.locator("li").all_inner_texts(), said, strict=True):
        name, share = line.split(": ")
        assert name == wanted.split(": ")[0]
        assert abs(float(share[:-1]) - float(wanted.split(": ")[1][:-1])) < 0.02
    assert json.loads((folder / "labels.json").read_text())[0] == "0"
